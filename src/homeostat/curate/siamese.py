"""DSA: one and the same random change for two batches of images, so that what they teach can be compared.

When a synthetic image is fitted to real ones through what a network learns from both, augmentation helps only if both
sides get the same view. Each call picks one operation of the list and its random numbers; with `together=True` they
are single numbers for the whole batch, so that a generator in the same state gives the same view of any batch:

    color    x + (r - 0.5) brightness;  (x - mean over channels) r saturation + that mean;
             (x - mean of the image) (r + contrast) + that mean;                        r uniform on 0..1, each its own
    crop     shifted by up to `pad` of the side in whole pixels, zeros come in
    cutout   a square of `hole` of the side, around a random pixel, is 0
    flip     left and right, with probability 1/2
    scale    height and width each by a factor between 1 / `zoom` and `zoom`
    rotate   by up to `degrees` to both sides

All are differentiable in the pixels. Scale and rotate interpolate bilinearly; what comes from outside is 0. Pixels are
not clipped, as synthetic images are not. Defaults are the official code's; leave `flip` out for digits and letters.

>>> x = torch.rand(3, 1, 8, 8)
>>> one, two = (DSA()(part, torch.Generator().manual_seed(5)) for part in (x, x[1:]))
>>> torch.equal(one[1:], two)
True

Reference: Zhao, Bilen, Dataset Condensation with Differentiable Siamese Augmentation, ICML 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import annotated_types as at
import torch
import torch.nn.functional as F
from torch import Tensor

from homeostat.core.errors import InputError, SpecError
from homeostat.core.spec import Fraction, NonNegative, Spec

Operation = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]


@dataclass(frozen=True)
class DSA(Spec):
    """A random operation for a batch, the same for another batch when the generator is.

    Attributes:
        operations: to choose from.
        brightness, saturation, contrast: of color.
        pad: largest shift of crop, as a share of the side.
        hole: side of cutout's square, as a share of the side.
        zoom: largest factor of scale.
        degrees: largest angle of rotate.
    """

    operations: tuple[Operation, ...] = ("color", "crop", "cutout", "flip", "scale", "rotate")
    brightness: NonNegative = 1.0
    saturation: NonNegative = 2.0
    contrast: NonNegative = 0.5
    pad: Fraction = 0.125
    hole: Fraction = 0.5
    zoom: Annotated[float, at.Ge(1)] = 1.2
    degrees: NonNegative = 15.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.operations:
            raise SpecError("DSA.operations is empty; name at least one, or use augment=None for none")

    def __call__(self, x: Tensor, generator: torch.Generator, together: bool = True) -> Tensor:
        """A view of the batch.

        Args:
            x: float images `[batch, channels, height, width]`.
            generator: a CPU generator.
            together: the same numbers for every image; otherwise each image has its own, of the same operation.

        Raises:
            InputError: these are no images.
        """
        if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
            what = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"DSA wants float images [batch, channels, height, width]; these are {what}")
        name = self.operations[int(torch.randint(len(self.operations), (), generator=generator))]
        rows = 1 if together else len(x)

        def draw(count: int) -> Tensor:
            return torch.rand(count, rows, generator=generator, dtype=torch.float64).to(x)

        change: Callable[[Tensor, Callable[[int], Tensor]], Tensor] = getattr(self, f"_{name}")
        return change(x, draw)

    def _color(self, x: Tensor, draw: Callable[[int], Tensor]) -> Tensor:
        bright, saturated, contrasted = draw(3)[..., None, None, None]
        x = x + (bright - 0.5) * self.brightness
        grey = x.mean(1, keepdim=True)
        x = (x - grey) * (saturated * self.saturation) + grey
        level = x.mean((1, 2, 3), keepdim=True)
        return (x - level) * (contrasted + self.contrast) + level

    def _crop(self, x: Tensor, draw: Callable[[int], Tensor]) -> Tensor:
        places, inside = [], []
        for size, share in zip(x.shape[2:], draw(2), strict=True):
            most = int(size * self.pad + 0.5)
            move = (share * (2 * most + 1)).floor().long().clamp(max=2 * most) - most
            place = torch.arange(size, device=x.device) + move[:, None]
            inside.append((place >= 0) & (place < size))
            places.append(place.clamp(0, size - 1))
        down = places[0][:, None, :, None].expand(len(x), x.shape[1], -1, x.shape[3])
        right = places[1][:, None, None, :].expand(len(x), x.shape[1], x.shape[2], -1)
        return x.gather(2, down).gather(3, right) * (inside[0][:, None, :, None] & inside[1][:, None, None, :])

    def _cutout(self, x: Tensor, draw: Callable[[int], Tensor]) -> Tensor:
        hit = []
        for size, share in zip(x.shape[2:], draw(2), strict=True):
            side = int(size * self.hole + 0.5)
            centers = size + (side + 1) % 2  # an even square may lie half beyond either edge
            first = (share * centers).floor().clamp(max=centers - 1)[:, None] - side // 2
            place = torch.arange(size, device=x.device)
            hit.append((place >= first) & (place < first + side))
        return x * ~(hit[0][:, None, :, None] & hit[1][:, None, None, :])

    def _flip(self, x: Tensor, draw: Callable[[int], Tensor]) -> Tensor:
        return torch.where(draw(1)[0].view(-1, 1, 1, 1) < 0.5, x.flip(3), x)

    def _scale(self, x: Tensor, draw: Callable[[int], Tensor]) -> Tensor:
        across, down = draw(2) * (self.zoom - 1 / self.zoom) + 1 / self.zoom
        return _warp(x, across, torch.zeros_like(across), torch.zeros_like(across), down)

    def _rotate(self, x: Tensor, draw: Callable[[int], Tensor]) -> Tensor:
        angle = (draw(1)[0] - 0.5) * (2 * math.radians(self.degrees))
        return _warp(x, angle.cos(), -angle.sin(), angle.sin(), angle.cos())


def _warp(x: Tensor, *entries: Tensor) -> Tensor:
    """Each image through the 2 x 2 matrix `[rows]` that leads from places in the result to places in `x`."""
    matrix = torch.stack(entries, 1).view(-1, 2, 2)
    grid = F.affine_grid(F.pad(matrix, (0, 1)), [len(matrix), *x.shape[1:]], align_corners=False)
    return F.grid_sample(x, grid.expand(len(x), -1, -1, -1), align_corners=False)
