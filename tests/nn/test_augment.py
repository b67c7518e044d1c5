from __future__ import annotations

import colorsys
import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from homeostat.core.errors import InputError
from homeostat.nn.augment import RandomViews, blur5, grey, shift_hue, turn

STILL = RandomViews(
    brightness=(1.0, 1.0), contrast=(1.0, 1.0), saturation=(1.0, 1.0), hue=(0.0, 0.0), gamma=(1.0, 1.0), degrees=0.0,
    shift=0.0, scale=(1.0, 1.0), blur=(0.001, 0.001), flip=0.0, noise=0.0,
)  # fmt: skip


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def view(spec: RandomViews, x: Tensor, seed: int = 0) -> Tensor:
    return spec(x, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_ranges_of_no_width_change_nothing(channels):
    x = images(2, channels, 7, 9)
    assert torch.allclose(view(STILL, x), x, atol=1e-6)  # gamma starts at 1e-8


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"brightness": (1.3, 1.3)}, lambda x: (1.3 * x).clamp(0, 1)),
        ({"gamma": (0.8, 0.8)}, lambda x: x**0.8),
        ({"flip": 1.0}, lambda x: x.flip(3)),
        ({"saturation": (0.0, 0.0)}, lambda x: grey(x).expand_as(x)),
        ({"contrast": (0.5, 0.5)}, lambda x: (x + grey(x).mean((1, 2, 3), keepdim=True)) / 2),
    ],
)
def test_each_change_alone_is_what_its_name_says(change, expected):
    x = images(2, 3, 6, 6)
    assert torch.allclose(view(STILL.replace(**change), x), expected(x), atol=1e-6)


@given(st.integers(0, 999), st.floats(-0.5, 0.5))
def test_hue_agrees_with_the_standard_library(seed, turns):
    x = images(1, 3, 1, 4, seed=seed)
    found = shift_hue(x, turns)
    for column in range(4):
        h, s, v = colorsys.rgb_to_hsv(*x[0, :, 0, column].tolist())
        expected = colorsys.hsv_to_rgb((h + turns) % 1, s, v)
        assert found[0, :, 0, column].tolist() == pytest.approx(expected, abs=1e-9)


def test_hue_leaves_grey_alone():
    x = images(2, 1, 3, 3).expand(-1, 3, -1, -1)
    assert torch.allclose(shift_hue(x, 0.3), x)


def test_quarter_turns_are_rot90():
    x = images(2, 3, 8, 8)
    assert torch.allclose(turn(x, math.pi / 2, (0, 0), 1.0), torch.rot90(x, -1, (2, 3)), atol=1e-9)
    assert torch.allclose(turn(x, math.pi, (0, 0), 1.0), torch.rot90(x, 2, (2, 3)), atol=1e-9)


def test_shifts_move_right_and_down_and_repeat_the_edge():
    x = images(1, 2, 5, 6)
    moved = turn(x, 0.0, (2, 1), 1.0)
    assert torch.allclose(moved[:, :, 1:, 2:], x[:, :, :-1, :-2], atol=1e-9)
    assert torch.allclose(moved[:, :, 1:, 0], x[:, :, :-1, 0], atol=1e-9)
    assert torch.allclose(moved[:, :, 0, 2:], x[:, :, 0, :-2], atol=1e-9)


def test_scale_enlarges_about_the_centre():
    """A ramp stays a ramp of half the slope with the same middle."""
    ramp = torch.arange(9, dtype=torch.float64).expand(1, 1, 9, 9)
    enlarged = turn(ramp, 0.0, (0, 0), 2.0)
    assert torch.allclose(enlarged[0, 0, 4], 4 + (torch.arange(9, dtype=torch.float64) - 4) / 2, atol=1e-9)


def test_a_margin_is_what_padding_first_would_show():
    x = images(2, 3, 8, 8)
    padded = torch.nn.functional.pad(x, (8, 8, 8, 8), mode="replicate")
    whole = turn(padded, 0.2, (1, -2), 1.1)
    assert torch.allclose(turn(x, 0.2, (1, -2), 1.1, margin=2), whole[:, :, 6:18, 6:18], atol=1e-9)


@pytest.mark.parametrize("sigma", [0.0, 0.001, 0.5, 3.0])
def test_blur_is_the_gaussian_of_25_taps_written_out(sigma):
    x = images(1, 1, 7, 8)
    taps = [math.exp(-0.5 * (i / sigma) ** 2) if sigma else float(i == 0) for i in range(-2, 3)]
    taps = [t / sum(taps) for t in taps]
    found = blur5(x, sigma)
    assert found.shape == (1, 1, 3, 4)
    for i in range(3):
        for j in range(4):
            total = sum(taps[a] * taps[b] * float(x[0, 0, i + a, j + b]) for a in range(5) for b in range(5))
            assert float(found[0, 0, i, j]) == pytest.approx(total, abs=1e-10)


def test_the_same_generator_gives_the_same_view_and_another_another():
    x = images(2, 3, 8, 8)
    assert torch.equal(view(RandomViews(), x, 1), view(RandomViews(), x, 1))
    assert not torch.allclose(view(RandomViews(), x, 1), view(RandomViews(), x, 2), atol=0.02)


def test_one_draw_serves_the_whole_batch():
    x = images(1, 3, 8, 8).expand(4, -1, -1, -1)
    made = view(RandomViews(noise=0.0), x)
    assert torch.allclose(made, made[:1].expand_as(made), atol=1e-12)
    noisy = view(RandomViews(), x)
    assert not torch.allclose(noisy[0], noisy[1], atol=1e-4)


@given(st.integers(0, 999), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_views_stay_in_range_and_keep_their_kind(seed, dtype):
    made = view(RandomViews(), images(2, 3, 6, 5, seed=seed).to(dtype), seed)
    assert made.dtype == dtype and made.shape == (2, 3, 6, 5) and bool(((made >= 0) & (made <= 1)).all())


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (torch.rand(2, 3, 4, 4) * 255, r"0\.\.1"),
        (torch.randn(2, 3, 64, 64) * 3, r"0\.\.1"),
        (torch.rand(3, 4, 4), "batch, channels, height, width"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "uint8"),
    ],
)
def test_what_is_no_image_in_0_to_1_is_refused(x, match):
    with pytest.raises(InputError, match=match):
        view(RandomViews(), x)
