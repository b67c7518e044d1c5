from .claiming import Claim as Claim, claim as claim
from .comparisons import (
    Compared as Compared,
    Ranking as Ranking,
    against as against,
    difference as difference,
    harm_bound as harm_bound,
    holm as holm,
    ranked as ranked,
)
from .results import Measured as Measured, Result as Result, Results as Results
