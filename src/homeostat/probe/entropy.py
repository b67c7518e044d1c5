"""How undecided the network is, without labels.

    H = mean over samples of  - sum over classes of p_k log p_k,     p = softmax(z), in nats, between 0 and log K

It rises under many corruptions, and larger means further out of distribution; but a network that collapses onto one
class is very sure of itself, so read it together with `ClassBalance`. The interval is the t interval of the mean.

>>> import torch
>>> from torch import nn
>>> round(Entropy()(nn.Identity(), torch.zeros(2, 4)).value, 4)
1.3863
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from homeostat.core.method import Card
from homeostat.core.probe import Outputs, Probe
from homeostat.core.reading import Reading
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.probe.checks import logits
from homeostat.probe.intervals import Level, student


@dataclass(frozen=True)
class Entropy(Probe):
    """Mean entropy of the predicted probabilities."""

    card: ClassVar[Card] = Card(handles=frozenset({"covariate"}))

    level: Level = 0.95
    """Stated coverage of the interval."""

    def measure(self, outputs: Outputs, world: World, kit: Any, run: Run) -> Reading:
        p = logits(outputs, "Entropy", least=2).softmax(1)
        each = torch.special.entr(p).sum(1).double()
        return Reading("entropy", float(each.mean()), student(each, self.level, 0.0, math.log(p.shape[1])), "nats")
