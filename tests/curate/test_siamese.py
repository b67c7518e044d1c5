"""DSA: every operation against its definition, and the same view for both sides."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from homeostat.core.errors import InputError, SpecError
from homeostat.curate import DSA

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


def images(count: int = 4, channels: int = 3, side: int = 8, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 0.1 + torch.rand(count, channels, side, side, generator=draw, dtype=torch.float64)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(seed: int, count: int) -> list[float]:
    """The uniform numbers behind a view whose operation has no rival."""
    generator = rng(seed)
    torch.randint(1, (), generator=generator)
    return torch.rand(count, 1, generator=generator, dtype=torch.float64)[:, 0].tolist()


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_batch_gets_one_view_whatever_else_is_in_it(name):
    x, method = images(6), DSA(operations=(name,))
    for seed in range(4):
        whole, part = (method(b, rng(seed)) for b in (x, x[3:]))
        assert torch.allclose(whole[3:], part, atol=1e-14, rtol=0)


@pytest.mark.parametrize("name", OPERATIONS)
def test_apart_images_get_views_of_their_own(name):
    x = images(1).expand(12, -1, -1, -1)
    made = DSA(operations=(name,))(x, rng(0), together=False)
    assert len({tuple(image.flatten().tolist()) for image in made}) > 1


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("together", [True, False])
def test_views_are_differentiable_in_the_pixels(name, together):
    x = images(2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: DSA(operations=(name,))(v, rng(1), together), (x,))


def test_color_follows_its_formula():
    x = images(3)
    for seed in range(4):
        bright, saturated, contrasted = drawn(seed, 3)
        wanted = x.numpy() + (bright - 0.5) * 1.0
        for image in wanted:
            grey = image.mean(0)
            for channel in image:
                channel[:] = (channel - grey) * (saturated * 2.0) + grey
            level = image.mean()
            image[:] = (image - level) * (contrasted + 0.5) + level
        found = DSA(operations=("color",))(x, rng(seed))
        assert np.abs(found.numpy() - wanted).max() < 1e-12


def test_crop_shifts_whole_pixels_and_lets_zeros_in():
    x, seen = images(2, 1, 9), set()
    for seed in range(60):
        found = DSA(operations=("crop",), pad=0.2)(x, rng(seed)).numpy()
        moves = [(round(d * 5 - 0.5) - 2) for d in drawn(seed, 2)]
        wanted = np.zeros_like(found)
        for row in range(9):
            for column in range(9):
                if 0 <= row + moves[0] < 9 and 0 <= column + moves[1] < 9:
                    wanted[:, :, row, column] = x.numpy()[:, :, row + moves[0], column + moves[1]]
        assert np.array_equal(found, wanted)
        seen.add(tuple(moves))
    assert {m for m, _ in seen} == {m for _, m in seen} == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize(("side", "hole"), [(8, 0.5), (9, 0.34), (6, 0.5)])
def test_cutout_blanks_one_square_that_may_hang_over_the_edge(side, hole):
    x, size, areas = images(2, 2, side), int(side * hole + 0.5), set()
    for seed in range(60):
        found = DSA(operations=("cutout",), hole=hole)(x, rng(seed))
        gone = found == 0
        assert torch.equal(found[~gone], x[~gone]) and torch.equal(gone[0, 0], gone[1, 1])
        rows, columns = (torch.nonzero(gone[0, 0].any(d))[:, 0] for d in (1, 0))
        assert bool(gone[0, 0][rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all())
        assert len(rows) <= size and len(columns) <= size
        areas.add(len(rows) * len(columns))
    assert max(areas) == size * size > min(areas)


def test_flip_mirrors_about_half_of_the_time():
    x = images(400, 1, 4)
    made = DSA(operations=("flip",))(x, rng(0), together=False)
    flipped = [torch.equal(a, b.flip(2)) for a, b in zip(made, x, strict=True)]
    assert all(torch.equal(a, b) or f for a, b, f in zip(made, x, flipped, strict=True))
    assert abs(sum(flipped) - 200) < 4 * 10


@pytest.mark.parametrize("name", ["scale", "rotate"])
def test_scale_and_rotate_sample_the_image_where_the_matrix_says(name):
    x = images(1, 1, 8)
    for seed in range(4):
        numbers = drawn(seed, 2)
        if name == "scale":
            across, down = (n * (1.3 - 1 / 1.3) + 1 / 1.3 for n in numbers)
            matrix = np.array([[across, 0], [0, down]])
        else:
            angle = (numbers[0] - 0.5) * 2 * math.radians(40)
            matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        found = DSA(operations=(name,), zoom=1.3, degrees=40)(x, rng(seed))[0, 0].numpy()
        row, column = np.mgrid[:8, :8] - 3.5
        right, below = np.einsum("ab,bij->aij", matrix, np.stack([column, row]))
        wanted = map_coordinates(x[0, 0].numpy(), [below + 3.5, right + 3.5], order=1, mode="grid-constant")
        assert np.abs(found - wanted).max() < 1e-10


def test_settings_that_change_nothing_change_nothing():
    x = images()
    for method in (DSA(operations=("scale",), zoom=1.0), DSA(operations=("rotate",), degrees=0.0)):
        assert torch.allclose(method(x, rng(0)), x, atol=1e-12)
    assert torch.equal(DSA(operations=("crop",), pad=0.0)(x, rng(0)), x)
    assert torch.equal(DSA(operations=("cutout",), hole=0.0)(x, rng(0)), x)


def test_every_operation_is_chosen_about_equally_often():
    generator = rng(3)
    counts = torch.zeros(2)
    for _ in range(400):
        made = DSA(operations=("crop", "flip"), pad=1.0)(images(1, 1, 2), generator)
        counts[int(bool((made == 0).any()))] += 1
    # A crop by up to two pixels leaves nothing blank once in 25 times.
    assert abs(float(counts[1]) - 400 * 0.5 * 24 / 25) < 4 * 10


def test_misfits_are_refused():
    with pytest.raises(InputError, match="float images"):
        DSA()(torch.zeros(2, 3), rng(0))
    with pytest.raises(InputError, match="uint8"):
        DSA()(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), rng(0))
    with pytest.raises(SpecError, match="at least one"):
        DSA(operations=())
    with pytest.raises(SpecError, match="'rotate'"):
        DSA(operations=("rotat",))
