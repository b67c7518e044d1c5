from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.adapt import EATA, Tent
from homeostat.core.errors import MissingPart
from homeostat.core.online import Bag
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.nn.norms import batch_statistics, blend_batchnorm, recorded_statistics
from homeostat.nn.optimizers import Adam


class Slow:
    """EATA sample by sample, as the paper's equations read."""

    def __init__(self, net: nn.Module, fisher: dict[str, Tensor] | None, alpha: float, margin: float, div: float):
        self.net = net.requires_grad_(False)
        self.affine = {
            f"{name}.{leaf}": getattr(module, leaf).requires_grad_(True)
            for name, module in net.named_modules()
            if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm))
            for leaf in ("weight", "bias")
        }
        self.start = {name: p.detach().clone() for name, p in self.affine.items()}
        self.optimizer = torch.optim.Adam(self.affine.values(), 1e-2)
        self.fisher, self.alpha, self.margin, self.div = fisher, alpha, margin, div
        self.mean: Tensor | None = None
        self.used = self.reliable = 0

    def observe(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        limit = self.margin * math.log(logits.shape[1])
        losses, kept = [], []
        for row in logits:
            p = F.softmax(row, 0)
            entropy = -sum(q * q.log() for q in p)
            assert isinstance(entropy, Tensor)
            certain = float(entropy.detach())
            if certain >= limit:
                continue
            self.reliable += 1
            if self.mean is not None:
                cosine = float(self.mean @ p.detach() / (self.mean.norm() * p.detach().norm()))
                if abs(cosine) >= self.div:
                    continue
            losses.append(math.exp(limit - certain) * entropy)
            kept.append(p.detach())
        self.used += len(kept)
        if kept:
            new = sum(kept) / len(kept)
            assert isinstance(new, Tensor)
            self.mean = new if self.mean is None else 0.9 * self.mean + 0.1 * new
            loss = sum(losses) / len(losses)
            if self.fisher is not None:
                for name, p in self.affine.items():
                    loss = loss + self.alpha * (self.fisher[name] * (p - self.start[name]) ** 2).sum()
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[union-attr]
            self.optimizer.step()
        return logits.detach()


def fisher_written_out(net: nn.Module, batches: list[Tensor], names: list[str]) -> dict[str, Tensor]:
    total = {name: torch.zeros_like(net.get_parameter(name)) for name in names}
    for x in batches:
        net.zero_grad()
        logits = net(x)
        (-torch.log(logits.softmax(1).amax(1)).mean()).backward()
        for name in names:
            gradient = net.get_parameter(name).grad
            assert gradient is not None
            total[name] += gradient**2 / len(batches)
    net.zero_grad()
    return total


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("kind", ["batch", "group"])
@pytest.mark.parametrize(
    ("alpha", "margin", "div"), [(50.0, 0.8, 0.95), (0.0, 0.8, 0.95), (1.0, 0.6, 1.0), (1.0, 0.02, 0.4)]
)
@pytest.mark.exact("S058")
def test_equals_the_equations_sample_by_sample(network, stream, batch_mode, kind, alpha, margin, div, dtype, tolerance):
    net = network(kind, dtype)
    source = stream(1, 40, dtype, seed=9)[0]
    remedy = EATA(fisher_alpha=alpha, margin=margin, div_margin=div, optimizer=Adam(lr=1e-2), fisher_batch=16)
    world = World(source=source)
    ours = remedy(net, world, run=Run(seed=4))
    fisher = None
    if alpha > 0:
        order = world.source.shuffle(Run(seed=4).rng("EATA.fisher"))  # type: ignore[union-attr]
        names = list(ours.anchor())
        inputs: Any = [b.x for b in order.batches(16)]
        fisher = fisher_written_out(batch_mode(copy.deepcopy(net)), inputs, names)
        rtol = 1e-3 if dtype is torch.float32 else 1e-9
        for name in names:
            assert torch.allclose(ours.carry[f"fisher.{name}"], fisher[name], rtol=rtol)
    slow = Slow(batch_mode(copy.deepcopy(net)), fisher, alpha, margin, div)
    for x in stream(7, dtype=dtype):
        assert torch.allclose(ours.observe(x), slow.observe(x), rtol=0, atol=tolerance)
    counts = [int(ours.carry[name]) for name in ("seen", "reliable", "used")]
    assert counts == [140, slow.reliable, slow.used]
    if margin > 0.1:
        assert 0 < slow.used < 140
    if div < 1 and margin > 0.1:
        assert slow.used < slow.reliable


def test_no_reliable_sample_no_step(network, stream):
    net = network()
    eata = EATA(margin=1e-6, fisher_alpha=0.0, optimizer=Adam(lr=1.0))(net)
    for x in stream(2):
        eata.observe(x)
    assert all(torch.equal(t, eata.anchor()[name]) for name, t in eata.owned().items())
    assert int(eata.carry["used"]) == 0 and int(eata.carry["seen"]) == 40 and "probabilities" not in eata.carry


def test_the_running_mean_sees_used_samples_only(network, stream):
    eata = EATA(margin=1.0, div_margin=0.0, fisher_alpha=0.0)(network())
    first, second = stream(2)
    logits = eata.observe(first)
    mean = eata.carry["probabilities"].clone()
    assert torch.allclose(mean, logits.softmax(1).mean(0), atol=1e-12)
    eata.observe(second)  # a threshold of 0 refuses every sample once there is a mean
    assert torch.equal(eata.carry["probabilities"], mean) and int(eata.carry["used"]) == 20


def test_the_margin_scales_with_the_logarithm_of_the_classes(network, stream):
    x = stream(1, 200)[0]
    tent = Tent()(network())
    p = tent(x).softmax(1)
    entropy = -(p * p.log()).sum(1)
    eata = EATA(margin=0.8, fisher_alpha=0.0)(network())
    eata.observe(x)
    assert 0 < int(eata.carry["reliable"]) == int((entropy < 0.8 * math.log(4)).sum()) < 200


def test_a_heavy_penalty_keeps_weights_at_home(network, stream):
    world = World(source=stream(1, 40, seed=9)[0])

    def moved(alpha: float) -> float:
        eata = EATA(fisher_alpha=alpha, margin=1.0, div_margin=1.0)(network(), world)
        for x in stream(8):
            eata.observe(x)
        anchor, fisher = eata.anchor(), eata.carry.under("fisher")
        return sum(float((fisher[n] * (t.detach() - anchor[n]) ** 2).sum()) for n, t in eata.owned().items())

    assert moved(1e5) < 0.5 * moved(1e-9)


def test_without_a_penalty_no_source_is_needed(network):
    assert EATA(fisher_alpha=0.0).prepares() == frozenset()
    EATA(fisher_alpha=0.0)(network(), World())
    with pytest.raises(MissingPart, match=r"source\.x"):
        EATA()(network(), World())


def test_fisher_samples_limits_what_is_read(network, stream):
    x = stream(1, 64, seed=9)[0]
    world = World(source=x)
    kit = EATA(fisher_samples=16, fisher_batch=16).kit(network(), world)
    rows = torch.randperm(64, generator=Run().rng("EATA.fisher"))[:16]
    own = batch_statistics(network())
    assert isinstance(kit, Bag)
    expected = fisher_written_out(own, [x[rows]], list(kit))
    assert all(torch.allclose(kit[name], expected[name], rtol=1e-9) for name in kit)


def test_reset_keeps_the_information_and_forgets_the_rest(network, stream):
    eata = EATA(margin=1.0)(network(), World(source=stream(1, 40, seed=9)[0]))
    start = {name: eata.carry[name].clone() for name in eata.carry}
    for x in stream(3):
        eata.observe(x)
    eata.reset()
    assert set(start) == set(eata.carry)
    assert all(torch.equal(start[name], eata.carry[name]) for name in start)


def test_subset_equals_masked_without_batchnorm(network, stream):
    remedy = EATA(margin=0.8, div_margin=0.95, fisher_alpha=0.0)
    masked, subset = (remedy.replace(backward=b)(network("group")) for b in ("masked", "subset"))
    for x in stream(6):
        assert torch.allclose(masked.observe(x), subset.observe(x), atol=1e-10)
    assert 0 < int(masked.carry["used"]) == int(subset.carry["used"]) < 120


def test_subset_holds_the_batch_statistics_constant(network, stream):
    """Its first step is the one that a network with this batch's statistics stored in it would make."""
    net, x = network(), stream(1, 30)[0]
    optimizer = Adam(lr=1e-2)
    subset = EATA(margin=0.8, fisher_alpha=0.0, backward="subset", optimizer=optimizer)(net)
    subset.observe(x)

    stored = copy.deepcopy(net)
    h = x
    for layer in stored:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = h.mean((0, 2, 3)).detach()
            layer.running_var = h.var((0, 2, 3), correction=0).detach()
        h = layer(h)
    slow = Slow(stored, None, 0.0, 0.8, 1.0)
    slow.observe(x)
    assert 0 < slow.used < 30
    for name, t in subset.owned().items():
        assert torch.allclose(t, slow.affine[name], atol=1e-9)
        assert not torch.equal(t, subset.anchor()[name])


@pytest.mark.parametrize("blend", [{}, {"blend": 0.3}])
def test_replayed_statistics_give_the_same_rows(network, stream, blend):
    net, x = blend_batchnorm(network(), **blend), stream(1)[0]
    with torch.no_grad(), recorded_statistics(net) as replay:
        whole = net(x)
    with replay():
        part = net(x[3:7])
    assert torch.allclose(part, whole[3:7], atol=1e-12) and torch.allclose(net(x), whole, atol=1e-12)
    assert not torch.allclose(net(x[3:7]), part, atol=1e-3)
