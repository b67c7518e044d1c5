"""Views that destroy objects: the same pixels or colours, without the shapes that make an image what it is.

A prediction that stays when the object is gone was made from something else: background, texture, color. DeYO trusts
predictions that change. Each view is made for images `[batch, channels, height, width]`:

- `ShuffledPatches`: the image in parts x parts tiles, which change places, each image's in its own order;
- `ShuffledPixels`: all pixels change places, in one order for the batch;
- `Occluded`: a window is filled with the image's mean color.

>>> x = torch.arange(16.0).view(1, 1, 4, 4)
>>> view = ShuffledPatches(parts=2)(x, torch.Generator().manual_seed(0))
>>> sorted(view.flatten().tolist()) == x.flatten().tolist(), bool((view == x).all())
(True, False)

Reference: Lee et al., Entropy is not enough for test-time adaptation: From the perspective of disentangled factors,
ICLR 2024.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from homeostat.core.errors import InputError
from homeostat.core.spec import Count, Fraction, Spec


class Destroyed(Spec, abstract=True):
    """Base of views that destroy objects."""

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The view of some images.

        Args:
            x: images `[batch, channels, height, width]`; normalised ones too.
            generator: a CPU generator.

        Raises:
            InputError: these are no images.
        """
        self.check(x)
        return self.view(x, generator)

    def check(self, x: Any) -> None:
        """Raise `InputError` unless these are images that this view can be made of."""
        if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
            what = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(
                f"objects are destroyed in float images [batch, channels, height, width]; these are {what}"
            )

    @abstractmethod
    def view(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The same, of what is known to be images."""


@dataclass(frozen=True)
class ShuffledPatches(Destroyed):
    """Tiles of the image in another order, each image's own.

    Where the size is no multiple of `parts`, the image is scaled down to the next smaller one that is, and back.

    Attributes:
        parts: tiles in each direction.
    """

    parts: Count = 4

    def check(self, x: Any) -> None:
        super().check(x)
        if min(x.shape[2:]) < self.parts:
            height, width = x.shape[2:]
            raise InputError(f"images of {height} x {width} pixels have no {self.parts} tiles a side; ask for fewer")

    def view(self, x: Tensor, generator: torch.Generator) -> Tensor:
        count, channels, height, width = x.shape
        high, wide = height // self.parts, width // self.parts
        whole = _resized(x, high * self.parts, wide * self.parts)
        tiles = whole.view(count, channels, self.parts, high, self.parts, wide).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        order = torch.rand(tiles.shape[:2], generator=generator).argsort(1).to(x.device)
        tiles = tiles[torch.arange(count, device=x.device)[:, None], order]
        tiles = tiles.view(count, self.parts, self.parts, channels, high, wide).permute(0, 3, 1, 4, 2, 5)
        return _resized(tiles.reshape(count, channels, high * self.parts, wide * self.parts), height, width)


@dataclass(frozen=True)
class ShuffledPixels(Destroyed):
    """Pixels in another order, the same for all images and channels."""

    def view(self, x: Tensor, generator: torch.Generator) -> Tensor:
        order = torch.randperm(x.shape[2] * x.shape[3], generator=generator).to(x.device)
        return x.flatten(2)[:, :, order].view(x.shape)


@dataclass(frozen=True)
class Occluded(Destroyed):
    """A window filled with the mean of the image, channel by channel.

    Attributes:
        size: side of the window, as a share of the image's.
        top, left: where it begins, as a share of the image's side.
    """

    size: Fraction = 0.5
    top: Fraction = 0.25
    left: Fraction = 0.25

    def view(self, x: Tensor, generator: torch.Generator) -> Tensor:
        height, width = x.shape[2:]
        rows, columns = (
            slice(round(start * side), round(start * side) + round(self.size * side))
            for start, side in ((self.top, height), (self.left, width))
        )
        made = x.clone()
        made[:, :, rows, columns] = x.mean((2, 3), keepdim=True)
        return made


def _resized(x: Tensor, height: int, width: int) -> Tensor:
    if x.shape[2:] == (height, width):
        return x
    work = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.interpolate(work, (height, width), mode="bilinear", antialias=True, align_corners=False).to(x.dtype)
