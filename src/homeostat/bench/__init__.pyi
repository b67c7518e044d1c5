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
from .entrants import Entrant as Entrant, Named as Named
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
from .looped import Looped as Looped
from .page import write_page as write_page
from .protocols import (
    BatchOfOne as BatchOfOne,
    Continual as Continual,
    CorrelatedStream as CorrelatedStream,
    Episodic as Episodic,
    MixedStream as MixedStream,
    PhaseReset as PhaseReset,
    Protocol as Protocol,
)
from .refitted import Refitted as Refitted
from .results import Measured as Measured, Result as Result, Results as Results
from .runner import Benched as Benched, bench as bench
from .running import Outcome as Outcome, run_claim as run_claim
from .scoring import Row as Row, Table as Table
from .selection import Sensitivity as Sensitivity
from .streams import drawn as drawn
from .suite import (
    Axis as Axis,
    Setting as Setting,
    Stream as Stream,
    Suite as Suite,
    Sweep as Sweep,
    open_suite as open_suite,
    shipped as shipped,
)
from .summary import Summary as Summary, summarize as summarize
