from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from homeostat.core.errors import DtypeError, HomeostatError, InputError, ModelError
from homeostat.core.task import Classify, MultiLabel, Regress, Segment, Tokens


def test_losses_equal_pytorchs_on_known_labels_and_are_zero_on_unknown_ones():
    generator = torch.Generator().manual_seed(0)
    logits, y = torch.randn(6, 3, generator=generator), torch.tensor([0, 1, 2, -100, 1, 0])
    loss = Classify().loss(logits, y)
    assert torch.allclose(loss[y >= 0], F.cross_entropy(logits[y >= 0], y[y >= 0], reduction="none"))
    assert loss[3] == 0 and Classify().known(y).tolist() == [True, True, True, False, True, True]


def test_dense_losses_average_over_known_positions():
    generator = torch.Generator().manual_seed(1)
    logits, y = torch.randn(2, 5, 3, generator=generator), torch.randint(0, 3, (2, 5), generator=generator)
    y[0, 2:] = -100
    by_hand = torch.stack([F.cross_entropy(logits[0, :2], y[0, :2]), F.cross_entropy(logits[1], y[1])])
    assert torch.allclose(Tokens().loss(logits, y), by_hand)
    assert torch.allclose(Segment().loss(logits.movedim(-1, 1)[..., None], y[..., None]), by_hand)


def test_regression_and_multi_label_losses_skip_nan():
    out, y = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, float("nan")], [float("nan"), float("nan")]])
    assert Regress().loss(out, y).tolist() == [1.0, 0.0]
    assert Regress(power=1.0).loss(torch.tensor([3.0]), torch.tensor([1.0])).tolist() == [2.0]
    known = F.binary_cross_entropy_with_logits(out[0, 0], y[0, 0])
    assert torch.allclose(MultiLabel().loss(out, y), torch.stack([known, torch.tensor(0.0)]))


@pytest.mark.parametrize(
    ("task", "out", "y", "error", "said"),
    [
        (Classify(), torch.zeros(2, 3), torch.tensor([0, 3]), InputError, r"outside 0..2: \[3\]"),
        (Classify(), torch.zeros(2, 3), torch.tensor([0.0, 1.0]), DtypeError, "class labels are integers"),
        (Classify(), torch.zeros(2, 3), torch.tensor([0]), InputError, "one label per prediction"),
        (Classify(), torch.zeros(2, 3, 4), None, ModelError, r"\[batch, classes\]"),
        (Classify(), torch.zeros(2, 3, dtype=torch.long), None, ModelError, "float logits"),
        (Classify(), {"a": torch.zeros(2, 3)}, None, ModelError, "one tensor"),
        (Regress(), torch.zeros(2, 3), torch.zeros(2, 4), InputError, "shape"),
        (Regress(), torch.zeros(2), torch.tensor([float("inf"), 0]), InputError, "infinite"),
        (MultiLabel(), torch.zeros(2, 3), torch.full((2, 3), 2.0), InputError, r"outside 0\.\.1"),
    ],
)
def test_outputs_and_labels_that_do_not_fit_are_refused(task, out, y, error, said):
    with pytest.raises(error, match=said) as caught:
        task.check(out, y)
    assert isinstance(caught.value, HomeostatError)
