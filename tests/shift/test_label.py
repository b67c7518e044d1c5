"""Class balance and order: exact counts, no sample twice unless asked for, runs of the stated kind."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, strategies as st
from torch import Tensor

from homeostat.core.data import UNKNOWN, Data, Tensors
from homeostat.core.errors import InputError, MissingPart, SpecError
from homeostat.core.run import Run
from homeostat.shift import CorrelatedOrder, Corrupt, LabelShift
from homeostat.shift.label import _dirichlet


def labelled(*counts: int) -> Tensors:
    """`counts[k]` samples of class k in mixed order; x tells the class and the sample apart."""
    y = torch.cat([torch.full((count,), k) for k, count in enumerate(counts)])
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(9))]
    return Tensors(torch.stack([y.float(), torch.arange(len(y)).float()], 1), y)


def counts_of(data: Data, classes: int) -> list[int]:
    return data.load().labels.bincount(minlength=classes).tolist()


def largest_remainders(shares: list[int], size: int) -> list[int]:
    """By whole numbers only; the share sizes must not tie."""
    total = sum(shares)
    made = [share * size // total for share in shares]
    rest = [share * size % total for share in shares]
    for k in sorted(range(len(shares)), key=lambda k: -rest[k])[: size - sum(made)]:
        made[k] += 1
    return made


def runs(y: Tensor) -> int:
    return 1 + int((y.diff() != 0).sum())


# ---------------------------------------------------------------------------------------------------- LabelShift


@given(st.lists(st.integers(0, 30), min_size=2, max_size=5), st.integers(1, 120))
def test_counts_are_largest_remainders_and_add_up_to_the_size(shares, size):
    total = sum(shares)
    assume(total > 0)
    rest = [share * size % total for share in shares]
    shifted = LabelShift(tuple(map(float, shares)), size=size)(labelled(*[7] * len(shares)))
    made = counts_of(shifted, len(shares))
    assert sum(made) == len(shifted) == size
    assert all(abs(count - share * size / total) < 1 for count, share in zip(made, shares, strict=True))
    assume(len(set(rest)) == len(rest))
    assert made == largest_remainders(shares, size)


@given(st.lists(st.integers(1, 12), min_size=2, max_size=5), st.integers(1, 5))
def test_shares_that_the_data_have_already_keep_every_sample(shares, times):
    """Also where the division of a count by its share comes out a rounding error too small."""
    data = labelled(*(share * times for share in shares))
    made = LabelShift(tuple(map(float, shares)))(data).load()
    assert sorted(made.id.tolist()) == list(range(len(data)))


@pytest.mark.parametrize(
    ("prior", "want"), [((3, 1), [30, 10]), ((1, 3), [10, 30]), ((1, 1), [30, 30]), ((0, 2), [0, 30])]
)
def test_shares_are_reached_exactly_and_as_large_as_the_scarcest_class_allows(prior, want):
    made = LabelShift(tuple(map(float, prior)))(labelled(30, 30))
    assert counts_of(made, 2) == want


@given(st.lists(st.floats(0.01, 5), min_size=3, max_size=3), st.integers(0, 50))
def test_with_size_0_no_sample_comes_twice(prior, seed):
    made = LabelShift(tuple(prior))(labelled(9, 20, 14), run=Run(seed=seed)).load()
    assert len(made.id.unique()) == len(made)


def test_without_a_prior_no_sample_comes_twice_either():
    for seed in range(20):
        made = LabelShift(concentration=0.3)(labelled(9, 20, 14), run=Run(seed=seed)).load()
        assert 0 < len(made) == len(made.id.unique())


def test_samples_come_again_only_where_a_class_has_too_few_and_then_evenly():
    made = LabelShift((1.0, 1.0), size=50)(labelled(10, 40)).load()
    scarce, ample = (made.id[made.labels == k].bincount() for k in (0, 1))
    assert sorted(scarce[scarce > 0].tolist()) == [2] * 5 + [3] * 5
    assert int(ample.max()) == 1 and int(ample.sum()) == 25


def test_inputs_labels_and_ids_stay_together():
    data = labelled(12, 8, 5)
    made = LabelShift((1.0, 2.0, 4.0), size=40)(data).load()
    assert torch.equal(made.x, data.batch.x[made.id]) and torch.equal(made.y, data.batch.y[made.id])
    assert torch.equal(made.x[:, 0].long(), made.y)


def test_classes_come_in_mixed_order():
    y = LabelShift((1.0, 1.0))(labelled(100, 100)).load().labels
    # 101 runs on average in a shuffle of 100 + 100, standard deviation 7.
    assert 101 - 35 < runs(y) < 101 + 35


def test_which_samples_are_drawn_depends_on_the_seed_alone():
    data, shift = labelled(40, 40), LabelShift((3.0, 1.0))
    a, b, c = (shift(data, run=Run(seed=seed)) for seed in (0, 0, 1))
    assert a.load().id.tolist() == b.load().id.tolist() and a.fingerprint() == b.fingerprint()
    assert sorted(a.load().id.tolist()) != sorted(c.load().id.tolist())


def test_a_drawn_prior_is_the_same_for_a_seed_and_another_for_another():
    data, shift = labelled(50, 50, 50), LabelShift(size=90)
    a, b, c = (counts_of(shift(data, run=Run(seed=seed)), 3) for seed in (0, 0, 1))
    assert a == b != c


def test_a_small_concentration_is_far_from_balance_and_a_large_one_near():
    data = labelled(50, 50, 50, 50)

    def top(concentration: float) -> float:
        shift = LabelShift(concentration=concentration, size=100)
        return sum(max(counts_of(shift(data, run=Run(seed=s)), 4)) for s in range(20)) / 20 / 100

    assert top(1e-6) == 1.0 and top(0.1) > 0.7 and top(1.0) > 0.4 and top(1000.0) < 0.3
    assert top(math.inf) == 0.25


@pytest.mark.parametrize("concentration", [0.05, 1.0, 20.0])
def test_drawn_shares_have_the_moments_of_the_dirichlet_distribution(concentration):
    generator, k = torch.Generator().manual_seed(0), 4
    shares = torch.stack([_dirichlet(concentration, k, generator) for _ in range(4000)])
    assert torch.allclose(shares.sum(1), torch.ones(4000, dtype=shares.dtype))
    variance = (1 / k) * (1 - 1 / k) / (k * concentration + 1)
    assert shares.mean(0).sub(1 / k).abs().max() < 4.5 * math.sqrt(variance / 4000)
    assert shares.var(0).mean() == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("concentration", [1e-4, 1e-8, 1e-100])
def test_the_smallest_concentrations_give_all_to_one_and_never_equal_shares(concentration):
    shares = [_dirichlet(concentration, 5, torch.Generator().manual_seed(seed)) for seed in range(100)]
    assert sum(float(share.max()) > 0.999 for share in shares) >= 99
    assert len({int(share.argmax()) for share in shares}) == 5


def test_a_drawn_prior_leaves_out_classes_that_do_not_occur():
    data = Tensors(torch.zeros(30, 1), torch.arange(30) % 2 * 2)
    made = counts_of(LabelShift(size=30)(data), 3)
    assert made[1] == 0 and sum(made) == 30 and min(made[0], made[2]) > 0


def test_a_shift_of_labels_can_follow_a_shift_of_inputs():
    x = torch.rand(30, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    noisy = Corrupt("gaussian_noise")((x, torch.arange(30) % 2))
    made = LabelShift((2.0, 1.0))(noisy).load()
    assert torch.equal(made.x, noisy.load().x[made.id])


# ------------------------------------------------------------------------------------------------ CorrelatedOrder


@pytest.mark.parametrize("concentration", [0.0, 1e-8, 0.1, 1.0, 1e6, math.inf])
@pytest.mark.parametrize("slots", [1, 10, 500])
def test_an_order_is_a_permutation_of_the_samples(concentration, slots):
    data = labelled(23, 1, 40, 0, 17)
    made = CorrelatedOrder(concentration, slots)(data).load()
    assert sorted(made.id.tolist()) == list(range(81)) and made.id.tolist() != list(range(81))
    assert torch.equal(made.x, data.batch.x[made.id]) and torch.equal(made.y, data.batch.y[made.id])


def test_concentration_0_sorts_by_class_and_mixes_within():
    made = CorrelatedOrder(0.0)(labelled(20, 30, 10)).load()
    assert made.labels.tolist() == [0] * 20 + [1] * 30 + [2] * 10
    assert made.id[:20].tolist() != sorted(made.id[:20].tolist())


def mean_runs(concentration: float, seeds: int, slots: int = 10) -> float:
    data, shift = labelled(*[60] * 10), CorrelatedOrder(concentration, slots)
    return sum(runs(shift(data, run=Run(seed=seed)).load().labels) for seed in range(seeds)) / seeds


# In a shuffle two neighbours differ with probability 540 / 599: 541 runs, standard deviation 7.3.
SHUFFLED = 1 + 599 * 540 / 599


def test_a_large_concentration_has_as_many_runs_as_a_shuffle():
    assert mean_runs(1e6, 8) == pytest.approx(SHUFFLED, abs=4 * 7.3 / math.sqrt(8))


def test_runs_are_much_longer_than_in_a_shuffle_at_a_tenth_and_grow_as_the_concentration_falls():
    assert mean_runs(0.1, 16) < 0.75 * SHUFFLED
    assert mean_runs(1e-6, 8) < mean_runs(0.1, 8) < mean_runs(1.0, 8) < mean_runs(1e6, 8)


@pytest.mark.parametrize(("concentration", "slots"), [(0.1, 10), (1.0, 10), (0.1, 5), (0.01, 10)])
def test_the_number_of_runs_is_that_of_classes_spread_by_numpys_dirichlet_distribution(concentration, slots):
    rng, means = np.random.default_rng(0), []
    for _ in range(400):
        spread = np.rint(60 * rng.dirichlet([concentration] * slots, 10))  # [classes, slots]
        sizes = np.maximum(spread.sum(0), 1)
        # In a mixed part of n samples, n_k of class k, n - sum n_k^2 / n neighbours differ on average.
        means.append(1 + (sizes - (spread**2).sum(0) / sizes)[spread.sum(0) > 0].sum())
    tolerance = 4 * np.std(means) * math.sqrt(1 / 400 + 1 / 60)
    # At the edges of the parts a few more neighbours differ.
    assert np.mean(means) - tolerance < mean_runs(concentration, 60, slots) < np.mean(means) + slots + tolerance


def test_at_large_concentrations_every_part_of_the_stream_has_the_whole_balance():
    y = CorrelatedOrder(1e9, slots=5)(labelled(100, 50)).load().labels
    assert [part.bincount().tolist() for part in y.split(30)] == [[20, 10]] * 5


def test_the_order_depends_on_the_seed_alone():
    data, shift = labelled(30, 30), CorrelatedOrder()
    a, b, c = (shift(data, run=Run(seed=seed)).load().id.tolist() for seed in (0, 0, 1))
    assert a == b != c


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("shift", [LabelShift(), CorrelatedOrder()])
def test_data_without_usable_labels_are_refused(shift):
    name = type(shift).__name__
    with pytest.raises(MissingPart, match=f"{name} .*these data have none"):
        shift(torch.zeros(4, 1))
    with pytest.raises(InputError, match=rf"{name} .*unknown \(-100\)"):
        shift((torch.zeros(4, 1), torch.tensor([0, 1, UNKNOWN, 1])))
    with pytest.raises(InputError, match=f"{name} .*from 0 on; got -1"):
        shift((torch.zeros(4, 1), torch.tensor([0, 1, -1, 1])))
    with pytest.raises(InputError, match=f"{name} .*one integer label a sample; got torch.float32"):
        shift((torch.zeros(4, 1), torch.zeros(4)))
    with pytest.raises(InputError, match=rf"{name} .*torch.int64 \(4, 2\)"):
        shift((torch.zeros(4, 1), torch.zeros(4, 2, dtype=torch.int64)))


def test_a_prior_with_too_few_shares_is_refused():
    with pytest.raises(InputError, match="has 2 shares, and the data have classes up to 2; give 3 shares"):
        LabelShift((1.0, 1.0))(labelled(5, 5, 5))


@pytest.mark.parametrize("prior", [(0.0, 0.0), (math.inf, 1.0)])
def test_a_prior_without_a_finite_positive_sum_is_refused(prior):
    with pytest.raises(InputError, match=r"add up to (0|inf);"):
        LabelShift(prior)(labelled(5, 5))


def test_a_prior_that_wants_a_class_without_samples_is_refused_and_names_it():
    with pytest.raises(InputError, match=r"classes \[1\], .*set them to 0"):
        LabelShift((1.0, 1.0, 1.0))(labelled(5, 0, 5))
    with pytest.raises(InputError, match=r"classes \[2\]"):
        LabelShift((1.0, 1.0, 1.0))(labelled(5, 5))
    assert counts_of(LabelShift((1.0, 0.0, 1.0, 0.0))(labelled(5, 0, 5)), 3) == [5, 0, 5]


@pytest.mark.parametrize(
    "make",
    [
        lambda: LabelShift((1.0, -1.0)), lambda: LabelShift(concentration=0.0), lambda: LabelShift(size=-1),
        lambda: CorrelatedOrder(-0.1), lambda: CorrelatedOrder(slots=0),
    ],
)  # fmt: skip
def test_hyper_parameters_out_of_range_are_refused(make):
    with pytest.raises(SpecError, match="but it must be"):
        make()
