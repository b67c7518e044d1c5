"""Source: serve the network as it is.

The plainest rival of every method that adapts, and the one that a loop returns to. The result is a fork in evaluation
mode over the same tensors: no copy, no state, `f(x)` with the statistics that were stored in training.

>>> import torch
>>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
>>> x = torch.randn(4, 2)
>>> bool((Source()(net)(x) == net(x)).all())
True
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from homeostat.core.fork import fork
from homeostat.core.method import Card, Remedy
from homeostat.core.run import Run
from homeostat.core.world import World


@dataclass(frozen=True)
class Source(Remedy):
    """No change: the frozen model. It has no hyper-parameters."""

    card: ClassVar[Card] = Card(paper="The frozen model", handles=frozenset({"none"}))

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return fork(model)
