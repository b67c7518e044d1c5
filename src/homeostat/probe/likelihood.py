"""How much probability the network gave to what was true.

    NLL = - mean over samples of log p(y | x),   p = softmax(z), in nats

The interval is the t interval of the mean. Log-losses are skewed: with a few hundred samples of a network that is
rarely but badly wrong it covers less than it states. A label to which the network gives no probability at all is
refused.

>>> import torch
>>> from torch import nn
>>> reading = NLL()(nn.Identity(), (torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])))
>>> round(reading.value, 4)
0.6931
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch.nn.functional import cross_entropy

from homeostat.core.errors import NonFiniteError
from homeostat.core.method import Card
from homeostat.core.probe import Outputs, Probe
from homeostat.core.reading import Reading
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.probe.checks import labelled
from homeostat.probe.intervals import Level, student


@dataclass(frozen=True)
class NLL(Probe):
    """Negative log-likelihood of the labels: the mean log-loss."""

    card: ClassVar[Card] = Card()
    reads: ClassVar[frozenset[str]] = frozenset({"out", "y"})

    level: Level = 0.95
    """Stated coverage of the interval."""

    def measure(self, outputs: Outputs, world: World, kit: Any, run: Run) -> Reading:
        logits, y = labelled(outputs, "NLL", least=2)
        each = cross_entropy(logits, y, reduction="none").double()
        if not bool(each.isfinite().all()):
            lost = int((~each.isfinite()).sum())
            raise NonFiniteError(
                f"NLL: {lost} labels have probability 0, so the loss is infinite; unmask their classes"
            )
        return Reading("nll", float(each.mean()), student(each, self.level, low=0.0), "nats", "lower")
