from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.adapt import CrossDomainEnsemble, CrossDomains, cross_domain, laplace_nll, merge_paths
from homeostat.core.errors import InputError, MissingPart, ModelError, SpecError
from homeostat.core.run import Run
from homeostat.core.task import Regress
from homeostat.core.world import World
from homeostat.fit import Cosine, Recipe
from homeostat.nn import Normalized, middle_domains
from homeostat.nn.blocks import start
from homeostat.nn.optimizers import SGD, Adam
from homeostat.shift import Corrupt

PLAIN = Recipe(optimizer=SGD(lr=0.02), epochs=2, batch=16)


def source(dtype: torch.dtype = torch.float64, count: int = 48) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    y = torch.arange(count) % 4
    x = 0.5 * torch.rand(count, 3, 8, 8, generator=draws, dtype=torch.float64)
    for k in range(4):
        x[y == k, :, 2 * k : 2 * k + 2] += 0.4
    return x.to(dtype), y


@pytest.fixture
def batches(monkeypatch) -> list[list[dict]]:
    """The batches of each training, one list a call."""
    seen: list[list[dict]] = []
    plain = cross_domain.train

    def noting(model, losses, *others, **more):
        mine: list[dict] = []
        seen.append(mine)

        def noted(batches, now):
            mine.append(dict(batches))
            return losses(batches, now)

        return plain(model, noted, *others, **more)

    monkeypatch.setattr(cross_domain, "train", noting)
    return seen


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
@pytest.mark.exact("S256")
def test_equals_networks_trained_and_merged_by_plain_loops(network, kind, batches, dtype, tolerance):
    net, (x, y) = network(kind, dtype), source(dtype)
    remedy = CrossDomainEnsemble(("direct", "grey", "sharpen"), recipe=PLAIN)
    ours = remedy(net, World(source=(x, y)), run=Run(seed=2))
    assert len(batches) == 2 and all(len(steps) == 6 for steps in batches)
    paths = [net]
    for name, steps in zip(("grey", "sharpen"), batches, strict=True):
        whole = middle_domains(x, (name,))[name]
        mean, std = (
            torch.stack([stat(whole[:, c].float()) for c in range(whole.shape[1])]).to(dtype).view(-1, 1, 1)
            for stat in (torch.mean, torch.std)
        )
        path = copy.deepcopy(net).train()
        stem = nn.Identity()
        if name == "grey":
            stem = nn.Conv2d(1, 3, 1).to(dtype)
            start(stem, Run(seed=2).seed_for("XDE.stem", "grey"), gain=1.0)
        optimizer = torch.optim.SGD([*stem.parameters(), *path.parameters()], 0.02, 0.9)
        for step in steps:
            batch = step["source"]
            out = path(stem((middle_domains(batch.x, (name,))[name] - mean) / std))
            loss = F.cross_entropy(out, batch.y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        path.eval()
        paths.append(lambda v, n=name, m=mean, s=std, a=stem, b=path: b(a((middle_domains(v, (n,))[n] - m) / s)))
    test = source(dtype)[0][:9].flip(2)
    with torch.no_grad():
        said = [p(test) for p in paths]
        for k, z in enumerate(said):
            said[k] = (z * ours.scales[k]).log_softmax(1)
        for n in range(9):
            inverse = [1 / max(1 - float(z[n].exp().square().sum()), 1e-4) for z in said]
            expected = sum(i / sum(inverse) * z[n] for i, z in zip(inverse, said, strict=True))
            assert torch.allclose(ours(test)[n], expected, rtol=0, atol=tolerance)


def test_the_merge_worked_by_hand_and_against_a_loop_over_pixels():
    draws = torch.Generator().manual_seed(0)
    mu = torch.randn(3, 2, 2, 4, 5, generator=draws, dtype=torch.float64)
    sigma = torch.rand(3, 2, 2, 4, 5, generator=draws, dtype=torch.float64) + 0.2
    rho = torch.tensor([[1.0, 0.5, 0.1], [0.5, 1.0, -0.2], [0.1, -0.2, 1.0]], dtype=torch.float64)
    found = merge_paths(mu, sigma, rho)
    for n, i, j in ((0, 0, 0), (1, 3, 4), (1, 2, 0)):
        v = np.array([sum(1 / float(sigma[k, n, c, i, j]) ** 2 for c in range(2)) for k in range(3)])
        w = v / v.sum()
        for c in range(2):
            s = sigma[:, n, c, i, j].numpy()
            assert float(found.mean[n, c, i, j]) == pytest.approx(w @ mu[:, n, c, i, j].numpy())
            assert float(found.variance[n, c, i, j]) == pytest.approx(w @ (np.outer(s, s) * rho.numpy()) @ w)
            assert float(found.epistemic[n, c, i, j]) == pytest.approx(np.var(mu[:, n, c, i, j].numpy(), ddof=1))
    alone = merge_paths(mu[:1], sigma[:1], rho[:1, :1])
    assert torch.equal(alone.mean, mu[0]) and torch.allclose(alone.variance, sigma[0] ** 2)
    alike = merge_paths(mu, sigma, rho, alike=True)
    assert torch.allclose(alike.mean, mu.mean(0))
    same = merge_paths(mu, sigma[:1].expand(3, -1, -1, -1, -1), torch.ones(3, 3, dtype=torch.float64))
    assert torch.allclose(same.variance, sigma[0] ** 2), "paths that err alike gain nothing by merging"


def test_the_laplace_loss_is_that_of_the_distribution():
    out, y = torch.randn(4, 6, 2, 2), torch.randn(4, 3, 2, 2)
    mu, log_b = out.chunk(2, dim=1)
    expected = -torch.distributions.Laplace(mu, log_b.exp()).log_prob(y).mean()
    assert torch.allclose(laplace_nll(out, y), expected, atol=1e-5)


def regression(count: int = 64) -> World:
    draws = torch.Generator().manual_seed(3)
    x = torch.rand(count, 1, 8, 8, generator=draws)
    x = 0.5 * x + 0.5 * F.avg_pool2d(F.pad(x, (1, 1, 1, 1), "reflect"), 3, 1)
    return World(source=(x, 1 - x), task=Regress())


def pixels() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 3, padding=1)).eval()


DEEP = CrossDomainEnsemble(
    ("direct", "sharpen"), recipe=Recipe(optimizer=Adam(lr=0.01), epochs=20, batch=16),
    sharpening=Recipe(optimizer=Adam(lr=0.01, amsgrad=True), epochs=10, batch=16),
    distortions=(Corrupt("gaussian_noise", 5),),
)  # fmt: skip


class Constant(nn.Module):
    """Says the same of every image, so that what its training ends at can be worked out."""

    def __init__(self, mu: float, log_b: float):
        super().__init__()
        self.mu, self.log_b = nn.Parameter(torch.tensor(mu)), nn.Parameter(torch.tensor(log_b))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.mu.expand(len(x)), self.log_b.expand(len(x))], 1)[:, :, None, None]


@pytest.mark.parametrize(("unit", "near"), [(1.0, "median"), (100.0, "median"), (0.01, "mean")])
def test_sharpening_ends_where_its_loss_has_its_minimum(unit, near):
    """With errors e, `0.1 (mean e / b + log b) + mean |b - e|` has the slope `0.1 (b - mean e) / b^2 + 2 F(b) - 1`.

    Large errors draw b to their median, the honest place. Small ones leave it at their mean, as the loss on clean data
    has no unit and then outweighs the other: the limit that is documented.
    """
    draws = torch.Generator().manual_seed(4)
    y = unit * torch.randn(400, 1, 1, 1, generator=draws).exp()
    x = torch.rand(400, 1, 8, 8, generator=draws)
    recipe = Recipe(optimizer=Adam(lr=0.05, amsgrad=True), epochs=250, batch=400, schedule=Cosine())
    remedy = CrossDomainEnsemble(("direct",), sharpening=recipe, distortions=(Corrupt("contrast", 1),))
    start_ = Constant(1.5 * unit, math.log(unit) + 1)
    ours = remedy(start_, World(source=(x, y), task=Regress())).paths[0][2]
    e = (y.flatten() - 1.5 * unit).abs().double().sort().values.numpy()
    low, high = 1e-4 * unit, 100.0 * unit
    for _ in range(60):
        b = (low * high) ** 0.5
        slope = 0.1 * (b - e.mean()) / b**2 + 2 * np.mean(e < b) - 1
        low, high = (b, high) if slope < 0 else (low, b)
    assert float(ours.log_b.exp()) == pytest.approx(b, rel=0.01)
    assert float(ours.mu) == pytest.approx(1.5 * unit, rel=1e-3, abs=1e-4), "predictions stay, but for a last step"
    places = {"median": np.median(e), "mean": e.mean()}
    assert min(places, key=lambda name: abs(math.log(places[name] / b))) == near and places["mean"] > 1.2 * np.median(e)


def test_after_sharpening_half_of_the_errors_on_distorted_images_lie_below_b():
    """As at the minimum of mean |b - e|; within three standard errors over images, which the noise makes alike."""
    world, recipe = regression(), Recipe(optimizer=Adam(lr=0.01, amsgrad=True), epochs=30, batch=16)
    x, y = world.source.load().x, world.source.load().y
    remedy = CrossDomainEnsemble(("direct",), sharpening=recipe, distortions=(Corrupt("gaussian_noise", 5),))
    shares = {}
    for name, some in (
        ("before", remedy.replace(sharpening=recipe.replace(optimizer=Adam(lr=1e-9)))),
        ("after", remedy),
    ):
        net, each = some(pixels(), world), []
        for seed in (9, 10):
            spoilt: Tensor = Corrupt("gaussian_noise", 5)((x, y), run=Run(seed=seed)).load().x
            with torch.no_grad():
                mu, log_b = net.each(spoilt)[0].chunk(2, dim=1)
            each.append(((mu - y).abs() < log_b.exp()).double().mean((1, 2, 3)))
        share = torch.stack(each).mean(0)
        shares[name] = float(share.mean()), float(share.std()) / len(share) ** 0.5
    assert abs(shares["after"][0] - 0.5) < 3 * shares["after"][1] and shares["after"][1] < 0.03
    assert abs(shares["before"][0] - 0.5) > 10 * shares["after"][1]


def test_regression_s_losses_are_those_of_the_equations(batches):
    world = regression(32)
    remedy = DEEP.replace(domains=("blur",), sharpening=DEEP.sharpening.replace(epochs=1))
    ours = remedy(pixels(), world, run=Run(seed=1))
    path = copy.deepcopy(ours.paths[0])
    trained, steps = batches
    assert len(trained) == 40 and set(steps[0]) == {"distorted", "clean"}
    frozen = remedy.replace(sharpening=remedy.sharpening.replace(optimizer=Adam(lr=1e-12)))(
        pixels(), world, run=Run(seed=1)
    ).paths[0]
    slow = copy.deepcopy(frozen).requires_grad_(True)
    optimizer = torch.optim.Adam(slow.parameters(), 0.01, amsgrad=True)
    for step in steps:
        outs = {name: slow(middle_domains(b.x, ("blur",))["blur"]) for name, b in step.items()}
        mu, b = outs["distorted"][:, :1], outs["distorted"][:, 1:].exp()
        mu0 = frozen(middle_domains(step["distorted"].x, ("blur",))["blur"])[:, :1].detach()
        clean = torch.distributions.Laplace(outs["clean"][:, :1], outs["clean"][:, 1:].exp())
        loss = -0.1 * clean.log_prob(step["clean"].y).mean() + 100 * (mu - mu0).abs().mean()
        loss = loss + (b - (mu0 - step["distorted"].y).abs()).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for mine, theirs in zip(path.parameters(), slow.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-4)
    assert ours.correlation.tolist() == [[1.0]] and ours(world.source.load().x).shape == (32, 1, 8, 8)


def test_a_sure_path_counts_more_and_the_direct_path_is_the_network_itself(network):
    net, (x, y) = network(), source()
    alone = CrossDomainEnsemble(("direct",))(net, World(source=(x, y)))
    assert torch.equal(alone(x).argmax(1), net(x).argmax(1))
    paths = nn.Sequential(*(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)) for _ in range(2)))
    made = CrossDomains(paths, ("direct", "grey"))
    with torch.no_grad():
        for path, bias in zip(paths, (3.0, 0.2), strict=True):
            path[1].weight.zero_()
            path[1].bias.copy_(torch.tensor([0.0, bias]))
        p = [1 / (1 + math.exp(b)) for b in (3.0, 0.2)]
        v = [2 * q * (1 - q) for q in p]
        w = (1 / v[0]) / (1 / v[0] + 1 / v[1])
        assert torch.allclose(made.weights(torch.rand(3, 1, 8, 8))[0], torch.tensor(w))
    average = CrossDomains(paths, ("direct", "grey"), merge="average")
    assert torch.allclose(average.weights(torch.rand(3, 1, 8, 8)), torch.tensor(0.5))


def test_every_path_normalises_its_own_input_also_of_a_network_that_does(network):
    net, (x, y) = network(dtype=torch.float32), source(torch.float32)
    ours = CrossDomainEnsemble(("direct", "laplacian"), recipe=PLAIN)(
        Normalized(net, (0.5,) * 3, (0.2,) * 3), World(source=(x, y))
    )
    image = ours.paths[1][0](middle_domains(x, ("laplacian",))["laplacian"])
    assert abs(float(image.mean())) < 1e-4 and abs(float(image.std()) - 1) < 1e-3
    assert not any(isinstance(m, Normalized) for m in ours.paths[1].modules())
    assert ours(x).shape == (48, 4)


def test_failure_a_shift_that_all_domains_show_alike_is_not_helped():
    """The documented failure: upside down, edges are upside down too."""
    draws = torch.Generator().manual_seed(5)
    y = torch.arange(400) % 2
    x = 0.6 * torch.rand(400, 1, 8, 8, generator=draws)
    x[y == 0, :, :3] += 0.4
    x[y == 1, :, 5:] += 0.4
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
    recipe = Recipe(optimizer=SGD(lr=0.05), epochs=3, batch=50)
    ours = CrossDomainEnsemble(("grey", "blur", "sharpen"), recipe=recipe)(net, World(source=(x, y)))
    right = [float((ours(v).argmax(1) == y).float().mean()) for v in (x, x.flip(2))]
    assert right[0] > 0.9 and right[1] < 0.2


def test_what_does_not_fit_is_refused(network):
    net, (x, y) = network(), source()
    with pytest.raises(SpecError, match="each once"):
        CrossDomainEnsemble(("grey", "grey"))
    with pytest.raises(SpecError, match="wavelet"):
        CrossDomainEnsemble(("edges",))
    with pytest.raises(MissingPart, match=r"source\.y"):
        CrossDomainEnsemble()(net, World(source=x))
    with pytest.raises(ModelError, match="images"):
        CrossDomainEnsemble()(nn.Linear(3, 2).double(), World(source=(torch.rand(20, 3).double(), y[:20] % 2)))
    with pytest.raises(InputError, match="floating"):
        CrossDomainEnsemble()(net, World(source=((255 * x).long(), y)))
    with pytest.raises(ModelError, match="twice as many outputs"):
        CrossDomainEnsemble()(net, World(source=(x, torch.rand(48, 4).double()), task=Regress()))
    with pytest.raises(InputError, match="no sample of the source has all of its label"):
        CrossDomainEnsemble()(net, World(source=(x, torch.full((48,), -100))))


def test_samples_without_their_whole_label_are_left_out(network):
    net, (x, y) = network(), source()
    few = CrossDomainEnsemble(("direct", "grey"), recipe=PLAIN)
    hidden = torch.cat([y, torch.full((4,), -100)])
    found = [few(net, World(source=s))(x) for s in ((x, y), (torch.cat([x, x[:4] * 0]), hidden))]
    assert torch.equal(*found)
    world = regression(32)
    a, b = world.source.load().x, world.source.load().y.clone()
    b[:8, :, 0, 0] = math.nan
    short = DEEP.replace(domains=("blur",), sharpening=DEEP.sharpening.replace(epochs=1), distortions=())
    spoilt, whole = (
        short(pixels(), World(source=pair, task=Regress()), run=Run(seed=1))(a) for pair in ((a, b), (a[8:], b[8:]))
    )
    assert torch.equal(spoilt, whole) and bool(spoilt.isfinite().all())
