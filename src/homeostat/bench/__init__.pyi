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
from .episodes import EpisodicGrid as EpisodicGrid
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
    Tries as Tries,
)
from .refitted import Refitted as Refitted
from .results import Measured as Measured, Result as Result, Results as Results
from .runner import Benched as Benched, bench as bench
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
