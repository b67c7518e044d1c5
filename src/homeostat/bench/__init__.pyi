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
from .page import write_page as write_page
from .results import Measured as Measured, Result as Result, Results as Results
from .scoring import Row as Row, Table as Table
from .selection import Sensitivity as Sensitivity
from .summary import Summary as Summary, summarize as summarize
