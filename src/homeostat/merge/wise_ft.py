"""WiSE-FT: part of the way from a network to what became of it.

A network that was fine-tuned on new data is better there, and worse on all that the new data lack. On the straight line
between the weights before and after there often is one that is about as good as either where that is good: with theta_0
before and theta_1 after,

    theta = theta_0 + alpha (theta_1 - theta_0)

alpha = 1/2 is the paper's default. Here `remedy` gives theta_1 from the given network, the last good one, and `method`
merges the two, so that any rule of this folder may take the place of the line: TIES with one donor keeps the largest
changes only. BatchNorm statistics are merged as weights are, but go no further than from one end to the other: a rule
that goes beyond would make variances negative.

What the remedy gives must be a network with the given one's weights: a method that adapts while it serves has changed
nothing yet, and one that adds layers has nothing to be merged with. Where the two lie in different basins (long
training at a high rate), the line between them is worse than both ends: see `barrier`.

>>> net = nn.Linear(2, 2)
>>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
>>> world = World(source=(x, (x[:, 0] > 0).long()))
>>> tuned, half = Fit()(net, world), WiSEFT(Fit())(net, world)
>>> bool(torch.allclose(half.weight, (net.weight + tuned.weight) / 2))
True

Reference: Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from homeostat.core.errors import ModelError
from homeostat.core.holding import holding
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Online
from homeostat.core.place import home
from homeostat.core.run import Run
from homeostat.core.weights import weights
from homeostat.core.world import World
from homeostat.fit.fit import Fit
from homeostat.merge.arithmetic import TaskArithmetic
from homeostat.merge.engine import merge_weights
from homeostat.merge.merging import Merge


@dataclass(frozen=True)
class WiSEFT(Remedy):
    """The given network merged with what another remedy makes of it.

    Attributes:
        remedy: gives the donor; it must change weights and nothing else.
        method: merges the donor into the given network.
    """

    remedy: Remedy = Fit()
    method: Merge = TaskArithmetic(scale=0.5)

    card: ClassVar[Card] = Card(
        paper="Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022",
        handles=frozenset({"covariate", "label", "concept", "subgroup"}), passes=3.0,
    )  # fmt: skip

    def needs(self) -> frozenset[str]:
        return self.remedy.needs()

    def prepares(self) -> frozenset[str]:
        return self.remedy.prepares()

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> nn.Module | None:
        return self.remedy.kit(model, world, run=run)

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        changed = self.remedy(model, world, kit=kit, run=run)
        before, after = _floating(model), _floating(changed)
        if isinstance(changed, Online) or set(before) != set(after):
            raise ModelError(
                f"{type(self.remedy).__name__} gives a {type(changed).__name__}, whose weights are not the given "
                "network's in other values, so that the two cannot be merged"
            )
        merged = merge_weights(self.method, before, {type(self.remedy).__name__: after}, run=run)
        for name in merged.keys() - {name for name, _ in model.named_parameters()}:
            low, high = torch.minimum(before[name], after[name]), torch.maximum(before[name], after[name])
            merged[name] = merged[name].clamp(low, high)
        return holding(model, merged)


def _floating(model: nn.Module) -> dict[str, Tensor]:
    return home({name: tensor for name, tensor in weights(model).items() if tensor.is_floating_point()})
