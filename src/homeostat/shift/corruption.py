"""The nineteen common corruptions of ImageNet-C and CIFAR-C, by name and severity.

`corrupt(x, name, severity, draw)` damages a batch of images in one of 19 ways at one of 5 severities: 15 for
benchmarks (`COMMON`) and 4 to tune on (`EXTRA`). What happens to an image depends on its sample id alone, to the last
bit: the same in any batch, in any order, after a resume.

There are two sets of constants. `"imagenet"` is that of ImageNet-C; `"cifar"` is that of CIFAR-C, whose damage is
milder because 32x32 images have less to lose. `"auto"` takes `"cifar"` when the shorter side is below 64 pixels.
Lengths are in pixels and are not scaled with the image, except in `elastic_transform`.

The result is clipped to [0, 1] and cut (not rounded) to 8 bit, as in the code that made the published sets. Grey images
stay grey: brightness is added, spatter and frost lose their colour, saturation has nothing to act on.

Checked against the peers' code, given the same random numbers and natural images (`imagecorruptions` 1.1.2 at 224x224
and 96x72, `make_cifar_c.py` of hendrycks/robustness with ImageMagick at 32x32). Largest difference in levels of 255:

| corruption | levels | where the difference comes from |
|---|---|---|
| shot_noise, contrast, pixelate, jpeg_compression | 0 | |
| gaussian_noise, speckle_noise, gaussian, defocus, motion, zoom blur | 1 | rounding next to a whole level |
| snow, fog, brightness, saturate | 1 | the same |
| glass_blur | 1 | the same; for CIFAR 2 in two values of 100 000, because it is cut to 8 bit twice |
| elastic_transform | 1 | the same; for CIFAR 3, because OpenCV looks up positions in steps of 1/32 pixel |
| spatter | 1 | the same; more where the peers' 8-bit layer overflows (CIFAR, severity 3) |
| impulse_noise | | drawn in another way; the shares of black and white agree |
| frost | | procedural, see `weather`; the mean change is within 3 % of that of the photographs |

Mean damage grows with severity except, here as in the published sets, in elastic_transform, spatter, saturate, and in
single steps of glass_blur, frost, snow (ImageNet, 2 to 3), fog (ImageNet, 3 to 4) and motion_blur (CIFAR, 3 to 4).

>>> import torch
>>> from homeostat.core.random import Draw
>>> x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
>>> foggy = corrupt(x, "fog", 3, Draw(0, torch.tensor([11, 12])))
>>> alone = corrupt(x[1:], "fog", 3, Draw(0, torch.tensor([12])))
>>> bool((foggy[1] == alone[0]).all())
True

Reference: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations,
ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from homeostat.core.errors import DtypeError, InputError, NonFiniteError, SpecError, UnknownName, nearest
from homeostat.core.random import Draw
from homeostat.nn import filters
from homeostat.shift.blur import defocus_blur, gaussian_blur, glass_blur, motion_blur, zoom_blur
from homeostat.shift.digital import elastic_transform, jpeg_compression, pixelate
from homeostat.shift.spatter import spatter
from homeostat.shift.weather import fog, frost, snow

Images = Float[Tensor, "batch channels height width"]
Preset = Literal["auto", "imagenet", "cifar"]


def gaussian_noise(x: Images, draw: Draw, deviation: float) -> Images:
    """`x + N(0, deviation)`, per pixel and channel."""
    return draw.normal(*x.shape[1:]).to(x.device).mul_(deviation).add_(x)


def shot_noise(x: Images, draw: Draw, photons: float) -> Images:
    """`Poisson(x * photons) / photons`, per pixel and channel."""
    return draw.poisson((x * photons).cpu()).to(x.device).div_(photons)


def impulse_noise(x: Images, draw: Draw, share: float) -> Images:
    """Salt and pepper: per pixel and channel, 0 with probability `share / 2` and 1 with the same."""
    u = draw.uniform(*x.shape[1:]).to(x.device)
    return torch.where(u < share, (u < share / 2).logical_not_().to(x.dtype), x)


def speckle_noise(x: Images, draw: Draw, deviation: float) -> Images:
    """`x + x * N(0, deviation)`, per pixel and channel."""
    return draw.normal(*x.shape[1:]).to(x.device).mul_(deviation).mul_(x).add_(x)


def brightness(x: Images, draw: Draw, amount: float) -> Images:
    """The value of HSV plus `amount`, at most 1, hue and saturation kept. Draws nothing.

    With fixed hue and saturation all channels are proportional to the value, so they are multiplied by its growth.
    """
    value = x.amax(1, keepdim=True)
    brighter = (value + amount).clamp(max=1)
    return torch.where(value > 0, x * (brighter / value.clamp(min=1e-12)), brighter)


def saturate(x: Images, draw: Draw, factor: float, offset: float) -> Images:
    """The saturation of HSV times `factor` plus `offset`, within [0, 1], hue and value kept. Draws nothing.

    With fixed hue and value the distance of each channel from the value is proportional to the saturation. A colourless
    pixel has the hue of red by convention, and an `offset` tints it, as in the published sets.
    """
    if x.shape[1] == 1:
        return x
    value, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    spread = value - low
    saturation = spread / value.clamp(min=1e-12)
    new = (saturation * factor + offset).clamp(0, 1)
    red = torch.tensor([0.0, 1.0, 1.0], device=x.device)[None, :, None, None]
    away = torch.where(spread > 0, (value - x) / spread.clamp(min=1e-12), red)
    return value - away * (value * new)


def contrast(x: Images, draw: Draw, factor: float) -> Images:
    """`(x - mu) * factor + mu`, mu the mean of each channel of each image. Draws nothing."""
    # Sums of 8-bit images are exact in double precision, so the order of addition does not matter.
    mean = x.mean((2, 3), keepdim=True, dtype=torch.float64).float()
    return (x - mean).mul_(factor).add_(mean)


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    f.__name__: f
    for f in (
        *(gaussian_noise, shot_noise, impulse_noise),
        *(defocus_blur, glass_blur, motion_blur, zoom_blur),
        *(snow, frost, fog, brightness),
        *(contrast, elastic_transform, pixelate, jpeg_compression),
        *(speckle_noise, gaussian_blur, spatter, saturate),
    )
}
COMMON: tuple[str, ...] = tuple(_FUNCTIONS)[:15]
EXTRA: tuple[str, ...] = tuple(_FUNCTIONS)[15:]
FAMILIES: dict[str, tuple[str, ...]] = {
    "noise": COMMON[:3],
    "blur": COMMON[3:7],
    "weather": COMMON[7:11],
    "digital": COMMON[11:],
    "extra": EXTRA,
}


def _zooms(step: float, count: int, trim: bool) -> tuple[tuple[float, ...], bool]:
    """`count` factors from 1 on. The peers add `(1 + step) - 1`, whose last bits decide where a half pixel goes."""
    return tuple(1.0 + i * ((1 + step) - 1) for i in range(count)), trim


IMAGENET: dict[str, tuple[Any, ...]] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": (60.0, 25.0, 12.0, 5.0, 3.0),
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    "defocus_blur": ((3.0, 0.1), (4.0, 0.5), (6.0, 0.5), (8.0, 0.5), (10.0, 0.5)),
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": ((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0)),
    "zoom_blur": tuple(
        _zooms(step, count, False) for step, count in ((0.01, 12), (0.01, 16), (0.02, 11), (0.02, 13), (0.03, 11))
    ),
    "snow": (
        (0.1, 0.3, 3.0, 0.5, 10, 4.0, 0.8, False),
        (0.2, 0.3, 2.0, 0.5, 12, 4.0, 0.7, False),
        (0.55, 0.3, 4.0, 0.9, 12, 8.0, 0.7, False),
        (0.55, 0.3, 4.5, 0.85, 12, 8.0, 0.65, False),
        (0.55, 0.3, 2.5, 0.85, 12, 12.0, 0.55, False),
    ),
    "frost": ((1.0, 0.4, 32.0), (0.8, 0.6, 32.0), (0.7, 0.7, 32.0), (0.65, 0.7, 32.0), (0.6, 0.75, 32.0)),
    "fog": ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "elastic_transform": tuple((1.25 * a, 0.01, 0.0) for a in (0.05, 0.065, 0.085, 0.1, 0.12)),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
    "jpeg_compression": (25, 18, 15, 10, 7),
    "speckle_noise": (0.15, 0.2, 0.35, 0.45, 0.6),
    "gaussian_blur": (1.0, 2.0, 3.0, 4.0, 6.0),
    "spatter": (
        (0.65, 0.3, 4.0, 0.69, 0.6, False),
        (0.65, 0.3, 3.0, 0.68, 0.6, False),
        (0.65, 0.3, 2.0, 0.68, 0.5, False),
        (0.65, 0.3, 1.0, 0.65, 1.5, True),
        (0.67, 0.4, 1.0, 0.65, 1.5, True),
    ),
    "saturate": ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2)),
}

CIFAR: dict[str, tuple[Any, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500.0, 250.0, 100.0, 75.0, 50.0),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),
    "zoom_blur": tuple(_zooms(0.01, count, True) for count in (7, 12, 16, 21, 26)),
    "snow": (
        (0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.95, True),
        (0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.9, True),
        (0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.9, True),
        (0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.85, True),
        (0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.8, True),
    ),
    "frost": ((1.0, 0.2, 6.4), (1.0, 0.3, 6.4), (0.9, 0.4, 6.4), (0.85, 0.4, 6.4), (0.75, 0.45, 6.4)),
    "fog": ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic_transform": (
        (0.0, 0.0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    ),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": (80, 65, 58, 50, 40),
    "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2),
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, False),
        (0.65, 0.1, 0.8, 0.7, 0.5, False),
        (0.65, 0.3, 1.0, 0.69, 0.5, False),
        (0.65, 0.1, 0.7, 0.69, 0.6, True),
        (0.65, 0.1, 0.5, 0.68, 0.6, True),
    ),
    "saturate": ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)),
}


def corrupt(x: Any, name: str, severity: Any, draw: Draw, preset: str = "auto") -> Tensor:
    """A corrupted copy of images, clipped to [0, 1] and cut to 8 bit, in their own dtype and on their own device.

    Args:
        x: `[batch, channels, height, width]`, floating point in [0, 1], 1 or 3 channels, sides of at least 8 pixels.
        name: one of `COMMON` or `EXTRA`.
        severity: 1 to 5; 0 returns the images as they are.
        draw: randomness for these samples, made from their ids.
        preset: which constants; `"auto"` takes `"cifar"` below 64 pixels and `"imagenet"` from there on.

    Raises:
        UnknownName: no corruption has this name.
        SpecError: severity or preset is not one of those above.
        InputError, DtypeError, NonFiniteError: the images do not have the shape, type or range above, or there are
            more or fewer of them than ids.
    """
    if name not in _FUNCTIONS:
        known = ", ".join(_FUNCTIONS)
        raise UnknownName(f"no corruption is called {name!r}; there are {known}.{nearest(name, _FUNCTIONS)}")
    if isinstance(severity, bool) or not isinstance(severity, int) or not 0 <= severity <= 5:
        raise SpecError(f"severity is {severity!r}; give a whole number from 0 (untouched) to 5 (worst)")
    if preset not in get_args(Preset):
        raise SpecError(f"preset is {preset!r}; give 'auto', 'imagenet' or 'cifar'")
    _check_images(x, draw)
    if severity == 0:
        return x.clone()
    if preset == "auto":
        preset = "cifar" if min(x.shape[2:]) < 64 else "imagenet"
    constants = (CIFAR if preset == "cifar" else IMAGENET)[name][severity - 1]
    constants = constants if isinstance(constants, tuple) else (constants,)
    with torch.no_grad():
        damaged = _FUNCTIONS[name](x.float(), draw, *constants)
        return filters.gray_levels(damaged).to(x.dtype).div_(255)


def _check_images(x: Any, draw: Draw) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise DtypeError(f"images are {kind}; give floating point in [0, 1] (8-bit images: x / 255)")
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise InputError(f"images have shape {tuple(x.shape)}; give [batch, 1 or 3 channels, height, width]")
    if not len(x) or min(x.shape[2:]) < 8:
        raise InputError(f"images have shape {tuple(x.shape)}; give at least one, with sides of at least 8 pixels")
    if len(draw) != len(x):
        raise InputError(f"there are {len(x)} images and {len(draw)} ids in `draw`; give one id for each image")
    low, high = x.aminmax()
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise NonFiniteError("images hold NaN or infinity; give finite values in [0, 1]")
    if low < 0 or high > 1:
        raise InputError(f"images range over [{low:.3g}, {high:.3g}]; give [0, 1] (8-bit images: x / 255)")
