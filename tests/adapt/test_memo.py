from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.adapt import MEMO, PeriodicReset, Tent
from homeostat.core.errors import InputError
from homeostat.core.run import Run
from homeostat.nn.augmix import AugMix
from homeostat.nn.optimizers import SGD, Adam


class Blended(nn.Module):
    """BatchNorm with 16 parts of stored statistics and one of those at hand."""

    def __init__(self, norm: Any):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        n, a = self.norm, 16 / 17
        mean = a * n.running_mean + (1 - a) * x.mean((0, 2, 3))
        var = a * n.running_var + (1 - a) * x.var((0, 2, 3), correction=0)
        x = (x - mean[:, None, None]) / (var[:, None, None] + n.eps).sqrt()
        return x * n.weight[:, None, None] + n.bias[:, None, None]


def slow(net: nn.Sequential, image: Tensor, views: list[Tensor], optimizer: Any) -> Tensor:
    """The answer to one image by a whole copy of the network."""
    net = nn.Sequential(*(Blended(m) if isinstance(m, nn.BatchNorm2d) else m for m in copy.deepcopy(net)))
    steps = optimizer(net.parameters())
    for each in views:
        p = F.softmax(net(each), 1).mean(0)
        loss = -(p * p.log()).sum()
        steps.zero_grad()
        loss.backward()
        steps.step()
    return net(image).detach()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
@pytest.mark.parametrize(
    ("optimizer", "theirs"),
    [
        (SGD(lr=0.05, momentum=0.0), lambda p: torch.optim.SGD(p, 0.05)),
        (Adam(lr=1e-3, weight_decay=0.1, decoupled=True), lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.1)),
    ],
)
def test_equals_a_network_of_its_own_for_each_image(network, stream, kind, dtype, tolerance, optimizer, theirs):
    net, x = network(kind, dtype), stream(1, 6, dtype=dtype)[0]
    memo = MEMO(optimizer=optimizer, views=5, steps=3)(net, run=Run(seed=3))
    expected = [slow(net, one, [memo.views_of(one, step) for step in range(3)], theirs) for one in x.split(1)]
    assert torch.allclose(memo.observe(x), torch.cat(expected), rtol=0, atol=tolerance)
    frozen = torch.cat([slow(net, one, [], theirs) for one in x.split(1)])
    assert float((memo.observe(x) - frozen).abs().max()) > 1e-3


def test_an_answer_depends_on_its_sample_alone(network, stream):
    first, second = stream(2, 6)
    memo = MEMO(views=3)(network())
    out = memo.observe(first)
    memo.observe(second)
    assert torch.equal(memo.observe(first.flip(0)).flip(0), out)
    assert torch.equal(memo.observe(first[2:3]), out[2:3])
    with torch.inference_mode():
        assert torch.equal(memo(first), out)


def test_the_network_itself_never_changes(network, stream):
    net = network()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    memo = MEMO(views=3, optimizer=SGD(lr=1.0))(net)
    memo.observe(stream(1, 4)[0])
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert all(torch.equal(t, before[name]) for name, t in memo.model.state_dict().items())


def test_views_that_change_nothing_are_entropy_minimisation_on_the_sample(network, stream):
    """Of the same norm layers, Tent starting anew at each sample makes the same network."""
    net, x = network("group"), stream(1, 1)[0]

    class Same(AugMix, register=False):
        def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
            return x

    memo = MEMO(views=4, augment=Same(), optimizer=SGD(lr=0.01, momentum=0.0))(net)
    plain = copy.deepcopy(net)
    loss = torch.distributions.Categorical(logits=plain(x)).entropy().mean()
    for p, g in zip(plain.parameters(), torch.autograd.grad(loss, list(plain.parameters())), strict=True):
        p.data.sub_(0.01 * g)
    assert torch.allclose(memo.observe(x), plain(x), atol=1e-12)


def test_a_batch_of_one_gains_where_tent_has_nothing_to_gain(network, stream):
    """Tent, reset at each sample, answers before it learns."""
    net, x = network("group"), stream(1, 1)[0]
    assert torch.equal(PeriodicReset(Tent(), every=1)(net).observe(x), net(x))
    memo = MEMO(optimizer=SGD(lr=0.05, momentum=0.0))(net)
    entropy = lambda z: float(torch.distributions.Categorical(logits=z.detach()).entropy())  # noqa: E731
    assert entropy(memo.observe(x)) < entropy(net(x)) - 0.01


def test_without_a_prior_statistics_are_those_of_the_views(network, stream, batch_mode):
    net, x = network(), stream(1, 1)[0]
    memo = MEMO(prior=0.0, views=4, optimizer=SGD(lr=1e-9, momentum=0.0))(net)
    assert torch.allclose(memo.observe(x), batch_mode(copy.deepcopy(net))(x), atol=1e-6)


def test_a_batchnorm_of_one_value_a_channel_is_served():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()
    assert MEMO(views=2)(net).observe(torch.rand(3, 1, 8, 8)).shape == (3, 3)


def test_what_is_no_image_is_refused(network, stream):
    with pytest.raises(InputError, match=r"0\.\.1"):
        MEMO()(network()).observe(255 * stream(1)[0])
    with pytest.raises(InputError, match="float images"):
        MEMO()(nn.Linear(3, 3)).observe(torch.rand(4, 3))


def test_as_documented_a_flip_that_changes_the_class_pulls_to_the_wrong_one():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    side = torch.where(torch.arange(64) % 8 < 4, 1.0, -1.0).double()
    with torch.no_grad():
        net[1].weight.copy_(0.05 * torch.stack([side, -side]))
        net[1].bias.zero_()
    y = torch.arange(40) % 2
    x = 0.3 * torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[y == 0, :, :, :4] += 0.3
    x[y == 1, :, :, 4:] += 0.3
    right = {"frozen": net(x).argmax(1) == y}
    for flip in (0.0, 0.5):
        memo = MEMO(optimizer=SGD(lr=2.0, momentum=0.0), views=16, steps=3, augment=AugMix(flip=flip, crop=0))(net)
        right[str(flip)] = memo.observe(x).argmax(1) == y
    found = {name: float(hits.double().mean()) for name, hits in right.items()}
    assert found["frozen"] == found["0.0"] == 1.0 and found["0.5"] < 0.8
