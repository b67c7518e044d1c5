"""Images and their frequencies, as magnetic resonance sees them: complex numbers are two channels.

A complex image is `[batch, 2, height, width]`, real part first; so are its frequencies (k-space). The transform is
centred (frequency 0 in the middle, at height // 2, width // 2) and orthonormal, so that noise of deviation sigma in
each part has deviation sigma on both sides. What was sampled is a mask of columns `[batch, width]`, one a sample.

>>> x = torch.rand(1, 2, 6, 5)
>>> bool(torch.allclose(to_image(to_frequencies(x)), x, atol=1e-6))
True
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from homeostat.core.errors import InputError


def to_frequencies(image: Float[Tensor, "batch 2 height width"]) -> Float[Tensor, "batch 2 height width"]:
    """The centred orthonormal Fourier transform."""
    return _transformed(image, torch.fft.fft2)


def to_image(kspace: Float[Tensor, "batch 2 height width"]) -> Float[Tensor, "batch 2 height width"]:
    """The inverse of `to_frequencies`."""
    return _transformed(kspace, torch.fft.ifft2)


def _transformed(pairs: Tensor, transform) -> Tensor:
    exact = pairs.to(torch.promote_types(pairs.dtype, torch.float32))  # there is no transform of half precision
    made = torch.complex(exact[:, 0], exact[:, 1])
    made = torch.fft.fftshift(transform(torch.fft.ifftshift(made, dim=(-2, -1)), norm="ortho"), dim=(-2, -1))
    return torch.stack([made.real, made.imag], 1).to(pairs.dtype)


def as_pairs(image: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 2 height width"]:
    """A grey image as a complex one; a complex one stays as it is.

    Raises:
        InputError: neither one channel nor two.
    """
    if image.shape[1] == 2:
        return image
    if image.shape[1] != 1:
        raise InputError(f"images have {image.shape[1]} channels; 1 (grey) or 2 (real and imaginary) are wanted")
    return torch.cat([image, torch.zeros_like(image)], 1)


def column_masks(
    scores: Float[Tensor, "batch width"], acceleration: float, center: float
) -> Bool[Tensor, "batch width"]:
    """Which columns of k-space are sampled: those in the middle, and those with the highest scores.

    Args:
        scores: random numbers, one a column.
        acceleration: sampled are `round(width / acceleration)` columns, the middle ones included.
        center: share of the width that is always sampled, around frequency 0; at least one column.
    """
    width = scores.shape[1]
    inner = max(1, round(center * width))
    total = min(width, max(inner, round(width / acceleration)))
    first = width // 2 - inner // 2
    raised = scores.clone()
    raised[:, first : first + inner] = math.inf
    chosen = raised.topk(total, dim=1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, chosen, True)


def data_consistency(
    image: Float[Tensor, "batch 2 height width"],
    kspace: Float[Tensor, "batch 2 height width"],
    mask: Bool[Tensor, "batch width"],
    doubt: Float[Tensor, " batch"],
) -> Float[Tensor, "batch 2 height width"]:
    """The image with its sampled frequencies X drawn to the measured ones Y: `(doubt X + Y) / (doubt + 1)`.

    Args:
        image: a guess.
        kspace: what was measured.
        mask: where.
        doubt: lambda, per sample; 0 takes the measurement, infinity the guess.
    """
    own = to_frequencies(image)
    drawn = (doubt[:, None, None, None] * own + kspace) / (doubt[:, None, None, None] + 1)
    return to_image(torch.where(mask[:, None, None], drawn, own))


def estimate_noise(
    kspace: Float[Tensor, "batch 2 height width"], mask: Bool[Tensor, "batch width"]
) -> Float[Tensor, " batch"]:
    """The deviation of the noise in each part, from the sampled frequencies of the outer quarter of rows.

    Squared magnitudes of noise are exponential with mean 2 sigma^2, so their median is 2 sigma^2 log 2; the median
    takes little notice of the few frequencies in which the image is. Where the image itself is rough the estimate is
    too high.
    """
    power = kspace.to(torch.promote_types(kspace.dtype, torch.float32)).square().sum(1)
    height = power.shape[1]
    offset = (torch.arange(height, device=power.device) - height // 2).abs()
    far = (offset >= 3 * height / 8)[None, :, None] & mask[:, None]
    kept = torch.where(far, power, math.nan).flatten(1)
    return (kept.nanmedian(1).values / (2 * math.log(2))).sqrt().nan_to_num(0.0).to(kspace.dtype)
