"""Blurs: out of focus, seen through glass, moved, zoomed while the shutter was open.

Functional cores of the blur corruptions of ImageNet-C and CIFAR-C. Every function takes images
`x [batch, channels, height, width]` in [0, 1] and a `Draw`, and returns images of the same shape, neither clipped nor
cut to 8 bit (`corruption.corrupt` does both). What happens to an image depends on its id alone, to the last bit.

>>> import torch
>>> from homeostat.core.random import Draw
>>> x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
>>> motion_blur(x, Draw(0, torch.tensor([4, 9])), radius=6, sigma=1.0).shape
torch.Size([2, 3, 32, 32])

Reference: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations,
ICLR 2019.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from homeostat.core.random import Draw
from homeostat.nn import filters

Images = Float[Tensor, "batch channels height width"]


def gaussian_blur(x: Images, draw: Draw, sigma: float) -> Images:
    """Gaussian of standard deviation `sigma` pixels, cut at four of them, edge pixels repeated. Draws nothing."""
    return filters.gaussian_blur(x, sigma)


def disk(radius: float, softness: float) -> Float[Tensor, "side side"]:
    """A disk of `radius` pixels with the total 1, smoothed by a Gaussian of `softness` pixels against jagged edges.

    The grid runs over -8..8 and the smoothing over 3x3 pixels; a radius above 8 gets its own grid and 5x5 pixels.
    The smoothing reflects about the grid's outermost pixels. Rows and columns of zeros are cut off.
    """
    reach, smooth = (8, 1) if radius <= 8 else (int(radius), 2)
    steps = torch.arange(-reach, reach + 1, dtype=torch.float64)
    inside = (steps[:, None] ** 2 + steps[None, :] ** 2 <= radius**2).double()
    weights = filters.gaussian_weights(softness, smooth)
    grid = (inside / inside.sum())[None, None]
    kernel = filters.correlate(filters.correlate(grid, weights[:, None], "mirror"), weights[None, :], "mirror")[0, 0]
    spare = int((kernel.sum(1) > 0).double().argmax())
    return kernel[spare : len(kernel) - spare, spare : len(kernel) - spare].float()


def defocus_blur(x: Images, draw: Draw, radius: float, softness: float) -> Images:
    """Every point becomes a soft disk (see `disk`); the image reflects about its outermost pixels. Draws nothing."""
    return filters.correlate(x, disk(radius, softness), "mirror")


def _sweep(offsets: Int[Tensor, "batch rows columns 2"], reach: int, height: int, width: int) -> Tensor:
    """Where each pixel comes from after one sweep of copies, as flat indices `[batch, height * width]`.

    Pixels are visited from the last row and column to the first. Each takes the present value of another one: the new
    value if that was visited before (it lies further on), else the old one. So the pixels form chains, which are
    followed by doubling: an index below `size` means "the new value of that pixel", `size + i` means "the old value
    of pixel i", where a chain ends.
    """
    size = height * width
    grid = torch.arange(size, device=offsets.device).reshape(height, width)
    # The peers count rows and columns from `side - reach` down to `reach + 1`.
    visited = grid[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1]
    dx, dy = offsets.flip(1, 2).unbind(-1)
    taken = visited + dy * width + dx
    link = (grid + size).expand(len(offsets), -1, -1).clone()
    link[:, reach + 1 : height - reach + 1, reach + 1 : width - reach + 1] = torch.where(
        taken > visited, taken, taken + size
    )
    link = torch.cat([link.flatten(1), (grid + size).flatten().expand(len(offsets), -1)], 1)
    while bool((link[:, :size] < size).any()):
        link = link.gather(1, link)
    return link[:, :size] - size


def glass_blur(x: Images, draw: Draw, sigma: float, reach: int, sweeps: int) -> Images:
    """Gaussian blur, local disorder, Gaussian blur.

    In each sweep every pixel further than `reach` from the edge takes the value of another, whose row and column lie
    `-reach..reach-1` away at random, one pixel after the other from the last to the first. (Papers speak of swaps. The
    code that made the published sets assigns NumPy views to each other, which copies one way, and so does this.) The
    image is cut to 8 bit before the sweeps.
    """
    _, channels, height, width = x.shape
    rows, columns = max(0, height - 2 * reach), max(0, width - 2 * reach)
    offsets = draw.integers(-reach, reach, sweeps, rows, columns, 2).to(x.device)

    def part(x: Tensor, offsets: Tensor) -> Tensor:
        flat = filters.gray_levels(filters.gaussian_blur(x, sigma)).div(255).flatten(2)
        for sweep in offsets.unbind(1):
            source = _sweep(sweep, reach, height, width)
            flat = flat.gather(2, source[:, None].expand(-1, channels, -1))
        return filters.gaussian_blur(flat.reshape(x.shape), sigma)

    return filters.by_chunk(part, x, offsets)


def directional_blur(x: Images, degrees: Float[Tensor, " batch"], radius: int, sigma: float) -> Images:
    """A trail along one direction per image: the mean of copies moved by 0..2 `radius` pixels, edge pixels repeated.

    Copy i is weighted by exp(-i^2 / (2 sigma^2)) and looks i pixels away at the given angle, counted from the
    rightward axis towards the bottom, rounded to whole pixels.
    """
    width = 2 * radius + 1
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(width)]
    weights = [w / sum(weights) for w in weights]
    trails = []
    for angle in degrees.tolist():
        down, right = math.sin(math.radians(angle)), math.cos(math.radians(angle))
        trails.append([(math.ceil(i * down - 0.5), math.ceil(i * right - 0.5)) for i in range(width)])
    ys, xs = zip(*(point for trail in trails for point in trail), strict=True)
    top, left = -min(ys), -min(xs)
    wide = filters.pad(x, (top, max(ys)), (left, max(xs)), "edge")
    height, width = x.shape[2:]
    return torch.stack(
        [
            filters.weighted_sum(
                [
                    (image[:, top + y : top + y + height, left + x : left + x + width], weight)
                    for (y, x), weight in zip(trail, weights, strict=True)
                ]
            )
            for image, trail in zip(wide, trails, strict=True)
        ]
    )


def motion_blur(x: Images, draw: Draw, radius: int, sigma: float) -> Images:
    """`directional_blur` at an angle drawn between -45 and 45 degrees."""
    return directional_blur(x, draw.uniform().double() * 90 - 45, radius, sigma)


def zoom_blur(x: Images, draw: Draw, factors: tuple[float, ...], trim: bool) -> Images:
    """The mean of the image and of its middle enlarged by every factor, bilinear. Draws nothing.

    With `trim` the middle of each enlargement is used, else its top left corner (enlargements may be a few pixels
    larger than the image; the ImageNet peers do not centre them).
    """
    height, width = x.shape[2:]

    def part(x: Tensor) -> Tensor:
        layers = (filters.zoom(x, factor, trim)[:, :, :height, :width] for factor in factors)
        total = x.clone()
        for layer in layers:
            total += layer
        return total / (len(factors) + 1)

    return filters.by_chunk(part, x)
