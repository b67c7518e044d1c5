from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from homeostat.core.data import Batch, Joined, Tensors, join
from homeostat.core.errors import DtypeError, HomeostatError, InputError, MissingPart
from homeostat.core.intake import as_data


def numbers(count: int) -> Tensors:
    return Tensors(torch.arange(float(count)), torch.arange(count) % 3)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 50))
def test_batches_from_any_start_are_the_rest_of_the_batches(count, size, start):
    data = numbers(count)
    seen = [int(i) for batch in data.batches(size, start=start) for i in batch.id]
    assert seen == list(range(start, count))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.data())
def test_joined_data_fetch_like_one_tensor(sizes, draw):
    parts, at = [], 0
    for size in sizes:
        parts.append(Tensors(torch.arange(at, at + size).float()))
        at += size
    if at == 0:
        return
    positions = torch.tensor(draw.draw(st.lists(st.integers(0, at - 1), min_size=1, max_size=20)))
    assert Joined(parts).fetch(positions).x.tolist() == positions.float().tolist()


def test_labels_are_those_of_the_samples_and_cheap_where_they_lie_apart():
    data = numbers(7)
    mixed = Joined([data[torch.tensor([3, 0, 5])], numbers(2)])
    for found in (data, mixed, mixed[1:4]):
        assert found.all_labels().tolist() == found.load().labels.tolist()
    with pytest.raises(MissingPart, match="absent"):
        data.unlabelled().all_labels()


def test_fetching_nothing_gives_an_empty_batch():
    nothing = torch.zeros(0, dtype=torch.long)
    for data in (numbers(3), numbers(3)[1:], Joined([numbers(2), numbers(3)])):
        assert len(data.fetch(nothing)) == 0


def test_a_subset_of_a_subset_copies_nothing_and_keeps_ids():
    data = numbers(10)
    part = data[2:8][torch.tensor([True, False, True, False, True, False])]
    assert part.load().id.tolist() == [2, 4, 6]
    assert part.base is data


def test_a_split_is_disjoint_and_complete():
    parts = numbers(11).split(0.3, 0.5, generator=torch.Generator().manual_seed(0))
    ids = [i for part in parts for i in part.load().id.tolist()]
    assert [len(p) for p in parts] == [3, 6, 2] and sorted(ids) == list(range(11))
    with pytest.raises(InputError, match="at most 1"):
        numbers(4).split(0.8, 0.5)


def test_fingerprints_tell_content_order_and_labels_apart():
    data = numbers(6)
    assert data.fingerprint() == numbers(6).fingerprint()
    others = [data[1:], data[torch.tensor([1, 0, 2, 3, 4, 5])], data.unlabelled(), numbers(7), Joined([data])]
    assert len({data.fingerprint(), *(o.fingerprint() for o in others)}) == 6


def test_users_data_of_all_kinds_become_data():
    x, y = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
    pairs = [(x[i], y[i]) for i in range(4)]
    loader = torch.utils.data.DataLoader(pairs, batch_size=3)  # type: ignore[arg-type]
    mapped = as_data({"a": x, "b": x + 1}).load().x
    assert isinstance(mapped, dict) and set(mapped) == {"a", "b"}
    for given_ in ((x, y), (x.numpy(), y.numpy()), Batch(x, y), loader, pairs, iter([(x[:2], y[:2]), (x[2:], y[2:])])):
        batch = as_data(given_).load()
        assert batch.x.shape == (4, 2) and batch.labels.tolist() == [0, 1, 0, 1]  # type: ignore[union-attr]
    assert as_data(np.zeros((3, 1))).load().y is None


def test_what_is_no_data_is_refused_with_the_reason():
    for wrong, error, said in (
        (3, DtypeError, "an iterable"),
        ([], InputError, "empty"),
        (torch.zeros(0, 2), InputError, "empty"),
        ((torch.zeros(3, 2), torch.zeros(2)), InputError, "x has 3 samples, but y has shape"),
        (torch.tensor(1.0), InputError, "shape"),
    ):
        with pytest.raises(error, match=said):
            as_data(wrong)
    with pytest.raises(HomeostatError):
        as_data("text")


def test_labels_asked_of_unlabelled_data_are_an_error():
    with pytest.raises(MissingPart, match="absent"):
        _ = numbers(3).unlabelled().load().labels


def test_a_batch_of_size_zero_and_no_batches_are_refused():
    with pytest.raises(InputError, match="at least one sample"):
        list(numbers(3).batches(0))
    with pytest.raises(InputError, match="no batch"):
        join([])
