"""Repeated: show each batch to an adapting method several times, and let the last answer count.

Published code has a number of steps a batch: the method predicts for the batch and learns from it, `steps` times, and
what it predicted at the last of them is its answer. As methods answer before they learn, that answer is from after
`steps` - 1 updates, and `steps` = 1 is the method itself. Whatever the method counts, it counts once a step.

Inside `PeriodicReset(..., every=1)` this is episodic adaptation: each batch is met by a fresh network, that has `steps`
tries. It costs `steps` times as much, and it brings nearer whatever the method fails by: a network that drifts, drifts
`steps` times as far. Default 5, as in the paper that compares tries.

>>> import torch
>>> net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)).eval()
>>> tent, twice, x = Tent()(net), Repeated(Tent(), steps=2)(net), torch.randn(16, 2)
>>> bool((tent.observe(x) == twice.observe(x)).all()), bool((tent.observe(x) == twice.model(x)).all())
(False, False)

Reference: Wang et al., Tent: Fully test-time adaptation by entropy minimization, ICLR 2021; Zhao et al., On pitfalls of
test-time adaptation, ICML 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from homeostat.adapt.tent import Tent
from homeostat.adapt.wrapped import Wrapped, Wrapper
from homeostat.core.data import Batch
from homeostat.core.method import Card, Remedy
from homeostat.core.run import Run
from homeostat.core.spec import Count
from homeostat.core.tree import Tree
from homeostat.core.world import World


class RepeatedOnline(Wrapped):
    """An adapting network that sees each batch several times.

    Args:
        model: the adapting network.
        steps: how often.
    """

    def __init__(self, model: nn.Module, steps: int = 5):
        self.steps = steps
        super().__init__(model)

    def adapt(self, batch: Batch) -> Tree:
        for _ in range(self.steps - 1):
            self.model.observe(batch)
        return self.model.observe(batch)


@dataclass(frozen=True)
class Repeated(Wrapper):
    """Another remedy, that sees each batch `steps` times.

    Attributes:
        remedy: a method that adapts while it serves.
        steps: how often; the last answer counts.
    """

    remedy: Remedy = Tent()
    steps: Count = 5

    card: ClassVar[Card] = Card(
        paper="Zhao et al., On Pitfalls of Test-Time Adaptation, ICML 2023",
        handles=frozenset({"covariate"}),
        passes=15.0,
    )

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return RepeatedOnline(self.remedy.apply(model, world, kit, run), self.steps)
