"""PeriodicReset: start any adapting method afresh every n batches.

Methods that adapt without labels drift, and sooner or later most of them collapse. Setting weights, optimiser and
memory back to their start after every n updates loses at most n batches of progress and bounds the damage. This plain
rule ("RDumb") beats many continual methods on long streams, so run it beside them.

It counts calls of `observe`; the n-th is answered and learnt from, and then the reset is made. `every=1` is "episodic"
adaptation: nothing carries over from one batch to the next.

Default n = 1000, as in the paper for batches of 64 on ImageNet-C; choose n from how many batches the method gains for.

>>> import torch
>>> from homeostat.adapt.tent import Tent
>>> net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)).eval()
>>> tent, x = PeriodicReset(Tent(), every=2)(net), torch.randn(16, 2)
>>> first, second, third = (tent.observe(x) for _ in range(3))
>>> bool((first == second).all()), bool((first == third).all())
(False, True)

Reference: Press, Schneider, Kümmerer, Bethge, RDumb: A simple approach that questions our progress in continual
test-time adaptation, NeurIPS 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from homeostat.adapt.tent import Tent
from homeostat.adapt.wrapped import Wrapped, Wrapper
from homeostat.core.data import Batch
from homeostat.core.method import Card, Remedy
from homeostat.core.run import Run
from homeostat.core.spec import Count
from homeostat.core.tree import Tree
from homeostat.core.world import World


class PeriodicallyReset(Wrapped):
    """An adapting network that is set back to its start every so many batches.

    Args:
        model: the adapting network.
        every: batches between resets.
    """

    def __init__(self, model: nn.Module, every: int = 1000):
        self.every = every
        super().__init__(model)

    def begin(self) -> None:
        self.carry["count"] = torch.tensor(0)

    def adapt(self, batch: Batch) -> Tree:
        out = self.model.observe(batch)
        self.carry["count"] += 1
        if int(self.carry["count"]) >= self.every:
            self.model.reset()
            self.begin()
        return out


@dataclass(frozen=True)
class PeriodicReset(Wrapper):
    """Another remedy, reset every `every` batches.

    Attributes:
        remedy: a method that adapts while it serves.
        every: batches between resets.
    """

    remedy: Remedy = Tent()
    every: Count = 1000

    card: ClassVar[Card] = Card(
        paper="Press et al., RDumb, NeurIPS 2023", handles=frozenset({"covariate"}), passes=3.0, batch_coupled=True
    )

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return PeriodicallyReset(self.remedy.apply(model, world, kit, run), self.every)
