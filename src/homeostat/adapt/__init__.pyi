from .batchnorm_blend import BatchNormBlend as BatchNormBlend
from .cema import CEMA as CEMA
from .cema_cloud import CEMACloud as CEMACloud
from .cema_edge import CEMAEdge as CEMAEdge
from .cema_link import CEMAInProcess as CEMAInProcess, CEMALink as CEMALink, CEMAOverHTTP as CEMAOverHTTP
from .cema_messages import LinkDown as LinkDown, Message as Message, OutOfStep as OutOfStep
from .class_balance import degree_of as degree_of, estimate_prior as estimate_prior, path_prior as path_prior
from .conditional_unrolled import ConditionalUnrolled as ConditionalUnrolled, total_variation as total_variation
from .controller import RNAController as RNAController
from .cotta import CoTTA as CoTTA, CoTTAOnline as CoTTAOnline
from .cross_domain import (
    CrossDomainEnsemble as CrossDomainEnsemble,
    CrossDomains as CrossDomains,
    DomainInput as DomainInput,
    laplace_nll as laplace_nll,
)
from .deyo import DeYO as DeYO, DeYOOnline as DeYOOnline
from .drm import DRM as DRM, DomainHeads as DomainHeads, DRMOnline as DRMOnline
from .ear import EAR as EAR, EAROnline as EAROnline
from .eata import EATA as EATA, EATAOnline as EATAOnline
from .incremental_forecaster import (
    IncrementalForecaster as IncrementalForecaster,
    IncrementalOnline as IncrementalOnline,
)
from .inverse_variance import Merged as Merged, merge_paths as merge_paths
from .label_geometry import (
    Loki as Loki,
    LokiNetwork as LokiNetwork,
    NextClass as NextClass,
    label_distance as label_distance,
    loki as loki,
    loki_scores as loki_scores,
    next_class as next_class,
)
from .label_shift_adapter import (
    AdjustedForLabels as AdjustedForLabels,
    LabelShiftAdapter as LabelShiftAdapter,
    LabelShiftHead as LabelShiftHead,
    LabelShiftKit as LabelShiftKit,
    LabelShiftOnline as LabelShiftOnline,
)
from .laplacian import LAME as LAME, LAMEOnline as LAMEOnline, lame as lame
from .memo import MEMO as MEMO, MEMOOnline as MEMOOnline
from .periodic_reset import PeriodicallyReset as PeriodicallyReset, PeriodicReset as PeriodicReset
from .petal import PETAL as PETAL, PETALOnline as PETALOnline
from .prior_correction import (
    PriorCorrected as PriorCorrected,
    PriorCorrection as PriorCorrection,
    correct_prior as correct_prior,
)
from .repeated import Repeated as Repeated, RepeatedOnline as RepeatedOnline
from .rmt import RMT as RMT, RMTOnline as RMTOnline
from .rna import RNA as RNA, RNAOnline as RNAOnline, error_signal as error_signal
from .roid import ROID as ROID, ROIDOnline as ROIDOnline
from .rotta import RoTTA as RoTTA, RoTTAOnline as RoTTAOnline
from .sar import SAR as SAR, SAROnline as SAROnline
from .sliding_window import SlidingWindow as SlidingWindow, WindowedOnline as WindowedOnline
from .source import Source as Source
from .t3a import T3A as T3A, T3AOnline as T3AOnline
from .tame import TAME as TAME, TAMEOnline as TAMEOnline
from .tent import Tent as Tent, TentOnline as TentOnline
from .vida import ViDA as ViDA, ViDALayer as ViDALayer, ViDAOnline as ViDAOnline
from .visual_prompt import Prompted as Prompted, VisualDomainPrompt as VisualDomainPrompt
