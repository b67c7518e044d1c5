from __future__ import annotations

import pytest
import torch

from homeostat.adapt import EATA, BatchNormBlend, CoTTA, PeriodicReset, Repeated, Tent
from homeostat.bench.protocols import Continual, Episodic
from homeostat.core.data import Tensors
from homeostat.core.errors import ModelError
from homeostat.core.run import Run
from homeostat.core.save import load, save
from homeostat.core.task import Classify
from homeostat.core.world import World
from homeostat.nn.optimizers import Adam


@pytest.mark.parametrize(
    "remedy", [Tent(Adam(lr=0.01)), EATA(margin=1.01, div_margin=1.0, fisher_alpha=0.0), CoTTA(views=1, threshold=1.1)]
)
def test_it_is_the_method_shown_each_batch_several_times(network, stream, remedy):
    served, plain = Repeated(remedy, steps=3)(network()), remedy(network())
    for x in stream(3):
        tries = [plain.observe(x) for _ in range(3)]
        assert torch.equal(served.observe(x), tries[-1]) and not torch.equal(tries[0], tries[-1])
        assert torch.equal(served(x), plain(x))


def test_once_is_the_method_itself(network, stream):
    served, plain = Repeated(Tent(), steps=1)(network()), Tent()(network())
    for x in stream(3):
        assert torch.equal(served.observe(x), plain.observe(x))


def test_reset_before_each_batch_it_is_the_episodic_protocol(network, stream):
    data = Tensors(torch.cat(stream(3)), torch.arange(60) % 4)
    remedy, task = Tent(Adam(lr=0.02)), Classify()
    episodic = Episodic(batch=20, steps=3).answer(remedy(network()), [data], (), task, Run())
    wrapped = PeriodicReset(Repeated(remedy, steps=3), every=1)(network())
    assert torch.equal(episodic.logits, Continual(batch=20).answer(wrapped, [data], (), task, Run()).logits)
    assert not torch.equal(
        episodic.logits, Continual(batch=20).answer(remedy(network()), [data], (), task, Run()).logits
    )


def test_needs_preparation_and_state_are_those_inside(network, stream, tmp_path):
    wrapped = Repeated(EATA(margin=1.0), steps=2)
    assert wrapped.needs() == EATA().needs() and wrapped.prepares() == {"source.x"}
    world, batches = World(source=stream(1, 40)[0]), stream(4)
    served = wrapped(network(), world)
    first = [served.observe(x) for x in batches[:2]]
    kept = served.snapshot()
    save(served, tmp_path / "served")
    rest = [served.observe(x) for x in batches[2:]]
    back = load(tmp_path / "served")
    assert all(torch.equal(back.observe(x), r) for x, r in zip(batches[2:], rest, strict=True))
    served.restore(kept)
    assert all(torch.equal(served.observe(x), r) for x, r in zip(batches[2:], rest, strict=True))
    served.reset()
    assert all(torch.equal(served.observe(x), f) for x, f in zip(batches[:2], first, strict=True))


def test_as_documented_what_drifts_drifts_as_many_times_as_far(network, stream):
    """Tent on one batch for ever: entropy falls to 0, sooner with more steps."""
    entropy = {}
    for steps in (1, 8):
        served = Repeated(Tent(Adam(lr=0.02)), steps)(network())
        for x in stream(10):
            served.observe(x)
        entropy[steps] = float(torch.distributions.Categorical(logits=served(stream(1)[0]).detach()).entropy().mean())
    assert entropy[8] < 0.2 * entropy[1]


def test_only_adapting_models_can_be_repeated(network):
    with pytest.raises(ModelError, match=r"Repeated.+adapts while it serves"):
        Repeated(BatchNormBlend())(network())
