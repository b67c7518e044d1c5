"""How sure the network is, without labels.

    confidence = mean over samples of max_k p_k,     p = softmax(z), between 1/K and 1

It is what `AverageConfidence` takes for the accuracy; here it is only a description, so neither direction is better.
The interval is the t interval of the mean.

>>> import torch
>>> from torch import nn
>>> Confidence()(nn.Identity(), torch.zeros(2, 4)).value
0.25
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from homeostat.core.method import Card
from homeostat.core.probe import Outputs, Probe
from homeostat.core.reading import Reading
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.probe.checks import logits
from homeostat.probe.intervals import Level, student


@dataclass(frozen=True)
class Confidence(Probe):
    """Mean probability of the predicted class."""

    card: ClassVar[Card] = Card(handles=frozenset({"covariate"}))

    level: Level = 0.95
    """Stated coverage of the interval."""

    def measure(self, outputs: Outputs, world: World, kit: Any, run: Run) -> Reading:
        p = logits(outputs, "Confidence", least=2).softmax(1)
        each = p.amax(1).double()
        return Reading("confidence", float(each.mean()), student(each, self.level, 1 / p.shape[1], 1.0), "fraction")
