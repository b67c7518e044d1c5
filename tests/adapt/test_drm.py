from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.adapt import DRM, DomainHeads, drm
from homeostat.core.errors import InputError, MissingPart, ModelError
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.fit import Recipe
from homeostat.nn.optimizers import SGD
from homeostat.nn.temperature import honest_scale


def world(dtype: torch.dtype = torch.float64, domains: int = 3, count: int = 50) -> World:
    draws = torch.Generator().manual_seed(1)
    parts = {}
    for k in range(domains):
        y = torch.randint(0, 4, (count,), generator=draws)
        x = torch.rand(count, 3, 8, 8, generator=draws, dtype=torch.float64) + 0.3 * k
        x[:, 0] += y[:, None, None] * (0.5 - 0.2 * k)
        parts[f"domain{k}"] = (x.to(dtype), y)
    return World(parts=parts)


@pytest.fixture
def batches(monkeypatch) -> list[dict]:
    """The batches that training was made on."""
    seen: list[dict] = []
    plain = drm.train

    def noting(model, losses, *others, **more):
        def noted(batches, now):
            seen.append(dict(batches))
            return losses(batches, now)

        return plain(model, noted, *others, **more)

    monkeypatch.setattr(drm, "train", noting)
    return seen


def mixed(features: Tensor, heads: list[nn.Linear], scales: list[float], gamma: float) -> Tensor:
    """A sample at a time."""
    rows = []
    for g in features:
        said = [torch.log_softmax(b * h(g), 0) for h, b in zip(heads, scales, strict=True)]
        raw = [math.exp(-gamma * float(torch.distributions.Categorical(logits=z.detach()).entropy())) for z in said]
        rows.append(sum(r / sum(raw) * z for r, z in zip(raw, said, strict=True)))
    return torch.stack(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
@pytest.mark.exact("S226")
def test_equals_separate_heads_trained_by_plain_loops(network, kind, batches, dtype, tolerance):
    net, parts = network(kind, dtype), world(dtype)
    remedy = DRM(gamma=2.0, recipe=Recipe(optimizer=SGD(lr=0.02), epochs=2, batch=16))
    ours = remedy(net, parts, run=Run(seed=4))
    encoder = copy.deepcopy(net)[:8].train()
    heads = [copy.deepcopy(net[8]) for _ in range(4)]
    learnt = [*encoder.parameters(), *(p for h in heads for p in h.parameters())]
    optimizer = torch.optim.SGD(learnt, 0.02, 0.9)
    assert len(batches) == 6 and list(batches[0]) == ["domain0", "domain1", "domain2"]
    for step in batches:
        g = encoder(torch.cat([b.x for b in step.values()]))
        y = torch.cat([b.y for b in step.values()])
        loss, low = F.cross_entropy(heads[3](g), y), 0
        for k, b in enumerate(step.values()):
            loss = loss + F.cross_entropy(heads[k](g[low : low + len(b)]), b.y)
            low += len(b)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    encoder.eval()
    for k, h in enumerate(heads):
        assert torch.allclose(ours.heads[k].weight, h.weight, rtol=0, atol=tolerance)
    x = torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(8), dtype=torch.float64).to(dtype)
    expected = mixed(encoder(x), heads, ours.scales.tolist(), 2.0)
    assert torch.allclose(ours(x), expected, rtol=0, atol=tolerance)
    used = {name: torch.cat([b.x for step in batches for b in (step[name],)]) for name in batches[0]}
    for k, rows in enumerate(used.values()):
        own = parts.parts[f"domain{k}"].load().x
        kept = torch.stack([r for r in own if any(torch.equal(r, u) for u in rows)])
        assert len(kept) == 45, "a tenth of each domain is left for the scales"
        with torch.no_grad():
            assert torch.allclose(ours.templates[k], encoder(kept).mean(0), rtol=0, atol=10 * tolerance)


def heads_of(weights: list[list[list[float]]], **more) -> DomainHeads:
    """Heads on features that are the inputs themselves."""
    made = DomainHeads(nn.Sequential(nn.Identity(), nn.Linear(2, 2)), len(weights) - 1, 2, 2, **more)
    with torch.no_grad():
        for head, weight in zip(made.heads, weights, strict=True):
            head.weight.copy_(torch.tensor(weight))
            head.bias.zero_()
    return made.eval()


SURE, UNSURE = [[3.0, 0.0], [0.0, 3.0]], [[0.0, 0.5], [0.5, 0.0]]


def test_weights_and_output_worked_by_hand():
    made = heads_of([SURE, UNSURE, UNSURE], gamma=1.0)
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    h = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (1 / (1 + math.exp(-3)), 1 / (1 + math.exp(0.5)))]
    w = [math.exp(-h[0]), math.exp(-h[1]), math.exp(-h[1])]
    w = [each / sum(w) for each in w]
    assert torch.allclose(made.mixture(x)[0], torch.tensor(w))
    assert torch.allclose(made.mixture(x)[1], torch.full((3,), 1 / 3)), "weights are per sample"
    low = math.log(1 + math.exp(-3)), math.log(1 + math.exp(0.5))
    expected = -w[0] * low[0] - (w[1] + w[2]) * low[1]
    assert float(made(x)[0, 0].detach()) == pytest.approx(expected, rel=1e-6)


def test_gamma_goes_from_the_mean_of_the_heads_to_the_surest_one():
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    said = heads_of([SURE, UNSURE, SURE]).said(x)
    assert torch.allclose(heads_of([SURE, UNSURE, SURE], gamma=0.0)(x), said.mean(0), atol=1e-6)
    picked = heads_of([SURE, UNSURE, UNSURE], gamma=1e4)(x)
    assert torch.allclose(picked, said[0], atol=1e-3)


def test_similarity_looks_at_the_domain_s_mean_feature():
    made = heads_of([SURE, UNSURE, UNSURE], weight="similarity", gamma=50.0)
    made.templates.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.1], [0.0, 1.0]]))
    x = torch.tensor([[2.0, 0.1], [-3.0, 0.0], [0.1, 5.0]])
    assert made.mixture(x).argmax(1).tolist() == [0, 1, 2]


def test_one_domain_s_head_and_the_pooled_one_are_the_same_classifier(network):
    ours = DRM(recipe=Recipe(optimizer=SGD(lr=0.02), batch=16))(network(), world(domains=1))
    assert torch.allclose(ours.heads[0].weight, ours.heads[1].weight, rtol=0, atol=1e-12)


def test_the_encoder_stays_where_only_heads_learn(network):
    net = network()
    ours = DRM(learn="heads", recipe=Recipe(batch=16))(net, world())
    state = net.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in ours.model.state_dict().items())
    assert not torch.equal(ours.heads[0].weight, ours.heads[1].weight)


@pytest.mark.parametrize("truth", [0.3, 1.0, 4.0])
def test_the_honest_scale_undoes_a_temperature(truth):
    draws = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(4000, 4, generator=draws, dtype=torch.float64)
    y = torch.multinomial((truth * logits).softmax(1), 1, generator=draws)[:, 0]
    scale = honest_scale(logits, y)
    assert scale == pytest.approx(truth, rel=0.1)
    losses = [float(F.cross_entropy(s * logits, y)) for s in (scale * 0.99, scale, scale * 1.01)]
    assert losses[1] == min(losses)


def test_steering_by_entropy_is_a_plain_step_on_the_heads(network, stream):
    net = network()
    remedy = DRM(recipe=Recipe(batch=16))
    still = remedy(net, world())
    ours = remedy.replace(steer="entropy", steering=SGD(lr=0.1, momentum=0.0))(net, world())
    x = stream(1)[0]
    out = ours.observe(x)
    assert torch.equal(out, still(x).detach())
    heads = [p.requires_grad_(True) for p in still.heads.parameters()]
    z = still(x)
    gradients = torch.autograd.grad(-(z.softmax(1) * z.log_softmax(1)).sum(1).mean(), heads)
    for p, g, mine in zip(heads, gradients, ours.model.heads.parameters(), strict=True):
        assert torch.allclose(mine, p - 0.1 * g, rtol=0, atol=1e-12)


def test_steering_by_templates_moves_the_nearest_domain_s(network, stream):
    remedy = DRM(weight="similarity", recipe=Recipe(batch=16))
    still, ours = remedy(network(), world()), remedy.replace(steer="templates")(network(), world())
    x = stream(1)[0]
    with torch.no_grad():
        g = still.features_of(x)
    near = [
        max(range(3), key=lambda k, row=row: float(F.cosine_similarity(row, still.templates[k], dim=0))) for row in g
    ]
    ours.observe(x)
    for k in range(4):
        mine = [row for row, n in zip(g, near, strict=True) if n == k]
        expected = still.templates[k]
        if mine:
            expected = 0.9 * expected + 0.1 * torch.stack(mine).mean(0)
        assert torch.allclose(ours.model.templates[k], expected, rtol=0, atol=1e-12)


def coloured(count: int, shape: float, color: float, seed: int) -> tuple[Tensor, Tensor]:
    """A shape that says little and a colour that says `color` of the class."""
    draws = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2
    side = (2.0 * y - 1)[:, None]
    x = torch.cat([shape * side, color * side], 1) + torch.randn(count, 2, generator=draws)
    return x, y


def test_failure_a_head_that_learnt_a_shortcut_takes_over_where_it_misleads():
    """The documented failure: the domain of the shortcut is the surest, whatever the shortcut means now."""
    parts = {"plain": coloured(600, 1.2, 0.0, 1), "shortcut": coloured(600, 1.2, 4.0, 2)}
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
        net[1].weight.zero_()
    remedy = DRM(learn="heads", recipe=Recipe(optimizer=SGD(lr=0.1), epochs=6, batch=50))
    x, y = coloured(1000, 1.2, -2.0, 3)
    right = {}
    for gamma in (1.0, 20.0):
        served = remedy.replace(gamma=gamma)(net, World(parts=parts))
        right[gamma] = float((served(x).argmax(1) == y).float().mean())
        assert float(served.mixture(x).mean(0)[1].detach()) > 1 / 3
    plain = float((served.heads[0](x).argmax(1) == y).float().mean())
    assert plain > 0.8 and right[20.0] < right[1.0] < plain - 0.2


def test_what_does_not_fit_is_refused(network):
    x = torch.rand(20, 3, 8, 8, dtype=torch.float64)
    with pytest.raises(MissingPart, match="parts"):
        DRM()(network(), World())
    with pytest.raises(MissingPart, match="parts"):
        DRM()(network(), World(parts={"a": x}))
    with pytest.raises(InputError, match="10 at least"):
        DRM()(network(), World(parts={"a": (x[:5], torch.zeros(5, dtype=torch.long))}))
    with pytest.raises(InputError, match=r"outside 0\.\.3"):
        DRM()(network(), World(parts={"a": (x, torch.full((20,), 4))}))
    y = torch.arange(20) % 4
    for other in (x[:, :, :4], x.float()):
        with pytest.raises(InputError, match=r"parts\.b are .* give all domains one shape"):
            DRM()(network(), World(parts={"a": (x, y), "b": (other, y)}))
    odd = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Unflatten(1, (2, 3)), nn.Flatten(), nn.AvgPool1d(2))
    with pytest.raises(ModelError, match="does not make the 3 outputs"):
        DRM()(odd.double(), World(parts={"a": (x, torch.zeros(20, dtype=torch.long))}))
