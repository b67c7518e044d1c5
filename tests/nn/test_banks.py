from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st

from homeostat.core.errors import InputError
from homeostat.core.online import Bag
from homeostat.nn.banks import Balanced, Reservoir, Ring
from tests.nn.plain_bank import PlainBank


@given(st.integers(1, 9), st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_a_ring_holds_the_last_rows_oldest_first(capacity, sizes):
    bag, ring, everything = Bag(), Ring(capacity), []
    for size in sizes:
        new = list(range(len(everything), len(everything) + size))
        everything += new
        ring.add(bag, {"x": torch.tensor(new)[:, None].float(), "label": torch.tensor(new)})
        rows = ring.rows(bag)
        assert rows["label"].tolist() == everything[-capacity:]
        assert rows["x"].flatten().tolist() == everything[-capacity:]
        assert (ring.seen(bag), ring.held(bag)) == (len(everything), min(capacity, len(everything)))


def test_a_reservoir_keeps_every_row_with_the_same_probability():
    kept = torch.zeros(30)
    for seed in range(2000):
        bag, reservoir, draws = Bag(), Reservoir(6), torch.Generator().manual_seed(seed)
        for part in torch.arange(30).split([4, 11, 1, 14]):
            reservoir.add(bag, {"x": part}, draws)
        found = reservoir.rows(bag)["x"]
        assert len(found.unique()) == 6
        kept[found] += 1
    assert float((kept / 2000 - 0.2).abs().max()) < 4 * (0.2 * 0.8 / 2000) ** 0.5


def test_a_reservoir_is_algorithm_r_row_by_row():
    bag, reservoir, plain = Bag(), Reservoir(3), []
    ours, theirs = (torch.Generator().manual_seed(4) for _ in range(2))
    for part in torch.arange(40).split(7):
        reservoir.add(bag, {"x": part}, ours)
        for row in part.tolist():
            place = int(torch.rand(1, generator=theirs, dtype=torch.float64) * (row + 1))
            if len(plain) < 3:
                plain.append(row)
            elif place < 3:
                plain[place] = row
        assert reservoir.rows(bag)["x"].tolist() == plain


def test_a_sample_holds_different_rows_of_the_bank_and_all_of_them_in_the_end():
    bag, ring, draws = Bag(), Ring(5), torch.Generator().manual_seed(0)
    ring.add(bag, {"x": torch.arange(8)})
    some = [ring.sample(bag, 3, draws)["x"].tolist() for _ in range(20)]
    assert all(len(set(rows)) == 3 for rows in some) and {row for rows in some for row in rows} == {3, 4, 5, 6, 7}
    assert sorted(ring.sample(bag, 9, draws)["x"].tolist()) == [3, 4, 5, 6, 7]


def test_a_bank_that_saw_nothing_is_empty_and_one_that_was_cleared_too():
    bag, ring = Bag({"other": torch.ones(1)}), Ring(3)
    assert (ring.rows(bag), ring.seen(bag), ring.held(bag)) == ({}, 0, 0)
    ring.add(bag, {"x": torch.ones(2)})
    ring.clear(bag)
    assert list(bag) == ["other"] and ring.rows(bag) == {}


def test_banks_with_other_prefixes_do_not_meet():
    bag, first, second = Bag(), Ring(2, "a"), Ring(2, "b")
    first.add(bag, {"x": torch.tensor([1])})
    second.add(bag, {"x": torch.tensor([2])})
    assert first.rows(bag)["x"].tolist() == [1] and second.rows(bag)["x"].tolist() == [2]


def test_rows_of_several_lengths_and_no_room_are_refused():
    with pytest.raises(InputError, match="one length"):
        Ring(3).add(Bag(), {"x": torch.ones(2), "label": torch.ones(3)})
    with pytest.raises(InputError, match="at least 1"):
        Ring(0)
    with pytest.raises(InputError, match="at least 2 classes"):
        Balanced(4, classes=1)


@settings(max_examples=40)
@given(
    st.integers(1, 12), st.integers(2, 4), st.sampled_from([(1.0, 1.0), (0.0, 1.0), (1.0, 0.0)]), st.integers(0, 10**6)
)
def test_a_balanced_bank_equals_lists_of_classes(capacity, classes, weights, seed):
    draws = torch.Generator().manual_seed(seed)
    bag, bank, plain = Bag(), Balanced(capacity, "bank", classes, *weights), PlainBank(capacity, classes, weights)
    labels = torch.randint(0, classes, (30,), generator=draws)
    labels[:10] = 0  # a stream that starts with one class
    entropy = torch.rand(30, generator=draws).mul(3).round()  # with ties
    for part in torch.arange(30).split([1, 13, 16]):
        bank.add(bag, {"x": part}, labels[part], entropy[part])
        for row in part.tolist():
            plain.add(row, int(labels[row]), float(entropy[row]))
        rows = bank.rows(bag)
        flat = [(item["row"], k, item["u"], item["age"]) for k, items in enumerate(plain.lists) for item in items]
        names = ("x", "label", "entropy", "age")
        assert list(zip(*(rows[name].tolist() for name in names), strict=True)) == flat
        assert bank.held(bag) == len(flat) <= capacity


def test_a_balanced_bank_gives_every_class_its_share_of_a_sorted_stream():
    bag, bank = Bag(), Balanced(20, "bank", 4)
    labels = torch.arange(4).repeat_interleave(100)
    bank.add(bag, {"x": torch.arange(400)}, labels, torch.full((400,), 0.5))
    assert bank.rows(bag)["label"].bincount().tolist() == [5, 5, 5, 5]
