"""Which candidates to try: a `Choose` over those that fit, guided by what earlier trials in the journal came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from homeostat.core.errors import HomeostatError
from homeostat.core.method import Kind, Remedy
from homeostat.core.run import Run
from homeostat.core.spec import NonNegative
from homeostat.core.trace import Choose, Trace
from homeostat.core.world import World


@dataclass(frozen=True)
class ByRecord(Choose):
    """Takes the option with the best record in the trace: mean gain of its trials, drawn towards `prior`.

    An option's record is the readings named `"gain"` of entries whose subject is the option's name. Untried options
    count as `prior` with the weight of one trial, so that they come before those that failed, after those that helped.

    Attributes:
        prior: the gain that an untried option is thought to have.

    >>> ByRecord()(Trace(), ["EATA", "LAME"])
    0
    """

    prior: NonNegative = 0.01

    def choose(self, trace: Trace, options: Sequence[str], run: Run) -> int:
        def record(option: str) -> float:
            gains = [r.value for e in trace if e.subject == option for r in e.readings if r.name == "gain"]
            return (sum(gains) + self.prior) / (len(gains) + 1)

        return max(range(len(options)), key=lambda i: (record(options[i]), -i))


DRIFT: frozenset[Kind] = frozenset({"covariate", "label", "subgroup", "concept", "novel-class", "correlated"})
"""Kinds of shift that an alarm of the monitor may stand for."""


def fitting(remedies: Sequence[Remedy], world: World, kits: Sequence[bool]) -> list[int]:
    """Indices of the remedies that are for a drift and whose needs this world meets.

    A card that names no kind is for any. A remedy with a kit needs nothing more to prepare.
    """
    found = []
    for index, (remedy, ready) in enumerate(zip(remedies, kits, strict=True)):
        if remedy.card.handles and not remedy.card.handles & DRIFT:
            continue
        try:
            world.check(remedy.needs() | (frozenset() if ready else remedy.prepares()), type(remedy).__name__)
        except HomeostatError:
            continue
        found.append(index)
    return found
