"""Source, BatchNormBlend, PriorCorrection, PeriodicReset."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from homeostat.adapt import (
    EATA,
    BatchNormBlend,
    CoTTA,
    PeriodicallyReset,
    PeriodicReset,
    PriorCorrection,
    Repeated,
    Source,
    Tent,
    correct_prior,
)
from homeostat.core.errors import ModelError
from homeostat.core.save import load, save
from homeostat.core.weights import weights
from homeostat.core.world import World


def test_source_copies_nothing(network):
    net = network()
    served = Source()(net)
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(served.parameters(), net.parameters(), strict=True))


@pytest.mark.parametrize("blend", [0.0, 0.3, 1.0])
def test_blend_normalises_by_the_mixture_written_out(blend):
    norm = nn.BatchNorm1d(2).double().eval()
    norm.running_mean.copy_(torch.tensor([1.0, -2.0]))  # type: ignore[union-attr]
    norm.running_var.copy_(torch.tensor([4.0, 0.5]))  # type: ignore[union-attr]
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 3.0]))
        norm.bias.copy_(torch.tensor([-1.0, 1.0]))
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.empty_like(x)
    for c in range(2):
        values = x[:, c].tolist()
        m = sum(values) / 5
        v = sum((a - m) ** 2 for a in values) / 5
        m = blend * float(norm.running_mean[c]) + (1 - blend) * m  # type: ignore[index]
        v = blend * float(norm.running_var[c]) + (1 - blend) * v  # type: ignore[index]
        expected[:, c] = (x[:, c] - m) / (v + 1e-5) ** 0.5 * norm.weight[c] + norm.bias[c]
    for inputs in (x, x.clone().requires_grad_(True)):
        assert torch.allclose(BatchNormBlend(blend=blend)(norm)(inputs), expected, rtol=0, atol=1e-12)


def test_prior_follows_the_batch_size(network, stream):
    x = stream(1, 24)[0]
    for size in (1, 8, 24):
        by_prior = BatchNormBlend(prior=16.0)(network())(x[:size])
        by_blend = BatchNormBlend(blend=16 / (16 + size))(network())(x[:size])
        assert torch.allclose(by_prior, by_blend, atol=1e-12)


def test_a_huge_prior_is_the_frozen_model(network, stream):
    net, x = network(), stream(1)[0]
    assert torch.allclose(BatchNormBlend(prior=1e12)(net)(x), net(x), atol=1e-9)


def test_gradients_flow_through_the_batch_statistics(network, stream):
    """A finite difference sees what autograd says, also where statistics are blended."""
    served = BatchNormBlend(blend=0.4)(network())
    x = stream(1, 4)[0].requires_grad_(True)
    (slope,) = torch.autograd.grad(served(x)[0, 0], x)
    for position in [(0, 0, 3, 3), (3, 2, 5, 1)]:
        h = torch.zeros_like(x)
        h[position] = 1e-6
        with torch.no_grad():
            difference = (served(x + h)[0, 0] - served(x - h)[0, 0]) / 2e-6
        assert abs(float(difference - slope[position])) < 1e-7


def test_blend_needs_batchnorm(network):
    with pytest.raises(ModelError, match="BatchNorm"):
        BatchNormBlend()(network("group"))


def test_prior_correction_by_hand():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]], dtype=torch.float64)
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    prior = [float(p[0, k] + p[1, k]) / 2 for k in range(3)]
    s = 0.5 / max(prior)  # max(1/2, 1/3)
    expected = torch.tensor([(q + s) / (1 + 3 * s) for q in prior], dtype=torch.float64)
    assert torch.allclose(correct_prior(logits), logits * expected, atol=1e-12)
    assert torch.allclose(correct_prior(logits, "add"), logits + expected.log(), atol=1e-12)
    assert torch.allclose(PriorCorrection()(nn.Identity())(logits), logits * expected, atol=1e-12)


@given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 999))
def test_a_uniform_prior_changes_no_ranking(repeats, classes, seed):
    row = torch.randn(classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    logits = torch.stack([row.roll(i) for i in range(classes)] * repeats)
    for rule in ("multiply", "add"):
        assert torch.equal(correct_prior(logits, rule).argsort(1), logits.argsort(1))


@pytest.mark.parametrize("remedy", [Tent(), EATA(margin=1.0, fisher_alpha=0.0), CoTTA(views=1, threshold=1.1)])
def test_periodic_reset_repeats_itself_every_n_batches(network, stream, remedy):
    batches = stream(2)
    served = PeriodicReset(remedy, every=2)(network())
    first = [served.observe(b) for b in batches]
    assert all(torch.equal(a, served.observe(b)) for a, b in zip(first, batches, strict=True))
    plain = remedy(network())
    assert all(torch.equal(a, plain.observe(b)) for a, b in zip(first, batches, strict=True))
    assert not torch.equal(plain.observe(batches[0]), first[0])


def test_periodic_reset_passes_needs_and_kit_on(network, stream):
    wrapped = PeriodicReset(EATA(margin=1.0), every=5)
    assert wrapped.needs() == EATA().needs() and wrapped.prepares() == {"source.x"}
    served = wrapped(network(), World(source=stream(1, 40)[0]))
    assert float(served.model.carry["fisher.1.weight"].sum()) > 0


def test_periodic_reset_saves_and_restores_in_the_middle_of_a_period(network, stream, tmp_path):
    batches, net = stream(5), network()
    served = PeriodicReset(Tent(), every=3)(net)
    served.observe(batches[0])
    served.observe(batches[1])
    kept = served.snapshot()
    save(served, tmp_path / "served")
    rest = [served.observe(b) for b in batches[2:]]
    loaded = load(tmp_path / "served")
    assert isinstance(loaded, PeriodicallyReset)
    assert all(torch.equal(loaded.observe(b), r) for b, r in zip(batches[2:], rest, strict=True))
    served.restore(kept)
    assert all(torch.equal(served.observe(b), r) for b, r in zip(batches[2:], rest, strict=True))


def test_what_a_wrapper_owns_is_what_is_owned_inside_and_a_mark_is_passed_on(network, stream):
    served = PeriodicReset(Repeated(Tent(), steps=2), every=2)(network())
    inside = served.model.model
    assert {f"model.model.{name}" for name in inside.owned()} == set(served.owned()) == set(served.anchor())
    first, second = stream(2)
    served.observe(first)
    served.mark()
    marked = {name: t.clone() for name, t in served.owned().items()}
    served.observe(second)  # the second: a reset, to the mark
    assert all(torch.equal(t, marked[name]) for name, t in served.owned().items())
    assert any(not torch.equal(t, network().get_parameter(name)) for name, t in inside.owned().items())


def test_a_wrapper_leaves_the_adapting_model_given_to_it_alone(network, stream):
    tent = Tent()(network())
    before = {name: t.clone() for name, t in weights(tent).items()}
    PeriodicallyReset(tent, every=10).observe(stream(1)[0])
    assert all(torch.equal(before[name], t) for name, t in weights(tent).items())


def test_only_adapting_models_can_be_reset(network):
    with pytest.raises(ModelError, match="adapts while it serves"):
        PeriodicReset(BatchNormBlend())(network())
