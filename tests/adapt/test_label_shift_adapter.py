from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from scipy.stats import chi2
from torch import Tensor, nn

from homeostat.adapt import (
    BatchNormBlend,
    LabelShiftAdapter,
    LabelShiftHead,
    Source,
    Tent,
    estimate_prior,
    path_prior,
)
from homeostat.adapt.class_balance import degree_of, reversed_prior
from homeostat.core.errors import InputError, MissingPart, ModelError
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.fit import Cosine, Recipe
from homeostat.nn.optimizers import Adam

TAILED = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)


def by_hand(prior: np.ndarray, source: np.ndarray) -> float:
    """The degree, from its definition."""
    k = len(source)
    along = np.dot(prior - 1 / k, source - 1 / k)
    ranks = np.argsort(np.argsort(source, kind="stable"), kind="stable")
    back = np.sort(source)[k - 1 - ranks]
    end = source if along >= 0 else back
    scale = abs(np.dot(end - 1 / k, source - 1 / k))
    return float(np.clip(along / scale, -1, 1))


def test_the_degree_is_one_zero_and_minus_one_at_the_ends_of_the_path():
    assert reversed_prior(TAILED).tolist() == [0.05, 0.15, 0.3, 0.5]
    uniform = torch.full((4,), 0.25, dtype=torch.float64)
    for prior, degree in ((TAILED, 1.0), (uniform, 0.0), (reversed_prior(TAILED), -1.0)):
        assert float(degree_of(prior, TAILED)) == pytest.approx(degree, abs=1e-12)
        assert torch.allclose(path_prior(torch.tensor([degree], dtype=torch.float64), TAILED)[0], prior, atol=1e-12)
    assert float(degree_of(TAILED, uniform)) == 0.0, "a balanced source has no path"


@given(st.lists(st.floats(0.01, 1.0), min_size=3, max_size=6), st.floats(-1, 1), st.integers(0, 1000))
def test_a_prior_on_the_path_has_its_degree_and_any_prior_that_of_the_definition(shares, degree, seed):
    source = torch.tensor(shares, dtype=torch.float64)
    source = source / source.sum()
    if float((source - 1 / len(source)).abs().sum()) < 0.02:
        return
    on = path_prior(torch.tensor([degree], dtype=torch.float64), source)[0]
    assert float(on.sum()) == pytest.approx(1.0) and float(on.min()) > 0
    assert float(degree_of(on, source)) == pytest.approx(degree, abs=1e-9)
    draws = torch.Generator().manual_seed(seed)
    other = torch.rand(len(source), generator=draws, dtype=torch.float64).softmax(0)
    assert float(degree_of(other, source)) == pytest.approx(by_hand(other.numpy(), source.numpy()), abs=1e-9)


def test_a_small_batch_says_little_about_the_prior():
    one = torch.tensor([[1.0, 0.0]])
    assert torch.allclose(estimate_prior(one), torch.tensor([2 / 3, 1 / 3]))
    assert torch.allclose(estimate_prior(one.expand(98, 2)), torch.tensor([0.99, 0.01]))


def tailed_world(network_: nn.Module, dtype: torch.dtype = torch.float64) -> World:
    draws = torch.Generator().manual_seed(2)
    x = torch.rand(120, 3, 8, 8, generator=draws, dtype=torch.float64).to(dtype)
    y = torch.multinomial(TAILED.float(), 120, replacement=True, generator=draws)
    return World(source=(x, y))


def corrected(z: Tensor, h: Tensor, layer: nn.Linear, change: LabelShiftHead, prior: Tensor) -> Tensor:
    """The rewritten head, a sample and a class at a time."""
    source = torch.tensor(change.prior, dtype=torch.float64)
    degree = by_hand(prior.numpy(), source.numpy())
    hidden = torch.relu(change.rise.weight[:, 0] * degree + change.rise.bias)
    made = change.spread.weight @ hidden + change.spread.bias
    gamma, beta = made[: change.features], made[change.features : 2 * change.features]
    a, c = made[2 * change.features :].chunk(2)
    end = source if degree >= 0 else reversed_prior(source)
    path = abs(degree) * end + (1 - abs(degree)) / len(source)
    rows = []
    for n in range(len(z)):
        bent = (1 + gamma) * h[n] + beta
        rows.append(
            torch.stack(
                [
                    (1 + a[k]) * (layer.weight[k] @ bent) + layer.bias[k] + c[k] + path[k].log() - source[k].log()
                    for k in range(len(source))
                ]
            )
        )
    return torch.stack(rows).to(z.dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
@pytest.mark.exact("S309")
def test_equals_tent_over_a_head_rewritten_by_hand(network, stream, batch_mode, kind, dtype, tolerance):
    net = network(kind, dtype)
    remedy = LabelShiftAdapter(
        Tent(Adam(lr=0.01)), hidden=6, recipe=Recipe(optimizer=Adam(lr=0.05), epochs=2, batch=30)
    )
    ours = remedy(net, tailed_world(net, dtype), run=Run(seed=3))
    change = copy.deepcopy(ours.adjusted.change)
    assert float(change.spread.weight.abs().max()) > 0.01, "something was learnt"
    slow = batch_mode(copy.deepcopy(net))
    norms = [p for m in slow for p in m.parameters() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm))]
    optimizer, prior = torch.optim.Adam(norms, 0.01), torch.full((4,), 0.25, dtype=torch.float64)
    for x in stream(6, dtype=dtype):
        h = slow[:8](x)
        z = slow[8](h)
        mean = z.detach().double().softmax(1).mean(0)
        prior = 0.9 * prior + 0.1 * (mean + 1 / 20) / (1 + 4 / 20)
        out = corrected(z, h, slow[8], change, prior)
        assert torch.allclose(ours.observe(x), out, rtol=0, atol=tolerance)
        assert torch.allclose(ours.prior(), prior, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-12)
        loss = -(out.softmax(1) * out.log_softmax(1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert any(not torch.equal(t, ours.model.anchor()[n]) for n, t in ours.model.owned().items())


def linear_world(temperature: float = 1.0, count: int = 3000) -> tuple[nn.Module, World, Tensor]:
    """Labels drawn from what a linear model says, and that model, its logits divided by a temperature."""
    draws = torch.Generator().manual_seed(5)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 4)).double().eval()
    with torch.no_grad():
        net[1].weight.copy_(1.5 * torch.randn(4, 3, generator=draws, dtype=torch.float64))
        net[1].bias.copy_(TAILED.log())
    x = torch.randn(count, 3, generator=draws, dtype=torch.float64)
    with torch.no_grad():
        true = net(x)
    y = torch.multinomial(true.softmax(1), 1, generator=draws)[:, 0]
    with torch.no_grad():
        for p in net.parameters():
            p /= temperature
    return net, World(source=(x, y)), true


RECIPE = Recipe(optimizer=Adam(lr=0.04), epochs=12, batch=250, schedule=Cosine())


def excess(served: nn.Module, x: Tensor, true: Tensor) -> float:
    """Mean Kullback-Leibler divergence, on the source and over the path, from what is true: what training lowers."""
    source, found = torch.tensor(served.adjusted.prior, dtype=torch.float64), []
    for degree in torch.linspace(-1, 1, 21, dtype=torch.float64):
        prior = path_prior(degree[None], source)[0]
        served.adjusted.carry["prior"] = prior
        z = served(x).detach() - (prior.log() - source.log())
        found.append((true.softmax(1) * (true.log_softmax(1) - z.log_softmax(1))).sum(1).mean())
    return float(torch.stack(found).mean())


def sampling_error(served: nn.Module, count: int) -> float:
    """What the excess of a fit to so many labels stays below in 999 of 1000 cases: chi-squared / 2n (Wilks)."""
    parameters = sum(p.numel() for p in served.adjusted.change.parameters())
    return float(chi2.ppf(0.999, parameters)) / (2 * count)


@pytest.mark.exact("S309")
def test_with_calibrated_logits_bayes_correction_is_the_optimum_and_training_stays_there():
    net, world, true = linear_world()
    counts = world.source.load().y.bincount().double() + 1
    source = counts / counts.sum()
    change = LabelShiftHead(3, tuple(source.tolist()), hidden=8).double()
    x, layer = world.source.load().x, net[1]
    degree = torch.linspace(-1, 1, len(x), dtype=torch.float64)
    offset = source.log() - path_prior(degree, source).log()
    z = true + change(degree, x, layer.weight.detach(), layer.bias.detach())
    assert torch.allclose(z, true - offset, rtol=0, atol=1e-12), "it starts at log p + log path - log source"
    loss = F.cross_entropy(z + offset, true.softmax(1))  # the expectation over labels
    gradients = torch.autograd.grad(loss, list(change.parameters()))
    assert max(float(g.abs().max()) for g in gradients) < 1e-12
    served = LabelShiftAdapter(Source(), hidden=2, recipe=RECIPE)(net, world)
    found = excess(served, x, true)
    assert 0 < found < sampling_error(served, len(x)) < 0.02


def test_what_is_learnt_is_where_logits_are_not_calibrated():
    """Logits of a third of their size can be put right by the scale of features and classes, for every balance."""
    net, world, true = linear_world(temperature=3.0)
    x = world.source.load().x
    served = LabelShiftAdapter(Source(), hidden=2, recipe=RECIPE)(net, world)
    plain = LabelShiftAdapter(Source(), hidden=2, recipe=RECIPE.replace(optimizer=Adam(lr=1e-12), epochs=1))(net, world)
    assert excess(served, x, true) < sampling_error(served, len(x)) < 0.1 * excess(plain, x, true)


def test_at_the_source_s_own_prior_an_untrained_head_changes_nothing(network, stream):
    net = network()
    served = LabelShiftAdapter(Source(), recipe=Recipe(optimizer=Adam(lr=1e-12)))(net, tailed_world(net))
    served.adjusted.carry["prior"] = torch.tensor(served.adjusted.prior, dtype=torch.float64)
    x = stream(1)[0]
    assert torch.allclose(served(x), net(x), rtol=0, atol=1e-9)


def test_a_balanced_source_is_corrected_directly(network, stream):
    net, x = network(), stream(1, 60)[0]
    y = torch.arange(60) % 4
    served = LabelShiftAdapter(BatchNormBlend(blend=0.0), keep=0.5)(net, World(source=(x, y)))
    assert served.adjusted.change is None
    plain, prior = BatchNormBlend(blend=0.0)(net), torch.full((4,), 0.25, dtype=torch.float64)
    for batch in x.chunk(3):
        z = plain(batch)
        prior = 0.5 * prior + 0.5 * (z.softmax(1).mean(0) + 1 / 20) / (1 + 4 / 20)
        assert torch.allclose(served.observe(batch), z + prior.log() - np.log(0.25), rtol=0, atol=1e-10)


def test_the_estimate_comes_from_uncorrected_outputs_and_does_not_run_away(network, stream):
    net, world = network(), tailed_world(network())
    found = []
    for optimizer in (Adam(lr=1e-12), Adam(lr=0.05)):
        served = LabelShiftAdapter(Source(), recipe=Recipe(optimizer=optimizer, epochs=2))(net, world)
        x, outs = stream(1)[0], []
        for _ in range(80):
            outs.append(served.observe(x))
        found.append((served.prior(), outs[-1]))
    assert torch.equal(found[0][0], found[1][0]) and not torch.allclose(found[0][1], found[1][1])
    limit = estimate_prior(net(x).detach().softmax(1))
    assert torch.allclose(found[0][0], limit, atol=1e-3), "it ends where the network's own outputs are"


def test_forward_uses_the_estimate_and_leaves_it(network, stream):
    served = LabelShiftAdapter(Source())(network(), tailed_world(network()))
    a, b = stream(2)
    before = served.prior()
    first = served(a)
    assert torch.equal(served.prior(), before)
    served.observe(b)
    assert not torch.equal(served.prior(), before) and not torch.equal(served(a), first)
    served.reset()
    assert torch.equal(served.prior(), before) and torch.equal(served(a), first)


def test_log_probabilities_are_taken_too(network, stream):
    net = network()

    class Logs(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net

        def forward(self, x):
            return self.inner(x).log_softmax(1)

    served = [LabelShiftAdapter(Source())(model, tailed_world(net)) for model in (net, Logs())]
    for x in stream(3):
        a, b = (one.observe(x).softmax(1) for one in served)
        assert torch.allclose(a, b, rtol=0, atol=1e-9)


def test_failure_a_middling_class_that_takes_over_is_not_on_the_path():
    """The documented failure: one number cannot say which class it is."""
    net, world, true = linear_world()
    middle = torch.tensor([0.05, 0.05, 0.85, 0.05], dtype=torch.float64)
    weight = true.softmax(1) * (middle / TAILED)
    draws = torch.Generator().manual_seed(6)
    rows = torch.multinomial(weight.sum(1), 3000, replacement=True, generator=draws)
    x, y = world.source.load().x[rows], torch.multinomial(weight[rows], 1, generator=draws)[:, 0]
    right = {}
    for name, remedy in (
        ("path", LabelShiftAdapter(Source(), recipe=RECIPE)),
        ("direct", LabelShiftAdapter(Source(), balanced=1.0)),
    ):
        served, hits = remedy(net, world), 0
        for low in range(0, 3000, 100):
            hits += int((served.observe(x[low : low + 100]).argmax(1) == y[low : low + 100]).sum())
        right[name] = hits / 3000
    assert right["direct"] > right["path"] + 0.05


def test_what_does_not_fit_is_refused(network):
    net, x = network(), torch.rand(6, 3, 8, 8, dtype=torch.float64)
    with pytest.raises(MissingPart, match=r"source\.y"):
        LabelShiftAdapter()(net, World(source=x))
    with pytest.raises(InputError, match="no label of the source is known"):
        LabelShiftAdapter()(net, World(source=(x, torch.full((6,), -100))))
    with pytest.raises(InputError, match=r"outside 0\.\.3"):
        LabelShiftAdapter()(net, World(source=(x, torch.full((6,), 7))))
    with pytest.raises(ModelError, match="linear layer"):
        LabelShiftAdapter()(nn.Sequential(nn.BatchNorm2d(3)), World(source=(x, torch.zeros(6, dtype=torch.long))))
