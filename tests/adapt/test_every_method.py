"""Every method of adaptation on what networks and streams there are, beside what `tests/test_promises.py` checks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from homeostat.adapt import (
    EATA,
    MEMO,
    PETAL,
    RMT,
    ROID,
    SAR,
    T3A,
    CoTTA,
    DeYO,
    PeriodicReset,
    Repeated,
    RoTTA,
    RoTTAOnline,
    SlidingWindow,
    Tent,
    ViDA,
    VisualDomainPrompt,
)
from homeostat.core import spec
from homeostat.core.check import check_remedy, small_network, small_world
from homeostat.core.data import Tensors
from homeostat.core.errors import ModelError
from homeostat.core.method import Remedy
from homeostat.core.online import Online
from homeostat.core.run import Run
from homeostat.core.world import World
from tests.test_promises import CHEAPER, MODELS, REMEDIES, WORLDS


def network(kind: str) -> nn.Module:
    """The small network of the checks, with another normalisation."""
    net: Any = small_network()
    if kind != "batch":
        net[1] = nn.GroupNorm(2, 4) if kind == "group" else nn.LayerNorm([4, 8, 8])
    return net.eval()


def methods() -> list[Remedy]:
    found: list[Remedy] = []
    for cls in spec.registered(Remedy):
        abstract = getattr(cls, "__abstractmethods__", None)
        if cls.__module__.startswith("homeostat.adapt.") and not abstract and cls.__name__ not in MODELS:
            found += REMEDIES.get(cls.__name__) or [CHEAPER.get(cls.__name__) or cls()]
    return found


SEEN: list[int] = []


class Counting(nn.Module):
    """Passes logits on; a pass that gradients go back through counts three times."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        SEEN.append(len(x) * (3 if x.requires_grad else 1))
        return x


@pytest.mark.parametrize(
    "method",
    [
        CoTTA(threshold=1.1), DeYO(margin=1.01, threshold=-1.0), EATA(margin=1.01, div_margin=1.0), MEMO(),
        PETAL(threshold=1.1), PeriodicReset(), Repeated(), RMT(warmup=16, batch=16), ROID(),
        RoTTA(capacity=16, frequency=16), SAR(margin=1.01), T3A(), Tent(), ViDA(layers=("5",)), VisualDomainPrompt(),
    ],
    ids=lambda method: type(method).__name__,
)  # fmt: skip
def test_a_batch_costs_as_many_passes_as_the_card_says(method: Remedy):
    net, world = nn.Sequential(*small_network().children(), Counting()).eval(), small_world()
    made = method(net, world)
    assert isinstance(made, Online)
    x = world.target.load().x  # type: ignore[union-attr]
    made.observe(x[:16])  # type: ignore[index]
    SEEN.clear()
    made.observe(x[16:32])  # type: ignore[index]
    passes = method.card.passes
    if isinstance(made, RoTTAOnline):  # what is beyond serving goes over the bank, which is not full yet
        passes = 1 + (passes - 1) * made.bank(3).held(made.carry) / 16
    # Half of ROID's samples, more or less, have a view.
    assert sum(SEEN) / 16 == pytest.approx(passes, abs=1.0 if isinstance(method, ROID) else 0)


def test_samples_that_come_alone_cost_as_many_passes_as_the_card_of_a_window_says():
    made = SlidingWindow()(nn.Sequential(*small_network().children(), Counting()).eval())
    x = torch.rand(128, 1, 8, 8)
    made.observe(x[:64])
    SEEN.clear()
    for one in x[64:].split(1):
        made.observe(one)
    assert sum(SEEN) / 64 == SlidingWindow.card.passes


METHODS = [pytest.param(method, id=f"{type(method).__name__}-{i}") for i, method in enumerate(methods())]


def world_of(method: Remedy) -> World:
    return WORLDS.get(type(method).__name__, small_world)()


@pytest.mark.parametrize("kind", ["group", "layer"])
@pytest.mark.parametrize("method", METHODS)
def test_networks_without_batch_statistics_are_served_as_promised_or_refused_with_the_reason(method: Remedy, kind: str):
    if "model.batchnorm" in method.needs():
        with pytest.raises(ModelError, match="BatchNorm"):
            method(network(kind), world_of(method))
        return
    check_remedy(method, network(kind), world_of(method), dtypes=(torch.bfloat16,))


@pytest.mark.parametrize("method", METHODS)
def test_a_stream_sorted_by_class_leaves_a_network_that_answers(method: Remedy):
    """Whatever it costs in accuracy, nothing becomes NaN, and a reset undoes it."""
    world = world_of(method)
    made = method(small_network(), world, run=Run(seed=1))
    assert world.target is not None
    data = world.target.load()
    order = data.labels.argsort() if data.y is not None else torch.arange(len(data))
    batches = list(Tensors(data.x[order], None, data.id[order]).batches(8))  # type: ignore[index]
    with torch.no_grad():
        fresh = made(batches[0].x)
    for batch in batches * 4:
        out = made.observe(batch) if isinstance(made, Online) else made(batch.x)
        assert bool(torch.isfinite(torch.as_tensor(out)).all())
    if isinstance(made, Online):
        assert all(bool(torch.isfinite(t).all()) for t in made.state_dict().values() if t.is_floating_point())
        made.reset()
        with torch.no_grad():
            assert torch.equal(made(batches[0].x), fresh)
