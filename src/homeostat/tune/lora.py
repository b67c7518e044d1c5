"""LoRA: train a low-rank correction of frozen linear and convolution layers.

Instead of all of a layer's weights W `[out, in]`, only two thin matrices are trained, so a tuned variant is a few
hundred kilobytes and many can share one frozen network:

    y = W x + b + (alpha / r) B A x,      A in R^{r x in},  B in R^{out x r}.

B starts at zero, so that the tuned network starts equal to the given one; A starts Kaiming-uniform (`a = sqrt(5)`), as
in the reference. A convolution is treated as its unfolded matrix: A is a convolution to r channels with the layer's
kernel, B a 1x1 convolution back. `fold()` adds the correction to W, so that serving costs nothing extra.

Defaults: r = 8, alpha = 16, on every linear layer; the original paper tunes r in 1..64 and fixes alpha to the first r
tried. It helps when the change needed is of low rank (new domains, new label sets on good features) and does
little when early filters must change a lot.

>>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
>>> tuned = LoRA(rank=2)(net)
>>> x = torch.randn(3, 4)
>>> bool((tuned(x) == net(x)).all()), [n for n, p in tuned.named_parameters() if p.requires_grad]
(True, ['0.down', '0.up', '2.down', '2.up'])

Reference: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from homeostat.core.errors import ModelError
from homeostat.core.fork import fork, targets
from homeostat.core.method import Card, Remedy
from homeostat.core.part import Part, replace
from homeostat.core.run import Run
from homeostat.core.spec import Count, Positive
from homeostat.core.world import World
from homeostat.nn.low_rank_layers import correction, low_rank, new_factors


class LoRALayer(Part):
    """A frozen linear or convolution layer with a trainable low-rank correction.

    Args:
        layer: `nn.Linear` (transformers' `Conv1D` not included) or `nn.Conv1d/2d` with one group.
        rank: of the correction.
        alpha: the correction is scaled by `alpha / rank`.
    """

    def __init__(self, layer: nn.Module, rank: int = 8, alpha: float = 16.0):
        super().__init__()
        self.layer, self.rank, self.alpha = layer, rank, alpha
        self.down, self.up = (nn.Parameter(factor) for factor in new_factors(layer, rank))

    def start(self, generator: torch.Generator) -> None:
        """Draw A; B is zero."""
        bound = math.sqrt(1 / self.down[0].numel())
        with torch.no_grad():
            noise = torch.rand(self.down.shape, generator=generator, dtype=torch.float64)
            self.down.copy_((2 * noise - 1) * bound)
            self.up.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.alpha / self.rank * low_rank(self.layer, x, self.down, self.up)

    def correction(self) -> Tensor:
        """`(alpha / r) B A`, in the shape of the layer's weight."""
        return (self.alpha / self.rank) * correction(self.down, self.up)


@dataclass(frozen=True)
class LoRA(Remedy):
    """Puts low-rank corrections on layers and freezes the rest; train the result with `Fit`.

    Attributes:
        rank: r.
        alpha: scale of the correction, as `alpha / r`.
        layers: glob of the layers to correct; an error lists the layers when none matches.
        convolutions: also correct convolutions.
    """

    rank: Count = 8
    alpha: Positive = 16.0
    layers: tuple[str, ...] = ("*",)
    convolutions: bool = False

    card: ClassVar[Card] = Card(
        paper="Hu et al., LoRA, ICLR 2022",
        handles=frozenset({"covariate", "concept"}),
        needs=frozenset({"model.linear"}),
    )

    def needs(self) -> frozenset[str]:
        return frozenset() if self.convolutions else self.card.needs

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        made = fork(model)
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d) if self.convolutions else (nn.Linear,)
        found = {"": made} if isinstance(made, kinds) else targets(made, self.layers, kinds)
        for parameter in made.parameters():
            parameter.requires_grad_(False)
        for name, layer in found.items():
            tuned = LoRALayer(layer, self.rank, self.alpha)
            tuned.start(run.rng("lora", name))
            if not name:
                return tuned
            replace(made, name, tuned)
        return made


def fold(model: nn.Module) -> nn.Module:
    """The model with every low-rank correction added to its layer's weight: plain layers, same outputs, no extra cost.

    Raises:
        ModelError: there is nothing to fold.
    """
    made = fork(model)
    layers = [(name, m) for name, m in made.named_modules() if isinstance(m, LoRALayer)]
    if not layers:
        raise ModelError(f"{type(model).__name__} has no low-rank correction to fold")
    for name, tuned in layers:
        plain = fork(tuned.layer, own="weight")
        with torch.no_grad():
            plain.weight.add_(tuned.correction())  # type: ignore[union-attr,operator]
        for parameter in plain.parameters():
            parameter.requires_grad_(True)
        if not name:
            return plain
        replace(made, name, plain)
    return made
