"""Shifts over time: which sample is in which phase, and that each phase is the shift it says."""

from __future__ import annotations

import pytest
import torch

from homeostat.core.data import Tensors
from homeostat.core.errors import InputError, SpecError, UnknownName
from homeostat.core.random import Draw, seed_for
from homeostat.core.run import Run
from homeostat.core.spec import from_config
from homeostat.shift import Clean, Corrupt, Gradual, LabelShift, Mixed, Phases, Rotate, Translate

NOISE, FLAT = Corrupt("gaussian_noise", 5), Corrupt("contrast", 5)


def images(count: int, seed: int = 0) -> Tensors:
    x = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    # Whole levels of 8 bit, which corruptions keep.
    return Tensors((x * 255).round() / 255, torch.arange(count) % 2)


def phases(data) -> list[int]:
    return data.load().meta["phase"].tolist()


# --------------------------------------------------------------------------------------------------------- Phases


def test_each_phase_is_its_shift_of_its_part_and_order_ids_and_labels_stay():
    data = images(9)
    made = Phases((Clean(), FLAT, Rotate(180.0)))(data).load()
    assert made.meta["phase"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert torch.equal(made.x[:3], data.batch.x[:3])
    assert torch.equal(made.x[3:6], FLAT(data[3:6]).load().x)
    assert torch.allclose(made.x[6:], data.batch.x[6:].flip(2, 3), atol=1e-5)
    assert made.id.tolist() == list(range(9)) and made.y.tolist() == data.batch.y.tolist()


@pytest.mark.parametrize(("count", "want"), [(6, [2, 2, 2]), (7, [2, 2, 3]), (8, [2, 2, 4]), (3, [1, 1, 1])])
def test_without_each_the_last_phase_takes_what_the_division_leaves_over(count, want):
    made = phases(Phases((Clean(), Clean(), Clean()))(images(count)))
    assert [made.count(phase) for phase in range(3)] == want and made == sorted(made)


def test_with_each_phases_have_that_size_and_what_comes_after_them_is_left_out():
    made = Phases((Clean(), Clean()), each=3)(images(10)).load()
    assert made.meta["phase"].tolist() == [0, 0, 0, 1, 1, 1] and made.id.tolist() == [0, 1, 2, 3, 4, 5]


def test_cycles_repeat_the_shifts_and_count_phases_on():
    data = images(8)
    made = Phases((Clean(), FLAT), cycles=2)(data).load()
    assert made.meta["phase"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert torch.equal(made.x[[0, 1, 4, 5]], data.batch.x[[0, 1, 4, 5]])
    assert torch.equal(made.x[[2, 3, 6, 7]], FLAT(data[[2, 3, 6, 7]]).load().x)


def test_phases_draw_independently_of_each_other_and_of_other_seeds():
    # One image and one id throughout: noise can differ by the phase's seed alone.
    data = Tensors(torch.full((4, 1, 8, 8), 0.5), id=[7, 7, 7, 7])
    made = [Phases((NOISE,), cycles=4)(data, run=Run(seed=seed)).load().x for seed in (0, 1)]
    every = torch.cat(made)
    assert all(not torch.equal(every[i], every[j]) for i in range(8) for j in range(i))


def test_a_phase_keeps_its_data_when_others_change():
    data = images(6)
    a, b = (Phases((first, NOISE))(data).load().x for first in (Clean(), FLAT))
    assert torch.equal(a[3:], b[3:]) and not torch.equal(a[:3], b[:3])


def test_a_phase_may_change_how_many_samples_there_are():
    data = Tensors(torch.zeros(20, 1), torch.arange(20) % 2)
    made = Phases((Clean(), LabelShift((1.0, 0.0))))(data).load()
    assert made.meta["phase"].tolist() == [0] * 10 + [1] * 5 and made.y[10:].tolist() == [0] * 5


def test_a_stream_can_be_read_from_any_sample_across_the_edges_of_phases():
    stream = Phases((NOISE, FLAT, Clean()))(images(12))
    whole = stream.load()
    late = torch.cat([batch.x for batch in stream.batches(5, start=2)])
    assert torch.equal(late, whole.x[2:])
    back = stream.fetch(torch.tensor([9, 2, 5]))
    assert torch.equal(back.x, whole.x[[9, 2, 5]]) and back.meta["phase"].tolist() == [2, 0, 1]


def test_other_tags_stay_beside_the_phase():
    data = Tensors(torch.zeros(4, 1), meta={"day": torch.arange(4)})
    meta = Phases((Clean(), Clean()))(data).load().meta
    assert meta["day"].tolist() == [0, 1, 2, 3] and meta["phase"].tolist() == [0, 0, 1, 1]


def test_fingerprints_tell_orders_of_phases_apart():
    data = images(6)
    prints = {Phases(shifts)(data).fingerprint() for shifts in ((Clean(), FLAT), (FLAT, Clean()), (FLAT, FLAT))}
    assert len(prints) == 3


def test_no_shifts_and_too_few_samples_are_refused():
    with pytest.raises(SpecError, match=r"Phases\.shifts is empty"):
        Phases(())(images(4))
    with pytest.raises(InputError, match="2 phases of 5 samples need 10; there are 8"):
        Phases((Clean(), Clean()), each=5)(images(8))
    with pytest.raises(InputError, match="4 phases of 1 samples need 4; there are 3"):
        Phases((Clean(), Clean()), cycles=2)(images(3))


@pytest.mark.parametrize("wrong", [{"each": -1}, {"cycles": 0}, {"shifts": ("fog",)}])
def test_hyper_parameters_of_the_wrong_kind_are_refused(wrong):
    with pytest.raises(SpecError, match=rf"Phases\.{next(iter(wrong))}"):
        Phases(**wrong)


def test_a_schedule_comes_back_from_its_configuration_and_a_misspelt_shift_is_refused():
    schedule = Phases((Clean(), Gradual(Corrupt("fog", 2)), Mixed((FLAT, Rotate(5.0)))), each=4)
    assert from_config(schedule.to_config()) == schedule
    with pytest.raises(UnknownName, match="'Corrupt'"):
        from_config({"Phases": {"shifts": [{"Corupt": {"name": "fog"}}]}})


# -------------------------------------------------------------------------------------------------------- Gradual


@pytest.mark.parametrize(("back", "levels"), [(True, [0, 1, 2, 3, 2, 1, 0]), (False, [0, 1, 2, 3])])
def test_severity_grows_step_by_step_and_goes_back_where_asked(back, levels):
    data = images(4 * len(levels))
    made = Gradual(Corrupt("contrast", 3), back=back)(data).load()
    assert made.meta["phase"].tolist() == [phase for phase in range(len(levels)) for _ in range(4)]
    for phase, level in enumerate(levels):
        part = data[4 * phase : 4 * phase + 4]
        assert torch.equal(made.x[4 * phase : 4 * phase + 4], Corrupt("contrast", level)(part).load().x)


def test_growing_to_severity_0_is_one_clean_phase():
    data = images(4)
    made = Gradual(Corrupt("fog", 0))(data).load()
    assert torch.equal(made.x, data.batch.x) and made.meta["phase"].tolist() == [0] * 4


def test_a_shift_without_a_severity_cannot_grow():
    with pytest.raises(SpecError, match="Gradual wants a shift with a severity; Rotate has none"):
        Gradual(Rotate(10.0))(images(4))


# ---------------------------------------------------------------------------------------------------------- Mixed


def test_every_sample_is_exactly_what_one_of_the_shifts_alone_makes_of_it():
    data, shifts = images(60), (FLAT, Rotate(90.0), Translate(2.0))
    made = Mixed(shifts)(data).load()
    alone = torch.stack([shift(data).load().x for shift in shifts])
    which = (alone == made.x).flatten(2).all(2)
    assert which.sum(0).tolist() == [1] * 60 and which.any(1).all()
    assert made.id.tolist() == list(range(60)) and made.y.tolist() == data.batch.y.tolist()


def test_shifts_come_equally_often_over_ids_and_seeds():
    data, shifts = images(400), (FLAT, Rotate(90.0), Translate(2.0), Translate(0.0, 2.0))
    alone = torch.stack([shift(data).load().x for shift in shifts])
    counts = torch.zeros(4)
    for seed in range(3):
        counts += (alone == Mixed(shifts)(data, run=Run(seed=seed)).load().x).flatten(2).all(2).sum(1)
    assert counts.sum() == 1200
    # 300 of each on average, standard deviation 15.
    assert (counts - 300).abs().max() < 4.5 * 15


def test_a_shift_of_amount_zero_among_others_leaves_its_samples_as_they_are():
    data = images(40)
    made = Mixed((Corrupt("fog", 0), FLAT))(data).load().x
    same = (made == data.batch.x).flatten(1).all(1)
    flat = (made == FLAT(data).load().x).flatten(1).all(1)
    assert torch.equal(same, ~flat) and 8 < int(same.sum()) < 32


def test_what_a_sample_gets_depends_on_its_id_and_the_seed_alone():
    data, shift = images(30), Mixed((NOISE, Corrupt("glass_blur", 3), Rotate(30.0, jitter=True)))
    whole = shift(data).load().x
    assert torch.equal(shift(data[7:12]).load().x, whole[7:12])
    assert torch.equal(shift(data).fetch(torch.tensor([20, 3, 11])).x, whole[[20, 3, 11]])
    assert not torch.equal(shift(data, run=Run(seed=1)).load().x, whole)


def test_shifts_that_draw_do_so_from_a_seed_of_their_own_and_the_samples_id():
    data, shifts, run = images(20), (NOISE, Corrupt("glass_blur", 3), NOISE), Run(seed=3)
    made = Mixed(shifts)(data, run=run).load().x
    seeds = [seed_for(run.seed_for("Mixed"), number) for number in range(3)]
    alone = torch.stack(
        [shift.change(data.batch, Draw(seed, data.batch.id)).x for shift, seed in zip(shifts, seeds, strict=True)]
    )
    which = (alone == made).flatten(2).all(2)
    assert which.sum(0).tolist() == [1] * 20 and which.any(1).all()


def test_samples_of_equal_content_get_noise_of_their_own_with_the_right_spread():
    same = Tensors(torch.full((200, 1, 8, 8), 0.5))
    made = Mixed((NOISE, NOISE))(same).load().x
    assert len(made.flatten(1).unique(dim=0)) == 200
    # Noise of deviation 0.1, cut to whole levels, on 12,800 values.
    assert made.mean() == pytest.approx(0.5 - 0.5 / 255, abs=0.005) and made.std() == pytest.approx(0.1, rel=0.05)


def test_none_to_mix_is_the_identity():
    data = images(3)
    assert Mixed(())(data) is data


def test_only_shifts_of_single_samples_of_one_tensor_can_be_mixed():
    with pytest.raises(SpecError, match=r"Mixed\.shifts"):
        Mixed((LabelShift(),))
    with pytest.raises(InputError, match="Mixed wants one tensor of floating inputs"):
        Mixed((FLAT,))({"image": torch.rand(2, 1, 8, 8)}).load()
