from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from homeostat.adapt import SAR, Tent
from homeostat.core.errors import ModelError
from homeostat.nn.optimizers import SGD, Adam


class Slow:
    """SAR with three whole networks: the one that is, the one at the worst point, and the one that was."""

    def __init__(self, net: nn.Module, optimizer: Any, remedy: SAR, recover: float):
        self.net, self.source, self.remedy, self.recover = net, copy.deepcopy(net), remedy, recover
        self.make, self.optimizer = optimizer, optimizer(self.affine(net))
        self.mean: float | None = None
        self.recoveries = self.skipped = 0

    @staticmethod
    def affine(net: nn.Module) -> list[nn.Parameter]:
        norms = [m for m in net.modules() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm))]
        return [p for m in norms for p in (m.weight, m.bias)]

    @staticmethod
    def entropies(z: Tensor) -> list[Tensor]:
        return [-(row.softmax(0) * row.log_softmax(0)).sum() for row in z]

    def observe(self, x: Tensor) -> Tensor:
        z = self.net(x)
        limit = self.remedy.margin * math.log(z.shape[1])
        first = self.entropies(z)
        kept = [n for n, h in enumerate(first) if h.detach() < limit]
        self.skipped += len(x) - len(kept)
        away = copy.deepcopy(self.net)
        if kept:
            g = torch.autograd.grad(torch.stack([first[n] for n in kept]).mean(), self.affine(self.net))
            length = math.sqrt(sum(float((t**2).sum()) for t in g))
            with torch.no_grad():
                for p, t in zip(self.affine(away), g, strict=True):
                    p.add_(t, alpha=self.remedy.radius / length)
        second = self.entropies(away(x))
        kept = [n for n in kept if second[n].detach() < limit]
        for p in self.affine(self.net):
            p.grad = torch.zeros_like(p)
        if kept:
            loss = torch.stack([second[n] for n in kept]).mean()
            for p, t in zip(self.affine(self.net), torch.autograd.grad(loss, self.affine(away)), strict=True):
                p.grad = t
            value = float(loss.detach())
            self.mean = value if self.mean is None else 0.9 * self.mean + 0.1 * value
        self.optimizer.step()
        if self.mean is not None and self.mean < self.recover:
            self.net.load_state_dict(self.source.state_dict())
            self.optimizer, self.mean = self.make(self.affine(self.net)), None
            self.recoveries += 1
        return z.detach()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
@pytest.mark.parametrize("recovering", [False, True])
@pytest.mark.parametrize(
    ("optimizer", "theirs"),
    [
        (SGD(lr=1e-2, momentum=0.9), lambda p: torch.optim.SGD(p, 1e-2, 0.9)),
        (Adam(lr=1e-3), lambda p: torch.optim.Adam(p, 1e-3)),
    ],
)
def test_equals_three_networks_and_plain_loops(
    network, stream, batch_mode, kind, dtype, tolerance, recovering, optimizer, theirs
):
    net, batches = network(kind, dtype), stream(8, dtype=dtype)
    slow_net = batch_mode(copy.deepcopy(net))
    entropies = torch.cat([torch.stack(Slow.entropies(slow_net(x).detach())) for x in batches])
    high, low = float(entropies.quantile(0.7)), float(entropies.quantile(0.5))
    recover = low if recovering else 0.0
    remedy = SAR(margin=high / math.log(4), radius=0.01, optimizer=optimizer, recover=recover)
    ours, slow = remedy(net), Slow(slow_net, theirs, remedy, recover)
    for x in batches:
        assert torch.allclose(ours.observe(x), slow.observe(x), rtol=0, atol=tolerance)
    for mine, other in zip(ours.owned().values(), slow.affine(slow.net), strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=tolerance)
    assert slow.skipped > 0 and int(ours.carry["recoveries"]) == slow.recoveries
    assert (slow.recoveries > 0) == recovering
    assert recovering or any(not torch.equal(t, ours.anchor()[n]) for n, t in ours.owned().items())


def test_radius_0_and_everything_reliable_is_tent(network, stream):
    net = network("group")
    sar, tent = (
        r(net) for r in (SAR(margin=1.01, radius=0.0, recover=0.0, optimizer=SGD(lr=0.01)), Tent(SGD(lr=0.01)))
    )
    for x in stream(5):
        assert torch.allclose(sar.observe(x), tent.observe(x), rtol=0, atol=1e-12)


def test_the_running_entropy_by_hand(network):
    sar = SAR(recover=0.5)(network())
    sar._watch(1.0)
    sar._watch(2.0)
    assert float(sar.carry["entropy"]) == pytest.approx(0.9 * 1.0 + 0.1 * 2.0)
    sar.carry["entropy"] = torch.tensor(0.5)
    sar._watch(0.4)  # 0.49 < 0.5
    assert "entropy" not in sar.carry and int(sar.carry["recoveries"]) == 1


def test_without_a_reliable_sample_only_momentum_moves_it(network, stream):
    first, second = stream(2)
    sar = SAR(margin=1.01, recover=0.0, optimizer=SGD(lr=0.01, momentum=0.5))(network("group"))
    start = {n: t.detach().clone() for n, t in sar.owned().items()}
    sar.observe(first)
    after = {n: t.detach().clone() for n, t in sar.owned().items()}
    sar.margin, entropy = 1e-9, sar.carry["entropy"]
    sar.observe(second)
    for name, t in sar.owned().items():
        assert torch.allclose(t - after[name], 0.5 * (after[name] - start[name]), rtol=0, atol=1e-14)
    assert torch.equal(sar.carry["entropy"], entropy)


class Staged(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer3 = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.layer4 = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.norm, self.linear = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(self.layer4(self.layer3(x))))


def test_the_last_stage_is_left_alone_by_its_name(network):
    assert set(SAR()(Staged()).owned()) == {"layer3.1.weight", "layer3.1.bias"}
    assert len(SAR(leave_out=())(Staged()).owned()) == 6
    assert set(SAR()(network()).owned()) == {"1.weight", "1.bias", "4.weight", "4.bias"}
    with pytest.raises(ModelError, match="nothing is left"):
        SAR(leave_out=("*",))(network())


def test_as_documented_a_network_that_is_sure_is_recovered_at_every_step(network, stream):
    net = network("group")
    with torch.no_grad():
        net[8].weight.mul_(20)
    sar, free = SAR()(net), SAR(recover=0.0)(net)
    for step, x in enumerate(stream(4), 1):
        sar.observe(x)
        free.observe(x)
        assert int(sar.carry["recoveries"]) == step
    assert all(torch.equal(t, sar.anchor()[n]) for n, t in sar.owned().items())
    assert any(not torch.equal(t, free.anchor()[n]) for n, t in free.owned().items())


def test_a_collapse_is_undone(network, stream):
    """A learning rate at which the network ends in one class, and what recovering makes of it."""
    net = network("group")
    hot = {"margin": 1.01, "optimizer": SGD(lr=2.0)}
    alive, dead = SAR(**hot)(net), SAR(recover=0.0, **hot)(net)
    batches = stream(30)
    for x in batches:
        alive.observe(x)
        dead.observe(x)
    x = torch.cat(batches)
    entropy = lambda one: float(torch.distributions.Categorical(logits=one(x).detach()).entropy().mean())  # noqa: E731
    assert int(alive.carry["recoveries"]) > 0 and entropy(dead) < 0.05 < entropy(net)
    alive.recover = 1e9  # the next step is taken back
    alive.observe(batches[0])
    assert entropy(alive) == pytest.approx(entropy(net))
