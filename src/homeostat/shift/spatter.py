"""Spatter: drops of water or mud on the lens.

Functional core of the spatter corruption of ImageNet-C and CIFAR-C: images `x [batch, channels, height, width]` in
[0, 1] and a `Draw` in, images of the same shape out, neither clipped nor cut to 8 bit (`corruption.corrupt` does both).
What happens to an image depends on its id alone, to the last bit.

Water needs edges, distances to them and an equalised histogram. These are integer computations, written here to give
what OpenCV's `Canny`, `distanceTransform` (chamfer, 5x5) and `equalizeHist` give.

>>> import torch
>>> from homeostat.core.random import Draw
>>> x = torch.zeros(1, 3, 32, 32)
>>> wet = spatter(x, Draw(0, torch.tensor([5])), 0.65, 0.3, 1.0, 0.69, 0.5, mud=False)
>>> bool((wet[:, 2] >= wet[:, 0]).all())
True

References: Hendrycks and Dietterich, ICLR 2019; Canny, A Computational Approach to Edge Detection, 1986; Borgefors,
Distance Transformations in Digital Images, 1986.
"""

from __future__ import annotations

import functools
import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from homeostat.core.random import Draw
from homeostat.nn import filters

Images = Float[Tensor, "batch channels height width"]
Levels = Int[Tensor, "batch height width"]

_WATER = (175 / 255, 238 / 255, 238 / 255)
_MUD = (63 / 255, 42 / 255, 20 / 255)
_GRAY = (0.2989, 0.5870, 0.1140)  # how the peers turn these colours grey
_FIXED = 1 << 16
_STEPS = {1: _FIXED, 2: round(1.4 * _FIXED), 5: round(2.1969 * _FIXED)}  # by the step's squared length
_EMBOSS = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))


def _neighbors(levels: Tensor, border: filters.Border | int) -> dict[tuple[int, int], Tensor]:
    """The eight neighbours of every pixel and the pixel itself, by (row, column) offset; a number fills the outside."""
    height, width = levels.shape[1:]
    if isinstance(border, int):
        wide = torch.nn.functional.pad(levels, (1, 1, 1, 1), value=border)
    else:
        wide = filters.pad(levels.double()[:, None], (1, 1), (1, 1), border)[:, 0].to(levels.dtype)
    return {(i, j): wide[:, 1 + i : 1 + i + height, 1 + j : 1 + j + width] for i in (-1, 0, 1) for j in (-1, 0, 1)}


def _box_mean(values: Tensor) -> Tensor:
    """The mean of every 3x3 square, mirrored at the edges, added in a fixed order."""
    return functools.reduce(torch.add, _neighbors(values, "mirror").values()) / 9


def _spread(mask: Tensor, dim: int) -> Tensor:
    """`mask` or its neighbour to either side along `dim`."""
    wide, size = mask.clone(), mask.shape[dim] - 1
    wide.narrow(dim, 0, size).logical_or_(mask.narrow(dim, 1, size))
    wide.narrow(dim, 1, size).logical_or_(mask.narrow(dim, 0, size))
    return wide


def canny(levels: Levels, low: int, high: int) -> Bool[Tensor, "batch height width"]:
    """Edges of 8-bit images: Sobel gradient, thinned across its direction, kept above `low` where joined to `high`.

    The gradient's size is |dx| + |dy|. Directions are told apart at 22.5 and 67.5 degrees, in 15-bit fixed point.
    """
    n = _neighbors(levels.to(torch.int32), "edge")
    dx = (n[-1, 1] - n[-1, -1]) + 2 * (n[0, 1] - n[0, -1]) + (n[1, 1] - n[1, -1])
    dy = (n[1, -1] - n[-1, -1]) + 2 * (n[1, 0] - n[-1, 0]) + (n[1, 1] - n[-1, 1])
    size = dx.abs() + dy.abs()
    s = _neighbors(size, 0)
    flat, steep = dx.abs() * 13573, dy.abs() << 15  # 13573 is tan(22.5 degrees) in 15 bit
    level = (size > s[0, -1]) & (size >= s[0, 1])
    upright = (size > s[-1, 0]) & (size >= s[1, 0])
    falling = (size > s[-1, -1]) & (size > s[1, 1])
    rising = (size > s[-1, 1]) & (size > s[1, -1])
    diagonal = torch.where((dx ^ dy) < 0, rising, falling)
    ridge = torch.where(steep < flat, level, torch.where(steep > flat + (dx.abs() << 16), upright, diagonal))
    weak = ridge & (size > low)
    edges = weak & (size > high)
    while True:
        grown = _spread(_spread(edges, 1), 2) & weak
        if bool((grown == edges).all()):
            return edges
        edges = grown


def chamfer_distance(edges: Bool[Tensor, "batch height width"], limit: int) -> Float[Tensor, "batch height width"]:
    """Distance to the nearest edge pixel, at most `limit`, by steps of 1 (side), 1.4 (corner), 2.1969 (knight's move).

    A shortest path is a straight run of one kind of step and then of another. So each direction is gone through once,
    in runs of 1, 2, 4, ... steps. Distances are fixed-point numbers of 16 bit.
    """
    height, width = edges.shape[1:]
    distance = torch.where(edges, 0, limit * _FIXED).to(torch.int32)
    for down, right in [(i, j) for i in range(-2, 3) for j in range(-2, 3) if math.gcd(i, j) == 1]:
        cost, run = _STEPS[down * down + right * right], 1
        while run * cost <= limit * _FIXED:
            dy, dx = run * down, run * right
            if abs(dy) < height and abs(dx) < width:
                to = distance[:, max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)]
                start = distance[:, max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
                torch.minimum(to, start + run * cost, out=to)
            run *= 2
    return distance.float() / _FIXED


def equalize(levels: Levels) -> Levels:
    """Spread the grey levels of each 8-bit image evenly; an image of one level stays as it is."""
    flat = levels.flatten(1).long()
    counts = torch.zeros(len(flat), 256, dtype=torch.long, device=flat.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    lowest = flat.amin(1, keepdim=True)
    first = counts.gather(1, lowest)
    rest = (flat.shape[1] - first).clamp(min=1)
    share = (counts.cumsum(1) - first).clamp(min=0).float() * (255.0 / rest.float())
    table = torch.where(first == flat.shape[1], lowest, share.round().clamp(0, 255).long())
    return table.gather(1, flat).reshape(levels.shape).to(levels.dtype)


def _water(liquid: Float[Tensor, "batch height width"]) -> Float[Tensor, "batch height width"]:
    """How much each pixel shines, at most 1: the liquid times an embossed map of the distance to its rims."""
    levels = (liquid * 255 + 1e-9).floor().clamp(0, 255).to(torch.int32)
    distance = chamfer_distance(canny(levels, 50, 150), 20)
    smooth = _box_mean(distance)
    even = equalize((smooth + 1e-4).floor().to(torch.int32))
    n = _neighbors(even, "mirror")
    emboss = torch.stack([n[i - 1, j - 1] * _EMBOSS[i][j] for i in range(3) for j in range(3)]).sum(0).clamp(0, 255)
    mean = _box_mean(emboss.float()).round()
    shine = levels.float() * mean
    return shine / shine.amax((1, 2), keepdim=True).clamp(min=1)


def spatter(
    x: Images, draw: Draw, mean: float, deviation: float, sigma: float, threshold: float, strength: float, mud: bool
) -> Images:
    """Water that adds a pale turquoise shine, or mud that covers in brown.

    A layer of noise N(mean, deviation), blurred by `sigma`, is liquid where it exceeds `threshold`. Water: the layer
    times a relief of its rims, scaled so that its largest value is `strength`, times the colour, is added. Mud: the map
    of what is liquid, blurred by `strength` pixels and kept from 0.8 on, says how far the colour takes the image's
    place. Where the water's layer exceeds 1, the peers' 8-bit number overflows to black; here it is clipped.
    """
    layer = draw.normal(1, *x.shape[2:]).double().to(x.device) * deviation + mean

    def part(layer: Tensor, x: Tensor) -> Tensor:
        liquid = filters.gaussian_blur(layer, sigma)
        color = torch.tensor(_MUD if mud else _WATER, device=x.device)
        if x.shape[1] == 1:
            color = (color * torch.tensor(_GRAY, device=x.device)).sum(0, keepdim=True)
        color = color[None, :, None, None]
        if not mud:
            liquid = torch.where(liquid < threshold, 0.0, liquid)[:, 0]
            return x + (_water(liquid)[:, None] * strength).to(x.dtype) * color
        mask = filters.gaussian_blur((liquid > threshold).to(x.dtype), strength)
        mask = torch.where(mask < 0.8, 0.0, mask)
        return x * (1 - mask) + mask * color

    return filters.by_chunk(part, layer, x)
