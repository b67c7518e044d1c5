"""Digital damage: elastic warps, coarse pixels, JPEG.

Functional cores of the digital corruptions of ImageNet-C and CIFAR-C. Every function takes images
`x [batch, channels, height, width]` in [0, 1] and a `Draw`, and returns images of the same shape, neither clipped nor
cut to 8 bit (`corruption.corrupt` does both). What happens to an image depends on its id alone, to the last bit.

JPEG is a real codec's (Pillow, libjpeg), as in the published sets: quantisation, colour subsampling 4:2:0 and all.
Coarse pixels follow Pillow's box filter bit for bit.

>>> import torch
>>> from homeostat.core.random import Draw
>>> x = torch.arange(64.0).reshape(1, 1, 8, 8) / 255
>>> (pixelate(x, Draw(0, torch.tensor([0])), 0.5) * 255)[0, 0, 0]
tensor([ 5.,  5.,  7.,  7.,  9.,  9., 11., 11.])

Reference: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations,
ICLR 2019.
"""

from __future__ import annotations

import itertools
from io import BytesIO

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from homeostat.core.random import Draw
from homeostat.nn import filters

Images = Float[Tensor, "batch channels height width"]


def _affine_positions(draw: Draw, height: int, width: int, jitter: float) -> tuple[Tensor, Tensor]:
    """Rows and columns `[batch, height, width]` that a random affine map of the image looks up, float64.

    Three corners of a square in the middle, a third of the shorter side from the centre, move by up to `jitter` pixels
    in each direction. The map that takes them back is solved in closed form.
    """
    middle, arm = (height // 2, width // 2), min(height, width) // 3
    start = torch.tensor(
        [[middle[0] + arm, middle[1] + arm], [middle[0] + arm, middle[1] - arm], [middle[0] - arm, middle[1] - arm]],
        dtype=torch.float64,
    )
    end = start + (draw.uniform(3, 2).double() * 2 - 1) * jitter
    origin, first, second = end[:, 0], end[:, 1] - end[:, 0], end[:, 2] - end[:, 0]
    area = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    y = torch.arange(height, dtype=torch.float64)[:, None]
    x = torch.arange(width, dtype=torch.float64)[None, :]
    dx, dy = x - origin[:, 0, None, None], y - origin[:, 1, None, None]
    # Coordinates of each pixel in the moved frame; the same coordinates in the frame at rest are where to look.
    a = (dx * second[:, 1, None, None] - dy * second[:, 0, None, None]) / area[:, None, None]
    b = (dy * first[:, 0, None, None] - dx * first[:, 1, None, None]) / area[:, None, None]
    one, two = start[1] - start[0], start[2] - start[0]
    return start[0, 1] + a * one[1] + b * two[1], start[0, 0] + a * one[0] + b * two[0]


def elastic_transform(x: Images, draw: Draw, amplitude: float, smoothness: float, jitter: float) -> Images:
    """Rubber-sheet warp: a random affine map, then a smooth random displacement; bilinear, reflecting at the edges.

    Displacements U(-1, 1) are blurred by a Gaussian of `smoothness` times the side (cut at three deviations) and
    multiplied by `amplitude` times the height. Three points of the affine map move by U(-1, 1) times `jitter` times the
    shorter side.
    """
    height, width = x.shape[2:]
    if jitter > 0:
        rows, columns = _affine_positions(draw, height, width, jitter * min(height, width))
        x = filters.sample_bilinear(x, rows.to(x.device), columns.to(x.device), "mirror")
    if amplitude == 0:
        return x
    sigma = (smoothness * height, smoothness * width)
    noise = [(draw.uniform(1, height, width) * 2 - 1).double() for _ in range(2)]
    along, down = (filters.gaussian_blur(n, sigma, "symmetric", 3.0)[:, 0] * (amplitude * height) for n in noise)
    rows = down + torch.arange(height, dtype=torch.float64)[:, None]
    columns = along + torch.arange(width, dtype=torch.float64)[None, :]
    return filters.sample_bilinear(x, rows.to(x.device), columns.to(x.device), "symmetric")


def _nearest(size: int, new: int) -> list[int]:
    """Which of `size` pixels lies under the centre of each of `new`, added up step by step as Pillow does."""
    steps = itertools.accumulate(itertools.repeat(size / new, new - 1), initial=size / new * 0.5)
    return [int(position) for position in steps]


def pixelate(x: Images, draw: Draw, scale: float) -> Images:
    """Shrink each side to `int(side * scale)` by box means in 8 bit, then enlarge by repetition. Draws nothing."""
    height, width = x.shape[2:]
    high, wide = max(1, int(height * scale)), max(1, int(width * scale))
    rows = torch.tensor(_nearest(high, height), device=x.device)
    columns = torch.tensor(_nearest(wide, width), device=x.device)

    small = filters.box_shrink((x * 255).round_(), high, wide).div_(255)
    return filters.by_chunk(lambda part: part.index_select(3, columns).index_select(2, rows), small)


def _through_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """One 8-bit image `[height, width]` or `[height, width, 3]`, written and read again."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def jpeg_compression(x: Images, draw: Draw, quality: int) -> Images:
    """Written as JPEG of the given `quality` (1 to 95) by Pillow and read again. Draws nothing.

    A grey image is written as grey.
    """
    pixels = (x * 255).round_().to(torch.uint8).movedim(1, -1)
    pixels = (pixels[..., 0] if x.shape[1] == 1 else pixels).contiguous().cpu().numpy()
    # Pillow holds the interpreter's lock for so much of this that threads do not help.
    done = torch.from_numpy(np.stack([_through_jpeg(image, quality) for image in pixels])).to(x.device)
    return (done[:, None] if x.shape[1] == 1 else done.movedim(-1, 1)).to(x.dtype) / 255
