from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.core.check import small_network
from homeostat.core.errors import InputError, ModelError
from homeostat.core.fork import versions
from homeostat.core.weights import weights
from homeostat.nn import MLP, PermutationSpec, SmallCNN, SmallViT, cifar_resnet, permutation_spec
from homeostat.nn.resnet import ResNet


class Wrapped(nn.Module):
    """A network whose forward pass is a function of its layers."""

    def __init__(self, call: Callable[..., Tensor], **layers: nn.Module):
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def spoilt_statistics(model: nn.Module) -> nn.Module:
    """Every weight and statistic different, so that nothing is symmetric by chance."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator).to(tensor)
                tensor.add_(noise * (0.5 if "running" in name or tensor.ndim == 1 else 0.05))
    return model.eval()


def images(size: int = 8, channels: int = 1) -> Tensor:
    return torch.rand(5, channels, size, size, generator=torch.Generator().manual_seed(3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], list[int]]] = {
    "perceptron": (lambda: MLP(64, 3, (8, 6)), images, [6, 8]),
    "perceptron with BatchNorm": (lambda: MLP(64, 3, (8, 6), norm="batch"), images, [6, 8]),
    "perceptron with LayerNorm": (lambda: MLP(64, 3, (8, 6), norm="layer"), images, [6, 8]),
    "convolutions, flattened": (lambda: SmallCNN(3, 1, 8, 6, 2, norm="batch"), images, [6, 6]),
    "convolutions with InstanceNorm": (lambda: SmallCNN(3, 1, 8, 6, 1, norm="instance"), images, [6]),
    "convolutions with LayerNorm": (lambda: SmallCNN(3, 1, 8, 6, 1, norm="layer"), images, [6]),
    "GroupNorm of 8 pairs": (lambda: SmallCNN(3, 1, 8, 16, 1, norm="group"), images, [16]),
    "residual, padded shortcuts": (lambda: ResNet(8, 3, 1, 8), images, [8, 8, 8, 16, 16, 32]),
    "residual, GroupNorm": (lambda: ResNet(8, 3, 1, 8, norm="group"), images, [2] * 8 + [8, 16, 16, 32]),
    "small network of the checks": (small_network, images, [4]),
    # The stream of a block of 32 and the hidden layer of its perceptron; heads stay.
    "transformer": (lambda: SmallViT(3, 1, 8, 4, width=32, depth=1, heads=2), images, [32, 128]),
    "projected shortcut": (
        lambda: Wrapped(
            lambda m, x: m.head((m.down(x) + m.b(F.relu(m.a(x)))).mean((2, 3))), down=nn.Conv2d(1, 6, 1),
            a=nn.Conv2d(1, 4, 3, padding=1), b=nn.Conv2d(4, 6, 3, padding=1), head=nn.Linear(6, 3),
        ), images, [4, 6],
    ),
    "concatenated branches": (
        lambda: Wrapped(
            lambda m, x: m.head(torch.cat([F.relu(m.a(x)), torch.tanh(m.b(x))], 1).flatten(1)),
            a=nn.Conv2d(1, 4, 3), b=nn.Conv2d(1, 5, 3), head=nn.Linear(9 * 36, 3),
        ), images, [4, 5],
    ),
    "halves that go different ways": (
        lambda: Wrapped(
            lambda m, x: m.head(torch.cat([m.a(x)[:, :3].relu(), m.a(x)[:, 3:].tanh()], 1).mean((2, 3))),
            a=nn.Conv2d(1, 6, 3), head=nn.Linear(6, 3),
        ), images, [3, 3],
    ),
    "depthwise": (
        lambda: Wrapped(
            lambda m, x: m.head(m.b(m.a(x)).amax((2, 3))), a=nn.Conv2d(1, 4, 3), b=nn.Conv2d(4, 4, 3, groups=4),
            head=nn.Linear(4, 3),
        ), images, [4],
    ),
    "a recurrent weight, both axes of one group": (
        lambda: Wrapped(
            lambda m, x: m.head(m.step(torch.tanh(m.step(m.a(x.flatten(1)))))), a=nn.Linear(64, 5),
            step=nn.Linear(5, 5), head=nn.Linear(5, 3),
        ), images, [5],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.exact("S293")
def test_another_order_is_the_same_function_and_finds_the_expected_groups(name):
    make, inputs, sizes = NETWORKS[name]
    net, x = spoilt_statistics(make()).double(), inputs().double()
    before = versions(net)
    spec = permutation_spec(net, x[:2])
    order = spec.random(torch.Generator().manual_seed(1))
    permuted = spec.permuted(net, order)
    assert sorted(group.size for group in spec.groups) == sizes
    assert versions(net) == before
    with torch.no_grad():
        assert torch.allclose(permuted(x), net(x), atol=1e-10)
    assert any(not torch.equal(a, b) for a, b in zip(permuted.parameters(), net.parameters(), strict=True))


def test_the_published_resnet_on_images_in_0_1_has_twelve_groups():
    net = spoilt_statistics(cifar_resnet(20, pretrained=False))
    x = images(32, 3)
    spec = permutation_spec(net, x[:2])
    # Streams: 16 from the start, 16 and 32 more after the padded shortcuts; and nine inner ones.
    assert sorted(group.size for group in spec.groups) == sorted([16, 16, 32] + 3 * [16] + 3 * [32] + 3 * [64])
    with torch.no_grad():
        out = net(x)
        assert torch.allclose(
            spec.permuted(net, spec.random(torch.Generator().manual_seed(2)))(x), out, rtol=1e-4, atol=1e-5
        )


@pytest.mark.exact("S293")
def test_no_permutation_that_keeps_the_function_is_missed_in_a_layer_of_three():
    """By brute force over all orders of the channels of each layer: those that keep the function are those found."""
    net = spoilt_statistics(SmallCNN(3, 1, 4, 4, 1, norm="none").double())
    norm = nn.GroupNorm(2, 4).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2, 3, 4]))
        norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    net.blocks[0].norm = norm
    x = images(4).double()
    (group,) = permutation_spec(net, x).groups
    spec = permutation_spec(net, x)
    kept = set()
    for order in itertools.permutations(range(4)):
        try:
            spec.check([torch.tensor(order)])
            kept.add(order)
        except InputError:
            pass
    truly = set()
    loose = PermutationSpec((type(group)(group.places),), spec.learnt, {})
    for order in itertools.permutations(range(4)):
        with torch.no_grad():
            if torch.allclose(loose.permuted(net, [torch.tensor(order)])(x), net(x), atol=1e-9):
                truly.add(order)
    assert kept == truly and len(kept) == 8


def test_orders_apply_one_after_another_and_random_ones_are_uniform_within_blocks():
    net, x = SmallCNN(3, 1, 8, 16, 1, norm="group"), images()
    spec = permutation_spec(net, x)
    (group,) = spec.groups
    assert (group.size, group.blocks) == (16, 8)
    first, second = (spec.random(torch.Generator().manual_seed(i)) for i in (1, 2))
    twice = spec.apply(spec.apply(weights(net), first), second)
    at_once = spec.apply(weights(net), [a[b] for a, b in zip(first, second, strict=True)])
    assert all(torch.equal(twice[name], at_once[name]) for name in twice)
    assert torch.equal(spec.apply(weights(net), spec.identity())["linear.weight"], net.linear.weight)


def test_tied_weights_stay_tied():
    tied = nn.Linear(5, 5)
    net = nn.Sequential(nn.Linear(4, 5), tied, nn.Tanh(), tied, nn.Linear(5, 2))
    spec = permutation_spec(net, torch.rand(2, 4))
    assert [group.size for group in spec.groups] == [5] and spec.tied == {"3.weight": "1.weight", "3.bias": "1.bias"}
    made = spec.apply(weights(net), spec.random(torch.Generator().manual_seed(0)))
    assert torch.equal(made["1.weight"], made["3.weight"])


def test_grouped_convolutions_and_positions_are_left_alone():
    grouped = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(ModelError, match="no hidden channels"):
        permutation_spec(grouped, images())
    added = Wrapped(lambda m, x: m.b(m.a(x) + torch.arange(4.0, dtype=x.dtype)), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    with pytest.raises(ModelError, match="no hidden channels"):
        permutation_spec(added, torch.rand(2, 3))


def test_what_is_not_understood_is_refused_with_the_reason():
    two = {"a": nn.Linear(4, 6), "b": nn.Linear(6, 2)}
    with pytest.raises(ModelError, match="operation roll"):
        permutation_spec(Wrapped(lambda m, x: m.b(torch.roll(m.a(x), 1, 1)), **two), torch.rand(2, 4))
    with pytest.raises(ModelError, match="operation cumsum"):
        permutation_spec(Wrapped(lambda m, x: m.b(m.a(x).cumsum(1)), **two), torch.rand(2, 4))
    with pytest.raises(ModelError, match=r"cannot be followed.*3 are wanted"):
        permutation_spec(cifar_resnet(20, pretrained=False), images(32, 1))
    with pytest.raises(ModelError, match="no hidden channels"):
        permutation_spec(nn.Linear(3, 2), torch.rand(2, 3))

    def secretly(m: Wrapped, x: Tensor) -> Tensor:
        return m.b(m.a(x) * float(m.a.weight.detach().numpy()[0, 0]))

    with pytest.raises(ModelError, match="gives other outputs"):
        permutation_spec(Wrapped(secretly, **two), torch.rand(2, 4))


def test_an_order_that_does_not_fit_is_refused():
    net = SmallCNN(3, 1, 8, 16, 1, norm="group")
    spec = permutation_spec(net, images())
    with pytest.raises(InputError, match="0 permutations for 1 groups"):
        spec.apply(weights(net), [])
    with pytest.raises(InputError, match="no permutation of 16"):
        spec.apply(weights(net), [torch.zeros(16, dtype=torch.int64)])
    torn = torch.arange(16)
    torn[1], torn[2] = 2, 1
    with pytest.raises(InputError, match="blocks"):
        spec.apply(weights(net), [torn])
