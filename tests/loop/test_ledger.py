"""Labels that come at once, late, in part, twice or never judge what was said when the sample was served."""

from __future__ import annotations

import torch
from hypothesis import given, strategies as st

from homeostat.core.data import UNKNOWN
from homeostat.core.online import Bag
from homeostat.loop.ledger import Ledger


def one_hot(classes: list[int]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), 4).float()


def filled() -> Ledger:
    ledger = Ledger(Bag(), 2)
    ledger.add(0, torch.tensor([5, 6, 7]), one_hot([0, 1, 2]), one_hot([0, 0, 0]), [])
    ledger.add(1, torch.tensor([7, 8, 9]), one_hot([3, 3, 3]), one_hot([3, 1, 2]), [one_hot([0, 1, 3]), None])
    return ledger


def test_labels_of_the_newest_window_come_in_its_order():
    found = filled().settle(torch.tensor([3, UNKNOWN, 3]))
    assert found.id.tolist() == [7, 9] and found.step.tolist() == [1, 1] and found.label.tolist() == [3, 3]
    assert found.frozen.tolist() == [True, True] and found.served.tolist() == [True, False]
    assert found.tried.tolist() == [[0, -1], [1, -1]] and found.lost == 0


def test_late_labels_find_their_samples_by_id_in_any_order_and_the_newest_of_an_id():
    found = filled().settle(torch.tensor([1, 2, 3]), torch.tensor([6, 7, 99]))
    assert found.id.tolist() == [6, 7] and found.step.tolist() == [0, 1]
    assert found.frozen.tolist() == [True, False] and found.lost == 1
    assert found.tried.tolist() == [[-1, -1], [0, -1]]


def test_the_window_can_be_named_where_ids_come_again():
    found = filled().settle(torch.tensor([2]), torch.tensor([7]), step=0)
    assert found.step.tolist() == [0] and found.frozen.tolist() == [True] and found.served.tolist() == [False]


def test_a_label_judges_its_sample_once():
    ledger = filled()
    first = ledger.settle(torch.tensor([2, 2]), torch.tensor([7, 7]))
    assert len(first) == 1 and first.lost == 1, "one of the two is too many"
    second = ledger.settle(torch.tensor([2]), torch.tensor([7]))
    assert second.step.tolist() == [0], "the older sample of that id"
    assert len(ledger.settle(torch.tensor([2]), torch.tensor([7]))) == 0


def test_errors_of_the_frozen_network_are_those_on_labels_that_came_from_a_window_on():
    ledger = filled()
    assert ledger.wrong(0).tolist() == []
    ledger.settle(torch.tensor([0, 3]), torch.tensor([5, 6]))
    ledger.settle(torch.tensor([3, UNKNOWN, 1]))
    assert ledger.wrong(0).tolist() == [False, True, False, True] and ledger.wrong(1).tolist() == [False, True]


def test_a_new_trial_forgets_what_earlier_candidates_said_and_old_windows_are_dropped():
    ledger = filled()
    ledger.begin_trial()
    ledger.forget(1)
    assert ledger.steps == [1] and ledger.rows([1])[:, 1].tolist() == [1, 1, 1]
    assert ledger.settle(torch.tensor([3, 3, 3])).tried.tolist() == [[-1, -1]] * 3
    assert ledger.settle(torch.tensor([0]), torch.tensor([5])).lost == 1


@given(
    windows=st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=6), min_size=1, max_size=5),
    order=st.randoms(use_true_random=False),
)
def test_every_label_is_counted_once_or_lost_whatever_the_order(windows, order):
    ledger, truth = Ledger(Bag(), 1), []
    for step, window in enumerate(windows):
        ids = torch.tensor([i for i, _ in window], dtype=torch.int64)
        ledger.add(
            step, ids, one_hot([y for _, y in window]) if window else torch.empty(0, 4), torch.ones(len(window), 4), []
        )
        truth += [(i, y, step) for i, y in window]
    order.shuffle(truth)
    right = count = lost = 0
    for i, y, step in truth:
        found = ledger.settle(torch.tensor([y]), torch.tensor([i]), step)
        right, count, lost = right + int(found.frozen.sum()), count + len(found), lost + found.lost
    unique = len({(i, step) for i, _, step in truth})
    assert lost == 0 and count == len(truth) >= unique and right <= count


def test_what_was_answered_is_told_apart_from_what_is_served():
    """In a hedged window the frozen network answers, and what is served is judged all the same."""
    ledger = Ledger(Bag(), 1)
    frozen, served = one_hot([0, 1, 2]), one_hot([0, 0, 2])
    ledger.add(0, torch.tensor([5, 6, 7]), frozen, served, [], answered=frozen)
    found = ledger.settle(torch.tensor([0, 1, 1]))
    assert found.served.tolist() == [True, False, False] and found.answered.tolist() == [True, True, False]
