from __future__ import annotations

import torch

from homeostat.adapt.filters import MEAN, reliable_and_fresh
from homeostat.core.online import Bag
from homeostat.nn.losses import softmax_entropy


def kept(p: list[list[float]], carry: Bag, **options):
    logits = torch.tensor(p, dtype=torch.float64).log()
    return reliable_and_fresh(logits, softmax_entropy(logits), carry, **({"limit": 0.6, "margin": 0.9} | options))


def test_the_first_batch_keeps_all_that_are_reliable_and_starts_the_mean():
    carry = Bag()
    found = kept([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]], carry)
    assert found.chosen.tolist() == [0, 2] and found.reliable == 2
    assert torch.allclose(carry[MEAN], torch.tensor([0.55, 0.45], dtype=torch.float64))


def test_later_batches_leave_out_what_is_like_the_mean_and_move_it_by_a_tenth():
    carry = Bag({MEAN: torch.tensor([1.0, 0.0], dtype=torch.float64)})
    found = kept([[0.95, 0.05], [0.1, 0.9]], carry)
    assert found.chosen.tolist() == [1] and found.reliable == 2
    assert torch.allclose(carry[MEAN], torch.tensor([0.91, 0.09], dtype=torch.float64))


def test_a_batch_of_which_nothing_is_kept_leaves_the_mean():
    carry = Bag({MEAN: torch.tensor([1.0, 0.0], dtype=torch.float64)})
    assert not len(kept([[0.95, 0.05], [0.5, 0.5]], carry).chosen)
    assert carry[MEAN].tolist() == [1.0, 0.0]
    assert MEAN not in Bag() and not len(kept([[0.5, 0.5]], Bag()).chosen)


def test_samples_too_sure_to_teach_are_left_out_where_there_is_a_lower_bound():
    assert kept([[0.99, 0.01], [0.8, 0.2]], Bag(), least=0.1).chosen.tolist() == [1]
