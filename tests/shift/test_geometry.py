"""Rotation, translation and scaling against exact cases; directions are those seen with the first row at the top."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from homeostat.core.data import Tensors
from homeostat.core.errors import SpecError
from homeostat.core.random import Draw
from homeostat.core.run import Run
from homeostat.shift import Rotate, Scale, Translate


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def moved(shift, x: Tensor) -> Tensor:
    return shift(x).load().x


def draw(count: int = 200) -> Draw:
    return Draw(0, torch.arange(count))


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("turns", [-3, -1, 1, 2, 3, 4])
def test_quarter_turns_of_squares_equal_rot90(side, turns):
    x = rand(2, 3, side, side)
    assert torch.allclose(moved(Rotate(90.0 * turns), x), torch.rot90(x, turns, (2, 3)), atol=1e-5)


def test_a_half_turn_of_an_image_that_is_no_square_flips_both_sides():
    x = rand(2, 1, 6, 11)
    assert torch.allclose(moved(Rotate(180.0), x), x.flip(2, 3), atol=1e-5)


def test_a_small_positive_angle_turns_counter_clockwise_as_one_looks_at_it():
    x = torch.zeros(1, 1, 21, 21)
    x[0, 0, 10, 18] = 1  # to the right of the center
    made = moved(Rotate(30.0), x)[0, 0]
    row, column = divmod(int(made.argmax()), 21)
    # 8 pixels from the center at 30 degrees above the horizontal; upwards are smaller rows.
    assert (row, column) == (10 - round(8 * math.sin(math.pi / 6)), 10 + round(8 * math.cos(math.pi / 6)))


def test_a_rotation_does_not_distort_images_that_are_no_squares():
    x = torch.zeros(1, 1, 21, 41)
    x[0, 0, 10, 28] = 1
    made = moved(Rotate(90.0), x)[0, 0]
    assert divmod(int(made.argmax()), 41) == (2, 20) and made.max() > 0.99


def test_what_a_rotation_brings_in_from_outside_is_black():
    made = moved(Rotate(45.0), torch.ones(1, 1, 15, 15))[0, 0]
    assert made[0, 0] == made[0, -1] == made[-1, 0] == made[-1, -1] == 0 and made[7, 7] == pytest.approx(1)


@pytest.mark.parametrize(("right", "down"), [(2, 0), (0, 3), (-1, 2), (3, -4), (0, -1)])
def test_whole_pixels_of_translation_equal_a_roll_filled_with_zeros(right, down):
    x = rand(2, 3, 8, 11)
    want = torch.roll(x, (down, right), (2, 3))
    want[:, :, : max(down, 0)] = 0
    want[:, :, 8 + min(down, 0) :] = 0
    want[..., : max(right, 0)] = 0
    want[..., 11 + min(right, 0) :] = 0
    assert torch.allclose(moved(Translate(float(right), float(down)), x), want, atol=1e-5)


def test_half_a_pixel_to_the_right_is_the_mean_of_two_neighbours():
    x = rand(1, 1, 4, 6)
    want = (F.pad(x, (1, 0))[..., :-1] + x) / 2
    assert torch.allclose(moved(Translate(0.5), x), want, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8), (8, 12)])
def test_scale_2_is_the_middle_of_an_interpolation_to_twice_the_size(shape):
    height, width = shape
    x = rand(2, 3, height, width)
    big = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    want = big[:, :, height // 2 : height // 2 + height, width // 2 : width // 2 + width]
    assert torch.allclose(moved(Scale(2.0), x), want, atol=1e-5)


def test_scale_one_half_is_an_average_pooling_with_a_black_border():
    x = rand(2, 3, 8, 12)
    want = F.pad(F.avg_pool2d(x, 2), (3, 3, 2, 2))
    assert torch.allclose(moved(Scale(0.5), x), want, atol=1e-5)


@pytest.mark.parametrize("shift", [Rotate(0.0), Translate(0.0, 0.0), Scale(1.0), Rotate(0.0, jitter=True)])
def test_no_amount_returns_the_very_data_that_were_given(shift):
    data = Tensors(rand(2, 1, 4, 4))
    assert shift(data) is data


def test_jittered_angles_fill_the_range_on_both_sides_and_keep_lengths():
    matrix = Rotate(20.0, jitter=True).matrices(draw(), 8, 8)
    angle = torch.rad2deg(torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0]))
    assert angle.abs().max() <= 20 and angle.min() < -18 and angle.max() > 18 and angle.mean().abs() < 3
    assert torch.allclose(torch.linalg.det(matrix[:, :, :2]), torch.ones(200, dtype=matrix.dtype))


def test_jittered_translations_fill_the_range_and_their_directions_are_independent():
    matrix = Translate(3.0, 1.0, jitter=True).matrices(draw(), 8, 8)
    right, down = -matrix[:, 0, 2], -matrix[:, 1, 2]
    assert right.abs().max() <= 3 and right.min() < -2.7 and right.max() > 2.7
    assert down.abs().max() <= 1 and down.min() < -0.9 and down.max() > 0.9
    # Of 200 pairs without correlation, 4 standard errors.
    assert torch.corrcoef(torch.stack([right, down]))[0, 1].abs() < 4 / math.sqrt(200)


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_jittered_factors_lie_between_the_factor_and_its_inverse_evenly_in_the_logarithm(factor):
    matrix = Scale(factor, jitter=True).matrices(draw(), 8, 8)
    log = -matrix[:, 0, 0].log2()
    assert torch.equal(matrix[:, 0, 0], matrix[:, 1, 1])
    assert log.abs().max() <= 1 and log.min() < -0.9 and log.max() > 0.9 and log.mean().abs() < 0.2


def test_a_jittered_sample_is_the_exact_shift_by_its_own_amount():
    x = rand(3, 1, 9, 9)
    shift, run = Rotate(40.0, jitter=True), Run(seed=2)
    degrees = 40 * (2 * run.draw(torch.arange(3), "Rotate").uniform() - 1)
    made = shift(x, run=run).load().x
    for i in range(3):
        assert torch.allclose(made[i : i + 1], moved(Rotate(float(degrees[i])), x[i : i + 1]), atol=1e-5)


@pytest.mark.parametrize("shift", [Rotate(30.0, jitter=True), Translate(2.0, 1.0, True), Scale(1.5, True)])
def test_a_jittered_sample_depends_on_its_id_and_the_seed_alone(shift):
    data = Tensors(rand(1, 1, 9, 9).expand(6, 1, 9, 9), id=[4, 5, 6, 7, 8, 4])
    made = shift(data).load().x
    assert torch.equal(made[0], made[5]) and not torch.equal(made[0], made[1])
    assert torch.equal(shift(data[3:5]).load().x, made[3:5])
    assert not torch.equal(shift(data, run=Run(seed=1)).load().x, made)


@pytest.mark.parametrize("shift", [Rotate(90.0), Translate(2.0), Scale(1.5, True)])
def test_half_precision_keeps_its_dtype_and_is_as_good_as_its_numbers(shift):
    x = rand(1, 1, 224, 224).bfloat16()
    made = moved(shift, x)
    assert made.dtype == torch.bfloat16
    assert (made.float() - moved(shift, x.float())).abs().max() <= 2**-8


def test_double_precision_is_used_where_it_is_given():
    x = rand(1, 1, 32, 32).double()
    made = moved(Rotate(90.0), x)
    assert made.dtype == torch.float64 and torch.allclose(made, torch.rot90(x, 1, (2, 3)), atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Rotate(math.inf), lambda: Translate(math.inf), lambda: Translate(0.0, -math.inf),
        lambda: Scale(math.inf), lambda: Scale(0.0), lambda: Scale(-1.0),
    ],
)  # fmt: skip
def test_amounts_without_a_meaning_are_refused(make):
    with pytest.raises(SpecError, match="but it must be"):
        make()
