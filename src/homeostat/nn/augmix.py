"""AugMix views: several short chains of harmless changes, mixed with each other and with the image.

An image x in 0..1 is padded, cropped to its size at a random place and flipped at random; x' is what comes out. Then

    a_i = 1 to `depth` random changes of x', one after another,      i = 1 .. chains
    view = m x' + (1 - m) sum_i w_i a_i,      w ~ Dirichlet(1, .., 1),   m ~ Beta(1, 1)

A change is one of nine: contrast stretched to the full range, histogram made even, rotation, solarising, shear along
each axis, shift along each axis, fewer bits. `severity` s, 0.1 to 10, bounds how much: a level l is drawn from 0.1..s,
and the image is rotated by 3 l degrees, sheared by 0.03 l, shifted by l / 30 of its size (whole degrees and pixels,
rounded down), inverted above 256 - 25.6 l of 256 values, and left with 4 - 0.4 l bits (rounded up). What comes into the
picture is grey; MEMO's code asks for grey and paints RGB images dark red, as Pillow takes one number for a whole color.

Unlike `RandomViews`, every image of a batch has draws of its own: `AugMix()(image.expand(32, -1, -1, -1), generator)`
are 32 views of one image. All of a batch go through together, grouped by the change.

>>> x = torch.rand(1, 3, 8, 8)
>>> views = AugMix()(x.expand(4, 3, 8, 8), torch.Generator().manual_seed(0))
>>> views.shape, bool(((views >= 0) & (views <= 1)).all()), bool((views[0] == views[1]).all())
(torch.Size([4, 3, 8, 8]), True, False)

Reference: Hendrycks et al., AugMix: A simple data processing method to improve robustness and uncertainty, ICLR 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import annotated_types as at
import torch
import torch.nn.functional as F
from torch import Tensor

from homeostat.core.spec import Count, Fraction, Index, Spec
from homeostat.nn.augment import check_pixels

_TOP = 255.0
_GREY = 0.5


@dataclass(frozen=True)
class AugMix(Spec):
    """Mixed chains of random changes, drawn for each image.

    Attributes:
        chains: how many are mixed.
        depth: changes in a chain, at most.
        severity: of the changes.
        crop: pixels of padding, black, in which the place of the image is drawn.
        flip: probability of a left-right flip.
    """

    chains: Count = 3
    depth: Count = 3
    severity: Annotated[float, at.Ge(0.1), at.Le(10)] = 1.0
    crop: Index = 4
    flip: Fraction = 0.5

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A view of each image of the batch.

        Args:
            x: images `[batch, channels, height, width]` in 0..1.
            generator: a CPU generator.

        Raises:
            InputError: these are no images, or their values are far from 0..1.
        """
        check_pixels(x)
        kept, shape = x.dtype, (len(x), self.chains, *x.shape[1:])
        x = x.to(torch.promote_types(x.dtype, torch.float32)).clamp(0, 1)
        x = self._cropped(x, generator)
        weight = torch.rand(shape[:2], generator=generator, dtype=torch.float64).log().neg()
        weight = (weight / weight.sum(1, keepdim=True)).to(x).view(*shape[:2], 1, 1, 1)
        mix = torch.rand(len(x), 1, 1, 1, generator=generator, dtype=torch.float64).to(x)
        chains = self._changed(x.repeat_interleave(self.chains, 0), generator).view(shape)
        return (mix * x + (1 - mix) * (weight * chains).sum(1)).clamp(0, 1).to(kept)

    def _cropped(self, x: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = x.shape
        down, right = torch.randint(0, 2 * self.crop + 1, (2, count, 1), generator=generator)
        flips = torch.rand(count, 1, generator=generator) < self.flip
        rows, columns = down + torch.arange(height), torch.arange(width)
        columns = right + torch.where(flips, columns.flip(0), columns)
        padded = F.pad(x, (self.crop,) * 4)
        image = torch.arange(count)[:, None, None]
        place = [t.to(x.device) for t in (image, rows[:, :, None], columns[:, None, :])]
        return padded.permute(0, 2, 3, 1)[place[0], place[1], place[2]].permute(0, 3, 1, 2)

    def _changed(self, x: Tensor, generator: torch.Generator) -> Tensor:
        x = x.clone()
        length = torch.randint(1, self.depth + 1, (len(x),), generator=generator)
        for step in range(self.depth):
            which = torch.randint(0, len(CHANGES), (len(x),), generator=generator)
            level = 0.1 + (self.severity - 0.1) * torch.rand(len(x), generator=generator, dtype=torch.float64)
            sign = torch.where(torch.rand(len(x), generator=generator) < 0.5, -1.0, 1.0)
            for number, change in enumerate(CHANGES):
                rows = torch.nonzero((which == number) & (step < length)).flatten()
                if len(rows):
                    there = rows.to(x.device)
                    x[there] = change(x[there], level[rows], sign[rows])
        return x


def _values(x: Tensor) -> Tensor:
    """As whole numbers 0..255."""
    return (x * _TOP).round()


def stretch_contrast(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Each channel of each image from 0 to 1; a plain one stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp(min=1e-12), x)


def equalize(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Each channel's 256 values spread so that its histogram is even; too small an image stays."""
    value = _values(x).long().flatten(2)
    counts = torch.zeros(*value.shape[:2], 256, dtype=torch.long, device=x.device)
    counts.scatter_add_(2, value, torch.ones_like(value))
    most = counts.gather(2, value.amax(2, keepdim=True))
    step = (value.shape[2] - most) // 255
    below = counts.cumsum(2) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    even = (table.gather(2, value).to(x.dtype) / _TOP).view(x.shape)
    return torch.where((step > 0)[..., None], even, x)


def rotate(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """About the centre, by up to 30 degrees."""
    angle = torch.deg2rad((3 * level).floor() * sign)
    cos, sin = angle.cos(), angle.sin()
    right, down = (side / 2 for side in (x.shape[3], x.shape[2]))
    return move(x, cos, -sin, right - right * cos + down * sin, sin, cos, down - right * sin - down * cos)


def solarize(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Bright pixels inverted."""
    limit = (256 - (25.6 * level).floor()).to(x).view(-1, 1, 1, 1)
    return torch.where(_values(x) < limit, x, 1 - x)


def shear_x(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Rows moved along, the lower the further."""
    one, zero = torch.ones_like(level), torch.zeros_like(level)
    return move(x, one, 0.03 * level * sign, zero, zero, one, zero)


def shear_y(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Columns moved down, the further right the further."""
    one, zero = torch.ones_like(level), torch.zeros_like(level)
    return move(x, one, zero, zero, 0.03 * level * sign, one, zero)


def shift_x(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Along the rows, by up to a third of the width."""
    one, zero = torch.ones_like(level), torch.zeros_like(level)
    return move(x, one, zero, (level * x.shape[3] / 30).floor() * sign, zero, one, zero)


def shift_y(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Along the columns, by up to a third of the height."""
    one, zero = torch.ones_like(level), torch.zeros_like(level)
    return move(x, one, zero, zero, zero, one, (level * x.shape[2] / 30).floor() * sign)


def posterize(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Only the upper 4 to 0 bits of each value."""
    step = torch.exp2(4 + (0.4 * level).floor()).to(x).view(-1, 1, 1, 1)
    return (_values(x) / step).floor() * step / _TOP


def move(x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor, f: Tensor) -> Tensor:
    """Images whose place (right, down) shows what was at (a right + b down + c, d right + e down + f); bilinear.

    Places are counted in pixels from the upper left corner, so that the first pixel's centre is at (0.5, 0.5); what was
    outside is grey. The coefficients are `[batch]`.
    """
    height, width = x.shape[2:]
    a, b, c, d, e, f = (t.to(x).view(-1, 1, 1) for t in (a, b, c, d, e, f))
    right = torch.arange(width, dtype=x.dtype, device=x.device) + 0.5
    down = torch.arange(height, dtype=x.dtype, device=x.device)[:, None] + 0.5
    column, row = a * right + b * down + c, d * right + e * down + f
    grid = torch.stack([column * (2 / width) - 1, row * (2 / height) - 1], 3)
    moved = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return torch.where(inside[:, None], moved, torch.full_like(moved, _GREY))


CHANGES: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (
    stretch_contrast, equalize, rotate, solarize, shear_x, shear_y, shift_x, shift_y, posterize,
)  # fmt: skip
"""Each takes images, a level for each and a sign for each."""
