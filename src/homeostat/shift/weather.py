"""Weather: snow, frost and fog.

Functional cores of the weather corruptions of ImageNet-C and CIFAR-C. Every function takes images
`x [batch, channels, height, width]` in [0, 1] and a `Draw`, and returns images of the same shape, neither clipped nor
cut to 8 bit (`corruption.corrupt` does both). What happens to an image depends on its id alone, to the last bit.

**Frost is procedural.** The published sets lay random crops of five photographs over the images; we have no
photographs. Ours is ridged fractal noise, bluish white with bright edges, whose brightness (mean over images 0.64,
spread between images 0.13, contrast within an image near 0.09) follows those photographs. Report results on it as
`frost_procedural`; they are not comparable with published frost numbers.

>>> import torch
>>> from homeostat.core.random import Draw
>>> x = torch.full((1, 3, 32, 32), 0.5)
>>> bool((fog(x, Draw(0, torch.tensor([7])), amount=1.0, decay=2.0) != x).any())
True

Reference: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations,
ICLR 2019.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from homeostat.core.random import Draw
from homeostat.nn import filters
from homeostat.shift.blur import directional_blur

Images = Float[Tensor, "batch channels height width"]

_FROST_CELLS = 32  # side of the endlessly repeated table of random values behind each octave, a power of two
_FROST_OCTAVES = 5
_FROST_TINT = (-0.07, 0.01, 0.06)  # red, green, blue against grey: the photographs' mean colour


def snow(
    x: Images,
    draw: Draw,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: int,
    sigma: float,
    keep: float,
    trim: bool,
) -> Images:
    """Flakes that fall, over a whitened image.

    A layer of noise N(mean, deviation) is enlarged by `zoom`, kept where it is at least `threshold`, and blurred along
    an angle between -135 and -45 degrees (see `directional_blur`), then taken to 8 bit. The image becomes
    `keep * x + (1 - keep) * max(x, 1.5 * luma(x) + 0.5)`, plus the layer, plus the layer turned by 180 degrees.
    With `trim` (CIFAR) the layer is cut to its middle and to 8 bit before it is blurred, and to 8 bit after. Without,
    it is cut to its top left corner and rounded to 8 bit after.
    """
    height, width = x.shape[2:]
    layer = draw.normal(1, height, width).to(x.device) * deviation + mean
    layer = filters.zoom(layer, zoom, trim)
    layer = torch.where(layer < threshold, 0.0, layer).clamp(0, 1)
    if trim:
        layer = filters.gray_levels(layer) / 255
    layer = directional_blur(layer, draw.uniform().double() * 90 - 135, radius, sigma)
    layer = (filters.gray_levels(layer) if trim else (layer * 255).round()) / 255
    layer = layer[:, :, :height, :width]
    white = torch.maximum(x, filters.luma(x) * 1.5 + 0.5)
    return x * keep + white * (1 - keep) + layer + layer.flip(2, 3)


def frost_layer(draw: Draw, height: int, width: int, grain: float) -> Float[Tensor, "batch 3 height width"]:
    """A sheet of frost for each sample: ridged fractal noise, bluish white on a darker ground.

    Five octaves with cells of `grain`, `grain / 2`, ... pixels. In each octave smooth noise n in [0, 1] over a lattice,
    turned by a random angle and three times as long as wide, gives needles (1 - |2n - 1|)^2. Their mean is scaled to a
    random brightness; darker sheets have more contrast.
    """
    table = draw.uniform(_FROST_OCTAVES, _FROST_CELLS, _FROST_CELLS)
    angle = draw.uniform(_FROST_OCTAVES).double() * math.pi
    level = draw.uniform()[:, None, None]
    # Rounded from double precision, which a vector unit and a scalar unit agree on.
    cosine, sine = angle.cos().float()[..., None, None], angle.sin().float()[..., None, None]
    y = torch.arange(height, dtype=torch.float32)[:, None]
    x = torch.arange(width, dtype=torch.float32)[None, :]

    def part(table: Tensor, cosine: Tensor, sine: Tensor, level: Tensor) -> Tensor:
        sheet = torch.zeros(len(table), height, width)
        for octave in range(_FROST_OCTAVES):
            cell = max(1.0, grain / 2**octave)
            turn, lean = cosine[:, octave], sine[:, octave]
            along, across = (x * turn + y * lean) / (3 * cell), (y * turn - x * lean) / cell
            top, left = across.floor(), along.floor()
            down, right = _ease(across - top), _ease(along - left)
            # The table is wrapped around, so that every lattice point finds a value in it.
            rows = [(top.long() + step).bitwise_and_(_FROST_CELLS - 1) * _FROST_CELLS for step in (0, 1)]
            columns = [(left.long() + step).bitwise_and_(_FROST_CELLS - 1) for step in (0, 1)]
            values = table[:, octave].flatten(1)
            corners = [[values.gather(1, (r + c).flatten(1)).view_as(top) for c in columns] for r in rows]
            above, below = (a * (1 - right) + b * right for a, b in corners)
            ridge = 1 - ((above * (1 - down) + below * down) * 2 - 1).abs()
            sheet += ridge * ridge
        bright = 0.42 + 0.44 * level
        contrast = 0.21 - 0.13 * level
        # An octave of ridges has a mean near 0.47; the sum of five has a deviation near 0.64.
        return bright + contrast * (sheet - 0.47 * _FROST_OCTAVES)

    sheet = filters.by_chunk(part, table, cosine, sine, level, size=height * width)
    return torch.stack([sheet + tint for tint in _FROST_TINT], 1).clamp(0, 1)


def _ease(t: Tensor) -> Tensor:
    """The cubic 3t^2 - 2t^3: smooth at both ends."""
    return t * t * (3 - 2 * t)


def frost(x: Images, draw: Draw, keep: float, amount: float, grain: float) -> Images:
    """`keep * x + amount * frost`, with procedural frost (see `frost_layer` and the note above)."""
    layer = frost_layer(draw, x.shape[2], x.shape[3], grain).to(x.device)
    return x * keep + (layer if x.shape[1] == 3 else filters.luma(layer)) * amount


def plasma(draw: Draw, side: int, decay: float) -> Float[Tensor, "batch side side"]:
    """Diamond-square clouds in [0, 1] on an endless square whose `side` is a power of two.

    The corner is 0. At each level the middle of every square, then the middle of every edge, is the mean of its four
    neighbours plus a displacement uniform in +-amplitude^2. The amplitude starts at 100 and is divided by `decay`.
    """
    noise = draw.uniform(side * side - 1)

    def part(noise: Tensor) -> Tensor:
        cloud = torch.zeros(len(noise), side, side)
        step, amplitude, used = side, 100.0, 0
        while step >= 2:
            half, count = step // 2, side // step
            displace = (noise[:, used : used + 3 * count * count] * 2 - 1) * amplitude**2
            middle, across, down = displace.reshape(-1, 3, count, count).unbind(1)
            used += 3 * count * count
            corner = cloud[:, ::step, ::step]
            rows = corner + corner.roll(-1, 1)
            cloud[:, half::step, half::step] = (rows + rows.roll(-1, 2)) / 4 + middle
            centre = cloud[:, half::step, half::step]
            cloud[:, ::step, half::step] = (centre + centre.roll(1, 1) + corner + corner.roll(-1, 2)) / 4 + across
            cloud[:, half::step, ::step] = (centre + centre.roll(1, 2) + corner + corner.roll(-1, 1)) / 4 + down
            step, amplitude = half, amplitude / decay
        cloud -= cloud.amin((1, 2), keepdim=True)
        return cloud / cloud.amax((1, 2), keepdim=True)

    return filters.by_chunk(part, noise)


def fog(x: Images, draw: Draw, amount: float, decay: float) -> Images:
    """`(x + amount * clouds) * M / (M + amount)`, M the image's largest value, clouds from `plasma`."""
    height, width = x.shape[2:]
    side = 1 << (max(height, width) - 1).bit_length()
    clouds = plasma(draw, side, decay)[:, None, :height, :width].to(x.device)
    peak = x.amax((1, 2, 3), keepdim=True)
    return (x + clouds * amount) * (peak / (peak + amount))
