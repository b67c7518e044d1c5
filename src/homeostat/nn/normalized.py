"""A network that owns its input normalisation: it takes images in 0..1.

Corruptions, attacks and augmentations are defined on images in 0..1, and a mean and standard deviation kept anywhere
else sooner or later go missing. For images x `[batch, channels, height, width]`, per-channel mean m and standard
deviation s,

    f(x) = model((x - m) / s)

At the door, wrong dimensions, channels, an integer or foreign dtype, an empty batch, NaN and values far from 0..1 are
refused. Noise, attacks and interpolation leave 0..1 a little, so `slack` is allowed on both sides: by default values in
-1..2 pass. That is far from 0..255, and most images that were normalised already fall below -1 and are found too. The
check costs one pass over the batch. Values cannot be looked at inside `torch.compile` and `vmap`, where only shapes are
checked. `slack=None` switches the range check off, for images that are free to roam (feature visualisation).

>>> import torch
>>> from torch import nn
>>> net = Normalized(nn.Flatten(), mean=(0.5,), std=(0.25,))
>>> net(torch.tensor([[[[0.0, 1.0]]]]))
tensor([[-2.,  2.]])
>>> net(torch.tensor([[[[0.0, 255.0]]]]))
Traceback (most recent call last):
...
homeostat.core.errors.InputError: images span 0 to 255; this network takes 0..1. Divide by 255
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.core.errors import DtypeError, InputError, NonFiniteError, SpecError
from homeostat.core.part import Part
from homeostat.core.tree import Tree
from homeostat.nn.blocks import check_images, holds

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Normalized(Part):
    """A network for images in 0..1 around one for images of mean 0 and deviation 1; see the module's docstring.

    Args:
        model: takes normalised images.
        mean: of the training images, one number a channel.
        std: their standard deviation, one number a channel.
        slack: how far values may lie outside 0..1; None does not look.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float], slack: float | None = 1.0):
        super().__init__()
        self.model = model
        self.mean, self.std = tuple(float(m) for m in mean), tuple(float(s) for s in std)
        self.slack = slack
        if not self.mean or len(self.mean) != len(self.std):
            raise SpecError(f"mean has {len(self.mean)} numbers and std {len(self.std)}; give one a channel in both")
        if not all(math.isfinite(m) for m in self.mean) or not all(0 < s < math.inf for s in self.std):
            raise SpecError(f"mean must be finite and std positive; got {self.mean} and {self.std}")
        if slack is not None and not 0 <= slack < math.inf:
            raise SpecError(f"slack = {slack}, but it must be >= 0 and finite; None switches the check off")

    def forward(self, x: Any) -> Tree:
        """Outputs for images `[batch, channels, height, width]` in 0..1."""
        check_images(x, len(self.mean))
        self._check_dtype(x)
        self._check_range(x)
        # Made anew each time: exact in every dtype, and nothing that casting, merging or saving could touch.
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device)[:, None, None] for v in (self.mean, self.std))
        return self.model((x - mean) / std)

    def _check_dtype(self, x: Tensor) -> None:
        weight = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), x.dtype)
        if weight != x.dtype and weight in _FLOATS and not torch.is_autocast_enabled(x.device.type):
            raise DtypeError(f"images are {x.dtype} and the network is {weight}; convert one: images.to({weight})")

    def _check_range(self, x: Tensor) -> None:
        if self.slack is None:
            return
        low, high = torch.aminmax(x.detach())
        if holds((low >= -self.slack) & (high <= 1 + self.slack)):  # NaN fails this too
            return
        if not holds(torch.isfinite(low) & torch.isfinite(high)):
            raise NonFiniteError("images hold NaN or infinity; clean them or drop the samples")
        span = f"images span {float(low):.4g} to {float(high):.4g}; this network takes 0..1."
        if float(low) >= 0:
            raise InputError(f"{span} Divide by 255")
        raise InputError(f"{span} It normalises by itself: give images that were not normalised before")
