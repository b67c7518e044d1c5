"""How the loop works, as a Spec."""

from __future__ import annotations

from dataclasses import dataclass

from homeostat.core.spec import Count, Fraction, Positive, Spec
from homeostat.core.trace import Choose
from homeostat.loop.monitor import Monitor
from homeostat.loop.propose import ByRecord


@dataclass(frozen=True)
class Plan(Spec):
    """How the loop works.

    Attributes:
        window: samples looked at together.
        trial: windows that are replayed for candidates when an alarm goes off.
        verify: windows over which candidates then run in shadow before a decision.
        patience: most windows of shadow running while labelled evidence is undecided.
        candidates: most candidates tried at once.
        gain: smallest gain in accuracy worth a commit.
        alpha: probability, at most, that labelled evidence commits a candidate that is no better.
        few: smallest share of the frozen network's predicted classes that a candidate may fall to.
        anchor: largest loss of accuracy on data from before that a commit may cost.
        retry: windows after which a rejected trial is repeated while the alarm's cause stays; doubles each time.
        snapshot: windows between snapshots of all state; a resumed run replays what came after the last.
        monitor: what raises the alarm.
        proposer: chooses among candidates that fit.
    """

    window: Count = 100
    trial: Count = 4
    verify: Count = 3
    patience: Count = 8
    candidates: Count = 3
    gain: Fraction = 0.02
    alpha: Positive = 0.05
    few: Fraction = 0.5
    anchor: Fraction = 0.25
    retry: Count = 20
    snapshot: Count = 50
    monitor: Monitor = Monitor()
    proposer: Choose = ByRecord()
