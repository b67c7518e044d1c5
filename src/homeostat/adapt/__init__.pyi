from .batchnorm_blend import BatchNormBlend as BatchNormBlend
from .cema import CEMA as CEMA
from .cema_cloud import CEMACloud as CEMACloud
from .cema_edge import CEMAEdge as CEMAEdge
from .cema_link import CEMAInProcess as CEMAInProcess, CEMALink as CEMALink, CEMAOverHTTP as CEMAOverHTTP
from .cema_messages import LinkDown as LinkDown, Message as Message, OutOfStep as OutOfStep
from .class_balance import degree_of as degree_of, estimate_prior as estimate_prior, path_prior as path_prior
from .controller import RNAController as RNAController
from .cotta import CoTTA as CoTTA, CoTTAOnline as CoTTAOnline
from .cross_domain import (
    CrossDomainEnsemble as CrossDomainEnsemble,
    CrossDomains as CrossDomains,
    DomainInput as DomainInput,
    laplace_nll as laplace_nll,
)
from .drm import DRM as DRM, DomainHeads as DomainHeads, DRMOnline as DRMOnline
from .eata import EATA as EATA, EATAOnline as EATAOnline
from .label_shift_adapter import (
    AdjustedForLabels as AdjustedForLabels,
    LabelShiftAdapter as LabelShiftAdapter,
    LabelShiftHead as LabelShiftHead,
    LabelShiftKit as LabelShiftKit,
    LabelShiftOnline as LabelShiftOnline,
)
from .laplacian import LAME as LAME, LAMEOnline as LAMEOnline, lame as lame
from .merging import Merged as Merged, honest_scale as honest_scale, merge_paths as merge_paths
from .periodic_reset import PeriodicallyReset as PeriodicallyReset, PeriodicReset as PeriodicReset
from .prior_correction import (
    PriorCorrected as PriorCorrected,
    PriorCorrection as PriorCorrection,
    correct_prior as correct_prior,
)
from .rna import RNA as RNA, RNAOnline as RNAOnline, error_signal as error_signal
from .source import Source as Source
from .tent import Tent as Tent, TentOnline as TentOnline
