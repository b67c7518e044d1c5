from .batchnorm_blend import BatchNormBlend as BatchNormBlend
from .conditional_unrolled import ConditionalUnrolled as ConditionalUnrolled, total_variation as total_variation
from .controller import RNAController as RNAController
from .cotta import CoTTA as CoTTA, CoTTAOnline as CoTTAOnline
from .ear import EAR as EAR, EAROnline as EAROnline
from .eata import EATA as EATA, EATAOnline as EATAOnline
from .incremental_forecaster import (
    IncrementalForecaster as IncrementalForecaster,
    IncrementalOnline as IncrementalOnline,
)
from .label_geometry import (
    Loki as Loki,
    LokiNetwork as LokiNetwork,
    NextClass as NextClass,
    label_distance as label_distance,
    loki as loki,
    loki_scores as loki_scores,
    next_class as next_class,
)
from .laplacian import LAME as LAME, LAMEOnline as LAMEOnline, lame as lame
from .periodic_reset import PeriodicallyReset as PeriodicallyReset, PeriodicReset as PeriodicReset
from .prior_correction import (
    PriorCorrected as PriorCorrected,
    PriorCorrection as PriorCorrection,
    correct_prior as correct_prior,
)
from .rna import RNA as RNA, RNAOnline as RNAOnline, error_signal as error_signal
from .source import Source as Source
from .tame import TAME as TAME, TAMEOnline as TAMEOnline
from .tent import Tent as Tent, TentOnline as TentOnline
