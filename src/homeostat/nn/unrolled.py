"""Unrolled reconstruction: a network that takes turns with the measurement.

From undersampled frequencies Y with mask M it starts at the zero-filled image and repeats, t = 1..`iterations`,

    z = x - f(x)                            the denoiser f says what does not belong into an image
    x = F^-1[(lambda_t F z + Y) / (lambda_t + 1)]  where sampled,  z's own frequencies elsewhere

with one f for all t. How much the measurement is doubted, lambda_t >= 0, comes from a small network of a scalar
condition h in 0..1 (`conditional`), or is learnt as a constant. Inputs are a mapping of `kspace`
`[batch, 2, height, width]`, `mask` `[batch, width]` and, if wanted, `condition` `[batch]`. Without a condition h is
read from the noise that `estimate_noise` finds, through the table (`levels`, `conditions`), which `ConditionalUnrolled`
fits.

>>> net = Unrolled(Denoiser(width=4))
>>> net({"kspace": torch.rand(3, 2, 8, 8), "mask": torch.ones(3, 8, dtype=torch.bool)}).shape
torch.Size([3, 2, 8, 8])

Reference: Schlemper et al., A deep cascade of convolutional neural networks for dynamic MR image reconstruction, 2018.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.core.errors import DtypeError, InputError
from homeostat.core.part import Part
from homeostat.nn.blocks import at_least_one, check_images, start
from homeostat.nn.fourier import data_consistency, estimate_noise, to_image
from homeostat.nn.mlp import MLP


class Denoiser(Part):
    """A plain convolutional network from an image to what does not belong into it.

    Args:
        channels: of the images; 2 for complex ones.
        width: channels within.
        depth: convolutions, 3 x 3, with ReLU between them; the last starts at 0, so that it begins with "nothing".
        seed: of the starting weights.
    """

    def __init__(self, channels: int = 2, width: int = 32, depth: int = 4, seed: int = 0):
        super().__init__()
        at_least_one(channels=channels, width=width, depth=depth)
        self.channels, self.width, self.depth, self.seed = channels, width, depth, seed
        widths = [channels, *[width] * (depth - 1), channels]
        pairs = itertools.pairwise(widths)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairs)
        start(self, seed)
        with torch.no_grad():
            self.convolutions[-1].weight.zero_()  # type: ignore[operator,union-attr]

    def forward(self, x: Any) -> Float[Tensor, "batch channels height width"]:
        check_images(x, self.channels)
        for convolution in self.convolutions[:-1]:
            x = convolution(x).relu()
        return self.convolutions[-1](x)


class Unrolled(Part):
    """A reconstruction network; see the module's docstring.

    Args:
        denoiser: f, from `[batch, 2, height, width]` to the same shape.
        iterations: turns.
        conditional: whether lambda depends on a condition.
        hidden: width of the network that makes lambda.
        levels: how many entries the table of noise has.
        seed: of that network's starting weights.
    """

    noise: Tensor
    conditions: Tensor

    def __init__(
        self, denoiser: nn.Module, iterations: int = 5, conditional: bool = True, hidden: int = 16, levels: int = 8,
        seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        at_least_one(iterations=iterations, hidden=hidden, levels=levels)
        self.denoiser, self.iterations, self.conditional = denoiser, iterations, conditional
        self.hidden, self.levels, self.seed = hidden, levels, seed
        self.hyper = MLP(1, iterations, (hidden, hidden), seed=seed)
        self.register_buffer("noise", torch.linspace(0, 0.1, levels))
        self.register_buffer("conditions", torch.linspace(0, 1, levels))

    def doubt(self, condition: Float[Tensor, " batch"]) -> Float[Tensor, "batch iterations"]:
        """lambda for each turn."""
        asked = condition if self.conditional else torch.zeros_like(condition)
        weight = self.hyper.linear.weight
        return F.softplus(self.hyper(asked[:, None].to(weight.dtype)) - 2)  # begins near 0.1: mostly the measurement

    def condition_of(self, noise: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The condition for an estimated noise, between the table's entries in a straight line."""
        levels, made = self.noise.to(noise.dtype), self.conditions.to(noise.dtype)
        if len(levels) == 1:
            return made.expand(len(noise))
        right = torch.searchsorted(levels.contiguous(), noise.contiguous()).clamp(1, len(levels) - 1)
        low, high = levels[right - 1], levels[right]
        part = ((noise - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        return torch.lerp(made[right - 1], made[right], part)

    def forward(self, x: Any) -> Float[Tensor, "batch 2 height width"]:
        """The image, real and imaginary part."""
        kspace, mask = _checked(x)
        condition = x.get("condition")
        if condition is None:
            condition = self.condition_of(estimate_noise(kspace, mask))
        doubts = self.doubt(condition).to(kspace.dtype)
        image = to_image(kspace * mask[:, None, None])
        for t in range(self.iterations):
            image = data_consistency(image - self.denoiser(image), kspace, mask, doubts[:, t])
        return image


def _checked(x: Any) -> tuple[Tensor, Tensor]:
    if not hasattr(x, "get") or x.get("kspace") is None or x.get("mask") is None:
        raise InputError(
            "a reconstruction network takes a mapping with kspace and mask; see homeostat.shift.Undersample"
        )
    kspace, mask = x["kspace"], x["mask"]
    check_images(kspace, 2)
    if mask.dtype != torch.bool:
        raise DtypeError(f"mask has dtype {mask.dtype}; booleans [batch, width] are wanted")
    if tuple(mask.shape) != (len(kspace), kspace.shape[3]):
        raise InputError(f"mask has shape {tuple(mask.shape)}; {(len(kspace), kspace.shape[3])} is wanted")
    return kspace, mask
