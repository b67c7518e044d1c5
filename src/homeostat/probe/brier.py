"""Squared distance between the predicted probabilities and what happened.

    Brier = mean over samples of  sum over classes of (p_k - 1[y = k])^2,   between 0 and 2

This is Brier's own definition, summed over all classes; for two classes it is twice the number that the binary
definition gives. The interval is the t interval of the mean.

>>> import torch
>>> from torch import nn
>>> Brier()(nn.Identity(), (torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))).value
0.5

Reference: Brier, Monthly Weather Review 1950.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from homeostat.core.method import Card
from homeostat.core.probe import Outputs, Probe
from homeostat.core.reading import Reading
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.probe.checks import labelled
from homeostat.probe.intervals import Level, student


@dataclass(frozen=True)
class Brier(Probe):
    """Mean squared error of the predicted probabilities."""

    card: ClassVar[Card] = Card()
    reads: ClassVar[frozenset[str]] = frozenset({"out", "y"})

    level: Level = 0.95
    """Stated coverage of the interval."""

    def measure(self, outputs: Outputs, world: World, kit: Any, run: Run) -> Reading:
        logits, y = labelled(outputs, "Brier", least=2)
        each = brier_scores(logits.softmax(1), y)
        interval = student(each, self.level, 0.0, 2.0)
        return Reading("brier", float(each.mean()), interval, "squared probability", "lower")


def brier_scores(p: Float[Tensor, "samples classes"], y: Int[Tensor, " samples"]) -> Float[Tensor, " samples"]:
    """Brier score of each sample, float64."""
    p = p.double()
    # |p - e_y|^2 = |p|^2 - 2 p_y + 1, without a matrix of indicators.
    return (p.square().sum(1) - 2 * p.gather(1, y[:, None])[:, 0] + 1).clamp(min=0)
