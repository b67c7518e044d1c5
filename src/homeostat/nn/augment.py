"""Random views of images: the same content as another camera would have taken it.

`RandomViews` is CoTTA's augmentation for images `[batch, channels, height, width]` in 0..1: clip; brightness, contrast,
saturation, hue and gamma in random order; rotation, shift and scale beyond whose edges the last pixel repeats; a slight
blur; a left-right flip; noise; clip. As in CoTTA's code one set of random numbers is drawn for the whole batch (noise
aside), so a batch of views is one consistent change of camera, which suits networks that use the batch's statistics.

Saturation and hue concern colour images only (3 channels). Rotation and blur are computed only where the result shows,
and not on a padded image of twice the size.

>>> x = torch.rand(2, 3, 8, 8)
>>> view = RandomViews()(x, torch.Generator().manual_seed(0))
>>> view.shape, bool(((view >= 0) & (view <= 1)).all())
(torch.Size([2, 3, 8, 8]), True)

Reference: Wang et al., Continual test-time domain adaptation, CVPR 2022; Ma et al., KATANA, 2021.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from homeostat.core.errors import InputError
from homeostat.core.layout import laid_as
from homeostat.core.spec import Fraction, NonNegative, Spec

Range = tuple[float, float]
_GREY = (0.2989, 0.587, 0.114)  # as PIL and torchvision weigh red, green and blue
_SLACK = 1.0  # noise and interpolation leave 0..1 a little; 0..255 and normalised images leave it far


@dataclass(frozen=True)
class RandomViews(Spec):
    """Colour, geometry, blur, flip and noise, drawn once a call.

    Attributes:
        brightness, contrast, saturation, gamma: ranges of the factor (of the exponent for gamma); 1 changes nothing.
        hue: range of the shift, in turns of the colour wheel.
        degrees: rotation, at most, to both sides.
        shift: at most, to all sides, as a share of twice the image's size; whole pixels.
        scale: range of the enlargement.
        blur: range of the Gaussian's deviation, in pixels; the kernel has 5 x 5.
        flip: probability of a left-right flip.
        noise: standard deviation, drawn anew for each pixel.
    """

    brightness: Range = (0.6, 1.4)
    contrast: Range = (0.7, 1.3)
    saturation: Range = (0.5, 1.5)
    hue: Range = (-0.06, 0.06)
    gamma: Range = (0.7, 1.3)
    degrees: NonNegative = 15.0
    shift: Fraction = 1 / 16
    scale: Range = (0.9, 1.1)
    blur: Range = (0.001, 0.5)
    flip: Fraction = 0.5
    noise: NonNegative = 0.005

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A view of the batch.

        Args:
            x: images `[batch, channels, height, width]` in 0..1.
            generator: a CPU generator.

        Raises:
            InputError: these are no images, or their values are far from 0..1.
        """
        check_pixels(x)
        given, kept = x, x.dtype
        x = x.to(torch.promote_types(x.dtype, torch.float32)).clamp(0, 1)
        for which in torch.randperm(5, generator=generator).tolist():
            x = self._recolour(x, which, generator)
        x = self._move(x, generator)
        if float(torch.rand((), generator=generator)) < self.flip:
            x = x.flip(3)
        if self.noise:
            x = x + self.noise * torch.randn(x.shape, generator=generator).to(x)
        return laid_as(x.clamp(0, 1).to(kept), given)

    def _recolour(self, x: Tensor, which: int, generator: torch.Generator) -> Tensor:
        limits = (self.brightness, self.contrast, self.saturation, self.hue, self.gamma)[which]
        amount = _between(limits, generator)
        if which == 0:
            return (x * amount).clamp_(0, 1)
        if which == 1:
            return _mix(x, grey(x).mean((1, 2, 3), keepdim=True), amount)
        if which == 4:
            return x.clamp(1e-8, 1).pow_(amount)
        if x.shape[1] != 3:
            return x
        return _mix(x, grey(x), amount) if which == 2 else shift_hue(x, amount)

    def _move(self, x: Tensor, generator: torch.Generator) -> Tensor:
        height, width = x.shape[2:]
        angle = math.radians(_between((-self.degrees, self.degrees), generator))
        right, down = (round(_between((-1.0, 1.0), generator) * self.shift * 2 * size) for size in (width, height))
        scale, sigma = _between(self.scale, generator), _between(self.blur, generator)
        return blur5(turn(x, angle, (right, down), scale, margin=2), sigma)


def check_pixels(x: Tensor) -> None:
    """Raise `InputError` unless these are float images about 0..1."""
    if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
        what = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"views are made of float images [batch, channels, height, width]; these are {what}")
    low, high = (float(v) for v in torch.aminmax(x))
    if low < -_SLACK or high > 1 + _SLACK:
        raise InputError(
            f"views are made of images in 0..1; these span {low:.4g} to {high:.4g}. Scale them, and let the network "
            "normalise its inputs itself (homeostat.nn.Normalized)"
        )


def grey(x: Tensor) -> Tensor:
    """Brightness `[batch, 1, height, width]`; other images than RGB are averaged over their channels."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (_GREY[0] * x[:, 0] + _GREY[1] * x[:, 1] + _GREY[2] * x[:, 2])[:, None]


def shift_hue(x: Tensor, turns: float) -> Tensor:
    """RGB images with their hue moved by a share of the colour wheel; brightness and saturation stay.

    >>> shift_hue(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1), 1 / 3).flatten()
    tensor([0., 1., 0.])
    """
    value, strongest = x.max(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    # The hue sextant is counted from the strongest channel: (next - one after) / chroma, and 2 a channel.
    following = (x.gather(1, (strongest + 1) % 3) - x.gather(1, (strongest + 2) % 3)) / chroma.clamp(min=1e-12)
    sextant = following + 2 * strongest + 6 * turns
    offset = torch.tensor([5.0, 3.0, 1.0], dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    ramp = (sextant + offset) % 6
    return value - chroma * torch.minimum(ramp, 4 - ramp).clamp_(0, 1)


def turn(x: Tensor, angle: float, shift: tuple[int, int], scale: float, margin: int = 0) -> Tensor:
    """Rotate clockwise (radians), scale about the centre, shift (right, down, in pixels); bilinear, edges repeated.

    Args:
        margin: so many pixels more on every side of the result.
    """
    height, width = x.shape[2:]
    down = torch.arange(-margin, height + margin, dtype=x.dtype, device=x.device) - (height - 1) / 2 - shift[1]
    right = torch.arange(-margin, width + margin, dtype=x.dtype, device=x.device) - (width - 1) / 2 - shift[0]
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    columns = cos * right[None, :] + sin * down[:, None]
    rows = cos * down[:, None] - sin * right[None, :]
    grid = torch.stack([columns * (2 / width), rows * (2 / height)], 2)
    # A grid for the whole batch need not be repeated when channels of all images are taken as one image's.
    flat = x.reshape(1, -1, height, width)
    moved = F.grid_sample(flat, grid[None], mode="bilinear", padding_mode="border", align_corners=False)
    return moved.view(*x.shape[:2], *moved.shape[2:])


def blur5(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with 5 x 5 taps; the result is 2 pixels smaller on every side."""
    taps = [math.exp(-0.5 * (offset / sigma) ** 2) if sigma > 0 else float(offset == 0) for offset in (0, 1, 2)]
    total = taps[0] + 2 * taps[1] + 2 * taps[2]
    near, one, two = (tap / total for tap in taps)
    for dim in (2, 3):
        size = x.shape[dim] - 4
        part = [x.narrow(dim, start, size) for start in range(5)]
        result = part[2] * near
        if two > 1e-12:
            result.add_(part[0] + part[4], alpha=two)
        if one > 1e-12:
            result.add_(part[1] + part[3], alpha=one)
        x = result
    return x


def _mix(x: Tensor, other: Tensor, amount: float) -> Tensor:
    return torch.lerp(other.expand_as(x), x, amount).clamp_(0, 1)


def _between(limits: Range, generator: torch.Generator) -> float:
    return limits[0] + (limits[1] - limits[0]) * float(torch.rand((), generator=generator, dtype=torch.float64))
