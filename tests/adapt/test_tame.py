"""TAME against separate networks, PyTorch's own optimiser and plain loops."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from homeostat.adapt import TAME
from homeostat.adapt.tame import TAMEOnline
from homeostat.core.data import Batch
from homeostat.core.run import Run
from homeostat.core.save import load, save
from homeostat.nn.mlp import MLP
from homeostat.nn.optimizers import Adam


def network(norm: str = "none", dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    layer = {
        "none": nn.Identity(), "batch": nn.BatchNorm1d(12), "group": nn.GroupNorm(3, 12), "layer": nn.LayerNorm(12),
    }[norm]  # fmt: skip
    return nn.Sequential(nn.Linear(4, 12), layer, nn.Tanh(), nn.Linear(12, 2)).to(dtype).eval()


def task(number: int, batches: int, seed: int = 0, dtype: torch.dtype = torch.float64, apart: float = 3.0):
    """Batches of one task: inputs around a place of their own, classes turned around from task to task."""
    draws = torch.Generator().manual_seed(1000 * seed + number)
    place = torch.tensor([[apart, 0, 0, 0], [-apart, 0, 0, 0], [0, apart, 0, 0.0]], dtype=torch.float64)[number]
    for _ in range(batches):
        noise = torch.randn(16, 4, generator=draws, dtype=torch.float64)
        yield Batch((place + noise).to(dtype), (noise[:, 3] > 0).long() ^ (number % 2))


class Recording(TAMEOnline, register=False):
    shown = None

    def _teach_selector(self, like, rows):
        self.shown.append({name: tensor.clone() for name, tensor in rows.items()})
        super()._teach_selector(like, rows)


class Slow:
    def __init__(self, net: nn.Module, remedy: TAME, lr: float):
        self.first, self.remedy, self.lr = copy.deepcopy(net), remedy, lr
        self.nets, self.bands, self.waiting = [], [], []
        self.selector = copy.deepcopy(net)
        self.selector[-1] = nn.Linear(12, remedy.experts).to(net[0].weight)
        nn.init.zeros_(self.selector[-1].weight)
        nn.init.zeros_(self.selector[-1].bias)
        self.selecting = torch.optim.Adam(self.selector.parameters(), lr)
        self.spawn()

    def spawn(self):
        self.nets.append(copy.deepcopy(self.first))
        self.bands.append([None, 0.0, 0])
        self.take(len(self.nets) - 1)

    def take(self, number):
        self.active = number
        self.optimizer = torch.optim.Adam(self.nets[number].parameters(), self.lr)

    def loss(self, number, x, y):
        return F.cross_entropy(self.nets[number](x), y)

    def fits(self, number, value):
        mean, variance, _ = self.bands[number]
        return value <= mean + self.remedy.z * max(variance**0.5, mean / 10)

    def learn(self, x, y):
        loss = self.loss(self.active, x, y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        value, band, q = loss.item(), self.bands[self.active], self.remedy.smooth
        if band[2]:
            band[1] = q * band[1] + (1 - q) * 2 * max(value - band[0], 0) ** 2
            band[0] = q * band[0] + (1 - q) * value
        else:
            band[0] = value
        band[2] += 1

    def observe(self, x, y):
        value = self.loss(self.active, x, y).item()
        if self.bands[self.active][2] < self.remedy.grace or self.fits(self.active, value):
            self.waiting = []
            self.learn(x, y)
            return
        self.waiting.append((x, y))
        if len(self.waiting) == self.remedy.patience:
            whole = [torch.cat(t) for t in zip(*self.waiting, strict=True)]
            values = {i: self.loss(i, *whole).item() for i in range(len(self.nets)) if i != self.active}
            known = [i for i in values if self.fits(i, values[i])]
            if known:
                self.take(min(known, key=values.__getitem__))
            else:
                self.spawn()
            for x, y in self.waiting:
                self.learn(x, y)
            self.waiting = []

    def select(self, shown):
        for rows in shown:
            logits = self.selector(rows["x.x"])[:, : len(self.nets)]
            self.selecting.zero_grad()
            F.cross_entropy(logits, rows["expert"]).backward()
            self.selecting.step()


@pytest.mark.exact("S179")
@pytest.mark.parametrize("norm", ["none", "batch", "group", "layer"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_equals_separate_networks_and_plain_loops(norm, dtype, tolerance):
    net, remedy = network(norm, dtype), TAME(optimizer=Adam(lr=0.02), grace=15, experts=4, replay=32, capacity=100)
    ours = Recording(net, optimizer=Adam(lr=0.02), grace=15, largest=4, replay=32, capacity=100, seed=3)
    slow = Slow(net, remedy, 0.02)
    stream = [*task(0, 40, dtype=dtype), *task(1, 40, dtype=dtype), *task(0, 12, seed=1, dtype=dtype)]
    for batch in stream:
        ours.shown = []
        said = ours.observe(batch)
        with torch.no_grad():
            chosen = slow.selector(batch.x)[:, : len(slow.nets)].argmax(1)
            expected = torch.stack([slow.nets[i](row[None])[0] for i, row in zip(chosen, batch.x, strict=True)])
        assert torch.allclose(said, expected, rtol=0, atol=tolerance)
        slow.observe(batch.x, batch.y)
        slow.select(ours.shown)
        assert (ours.experts, ours.active) == (len(slow.nets), slow.active)
    assert ours.experts == 2 and ours.active == 0  # the first task came back to its own expert
    for i, theirs in enumerate(slow.nets):
        for name, parameter in theirs.named_parameters():
            assert torch.allclose(ours.expert(i)[name], parameter, rtol=0, atol=tolerance)
        assert float(ours.carry["mean"][i]) == pytest.approx(slow.bands[i][0], abs=tolerance)
        assert float(ours.carry["variance"][i]) == pytest.approx(slow.bands[i][1], abs=tolerance)


def trained(**options) -> TAMEOnline:
    ours = TAME(**{"optimizer": Adam(lr=0.02), "grace": 15} | options)(network(), run=Run(seed=1))
    for number in (0, 1, 2):
        for batch in task(number, 60):
            ours.observe(batch)
    return ours


def right(net: nn.Module, number: int) -> float:
    return sum(float((net(b.x).argmax(1) == b.y).double().mean()) for b in task(number, 10, seed=7)) / 10


def test_three_tasks_make_three_experts_that_are_found_without_a_task():
    ours = trained()
    assert ours.experts == 3 and all(right(ours, number) > 0.85 for number in range(3))
    for number in range(3):
        assert all(float((ours.choose(b.x) == number).double().mean()) > 0.8 for b in task(number, 3, seed=8))


def test_one_network_forgets_what_the_experts_keep():
    assert min(right(trained(experts=1), number) for number in range(3)) < 0.6


def test_during_an_alarm_the_band_is_frozen_nothing_is_learnt_and_an_outlier_is_dropped():
    ours = TAME(optimizer=Adam(lr=0.02), grace=15)(network())
    for batch in task(0, 40):
        ours.observe(batch)
    band, weights = ours.carry["mean"].clone(), {n: t.clone() for n, t in ours.expert(0).items()}
    for batch in task(1, 2):
        ours.observe(batch)
    assert int(ours.carry["alarms"]) == 2 and torch.equal(ours.carry["mean"], band)
    assert all(torch.equal(t, ours.expert(0)[n]) for n, t in weights.items())
    ours.observe(next(task(0, 1, seed=2)))
    assert int(ours.carry["alarms"]) == 0 and ours.experts == 1
    assert not any(name.startswith("waiting") for name in ours.carry)


def test_no_alarm_in_the_grace_period():
    ours = TAME(grace=1000)(network())
    for number in (0, 1):
        for batch in task(number, 30):
            ours.observe(batch)
    assert ours.experts == 1


def test_labels_that_are_not_known_teach_nothing():
    ours, batch = TAME()(network()), next(task(0, 1))
    ours.observe(batch.x)
    ours.observe(batch.replace(y=torch.full((16,), -100)))
    assert float(ours.carry["learnt"].sum()) == 0
    ours.observe(batch.replace(y=torch.where(torch.arange(16) < 5, batch.y, -100)))
    assert float(ours.carry["learnt"].sum()) == 1 and len(ours.carry["memory.row.expert"]) == 5


def test_pruning_reaches_its_share_by_magnitude_and_the_rest_recovers():
    ours = trained(prune=0.6, ramp=40)
    for owner in ("expert.0", "expert.2", "selector"):
        weights = torch.cat([t.flatten() for t in ours.carry.under(owner).values() if t.ndim > 1])
        assert int((weights == 0).sum()) >= int(0.6 * len(weights))
    # The selector's unused outputs are 0 anyway, so its share of zeros may be larger.
    weights = torch.cat([t.flatten() for t in ours.expert(0).values() if t.ndim > 1])
    assert float((weights == 0).double().mean()) == pytest.approx(0.6, abs=0.02)
    assert all(right(ours, number) > 0.8 for number in range(3))


def test_a_grown_model_is_saved_restored_and_goes_on(tmp_path):
    net = network()
    ours = TAME(optimizer=Adam(lr=0.02), grace=15, prune=0.3)(net)
    start = ours.snapshot()
    for batch in [*task(0, 40), *task(1, 2)]:
        ours.observe(batch)
    save(ours, tmp_path / "tame")
    back, rest = load(tmp_path / "tame", base=net), [*task(1, 30, seed=4)]
    said = [ours.observe(batch) for batch in rest]
    assert ours.experts == 2
    assert all(torch.equal(a, back.observe(batch)) for a, batch in zip(said, rest, strict=True))
    ours.reset()
    assert ours.experts == 1 and all(torch.equal(t, ours.snapshot()[name]) for name, t in start.items())


def test_failure_slow_drift_raises_no_alarm_and_one_expert_forgets():
    """The line between the classes turns by a quarter of a degree at each batch, until they have changed places."""
    ours = TAME(optimizer=Adam(lr=0.02), grace=15, z=6.0)(network())
    for batch in task(0, 60):
        ours.observe(batch)
    before = right(ours, 0)
    for step, batch in enumerate(task(0, 720, seed=2)):
        turn = torch.tensor(step * torch.pi / 720)
        ours.observe(batch.replace(y=(turn.cos() * batch.x[:, 3] + turn.sin() * batch.x[:, 2] > 0).long()))
    assert ours.experts == 1 and before > 0.85 and right(ours, 0) < 0.15


def test_failure_tasks_whose_inputs_look_alike_cannot_be_told_apart():
    ours = TAME(optimizer=Adam(lr=0.02), grace=15)(network())
    for number in (0, 1):
        for batch in task(number, 60, apart=0.0):
            ours.observe(batch)
    scores = [
        sum(float((ours(b.x).argmax(1) == b.y).double().mean()) for b in task(n, 10, seed=5, apart=0.0)) / 10
        for n in (0, 1)
    ]
    assert ours.experts == 2 and sum(scores) / 2 < 0.7


def test_the_card_s_passes_are_those_of_its_defaults_with_several_experts_and_batches_of_64():
    """Forwards once, and where gradients are taken twice more."""
    count = [0]

    def noted(module, x):
        count[0] += len(x[0]) * (3 if torch.is_grad_enabled() else 1)

    net = MLP(2, 2, (8,))
    tame = TAME(grace=2)(net)
    for model in (tame.model, tame.selector):
        next(m for m in model.modules() if isinstance(m, nn.Linear)).register_forward_pre_hook(noted)
    tame._spawn()
    for part in torch.randn(5 * 64, 2).split(64):
        count[0] = 0
        tame.observe(Batch(part, (part[:, 0] > 0).long()))
    assert count[0] / 64 == TAME().card.passes
