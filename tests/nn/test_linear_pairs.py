from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from homeostat.core.check import small_network
from homeostat.nn import MLP, LinearPair, find_linear_pairs, linear_inputs


def drawn(seed: int, samples: int, hidden: int = 6) -> tuple[Tensor, ...]:
    """First weight, bias, second weight, inputs, and a matrix near the identity."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((hidden, 5), (hidden,), (3, hidden), (samples, 5))
    near = torch.eye(hidden, dtype=torch.float64)
    near = near + 0.3 * torch.randn(hidden, hidden, generator=g, dtype=torch.float64)
    return *(torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes), near


def outputs(pair: LinearPair, weights: tuple, h: Tensor) -> Tensor:
    return pair.activation(F.linear(h, weights[0], weights[1])) @ weights[2].T


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([torch.tanh, torch.sigmoid, F.gelu]), st.booleans())
@pytest.mark.exact("S283")
def test_with_no_more_samples_than_neurons_outputs_stay(seed, activation, biased):
    v, b, u, h, g = drawn(seed, samples=4)
    pair = LinearPair("v", "b" if biased else None, "u", activation)
    before = (v, b if biased else None, u)
    after = pair.moved(g, before, h)
    assert torch.allclose(outputs(pair, after, h), outputs(pair, before, h), atol=1e-6)
    assert torch.allclose(after[0], g @ v) and not torch.allclose(after[2], u)


@pytest.mark.exact("S283")
def test_with_more_samples_it_is_least_squares_as_the_paper_has_it():
    v, b, u, h, g = drawn(0, samples=40)
    pair = LinearPair("v", "b", "u", torch.tanh)
    _, _, found = pair.moved(g, (v, b, u), h)
    z = F.linear(h, v, b)
    before, after = torch.tanh(z).T, torch.tanh(z @ g.T).T
    assert torch.allclose(found, u @ before @ torch.linalg.pinv(after), atol=1e-9)
    assert torch.allclose(found, torch.linalg.lstsq(after.T, before.T @ u.T).solution.T, atol=1e-9)


@pytest.mark.exact("S283")
def test_the_identity_changes_nothing_even_with_few_samples_where_the_papers_form_forgets():
    v, b, u, h, _ = drawn(1, samples=3)
    pair = LinearPair("v", "b", "u", torch.tanh)
    _, _, found = pair.moved(torch.eye(6).double(), (v, b, u), h)
    hidden = torch.tanh(F.linear(h, v, b)).T
    assert torch.equal(found, u) and not torch.allclose(u @ hidden @ torch.linalg.pinv(hidden), u, atol=0.1)


@pytest.mark.exact("S283")
def test_behind_relu_a_positive_scaling_keeps_the_function_everywhere():
    v, b, u, h, _ = drawn(2, samples=60)
    pair = LinearPair("v", "b", "u", torch.relu)
    g = torch.diag(torch.tensor([0.5, 2, 3, 1, 0.2, 7]).double())
    after = pair.moved(g, (v, b, u), h)
    assert torch.allclose(after[2], u / g.diagonal(), atol=1e-9)
    elsewhere = 10 * torch.randn(50, 5, generator=torch.Generator().manual_seed(9)).double()
    assert torch.allclose(outputs(pair, after, elsewhere), outputs(pair, (v, b, u), elsewhere))


def test_gradients_at_the_identity_are_exact_with_a_constant_inverse():
    v, b, u, h, _ = drawn(3, samples=40)
    pair = LinearPair("v", "b", "u", torch.tanh)
    found = []
    for fixed in (False, True):
        t = torch.zeros(6, 6).double().requires_grad_()
        moved = pair.moved(torch.eye(6).double() + t, (v, b, u), h, fixed)
        found.append(torch.autograd.grad((moved[2] ** 3).sum() + moved[0].sin().sum(), t)[0])
    assert torch.allclose(*found, atol=1e-9)


class Skipping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.c(F.silu(self.b(torch.tanh(h))) + h)


@pytest.mark.parametrize(
    ("net", "inputs", "wanted"),
    [
        (MLP(4, 3, (6, 5)), 4, [("layers.linear0.weight", "layers.linear1.weight"),
                                ("layers.linear1.weight", "linear.weight")]),
        (MLP(4, 3, (6,), "gelu", bias=False), 4, [("layers.linear0.weight", "linear.weight")]),
        (MLP(4, 3, (6,), norm="batch"), 4, []),
        (MLP(4, 3, ()), 4, []),
        (nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(6, 3)), 4,
         [("0.weight", "3.weight")]),
        (nn.Sequential(nn.Linear(4, 6), nn.Softmax(1), nn.Linear(6, 3)), 4, []),
        (Skipping(), 4, []),
    ],
)  # fmt: skip
def test_pairs_are_found_where_nothing_else_lies_between(net, inputs, wanted):
    found = find_linear_pairs(net.eval(), torch.rand(3, inputs))
    assert [(pair.first, pair.second) for pair in found] == wanted
    z = torch.randn(7, 5)
    for pair in found:
        assert (pair.bias is not None) == (getattr(net, "bias", True) is not False)
        assert torch.equal(pair.activation(z), F.gelu(z) if getattr(net, "activation", "") == "gelu" else z.relu())


def test_a_layer_used_twice_is_in_no_pair():
    shared = nn.Linear(4, 4)
    net = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(4, 2))
    assert find_linear_pairs(net, torch.rand(3, 4)) == []
    assert find_linear_pairs(small_network(), torch.rand(2, 1, 8, 8)) == []


def test_inputs_of_each_linear_layer_are_handed_out():
    net, x = MLP(4, 3, (6,)), torch.rand(5, 4)
    found = linear_inputs(net, x)
    assert torch.equal(found["layers.linear0.weight"], x)
    assert torch.equal(found["linear.weight"], net.layers(x))
