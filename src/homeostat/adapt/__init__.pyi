from .batchnorm_blend import BatchNormBlend as BatchNormBlend
from .controller import RNAController as RNAController
from .cotta import CoTTA as CoTTA, CoTTAOnline as CoTTAOnline
from .eata import EATA as EATA, EATAOnline as EATAOnline
from .laplacian import LAME as LAME, LAMEOnline as LAMEOnline, lame as lame
from .periodic_reset import PeriodicallyReset as PeriodicallyReset, PeriodicReset as PeriodicReset
from .petal import PETAL as PETAL, PETALOnline as PETALOnline
from .prior_correction import (
    PriorCorrected as PriorCorrected,
    PriorCorrection as PriorCorrection,
    correct_prior as correct_prior,
)
from .rmt import RMT as RMT, RMTOnline as RMTOnline
from .rna import RNA as RNA, RNAOnline as RNAOnline, error_signal as error_signal
from .rotta import RoTTA as RoTTA, RoTTAOnline as RoTTAOnline
from .source import Source as Source
from .tent import Tent as Tent, TentOnline as TentOnline
from .vida import ViDA as ViDA, ViDALayer as ViDALayer, ViDAOnline as ViDAOnline
from .visual_prompt import Prompted as Prompted, VisualDomainPrompt as VisualDomainPrompt
