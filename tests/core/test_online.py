from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from homeostat.core.check import check_probe, check_remedy, check_shift, small_network, small_world
from homeostat.core.data import Batch, Data, Tensors
from homeostat.core.errors import NonFiniteError
from homeostat.core.method import Card, Chain, Remedy, Shift
from homeostat.core.online import Bag, Live, Online
from homeostat.core.probe import Outputs, Probe, outputs, prequential, read
from homeostat.core.reading import Reading
from homeostat.core.run import Run
from homeostat.core.watched import CheckFailed
from homeostat.core.world import World
from homeostat.nn.norms import blend_batchnorm


class CountingOnline(Online):
    """Adds to the last bias the number of samples seen, and keeps a memory that grows."""

    def __init__(self, model: nn.Module, fault: str = ""):
        super().__init__(model, own="5.bias")
        self.fault = fault
        self.begin()

    def begin(self) -> None:
        self.carry["seen"] = torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        if self.fault == "impure":
            self.carry["seen"] += 1.0
            self.model[5].bias.data += 1.0  # type: ignore[index]
        return self.model(x)

    def adapt(self, batch: Batch) -> Tensor:
        out = self.model(batch.x)
        with torch.no_grad():
            self.model[5].bias += len(batch)  # type: ignore[index]
        self.carry["seen"] = torch.cat([self.carry["seen"], torch.ones(len(batch))])
        if self.fault == "forgets":
            self.hidden = getattr(self, "hidden", 0) + 1
            return out + self.hidden
        return out


class Count(Remedy, register=False):
    card = Card()
    fault = ""

    def apply(self, model, world, kit, run):
        if self.fault == "writes":
            with torch.no_grad():
                model[5].bias += 1
        if self.fault == "train":
            model.train()
        if self.fault == "coupled":
            return blend_batchnorm(model)
        if self.fault == "seed":
            made = CountingOnline(model)
            with torch.no_grad():
                made.model[5].bias += torch.rand(())  # type: ignore[index]
            return made
        return CountingOnline(model, self.fault)


def faulty(fault: str, **card) -> Remedy:
    return type("Faulty", (Count,), {"fault": fault, "card": Card(**card)}, register=False)()


def test_a_sound_online_remedy_passes_its_checks():
    check_remedy(Count())


@pytest.mark.parametrize(
    ("remedy", "said"),
    [
        (faulty("writes"), "untouched bit for bit"),
        (faulty("train"), r"train\(\) flags stay"),
        (faulty("seed"), "same seed gives the same result"),
        (faulty("impure"), "forward changes nothing"),
        (faulty("coupled"), "does not depend on its batch"),
        (faulty("forgets"), r"after reset\(\)"),
        (faulty("", needs=frozenset({"source.y"})), "source.y is declared and never read"),
        (faulty("", needs=frozenset({"held.x"})), "held"),
    ],
)
def test_each_broken_promise_is_found(remedy, said):
    with pytest.raises(CheckFailed, match=said):
        check_remedy(remedy)


class MeanOut(Probe, register=False):
    card = Card()
    fault = ""

    def measure(self, outputs: Outputs, world: World, kit, run: Run) -> Reading:
        value = float(outputs.logits[0].mean() if self.fault == "order" else outputs.logits.mean())
        return Reading("mean", float("nan") if self.fault == "nan" else value)


@pytest.mark.parametrize(("fault", "said"), [("order", "order of samples"), ("nan", "value is a number")])
def test_a_probes_broken_promises_are_found(fault, said):
    check_probe(MeanOut())
    with pytest.raises(CheckFailed, match=said):
        check_probe(type("Broken", (MeanOut,), {"fault": fault}, register=False)())


class Jitter(Shift, register=False):
    fault = ""

    def apply(self, data: Data, model, run: Run) -> Data:
        batch = data.load()
        generator = None if self.fault == "seed" else run.rng("jitter")
        x = batch.x + torch.rand(batch.x.shape, generator=generator)  # type: ignore[union-attr,operator]
        if self.fault == "writes":
            batch.x.add_(1)  # type: ignore[union-attr]
        return Tensors(x, batch.y, torch.arange(len(batch)) + (7 if self.fault == "ids" else 0))


@pytest.mark.parametrize(("fault", "said"), [("seed", "same seed"), ("writes", "unchanged")])
def test_a_shifts_broken_promises_are_found(fault, said):
    check_shift(Jitter())
    with pytest.raises(CheckFailed, match=said):
        check_shift(type("Broken", (Jitter,), {"fault": fault}, register=False)())


def test_live_observes_and_an_online_model_ignores_train():
    online = CountingOnline(small_network())
    live, x = Live(online), torch.rand(3, 1, 8, 8)
    first = live(x)
    assert torch.allclose(live(x), first + 3) and len(online.carry["seen"]) == 6
    assert not online.train().training


def test_refused_inputs_leave_everything_as_it_was():
    online, x = CountingOnline(small_network()), torch.rand(3, 1, 8, 8)
    x[1, 0, 0, 0] = float("nan")
    before = online.snapshot()
    with pytest.raises(NonFiniteError, match="x holds 1 values"):
        online.observe(x)
    assert all(torch.equal(t, before[n]) for n, t in online.snapshot().items())


def test_prequential_scores_each_sample_before_it_is_learnt_and_leaves_the_model():
    online, data = CountingOnline(small_network()), small_world().source
    before = online.snapshot()
    seen, plain = prequential(online, data, batch=16).logits, outputs(online, data).logits
    assert torch.allclose(seen[:16], plain[:16]) and torch.allclose(seen[16:32], plain[16:32] + 16)
    assert all(torch.equal(t, before[n]) for n, t in online.snapshot().items())


def test_probes_share_one_forward_pass():
    net, calls = small_network(), []

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return self.net(x)

    read([MeanOut(), MeanOut(), MeanOut()], Counting(), small_world(), batch=48)
    assert calls == [48]


def test_a_chain_applies_its_remedies_in_order():
    made = Chain((Count(), Count()))(small_network())
    assert isinstance(made, CountingOnline) and isinstance(made.model, CountingOnline)


def test_a_bag_takes_dotted_names_and_lists_them_by_prefix():
    bag = Bag({"a.b.c": torch.ones(1), "a.d": torch.ones(2), "e": torch.ones(3)})
    assert set(bag.under("a")) == {"b.c", "d"} and len(bag) == 3
    del bag["a.d"]
    assert "a.d" not in bag
