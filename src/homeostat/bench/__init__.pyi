from .checking import Record as Record, Standing as Standing, standing as standing
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
from .evidence import (
    Evidence as Evidence,
    Judgement as Judgement,
    Statement as Statement,
    judge as judge,
    read_evidence as read_evidence,
    verdicts as verdicts,
    write_evidence as write_evidence,
)
from .finding import Claims as Claims, Found as Found, find_claims as find_claims, read_claims as read_claims
from .results import Measured as Measured, Result as Result, Results as Results
from .running import Outcome as Outcome, run_claim as run_claim
