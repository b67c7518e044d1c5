"""How the loop works, as a Spec."""

from __future__ import annotations

from dataclasses import dataclass

from homeostat.core.errors import SpecError
from homeostat.core.probe import Probe
from homeostat.core.spec import Count, Fraction, Index, Positive, Spec
from homeostat.core.trace import Choose
from homeostat.loop.monitor import Monitor
from homeostat.loop.propose import Bandit
from homeostat.probe.shift_kind import ShiftKind


@dataclass(frozen=True)
class Plan(Spec):
    """How the loop works.

    Attributes:
        window: samples looked at together.
        trial: windows that are replayed for candidates when an alarm goes off.
        verify: windows over which candidates then run in shadow before a decision.
        patience: most windows of shadow running while labelled evidence is undecided, besides those that labels take
            to come.
        candidates: most candidates tried at once.
        passes: most forward passes a sample that the candidates of a trial may cost together, by their cards; None for
            no limit.
        latency_ms: longest that serving a window may take, in milliseconds: a slower candidate is refused, and one that
            became slower is taken back. None for no limit. With a limit, decisions depend on the clock.
        gain: smallest gain in accuracy worth a commit.
        alpha: probability, at most, that labelled evidence commits a candidate that is no better.
        few: smallest share of the frozen network's predicted classes that a candidate may fall to.
        anchor: largest loss of accuracy on data from before that a commit may cost.
        hedge: while something else than the deployed network is served, a window that is unlike those on which it was
            verified is answered by the deployed network: the probability, at most, that a window like them is, too. So
            is one in which the estimate is a loss, or too few classes are predicted. Labels of such windows may show
            that what is served helps in them, with the same probability of an error. 0 never looks before it answers.
        retry: windows after which a rejected trial is repeated while the alarm's cause stays; doubles each time.
        wait: windows for which predictions wait for labels; later labels are counted as lost.
        memory: windows whose inputs are kept, at least `trial`, which None means; a refit on labels that come late
            wants as many more as they take.
        samples: inputs kept at each alarm for people to look at, so many from before the shift and so many from after
            it; 0 keeps none.
        snapshot: windows between snapshots of all state; a resumed run replays what came after the last.
        checkpoints: how many of the newest commits and rollbacks keep their checkpoint; None keeps all. The deployed
            network, what is served and what was served before it are always kept.
        monitor: what raises the alarm.
        diagnose: what names the kind of shift.
        proposer: chooses among candidates that fit.
    """

    window: Count = 100
    trial: Count = 4
    verify: Count = 3
    patience: Count = 8
    candidates: Count = 3
    passes: Positive | None = None
    latency_ms: Positive | None = None
    gain: Fraction = 0.02
    alpha: Positive = 0.05
    few: Fraction = 0.5
    anchor: Fraction = 0.25
    hedge: Fraction = 0.05
    retry: Count = 20
    wait: Count = 50
    memory: Count | None = None
    samples: Index = 4
    snapshot: Count = 50
    checkpoints: Count | None = 10
    monitor: Monitor = Monitor()
    diagnose: Probe = ShiftKind()
    proposer: Choose = Bandit()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kept < self.trial:
            raise SpecError(
                f"Plan.memory = {self.memory}, but the {self.trial} windows of a trial are kept; set it to {self.trial}"
            )

    @property
    def kept(self) -> int:
        """Windows whose inputs are kept."""
        return self.trial if self.memory is None else self.memory
