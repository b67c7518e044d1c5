"""Middle domains: an image as its edges, its shading, its coarse shape; what a distortion spoils differs between them.

For images x `[batch, channels, height, width]` in 0..1, grey g the mean of the channels, G a Gaussian blur of `sigma`:

| name | image | channels |
|---|---|---|
| `direct` | x | as x |
| `blur` | G x | as x |
| `sharpen` | 2 x - G x, cut to 0..1 | as x |
| `grey` | g | 1 |
| `emboss` | g minus its neighbour below left, below, below right and right, + 128/255, cut to 0..1 | 4 |
| `sobel` | length of the gradient of G g | 1 |
| `laplacian` | Laplacian of G g | 1 |
| `wavelet` | three levels of Haar coefficients, the coarse ones and one detail a level, brought to full size | 4 as x |

All that is linear in g is one convolution, blur included, and G x is one depthwise one; images go on as their mirror
image beyond the border, since zeros would be edges themselves.

>>> made = middle_domains(torch.rand(2, 3, 8, 8), ("grey", "emboss", "wavelet"))
>>> [tuple(image.shape) for image in made.values()]
[(2, 1, 8, 8), (2, 4, 8, 8), (2, 12, 8, 8)]

Reference: Yeo, Kar, Zamir, Robustness via cross-domain ensembles, ICCV 2021.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from homeostat.core.errors import UnknownName, nearest
from homeostat.nn.filters import gaussian_weights, pad

DOMAINS = ("direct", "blur", "sharpen", "grey", "emboss", "sobel", "laplacian", "wavelet")
_NEIGHBOURS = ((1, -1), (1, 0), (1, 1), (0, 1))
Images = Float[Tensor, "batch channels height width"]


def domain_channels(name: str, channels: int) -> int:
    """How many channels a middle domain has for images of so many."""
    return {"grey": 1, "emboss": 4, "sobel": 1, "laplacian": 1, "wavelet": 4 * channels}.get(name, channels)


def middle_domains(x: Images, names: Iterable[str] = DOMAINS, sigma: float = 1.0) -> dict[str, Tensor]:
    """The middle domains of these names, in their order.

    Raises:
        UnknownName: there is no such domain.
    """
    wanted, made = tuple(names), dict[str, Tensor]()
    for name in wanted:
        if name not in DOMAINS:
            raise UnknownName(
                f"there is no middle domain {name!r}.{nearest(name, DOMAINS)} There are {', '.join(DOMAINS)}"
            )
    grey = x.mean(1, keepdim=True)
    made |= {"direct": x, "grey": grey}
    if {"blur", "sharpen"} & set(wanted):
        made["blur"] = _blurred(x, sigma)
        made["sharpen"] = (2 * x - made["blur"]).clamp(0, 1)
    if {"emboss", "sobel", "laplacian"} & set(wanted):
        bank = grey_bank(sigma).to(x)
        reach = bank.shape[-1] // 2
        found = F.conv2d(pad(grey, (reach, reach), (reach, reach), "mirror"), bank[:, None])
        made["emboss"] = (found[:, :4] + 128 / 255).clamp(0, 1)
        made["sobel"] = found[:, 4:6].square().sum(1, keepdim=True).sqrt()
        made["laplacian"] = found[:, 6:]
    if "wavelet" in wanted:
        made["wavelet"] = _haar(x)
    return {name: made[name] for name in wanted}


def grey_bank(sigma: float) -> Float[Tensor, "7 side side"]:
    """Kernels on the grey image: four of emboss, two of Sobel and the Laplacian, the last three with their blur."""
    radius = int(4 * sigma + 0.5)
    line = gaussian_weights(sigma, radius)
    blur = torch.outer(line, line)
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], dtype=torch.float64)
    around = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    # Correlating with one kernel and then another is correlating with their full convolution.
    smooth = [F.conv2d(blur[None, None], k.flip(0, 1)[None, None], padding=2)[0, 0] for k in (across, across.T, around)]
    bank = torch.zeros(7, 2 * radius + 3, 2 * radius + 3, dtype=torch.float64)
    middle = radius + 1
    for place, (down, along) in enumerate(_NEIGHBOURS):
        bank[place, middle, middle] += 1
        bank[place, middle + down, middle + along] -= 1
    bank[4:] = torch.stack(smooth)
    return bank


def _blurred(x: Tensor, sigma: float) -> Tensor:
    radius, channels = int(4 * sigma + 0.5), x.shape[1]
    line = gaussian_weights(sigma, radius).to(x)
    kernel = torch.outer(line, line).expand(channels, 1, -1, -1)
    return F.conv2d(pad(x, (radius, radius), (radius, radius), "mirror"), kernel, groups=channels)


def _haar(x: Tensor, levels: int = 3) -> Tensor:
    """Coarse coefficients, and the vertical details of each level from fine to coarse, at the size of the image."""
    height, width = x.shape[2:]
    coarse, details = x, list[Tensor]()
    for _ in range(levels):
        coarse = pad(coarse, (0, coarse.shape[2] % 2), (0, coarse.shape[3] % 2), "symmetric")
        upper, lower = (coarse[:, :, i::2, 0::2] + coarse[:, :, i::2, 1::2] for i in (0, 1))
        details.append((upper - lower) / 2)
        coarse = (upper + lower) / 2
    return torch.cat([F.interpolate(c, (height, width), mode="bilinear") for c in (coarse, *details)], 1)
