from __future__ import annotations

import pytest
import torch
from torch import nn

from homeostat.core.errors import InputError, ModelError
from homeostat.nn.fisher import fisher_diagonal


def two_sided() -> tuple[nn.Linear, torch.Tensor]:
    """At x = 1 and x = -1 the gradients of the bias are each other's negatives."""
    net = nn.Linear(1, 2).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        net.bias.zero_()
    return net, torch.tensor([[1.0], [-1.0]], dtype=torch.float64)


def test_it_squares_the_gradient_of_the_batch_mean_not_of_each_sample():
    net, x = two_sided()
    together = fisher_diagonal(net, [x], ["bias"])["bias"]
    apart = fisher_diagonal(net, [x[:1], x[1:]], ["bias"])["bias"]
    wrong = 1 / (1 + torch.exp(torch.tensor(2.0, dtype=torch.float64)))  # probability of the other class
    assert torch.allclose(together, torch.zeros(2, dtype=torch.float64), atol=1e-15)
    assert torch.allclose(apart, wrong**2 * torch.ones(2, dtype=torch.float64))


def test_it_averages_over_batches():
    net, x = two_sided()
    once, thrice = (fisher_diagonal(net, [x[:1]] * n, ["weight"])["weight"] for n in (1, 3))
    assert torch.allclose(once, thrice) and float(once.sum()) > 0


def test_the_model_keeps_its_weights_and_has_no_gradients():
    net, x = two_sided()
    before = [p.clone() for p in net.parameters()]
    fisher_diagonal(net, [x], ["weight", "bias"])
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, net.parameters(), strict=True))


def test_nothing_to_measure_on_is_refused():
    with pytest.raises(InputError, match="at least one batch"):
        fisher_diagonal(nn.Linear(1, 2), [], ["weight"])


def test_outputs_that_are_no_logits_are_refused():
    with pytest.raises(ModelError, match="batch, classes"):
        fisher_diagonal(nn.Linear(1, 2), [torch.zeros(2, 3, 1)], ["weight"])
