"""EAR against plain loops over samples, domains and classes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from homeostat.adapt import EAR
from homeostat.core.data import Batch
from homeostat.core.errors import InputError, SpecError
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.nn.hyperdimensional import bundled, projection


def network(norm: str = "batch", dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    layer = {"batch": nn.BatchNorm1d(12), "group": nn.GroupNorm(3, 12), "layer": nn.LayerNorm(12)}[norm]
    return nn.Sequential(nn.Linear(6, 12), layer, nn.Tanh(), nn.Linear(12, 3)).to(dtype).eval()


def samples(count: int, domain: int = 0, seed: int = 0, dtype: torch.dtype = torch.float64):
    """Three classes around centers of their own, which every domain moves and numbers anew."""
    draws = torch.Generator().manual_seed(100 + 10 * domain + seed)
    centers = 3 * torch.randn(3, 6, generator=torch.Generator().manual_seed(domain), dtype=torch.float64)
    y = torch.arange(count) % 3
    return (centers[y] + 0.7 * torch.randn(count, 6, generator=draws, dtype=torch.float64)).to(dtype), y


REMEDY = EAR(dimension=2000, shots=40, most=300)


@pytest.mark.exact("S247")
@pytest.mark.parametrize("norm", ["batch", "group", "layer"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_detection_and_routing_equal_plain_loops(norm, dtype, tolerance):
    net, world = network(norm, dtype), World(source=samples(90, dtype=dtype))
    ear = REMEDY(net, world, run=Run(seed=7))
    ear.observe(Batch(*samples(60, 1, dtype=dtype)))
    assert ear.domains == 2

    def features(x):
        return net[2](net[1](net[0](x))).detach()

    # The source is read in a random order; bundles do not depend on it, and neither does its mean but for rounding.
    mean = features(world.source.load().x).mean(0)
    matrix = projection(2000, 12, 7)

    def vector(phi):
        return torch.where(matrix @ (phi - mean).float() >= 0, 1.0, -1.0).double()

    groups, thresholds = [], []
    for domain, (x, y) in enumerate([samples(90, dtype=dtype), samples(60, 1, dtype=dtype)]):
        v = torch.stack([vector(phi) for phi in features(x)])
        for k in range(3):
            groups.append((domain, v[y == k].sum(0)))
        alone = []
        for i in range(len(v)):
            rest = [v[[j for j in range(len(v)) if y[j] == k and j != i]].sum(0) for k in range(3)]
            alone.append(max(float(v[i] @ r / (v[i].norm() * r.norm())) for r in rest))
        thresholds.append(float(torch.tensor(alone).quantile(0.05)))
    assert torch.allclose(ear.carry["threshold"].double(), torch.tensor(thresholds).double(), atol=1e-5)
    test = torch.cat([samples(20, d, seed=1, dtype=dtype)[0] for d in (0, 1, 2)])
    new, nearest = ear.detect(test)
    out = ear(test)
    scale = (features(world.source.load().x) - mean).square().mean().sqrt()
    for i, phi in enumerate(features(test)):
        v = vector(phi)
        cosines = [float(v @ g / (v.norm() * g.norm())) for _, g in groups]
        domain = groups[max(range(6), key=cosines.__getitem__)][0]
        assert int(nearest[i]) == domain and bool(new[i]) == (max(cosines) < thresholds[domain])
        expected = net(test[i : i + 1])[0].detach()
        if domain:
            a = (phi - mean) / scale
            for n, (w, b) in enumerate(ear.adaptor(1)):
                a = w @ (a.clamp(min=0) if n else a) + b
            expected = a
        assert torch.allclose(out[i], expected, rtol=0, atol=tolerance * 10)
    assert bool(new[40:].float().mean() > 0.5) and not bool(new[:40].float().mean() > 0.3)


def test_it_learns_a_new_domain_from_few_labels_and_forgets_next_to_nothing():
    ear = REMEDY(network(), World(source=samples(200)))
    before = ear(samples(30)[0])
    x, y = samples(90, 1, seed=1)
    first = float((ear(x).argmax(1) == y).double().mean())
    for low in range(0, 48, 12):
        part = samples(60, 1)
        ear.observe(Batch(part[0][low : low + 12], part[1][low : low + 12]))
    assert ear.domains == 2 and float((ear(x).argmax(1) == y).double().mean()) > max(0.9, first)
    learnt = ear(x)
    x2, y2 = samples(60, 2)
    ear.observe(Batch(x2, y2))
    assert ear.domains == 3
    for now, then in ((ear(samples(30)[0]), before), (ear(x), learnt)):
        same = torch.isclose(now, then).all(1)  # but for a sample that the new domain's bundles draw to themselves
        assert float(same.double().mean()) > 0.9


def test_nothing_grows_without_labels_in_familiar_batches_or_beyond_the_largest():
    ear = REMEDY.replace(largest=2)(network(), World(source=samples(200)))
    ear.observe(samples(60, 1)[0])
    ear.observe(Batch(samples(60, 1)[0], torch.full((60,), -100)))
    ear.observe(Batch(*samples(60, 0, seed=5)))
    assert ear.domains == 1
    ear.observe(Batch(*samples(60, 1)))
    ear.observe(Batch(*samples(60, 2)))
    assert ear.domains == 2


def test_a_grown_model_is_saved_restored_and_reset(tmp_path):
    from homeostat.core.save import load, save

    net = network()
    ear = REMEDY(net, World(source=samples(200)))
    start = ear.snapshot()
    ear.observe(Batch(*samples(30, 1)))
    half = ear.snapshot()
    ear.observe(Batch(*samples(30, 1, seed=1)))
    x, grown = samples(30, 1, seed=2)[0], ear.domains
    save(ear, tmp_path / "ear")
    back = load(tmp_path / "ear", base=net)
    assert grown == back.domains == 2 and torch.equal(back(x), ear(x))
    ear.restore(half)
    ear.observe(Batch(*samples(30, 1, seed=1)))
    assert torch.equal(ear(x), back(x))
    ear.reset()
    assert all(torch.equal(t, ear.snapshot()[name]) for name, t in start.items()) and ear.domains == 1


@pytest.mark.parametrize("storage", ["counts", "bits"])
def test_the_stated_share_of_familiar_samples_is_called_new(storage):
    ear = REMEDY.replace(storage=storage)(network(), World(source=samples(900)))
    new, _ = ear.detect(samples(3000, seed=9)[0])
    assert 0.02 < float(new.double().mean()) < 0.09
    assert bool(ear.detect(samples(300, 1)[0])[0].double().mean() > 0.5)


@pytest.mark.parametrize("storage", ["counts", "bits"])
def test_a_new_domain_s_threshold_is_that_of_the_samples_that_are_held_against_it(storage):
    """A sixth of what made the domain is the source's own: it must not decide what is new to the domain.

    Of those that come later 5 % are called new, but for sampling: the threshold is a quantile of n samples, the share
    one of m, so that its deviation is sqrt(0.05 * 0.95 (1 / n + 1 / m)). With all samples in the quantile it is 0.
    """
    ear = EAR(dimension=4000, shots=600, most=300, storage=storage)(network(), World(source=samples(600)))
    (x, y), (old, old_y) = samples(500, 1), samples(100, 0, seed=2)
    ear.observe(Batch(torch.cat([x, old]), torch.cat([y, old_y])))
    assert ear.domains == 2
    new, nearest = ear.detect(samples(1200, 1, seed=3)[0])
    mine = new[nearest == 1].float()
    assert len(mine) > 1100 and float((ear.detect(old)[1] == 0).float().mean()) > 0.9
    assert abs(float(mine.mean()) - 0.05) < 3 * (0.05 * 0.95 * (1 / 500 + 1 / len(mine))) ** 0.5


def test_bits_take_a_thirty_second_of_the_space_and_leave_each_sample_out_exactly():
    v = torch.randint(0, 2, (7, 40), generator=torch.Generator().manual_seed(0)).mul(2).sub(1).to(torch.int8)
    y = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    counts, _ = bundled(v, y, 0.0)
    bits, lowest = bundled(v, y, 0.0, bits=True)
    assert counts.numel() * 4 == 32 * bits.numel()
    each = []
    for i in range(7):
        scores = []
        for k in range(2):
            rows = [v[j].double() for j in range(7) if y[j] == k and j != i]
            signs = torch.where(sum(rows) >= 0, 1.0, -1.0).double()
            scores.append(float(v[i].double() @ signs) / 40)
        each.append(max(scores))
    assert float(lowest) == pytest.approx(min(each), abs=1e-6)


def test_failure_what_looks_like_the_source_never_grows_an_adaptor():
    """Permuted labels over the same inputs: the features say nothing."""
    ear = REMEDY(network(), World(source=samples(300)))
    for seed in range(5):
        x, y = samples(60, 0, seed=seed)
        ear.observe(Batch(x, (y + 1) % 3))
    assert ear.domains == 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(SpecError, match="proxies"):
        EAR(proxies=())
    with pytest.raises(InputError, match="two source samples"):
        REMEDY(network(), World(source=(torch.zeros(3, 6).double(), torch.full((3,), -100))))
    ear = REMEDY(network(), World(source=samples(90)))
    with pytest.raises(InputError, match=r"0\.\.2"):
        ear.observe(Batch(samples(3, 1)[0], torch.tensor([0, 1, 9])))
