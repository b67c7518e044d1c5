from .checking import Record as Record, Standing as Standing, standing as standing
from .claiming import Claim as Claim, claim as claim
from .finding import Claims as Claims, Found as Found, find_claims as find_claims, read_claims as read_claims
from .recorded import (
    Evidence as Evidence,
    Judgement as Judgement,
    Statement as Statement,
    judge as judge,
    read_evidence as read_evidence,
    verdicts as verdicts,
    write_evidence as write_evidence,
)
from .running import Outcome as Outcome, run_claim as run_claim
