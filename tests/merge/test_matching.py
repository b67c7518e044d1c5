from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from homeostat.core.errors import CheckpointError, InputError, ModelError
from homeostat.core.fork import fork, versions
from homeostat.core.save import save
from homeostat.core.weights import weights
from homeostat.merge import activation_match, alikeness, assign, weight_match
from homeostat.nn import MLP, ChannelGroup, PermutationSpec, SmallCNN, permutation_spec
from homeostat.nn.resnet import ResNet


def shaken(net: nn.Module, seed: int = 0, by: float = 0.3) -> nn.Module:
    """Another network: every weight and statistic moved."""
    made, generator = fork(net, own="*"), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator).to(tensor)
                tensor.add_(noise if "running" in name else by * (noise - 0.5))
    return made.eval()


def images(count: int = 40, size: int = 8) -> Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(3))


def orders_within(blocks: int, each: int):
    for outer in itertools.permutations(range(blocks)):
        for inner in itertools.product(itertools.permutations(range(each)), repeat=blocks):
            yield [outer[i] * each + j for i in range(blocks) for j in inner[i]]


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([(1, 5), (2, 3), (3, 2)]))
@pytest.mark.exact("S293")
def test_an_assignment_is_the_best_of_all_orders_that_keep_blocks(seed, shape):
    blocks, each = shape
    cost = torch.randn(blocks * each, blocks * each, generator=torch.Generator().manual_seed(seed)).double()
    rows = torch.arange(blocks * each)
    best = max(float(cost[rows, order].sum()) for order in orders_within(blocks, each))
    assert float(cost[rows, assign(cost, blocks)].sum()) == pytest.approx(best)


@pytest.mark.exact("S293")
def test_with_one_hidden_layer_the_distance_is_the_least_of_all_orders():
    a, b = (shaken(MLP(3, 2, (5,), seed=s), s, 1.0).double() for s in (1, 2))
    spec = permutation_spec(a, torch.rand(2, 3))

    def distance(order: Tensor) -> float:
        other = spec.apply(weights(b), [order])
        return float(sum((w - other[name]).square().sum() for name, w in weights(a).items()))

    least = min(distance(torch.tensor(order)) for order in itertools.permutations(range(5)))
    assert distance(weight_match(a, b, spec)[0]) == pytest.approx(least)


@pytest.mark.parametrize(
    "net",
    [
        MLP(64, 3, (12, 10), norm="batch"),
        SmallCNN(3, 1, 8, 16, 2, norm="group"),
        ResNet(20, 3, 1, 16),
        ResNet(8, 3, 1, 8, norm="group"),
    ],
    ids=["MLP", "GroupNorm", "ResNet-20", "ResNet-8 with GroupNorm"],
)
@pytest.mark.exact("S293")
def test_a_permuted_copy_computes_the_same_and_is_matched_back_bit_for_bit(net):
    net, x = shaken(net), images()
    spec = permutation_spec(net, x[:2])
    for seed in range(3):
        mixed = spec.permuted(net, spec.random(torch.Generator().manual_seed(seed)))
        with torch.no_grad():
            out = net(x)
            assert torch.allclose(mixed(x), out, rtol=1e-5, atol=1e-5 * float(out.abs().max()))
        for turns in (None, torch.Generator().manual_seed(seed)):
            found = spec.apply(weights(mixed), weight_match(net, mixed, spec, turns))
            assert all(torch.equal(found[name], tensor) for name, tensor in weights(net).items())


@pytest.mark.exact("S293")
def test_the_result_is_no_worse_than_any_exchange_of_two_channels():
    a, b = (shaken(ResNet(8, 3, 1, 4, seed=s), s) for s in (1, 2))
    spec = permutation_spec(a, images()[:2])
    order = weight_match(a, b, spec)
    reached = alikeness(a, spec.apply(weights(b), order), spec)
    assert reached > alikeness(a, b, spec)
    for number, group in enumerate(spec.groups):
        for i, j in itertools.combinations(range(group.size), 2):
            other = [each.clone() for each in order]
            other[number][[i, j]] = other[number][[j, i]]
            assert alikeness(a, spec.apply(weights(b), other), spec) <= reached + 1e-9


def test_statistics_follow_their_channels_and_do_not_count():
    a = shaken(MLP(64, 3, (12,), norm="batch"))
    b = fork(a, own="*")
    with torch.no_grad():
        b.layers.norm0.running_mean.copy_(a.layers.norm0.running_mean.flip(0) * 1e6)
    spec = permutation_spec(a, images()[:2])
    assert weight_match(a, b, spec)[0].tolist() == list(range(12))


def test_one_group_on_both_axes_of_a_weight_never_gets_worse():
    class Twice(nn.Module):
        def __init__(self, seed: int):
            super().__init__()
            torch.manual_seed(seed)
            self.a, self.step, self.b = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.step(self.a(x).tanh() * 1.0) + self.a(x))

    a, b = Twice(0), Twice(1)
    spec = permutation_spec(a, torch.rand(2, 3))
    assert [group.size for group in spec.groups] == [6]
    assert {place.axis for place in spec.groups[0].places if place.name == "step.weight"} == {0, 1}
    order = weight_match(a, b, spec)
    assert alikeness(a, spec.apply(weights(b), order), spec) >= alikeness(a, b, spec)
    mixed = spec.permuted(a, spec.random(torch.Generator().manual_seed(0)))
    found = spec.apply(weights(mixed), weight_match(a, mixed, spec))
    assert torch.equal(found["step.weight"], a.step.weight)


@pytest.mark.exact("S293")
def test_activations_are_matched_by_correlation():
    a, b = (shaken(MLP(64, 3, (7,), "tanh", seed=s), s, 1.0) for s in (1, 2))
    x = images(300)
    order = activation_match(a, b, x, batch=64)[0]
    hidden = [net.layers(x.flatten(1)).detach().double().numpy().T for net in (a, b)]
    correlation = np.corrcoef(*hidden)[:7, 7:]
    best = max(correlation[range(7), order].sum() for order in itertools.permutations(range(7)))
    assert correlation[range(7), order.numpy()].sum() == pytest.approx(best)


@pytest.mark.parametrize(
    "net",
    [MLP(64, 3, (12, 10), "gelu"), SmallCNN(3, 1, 8, 16, 2, norm="group"), ResNet(8, 3, 1, 8)],
    ids=["MLP", "GroupNorm", "ResNet-8"],
)
def test_a_permuted_copy_is_matched_back_by_its_activations(net):
    net, x = shaken(net, by=0.1).double(), images(100).double()
    with torch.no_grad():
        net.train()
        for _ in range(60):  # statistics that fit, so that no channel is dead behind ReLU
            net(x)
        net.eval()
    spec = permutation_spec(net, x[:2])
    mixed = spec.permuted(net, spec.random(torch.Generator().manual_seed(5)))
    before = versions(mixed)
    back = spec.permuted(mixed, activation_match(net, mixed, x, spec))
    assert versions(mixed) == before
    assert all(torch.equal(p, q) for p, q in zip(back.parameters(), net.parameters(), strict=True))


def test_channels_that_never_vary_cannot_be_told_apart_by_activations():
    net = shaken(MLP(64, 3, (6,)), by=0.1)
    with torch.no_grad():
        net.layers.linear0.bias[:3] = -100.0
    x = images(100)
    spec = permutation_spec(net, x[:2])
    mixed = spec.permuted(net, [torch.tensor([1, 2, 0, 5, 3, 4])])
    order = activation_match(net, mixed, x, spec)[0]
    assert order[3:].tolist() == [4, 5, 3] and sorted(order[:3].tolist()) == [0, 1, 2]
    assert weight_match(net, mixed, spec)[0].tolist() == [2, 0, 1, 4, 5, 3]


def test_weights_may_lie_in_files_and_in_half_precision(tmp_path):
    net = shaken(MLP(64, 3, (8,)))
    spec = permutation_spec(net, images()[:2])
    mixed = spec.permuted(net, spec.random(torch.Generator().manual_seed(0)))
    order = weight_match(net, mixed, spec)
    save(mixed, tmp_path / "b")
    assert torch.equal(weight_match(net, tmp_path / "b", spec)[0], order[0])
    assert torch.equal(weight_match(net.bfloat16(), mixed.bfloat16(), spec)[0], order[0])


def test_wrong_arguments_are_refused():
    a, b = MLP(64, 3, (8,)), MLP(64, 3, (9,))
    spec = permutation_spec(a, images()[:2])
    with pytest.raises(CheckpointError, match=r"linear0\.bias is \(8,\) in a and \(9,\) in b"):
        weight_match(a, b, spec)
    with pytest.raises(CheckpointError, match="missing"):
        weight_match(a, nn.Linear(2, 2), spec)
    with pytest.raises(InputError, match="at least one sample"):
        activation_match(a, a, images()[:0], spec)
    group = spec.groups[0]
    unread = PermutationSpec((ChannelGroup(group.places[:2]),), spec.learnt, {})
    with pytest.raises(ModelError, match="no linear layer or convolution reads"):
        activation_match(a, a, images(), unread)
