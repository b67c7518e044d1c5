"""Shifts of single samples, shown on corruptions: seeded by the sample's id, however the data are read."""

from __future__ import annotations

import pytest
import torch

from homeostat.core.data import Joined, Tensors
from homeostat.core.errors import DtypeError, InputError, NonFiniteError, SpecError, UnknownName
from homeostat.core.random import Draw
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.shift import Corrupt, Rotate
from homeostat.shift.corruption import corrupt

# One that draws per pixel, one that draws positions, one with a layer over the image.
NAMES = ("gaussian_noise", "glass_blur", "spatter")


def images(count: int = 8, seed: int = 0) -> Tensors:
    x = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    return Tensors(x, torch.arange(count) % 3, torch.arange(count) + 100 + 50 * seed)


def test_severity_zero_returns_the_very_data_that_were_given():
    data = images()
    assert Corrupt("fog", 0)(data) is data
    assert Corrupt("fog", 1)(data) is not data


@pytest.mark.parametrize("name", NAMES)
def test_lazily_computed_data_equal_the_function_with_the_same_draw(name):
    data, run = images(), Run(seed=5)
    want = corrupt(data.batch.x, name, 4, Draw(run.seed_for("Corrupt"), data.batch.id))
    shifted = Corrupt(name, 4)(data, run=run)
    assert torch.equal(shifted.load().x, want) and not torch.equal(want, data.batch.x)


def test_labels_ids_and_meta_stay():
    given = Tensors(torch.rand(4, 1, 16, 16), [0, 1, 2, 0], [9, 8, 7, 6], {"day": torch.arange(4)})
    made = Corrupt("fog")(given).load()
    assert made.y.tolist() == [0, 1, 2, 0] and made.id.tolist() == [9, 8, 7, 6]
    assert made.meta["day"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_the_same_in_a_slice_a_shuffle_a_batch_and_a_join(name):
    data, other, shift = images(), images(5, seed=1), Corrupt(name, 3)
    whole = shift(data).load().x
    assert torch.equal(shift(data)[2:6].load().x, whole[2:6]), "sliced after the shift"
    assert torch.equal(shift(data[2:6]).load().x, whole[2:6]), "sliced before the shift"
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    mixed = shift(data.shuffle(torch.Generator().manual_seed(3)))
    assert torch.equal(mixed.load().x, whole[order])
    assert torch.equal(torch.cat([batch.x for batch in shift(data).batches(3)]), whole)
    joined = shift(Joined([other, data])).load().x
    assert torch.equal(joined[5:], whole) and torch.equal(joined[:5], shift(other).load().x)


def test_samples_of_one_id_are_shifted_alike_and_of_other_ids_otherwise():
    same = torch.full((4, 1, 16, 16), 0.5)
    a, b, c, d = Corrupt("gaussian_noise")(Tensors(same, id=[1, 2, 1, 3])).load().x
    assert torch.equal(a, c) and not torch.equal(a, b) and not torch.equal(b, d)


@pytest.mark.parametrize("name", NAMES)
def test_other_seeds_give_other_data_and_fingerprints(name):
    data, shift = images(), Corrupt(name, 4)
    one, again, other = (shift(data, run=Run(seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(one.load().x, again.load().x) and not torch.equal(one.load().x, other.load().x)
    assert one.fingerprint() == again.fingerprint() != other.fingerprint()


def test_fingerprints_tell_shifts_and_data_apart():
    data = images()
    shifts = (Corrupt("fog", 1), Corrupt("fog", 2), Corrupt("snow", 1), Rotate(3.0))
    prints = {shift(data).fingerprint() for shift in shifts} | {data.fingerprint(), shifts[0](data[1:]).fingerprint()}
    assert len(prints) == 6


def test_data_know_whether_they_have_labels_without_computing_the_shift():
    labelled, bare = images(), Tensors(torch.zeros(2, 3), None)
    assert Corrupt("fog")(labelled).has_labels()
    # These are no images: to fetch them would raise.
    assert not Corrupt("fog")(bare).has_labels()


def test_in_a_world_target_and_held_are_shifted_and_the_rest_stays():
    data = images()
    world = Corrupt("contrast", 5)(World(source=data, target=data, held=data, calibration=data))
    assert world.source is data and world.calibration is data
    assert not torch.equal(world.target.load().x, data.batch.x)
    assert torch.equal(world.target.load().x, world.held.load().x)


def test_the_dtype_of_the_images_stays():
    for dtype in (torch.float16, torch.float64):
        assert Corrupt("fog")(images().batch.x.to(dtype)).load().x.dtype == dtype


def test_an_unknown_corruption_suggests_the_nearest():
    with pytest.raises(UnknownName, match=r"'gausian_noise'\. Did you mean 'gaussian_noise'.* frost, fog,"):
        Corrupt("gausian_noise")


@pytest.mark.parametrize("severity", [-1, 6, 2.5, True, "3"])
def test_a_severity_that_is_no_whole_number_from_0_to_5_is_refused(severity):
    with pytest.raises(SpecError, match=r"Corrupt\.severity"):
        Corrupt("fog", severity)


@pytest.mark.parametrize("shift", [Corrupt("fog"), Rotate()])
def test_integer_images_are_refused_with_a_word_on_what_to_do(shift):
    with pytest.raises(DtypeError, match=rf"{type(shift).__name__} .*uint8: divide by 255"):
        shift(torch.zeros(2, 1, 16, 16, dtype=torch.uint8)).load()


@pytest.mark.parametrize("shift", [Corrupt("fog"), Rotate()])
@pytest.mark.parametrize("x", [torch.rand(2, 16, 16), {"image": torch.rand(2, 1, 16, 16)}], ids=["3-D", "tree"])
def test_inputs_that_are_no_batch_of_images_are_refused(shift, x):
    with pytest.raises(InputError, match=r"channels, height, width\]; got (\(2, 16, 16\)|dict)"):
        shift(x).load()


@pytest.mark.parametrize("shift", [Corrupt("fog"), Rotate()])
def test_images_with_nan_are_refused(shift):
    x = torch.rand(2, 1, 16, 16)
    x[1, 0, 3, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="images"):
        shift(x).load()


def test_no_samples_stay_no_samples():
    assert len(Corrupt("fog")(images())[:0].load()) == 0
