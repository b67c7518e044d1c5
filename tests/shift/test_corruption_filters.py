"""The image operators under the corruptions, against NumPy, SciPy and Pillow for any size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
from scipy import ndimage
from torch import Tensor

from homeostat.nn import filters

BORDERS: dict[str, tuple[Any, str]] = {
    "edge": ("edge", "nearest"),
    "symmetric": ("symmetric", "reflect"),
    "mirror": ("reflect", "mirror"),
}
side = st.integers(1, 12)


def images(height: int, width: int, count: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height * 31 + width)).to(dtype)


@given(side, side, st.tuples(st.integers(0, 30), st.integers(0, 30)), st.sampled_from(sorted(BORDERS)))
def test_padding_goes_on_as_numpy_does_however_wide(height, width, wide, border):
    x = images(height, width)
    expected = np.pad(x.numpy(), ((0, 0), (0, 0), wide, wide[::-1]), mode=BORDERS[border][0])
    assert (filters.pad(x, wide, wide[::-1], border).numpy() == expected).all()


@given(side, side, st.integers(0, 3), st.integers(0, 3), st.booleans(), st.sampled_from(sorted(BORDERS)))
def test_correlation_is_scipys_also_when_the_kernel_is_symmetric(height, width, down, across, even, border):
    x = images(height, width)
    kernel = np.random.default_rng(down * 7 + across).normal(size=(2 * down + 1, 2 * across + 1)).round(1)
    if even:
        kernel = kernel + kernel[:, ::-1]
    expected = ndimage.correlate(x.numpy(), kernel[None, None], mode=BORDERS[border][1])
    np.testing.assert_allclose(filters.correlate(x, torch.tensor(kernel), border).numpy(), expected, atol=1e-12)


@given(side, side, st.floats(0.05, 4), st.floats(0.05, 4), st.sampled_from(sorted(BORDERS)))
def test_gaussian_blur_is_scipys(height, width, down, across, border):
    x = images(height, width)
    expected = ndimage.gaussian_filter(x.numpy(), (0, 0, down, across), mode=BORDERS[border][1], truncate=3.0)
    np.testing.assert_allclose(filters.gaussian_blur(x, (down, across), border, 3.0).numpy(), expected, atol=1e-12)


def test_a_gaussian_of_no_width_changes_nothing():
    x = images(5, 6)
    assert torch.equal(filters.gaussian_blur(x, 0.0), x)


@given(st.integers(2, 9), st.integers(2, 9), st.sampled_from(sorted(BORDERS)), st.floats(0.1, 20))
def test_bilinear_samples_are_scipys_also_far_outside(height, width, border, spread):
    x = images(height, width)
    rows, columns = torch.randn(2, 2, 4, 5, generator=torch.Generator().manual_seed(1)).double() * spread
    actual = filters.sample_bilinear(x, rows, columns, border).numpy()
    for b, c in np.ndindex(2, 3):
        where = [rows[b].numpy(), columns[b].numpy()]
        expected = ndimage.map_coordinates(x[b, c].numpy(), where, order=1, mode=BORDERS[border][1])
        np.testing.assert_allclose(actual[b, c], expected, atol=1e-9)


@given(st.integers(2, 40), st.integers(2, 40), st.floats(1, 5), st.booleans())
def test_zoom_is_scipys_of_the_middle(height, width, factor, trim):
    x = images(height, width)
    expected = x.numpy()
    for axis in (2, 3):
        size = x.shape[axis]
        kept = math.ceil(size / factor)
        expected = np.take(expected, range((size - kept) // 2, (size - kept) // 2 + kept), axis)
        scale = [1.0] * 4
        scale[axis] = factor
        if round(kept * factor) != kept:
            expected = np.asarray(ndimage.zoom(expected, scale, order=1, mode="nearest"))
        if trim:
            start = (expected.shape[axis] - size) // 2
            expected = np.take(expected, range(start, start + size), axis)
    actual = filters.zoom(x, factor, trim).numpy()
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=1e-9)


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.05, 1), st.floats(0.05, 1))
def test_shrinking_by_boxes_is_pillows_to_the_bit(height, width, down, across):
    levels = (images(height, width) * 255).round()
    high, wide = max(1, int(height * down)), max(1, int(width * across))
    actual = filters.box_shrink(levels.float(), high, wide).to(torch.uint8).movedim(1, -1).numpy()
    for ours, image in zip(actual, levels.to(torch.uint8).movedim(1, -1).numpy(), strict=True):
        pillows = Image.fromarray(np.ascontiguousarray(image)).resize((wide, height), Image.Resampling.BOX)
        pillows = pillows.resize((wide, high), Image.Resampling.BOX)
        assert (ours == np.asarray(pillows)).all()


def test_every_whole_level_survives_the_cut_to_8_bit_and_others_are_cut_down():
    levels = torch.arange(256.0)
    for x in (levels / 255, (levels / 255) * 0.1 + (levels / 255) * 0.9):
        assert torch.equal(filters.gray_levels(x), levels)
    assert filters.gray_levels(torch.tensor([-0.5, 0.999 / 255, 1.5, 10.7 / 255])).tolist() == [0, 0, 255, 10]


def test_work_in_parts_is_the_same_as_work_at_once():
    x, shift = images(64, 64, 40, torch.float32), torch.arange(40.0).reshape(40, 1, 1, 1)
    calls = []

    def function(x: Tensor, shift: Tensor) -> Tensor:
        calls.append(len(x))
        return x * 2 + shift

    assert torch.equal(filters.by_chunk(function, x, shift), x * 2 + shift)
    assert len(calls) > 1 and sum(calls) == 40
    calls.clear()
    filters.by_chunk(function, x, shift, size=1 << 30)
    assert calls == [1] * 40


def test_luma_weighs_green_most_and_leaves_grey():
    colors = torch.eye(3)[:, :, None, None]
    assert filters.luma(colors).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])
    gray = torch.rand(2, 1, 3, 3)
    assert filters.luma(gray) is gray
