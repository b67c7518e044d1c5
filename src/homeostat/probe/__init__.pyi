from .accuracy import Accuracy as Accuracy
from .atc import ATC as ATC, atc_threshold as atc_threshold
from .average_confidence import AverageConfidence as AverageConfidence
from .balance import ClassBalance as ClassBalance
from .bbse import BBSE as BBSE, bbse_weights as bbse_weights
from .brier import Brier as Brier, brier_scores as brier_scores
from .calibration import (
    ECE as ECE,
    expected_calibration_error as expected_calibration_error,
    mass_bins as mass_bins,
    width_bins as width_bins,
)
from .change_point import (
    Change as Change,
    ChangePoint as ChangePoint,
    change_gains as change_gains,
    find_change as find_change,
)
from .confidence import Confidence as Confidence
from .difference_of_confidences import DifferenceOfConfidences as DifferenceOfConfidences
from .domain import ClassifierTwoSample as ClassifierTwoSample, domain_scores as domain_scores, rank_test as rank_test
from .entropy import Entropy as Entropy
from .f1 import MacroF1 as MacroF1, class_f1 as class_f1
from .feature_shift import (
    FeatureShift as FeatureShift,
    gaussian_score as gaussian_score,
    knn_scores as knn_scores,
    score_difference as score_difference,
)
from .intervals import absolute_sum as absolute_sum, student as student, wilson as wilson
from .kolmogorov import KS as KS, holm as holm, ks_columns as ks_columns, ks_p_values as ks_p_values
from .likelihood import NLL as NLL
from .mmd import MMD as MMD
from .outlier_share import OutlierShare as OutlierShare, precedence_test as precedence_test
from .saerens import SaerensEM as SaerensEM, em_prior as em_prior
from .shift_kind import KINDS as KINDS, ShiftKind as ShiftKind
from .surveying import Survey as Survey, survey as survey
