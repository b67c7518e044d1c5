"""Frequencies, masks and data consistency against matrices written out."""

from __future__ import annotations

import math

import pytest
import torch

from homeostat.core.errors import InputError
from homeostat.nn.fourier import as_pairs, column_masks, data_consistency, estimate_noise, to_frequencies, to_image


def matrix(n: int) -> torch.Tensor:
    """The centred orthonormal Fourier matrix: both the pixel n // 2 and the frequency n // 2 are 0."""
    k = torch.arange(n, dtype=torch.float64) - n // 2
    return torch.polar(torch.full((n, n), n**-0.5, dtype=torch.float64), -2 * math.pi * k[:, None] * k / n)


@pytest.mark.exact("S301")
@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (4, 9)])
def test_frequencies_are_those_of_the_matrix(shape):
    x = torch.randn(2, 2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = matrix(shape[0]) @ torch.complex(x[:, 0], x[:, 1]) @ matrix(shape[1]).T
    got = to_frequencies(x)
    assert torch.allclose(torch.complex(got[:, 0], got[:, 1]), expected, atol=1e-12)
    assert torch.allclose(to_image(got), x, atol=1e-12)
    assert torch.allclose(got.square().sum(), x.square().sum())


def test_half_precision_goes_there_and_back():
    x = torch.rand(1, 2, 8, 8).bfloat16()
    assert to_frequencies(x).dtype == torch.bfloat16 and torch.allclose(to_image(to_frequencies(x)), x, atol=0.05)


@pytest.mark.exact("S301")
def test_consistency_minimises_the_distance_to_guess_and_measurement():
    """On sampled frequencies (doubt X + Y) / (doubt + 1) minimises doubt |Z - X|^2 + |Z - Y|^2."""
    draws = torch.Generator().manual_seed(1)
    image, kspace = torch.randn(2, 3, 2, 6, 6, generator=draws, dtype=torch.float64).unbind()
    mask = torch.rand(3, 6, generator=draws) < 0.5
    doubt = torch.tensor([0.0, 0.7, 1e9], dtype=torch.float64)
    got, own = to_frequencies(data_consistency(image, kspace, mask, doubt)), to_frequencies(image)
    for b in range(3):
        for column in range(6):
            here, x, y = got[b, :, :, column], own[b, :, :, column], kspace[b, :, :, column]
            expected = (doubt[b] * x + y) / (doubt[b] + 1) if mask[b, column] else x
            assert torch.allclose(here, expected, atol=1e-8)
    assert torch.allclose(got[2], own[2], atol=1e-8)


def test_masks_hold_the_middle_and_as_many_columns_as_asked_for():
    scores = torch.rand(50, 28, generator=torch.Generator().manual_seed(0))
    mask = column_masks(scores, 4.0, 0.08)
    assert mask.sum(1).unique().tolist() == [7] and bool(mask[:, 13:15].all())
    assert bool((mask.float().mean(0)[torch.arange(28) < 13] > 0).all()) and len(mask.unique(dim=0)) > 40
    best = scores.clone()
    best[:, 13:15] = -1
    assert all(mask[i, best[i].argmax()] for i in range(50))
    assert column_masks(scores[:1], 1.0, 0.1).all()
    assert column_masks(scores[:1], 100.0, 0.0).sum() == 1


def test_the_estimate_of_noise_is_right_for_noise_and_too_high_for_detail():
    draws = torch.Generator().manual_seed(2)
    mask = column_masks(torch.rand(200, 32, generator=draws), 4.0, 0.08)
    noise = torch.randn(200, 2, 32, 32, generator=draws) * mask[:, None, None]
    assert float(estimate_noise(0.05 * noise, mask).mean()) == pytest.approx(0.05, rel=0.03)
    board = to_frequencies(as_pairs((torch.arange(32)[:, None] % 2).float().expand(200, 1, 32, 32)))
    stripes = board * mask[:, None, None] + 1e-3 * noise
    rough = torch.rand(200, 1, 32, 32, generator=draws)
    assert float(estimate_noise(stripes, mask).mean()) < 2e-3  # one loud frequency is not noise to a median
    assert float(estimate_noise(to_frequencies(as_pairs(rough)) * mask[:, None, None], mask).mean()) > 0.1


def test_images_of_three_channels_are_refused():
    with pytest.raises(InputError, match="3 channels"):
        as_pairs(torch.zeros(1, 3, 4, 4))
