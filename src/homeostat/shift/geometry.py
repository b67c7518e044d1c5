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
from typing import Annotated, ClassVar

import annotated_types as at
import torch
import torch.nn.functional as F
from torch import Tensor

from homeostat.core.data import Batch, check_finite
from homeostat.core.method import Card
from homeostat.core.random import Draw
from homeostat.core.spec import Positive
from homeostat.shift.pointwise import Pointwise, images_of

Finite = Annotated[float, at.Gt(-math.inf), at.Lt(math.inf)]


class Affine(Pointwise, abstract=True):
    """Base of affine maps: a subclass gives the map from output to input coordinates, in pixels from the center."""

    card: ClassVar[Card] = Card(handles=frozenset({"covariate"}))

    @abstractmethod
    def matrices(self, draw: Draw, height: int, width: int) -> Tensor:
        """`[batch, 2, 3]`, acting on (x, y, 1)."""

    def change(self, batch: Batch, draw: Draw) -> Batch:
        x = images_of(batch, type(self).__name__)
        check_finite(x, "images")
        height, width = x.shape[2:]
        # Half precision cannot tell the pixels of a large image apart.
        exact = torch.promote_types(x.dtype, torch.float32)
        # affine_grid counts in half sizes; the matrices count in pixels.
        half = torch.tensor([width / 2, height / 2], dtype=torch.float64)
        theta = self.matrices(draw, height, width) * torch.cat([half, half.new_ones(1)]) / half[:, None]
        grid = F.affine_grid(theta.to(x.device, exact), list(x.shape), align_corners=False)
        return batch.replace(x=F.grid_sample(x.to(exact), grid, align_corners=False).to(x.dtype))


def _amounts(draw: Draw, amount: float, jitter: bool) -> Tensor:
    """`[batch]`: the amount itself, or uniform between minus and plus it."""
    part = 2 * draw.uniform().double() - 1 if jitter else torch.ones(len(draw), dtype=torch.float64)
    return amount * part


@dataclass(frozen=True)
class Rotate(Affine):
    """Turned about the center.

    Attributes:
        degrees: counter-clockwise as one looks at the image, whose first row is at the top.
        jitter: uniform between minus and plus `degrees`, per sample.
    """

    degrees: Finite = 15.0
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
        jitter: uniform between minus and plus these, per sample, each by itself.
    """

    right: Finite = 2.0
    down: Finite = 0.0
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

    factor: Annotated[Positive, at.Lt(math.inf)] = 1.2
    jitter: bool = False

    def identity(self) -> bool:
        return self.factor == 1

    def matrices(self, draw: Draw, height: int, width: int) -> Tensor:
        inverse = torch.exp(-_amounts(draw, math.log(self.factor), self.jitter))
        zero = torch.zeros_like(inverse)
        return torch.stack([torch.stack([inverse, zero, zero], -1), torch.stack([zero, inverse, zero], -1)], 1)
