"""How often the prediction is right.

    accuracy = (number of samples with argmax z = y) / n

The interval is Wilson's score interval; samples are taken as independent. Samples whose label is unknown are left out.

>>> import torch
>>> from torch import nn
>>> x = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0], [0.0, 1.0]])
>>> print(Accuracy()(nn.Identity(), (x, torch.tensor([0, 1, 0, 0]))))
accuracy 0.75 [0.3006, 0.9544] fraction
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from homeostat.core.method import Card
from homeostat.core.probe import Outputs, Probe
from homeostat.core.reading import Reading
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.probe.checks import labelled
from homeostat.probe.intervals import Level, wilson


@dataclass(frozen=True)
class Accuracy(Probe):
    """Share of samples whose most probable class is the label."""

    card: ClassVar[Card] = Card()
    reads: ClassVar[frozenset[str]] = frozenset({"out", "y"})

    level: Level = 0.95
    """Stated coverage of the interval."""

    def measure(self, outputs: Outputs, world: World, kit: Any, run: Run) -> Reading:
        logits, y = labelled(outputs, "Accuracy")
        right = logits.argmax(1) == y
        arrays = {
            "count": torch.bincount(y, minlength=logits.shape[1]),
            "correct": torch.bincount(y[right], minlength=logits.shape[1]),
        }
        hits, count = int(right.sum()), len(y)
        return Reading("accuracy", hits / count, wilson(hits, count, self.level), "fraction", "higher", arrays=arrays)
