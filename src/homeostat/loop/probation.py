"""On probation: while the deployed network answers in place of what is served, labels may show that it helps.

A window is hedged (`hedge`) because it is unlike those on which what is served was verified, or because its signs tell
of a loss. Neither knows labels. What is served is asked all the same, so that labels of these windows are paired
evidence that it is better there than the deployed network: an e-process (`verify`) over a run of hedged windows. Once
it comes to 1 / `Plan.hedge`, what is served counts as verified on these windows: later ones are held against them, and
by how much its gain was underestimated is added to what is estimated until the next alarm. The probability that one
that is no better ever comes so far in a run of hedged windows is at most `Plan.hedge`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from homeostat.loop.ledger import Arrived
from homeostat.loop.verify import Paired


@dataclass
class Probation:
    """A run of hedged windows.

    Attributes:
        since: the first of them.
        windows: how many there are; 0 where the last window was not hedged.
        evidence: what is served paired with the frozen network, on the labels that came of these windows.
        expected: sum over these windows of the gain that was estimated from signs.
    """

    since: int = 0
    windows: int = 0
    evidence: Paired = field(default_factory=Paired)
    expected: float = 0.0

    def add(self, at: int, expected: float, arrived: Arrived) -> None:
        """Add a hedged window: its number, its estimated gain, and the labels that came with it."""
        self.since = self.since if self.windows else at
        self.windows, self.expected = self.windows + 1, self.expected + expected
        mine = arrived.step >= self.since
        self.evidence.add(arrived.served[mine].int() - arrived.frozen[mine].int())

    @property
    def excess(self) -> float:
        """By how much more than estimated what is served gained."""
        return self.evidence.mean - self.expected / self.windows if self.windows else 0.0

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Probation:
        """The probation that `dataclasses.asdict` described."""
        return cls(**{**kept, "evidence": Paired(**kept.get("evidence", {}))})
