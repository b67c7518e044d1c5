"""Images turned, moved and scaled, by bilinear sampling; what comes in from outside is black.

>>> import torch
>>> x = torch.rand(2, 1, 8, 8)
>>> bool(torch.allclose(Rotate(180.0)(x).load().x, x.flip(2, 3), atol=1e-5))
True
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from homeostat.core.data import Batch
from homeostat.core.random import Draw
from homeostat.core.spec import Positive
from homeostat.shift.pointwise import Pointwise, images_of


class Affine(Pointwise, abstract=True):
    """Base of affine maps: a subclass gives the map from output to input coordinates, in pixels from the center."""

    @abstractmethod
    def matrices(self, draw: Draw, height: int, width: int) -> Tensor:
        """`[batch, 2, 3]`, acting on (x, y, 1)."""

    def change(self, batch: Batch, draw: Draw) -> Batch:
        x = images_of(batch, type(self).__name__)
        height, width = x.shape[2:]
        theta = self.matrices(draw, height, width).to(x)
        # affine_grid counts in half sizes; the matrices count in pixels.
        half = torch.tensor([width / 2, height / 2], dtype=x.dtype)
        theta = theta * torch.cat([half, half.new_ones(1)])[None, None] / half[None, :, None]
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return batch.replace(x=F.grid_sample(x, grid, align_corners=False))


def _amounts(draw: Draw, amount: float, jitter: bool) -> Tensor:
    """`[batch]`: the amount itself, or uniform between minus and plus it."""
    return amount * (2 * draw.uniform() - 1) if jitter else torch.full((len(draw),), amount)


@dataclass(frozen=True)
class Rotate(Affine):
    """Turned about the center.

    Attributes:
        degrees: counter-clockwise.
        jitter: uniform between minus and plus `degrees`, per sample.
    """

    degrees: float = 15.0
    jitter: bool = False

    def identity(self) -> bool:
        return self.degrees == 0

    def matrices(self, draw: Draw, height: int, width: int) -> Tensor:
        angle = _amounts(draw, math.radians(self.degrees), self.jitter)
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        return torch.stack([torch.stack([cos, -sin, zero], -1), torch.stack([sin, cos, zero], -1)], 1)


@dataclass(frozen=True)
class Translate(Affine):
    """Moved right and down.

    Attributes:
        right, down: in pixels.
        jitter: uniform between minus and plus these, per sample.
    """

    right: float = 2.0
    down: float = 0.0
    jitter: bool = False

    def identity(self) -> bool:
        return self.right == 0 and self.down == 0

    def matrices(self, draw: Draw, height: int, width: int) -> Tensor:
        right, down = (_amounts(draw, amount, self.jitter) for amount in (self.right, self.down))
        one, zero = torch.ones_like(right), torch.zeros_like(right)
        return torch.stack([torch.stack([one, zero, -right], -1), torch.stack([zero, one, -down], -1)], 1)


@dataclass(frozen=True)
class Scale(Affine):
    """Enlarged or shrunk about the center.

    Attributes:
        factor: above 1 enlarges.
        jitter: a factor uniform in the logarithm between 1 / `factor` and `factor`, per sample.
    """

    factor: Positive = 1.2
    jitter: bool = False

    def identity(self) -> bool:
        return self.factor == 1

    def matrices(self, draw: Draw, height: int, width: int) -> Tensor:
        inverse = torch.exp(-_amounts(draw, math.log(self.factor), self.jitter))
        zero = torch.zeros_like(inverse)
        return torch.stack([torch.stack([inverse, zero, zero], -1), torch.stack([zero, inverse, zero], -1)], 1)
