"""Image operators whose result for one image never depends on the batch it came in.

Convolution and matrix routines may add in another order when the batch has another size, and a difference in the last
bit becomes a whole grey level once the result is cut to 8 bit. Everything here is therefore a sum of shifted, weighted
copies (or a gather), one rounding per multiplication and per addition, in a fixed order. Work is done on parts of the
batch that fit in the processor's cache, which makes this as fast as the convolutions it replaces.

Borders have three names. Outside a row `a b c d`:

- `"edge"` repeats the last pixel: `a a a | a b c d | d d d`
- `"symmetric"` reflects about the image's edge: `c b a | a b c d | d c b`
- `"mirror"` reflects about the last pixel's centre: `d c b | a b c d | c b a`

Images are `[batch, channels, height, width]`, on any device.

>>> import torch
>>> row = torch.tensor([[[[0.0, 0.0, 4.0, 0.0]]]])
>>> correlate(row, torch.tensor([[0.25, 0.5, 0.25]]), "edge")
tensor([[[[0., 1., 2., 1.]]]])
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Border = Literal["edge", "symmetric", "mirror"]

_CHUNK = 1 << 17  # elements that stay in a second-level cache, with the two or three buffers an operator needs
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def by_chunk(function: Callable[..., Tensor], x: Tensor, *rows: Tensor, size: int = 0) -> Tensor:
    """`function(x, *rows)`, called on parts of the batch small enough for the cache and put together again.

    `size` is the number of elements that one sample keeps busy, by default that of its part of `x`.
    """
    step = max(1, _CHUNK // max(1, size or x[0].numel()))
    if len(x) <= step:
        return function(x, *rows)
    parts = zip(x.split(step), *(r.split(step) for r in rows), strict=True)
    return torch.cat([function(*part) for part in parts])


def border_index(index: Int[Tensor, "*shape"], size: int, border: Border) -> Int[Tensor, "*shape"]:
    """The pixel in `[0, size)` that stands for each `index` of the endless row."""
    if border == "edge":
        return index.clamp(0, size - 1)
    period = 2 * size if border == "symmetric" else max(1, 2 * size - 2)
    index = index.remainder(period)
    last = period - 1 if border == "symmetric" else period
    return torch.where(index < size, index, last - index)


def pad(
    x: Float[Tensor, "batch channels height width"], rows: tuple[int, int], columns: tuple[int, int], border: Border
) -> Float[Tensor, "batch channels height2 width2"]:
    """`x` with `rows` and `columns` (before, after) pixels added, however many these are."""
    for dim, (before, after) in ((2, rows), (3, columns)):
        if before or after:
            size = x.shape[dim]
            index = torch.arange(-before, size + after, device=x.device)
            x = x.index_select(dim, border_index(index, size, border))
    return x


def weighted_sum(parts: list[tuple[Tensor, float]]) -> Tensor:
    """The sum of `weight * part` over equal shapes, in a fixed order and without fused multiply-add.

    Parts of equal weight are added up first and multiplied once.
    """
    groups: dict[float, list[Tensor]] = {}
    for part, weight in parts:
        groups.setdefault(weight, []).append(part)
    total, term = torch.zeros_like(parts[0][0]), torch.empty_like(parts[0][0])
    for weight, members in groups.items():
        torch.mul(members[0], weight if len(members) == 1 else 1, out=term)
        for member in members[1:]:
            term += member
        total += term if len(members) == 1 else term.mul_(weight)
    return total


def correlate(
    x: Float[Tensor, "batch channels height width"], kernel: Float[Tensor, "rows columns"], border: Border
) -> Float[Tensor, "batch channels height width"]:
    """Correlation of every channel with one odd-sized kernel, centred."""
    high, wide = kernel.shape
    taps = [(i, j, w) for i, line in enumerate(kernel.tolist()) for j, w in enumerate(line) if w != 0]

    # Left and right halves of a round kernel weigh the same, so the image is folded before it is weighed.
    fold = min(high, wide) > 1 and bool((kernel == kernel.flip(1)).all())

    def part(x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        y = pad(x, (high // 2, high // 2), (wide // 2, wide // 2), border)
        columns = [y[:, :, :, j : j + width] for j in range(wide)]
        if fold:
            columns = [columns[j] + columns[-1 - j] for j in range(wide // 2)] + [columns[wide // 2]]
        return weighted_sum([(columns[j][:, :, i : i + height], w) for i, j, w in taps if j < len(columns)])

    return by_chunk(part, x)


def gaussian_weights(sigma: float, radius: int) -> Float[Tensor, " taps"]:
    """Samples of a normal density at `-radius..radius`, adding up to 1, float64."""
    if sigma <= 0:
        return torch.ones(1, dtype=torch.float64)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return weights / weights.sum()


def gaussian_blur(
    x: Float[Tensor, "batch channels height width"],
    sigma: float | tuple[float, float],
    border: Border = "edge",
    truncate: float = 4.0,
) -> Float[Tensor, "batch channels height width"]:
    """Separable Gaussian blur, cut at `truncate` deviations; `sigma` in pixels, or one for rows and one for columns."""
    pair = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    down, along = (gaussian_weights(s, int(truncate * s + 0.5)) for s in pair)
    return by_chunk(lambda part: correlate(correlate(part, down[:, None], border), along[None, :], border), x)


def sample_bilinear(
    x: Float[Tensor, "batch channels height width"],
    rows: Float[Tensor, "batch height2 width2"],
    columns: Float[Tensor, "batch height2 width2"],
    border: Border,
) -> Float[Tensor, "batch channels height2 width2"]:
    """Values at fractional pixel positions, per sample; the image goes on beyond its edges as `border` says."""

    def part(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        height, width = x.shape[2:]
        top, left = rows.floor(), columns.floor()
        down, right = (rows - top).to(x.dtype)[:, None], (columns - left).to(x.dtype)[:, None]
        ys = [border_index(top.long() + step, height, border) * width for step in (0, 1)]
        xs = [border_index(left.long() + step, width, border) for step in (0, 1)]
        flat = x.flatten(2)

        def corner(i: int, j: int) -> Tensor:
            index = (ys[i] + xs[j]).flatten(1)[:, None].expand(-1, x.shape[1], -1)
            return flat.gather(2, index).reshape(*x.shape[:2], *rows.shape[1:])

        above = corner(0, 0) * (1 - right) + corner(0, 1) * right
        below = corner(1, 0) * (1 - right) + corner(1, 1) * right
        return above * (1 - down) + below * down

    return by_chunk(part, x, rows, columns)


def _stretch(x: Tensor, dim: int, start: int, size: int, new: int) -> Tensor:
    """Pixels `start..start+size` of one axis drawn out to `new`, corner pixels on corner pixels, linear in between."""
    position = torch.arange(new, dtype=torch.float64) * ((size - 1) / (new - 1) if new > 1 else 0.0)
    low = position.floor().long().clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    weight = (position - low).to(x.dtype).reshape([-1] + [1] * (3 - dim)).to(x.device)
    low, high = (low + start).to(x.device), (high + start).to(x.device)
    return x.index_select(dim, low) * (1 - weight) + x.index_select(dim, high) * weight


def zoom(
    x: Float[Tensor, "batch channels height width"], factor: float, trim: bool = True
) -> Float[Tensor, "batch channels height2 width2"]:
    """Enlarge the middle of the image by `factor >= 1`, bilinear.

    Of each side the middle `ceil(side / factor)` pixels become `round(that * factor)`, which may exceed the side by a
    few pixels. With `trim` the middle `side` pixels of these are returned, otherwise all.
    """
    for dim in (2, 3):
        side = x.shape[dim]
        kept = math.ceil(side / factor)
        new = round(kept * factor)
        x = _stretch(x, dim, (side - kept) // 2, kept, new)
        if trim:
            x = x.narrow(dim, (new - side) // 2, side)
    return x


def box_shrink(
    levels: Float[Tensor, "batch channels height width"], height: int, width: int
) -> Float[Tensor, "batch channels {height} {width}"]:
    """Shrink 8-bit images (`levels` 0..255) as Pillow's `Image.BOX` does: columns, then rows, each rounded to 8 bit.

    Every new pixel is the mean of the whole pixels whose centres fall into its box. (From version 13 on, Pillow takes
    rows before columns in some tall images. The two orders differ by a level here and there.)
    """
    across, down = _box_members(levels.shape[3], width), _box_members(levels.shape[2], height).T
    across, down = across.to(levels), down.to(levels)

    def rounded(total: Tensor, count: Tensor) -> Tensor:
        # Pillow's weights are fixed-point numbers of 22 bit.
        weight = ((1 << 22) / count.double()).round()
        return total.double().mul_(weight).add_(1 << 21).div_(1 << 22).floor_().clamp_(0, 255).to(levels.dtype)

    def part(x: Tensor) -> Tensor:
        # Sums of whole levels are exact in any order, so matrix products are safe here.
        return rounded(down @ rounded(x @ across, across.sum(0)), down.sum(1, keepdim=True))

    return by_chunk(part, levels)


def _box_members(side: int, new: int) -> Tensor:
    """Which of `side` pixels belong to which of `new` boxes: ones and zeros, `[side, new]`."""
    scale, reach = side / new, max(side / new, 1.0) / 2
    centre, pixel = (torch.arange(new, dtype=torch.float64) + 0.5) * scale, torch.arange(side)[:, None]
    # Half a box to either side, in Pillow's own arithmetic: some centres lie on an edge.
    within = (pixel >= (centre - reach + 0.5).clamp(min=0).long()) & (pixel < (centre + reach + 0.5).long())
    position = (pixel - centre + 0.5) * (1 / (2 * reach))
    return within & (position > -0.5) & (position <= 0.5)


def gray_levels(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`x` in [0, 1] as 8-bit levels 0..255, cut and not rounded, clipped.

    A small share of a level is added first, so that a whole level stays one in spite of rounding errors.
    """
    return (x * 255).add_(2e-4).floor_().clamp_(0, 255)


def luma(x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 1 height width"]:
    """Brightness as the eye weighs it (0.299 red + 0.587 green + 0.114 blue); a grey image is its own."""
    if x.shape[1] == 1:
        return x
    return weighted_sum([(x[:, i : i + 1], w) for i, w in enumerate(_LUMA)])
