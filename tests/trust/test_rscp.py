"""RSCP+: its numbers against slow loops, its promise by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from homeostat.core.check import check_remedy
from homeostat.core.errors import InputError, NonFiniteError, SpecError
from homeostat.core.random import Draw, seed_for
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.trust import PTT, RSCP, RobustSets, empirical_bernstein, hoeffding, robust_sets


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    """A linear classifier with these weights `[classes, inputs]`."""
    net = nn.Linear(weight.shape[1], len(weight), dtype=weight.dtype)
    with torch.no_grad():
        net.weight.copy_(weight)
        net.bias.zero_() if bias is None else net.bias.copy_(bias)
    return net


def known_posterior(count: int, seed: int, slope: float = 3.0) -> tuple[Tensor, Tensor, nn.Module]:
    """Two classes with P(y = 1 | x) = sigmoid(slope x_0) exactly, and the network that knows it."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, generator=draw)
    y = (torch.rand(count, generator=draw) < torch.sigmoid(slope * x[:, 0])).long()
    return x, y, linear(torch.tensor([[0.0, 0.0], [slope, 0.0]]))


def worst(x: Tensor, y: Tensor, delta: float) -> Tensor:
    """The move of length delta that most lowers the true class's smoothed probability: against its weight."""
    return x - delta * torch.tensor([1.0, 0.0]) * (2 * y[:, None] - 1)


def simulate(method: RSCP, shift: float, runs: int, calibration: int, test: int = 60) -> tuple[Tensor, Tensor]:
    """Coverage and mean size by simulated world, under the worst move of length `shift`."""
    found = []
    for seed in range(runs):
        x, y, net = known_posterior(calibration + test, seed)
        world = World(calibration=(x[test:], y[test:]))
        made = method(net, world, run=Run(seed=seed))
        sets = made.sets(worst(x[:test], y[:test], shift))
        found.append((sets.gather(1, y[:test, None]).double().mean(), sets.sum(1).double().mean()))
    return torch.tensor(found)[:, 0], torch.tensor(found)[:, 1]


def error(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values)))


@pytest.mark.parametrize("score", ["hps", "aps", "raps"])
@pytest.mark.parametrize("ptt", [None, PTT(holdout=15, slope=9.0, bias=0.6)])
@pytest.mark.exact("S110")
def test_sets_equal_a_loop_over_images_draws_and_classes(score, ptt):
    draw = torch.Generator().manual_seed(0)
    net = linear(torch.randn(7, 3, generator=draw, dtype=torch.float64))
    x = torch.randn(90, 3, generator=draw, dtype=torch.float64)
    y = net(x).argmax(1)
    ids = torch.randperm(1000, generator=draw)[:10]
    m = RSCP(score=score, delta=0.1, sigma=0.4, draws=85, alpha=0.7, beta=0.1, ptt=ptt, penalty=0.5, free=2)
    made = m(net, World(calibration=(x[:80], y[:80])))
    reference = sorted(made.kit["reference"].tolist()) if ptt else None
    weight, bias = net.weight.detach().numpy(), net.bias.detach().numpy()

    def base(sample, u):
        z = weight @ sample + bias
        p = np.exp(z) / np.exp(z).sum()
        order = sorted(range(7), key=lambda k: -p[k])
        found = []
        for k in range(7):
            if score == "hps":
                s = 1 - p[k]
            else:
                place = order.index(k)
                s = sum(p[j] for j in order[:place]) + (1 - u) * p[k]
                if score == "raps":
                    s = (s + 0.5 * max(place + 1 - 2, 0) / (7 - 2)) / 1.5
            if reference is not None:
                r = sum(other <= s for other in reference) / len(reference)
                s = 1 / (1 + math.exp(-ptt.slope * (r - ptt.bias)))
            found.append(s)
        return found

    noise = Draw(seed_for(made.seed, "sets"), ids)
    us = noise.uniform().double().numpy()
    each = torch.cat([noise.normal(16, 3) for _ in range(5)] + [noise.normal(5, 3)], 1).double().numpy()
    calibrated = sorted(made.kit["scores"].tolist())
    level = 1 - 0.7 + 2 * 0.1
    tau = next(t for t in calibrated if sum(s <= t for s in calibrated) >= level * (len(calibrated) + 1) - 1e-9)
    h, t = math.sqrt(math.log(10) / (2 * 85)), math.log(20)
    wanted = np.zeros((10, 7), dtype=bool)
    mean = np.zeros((10, 7))
    for i in range(10):
        table = np.array([base(x[80 + i].numpy() + 0.4 * e, us[i]) for e in each[i]])
        for k in range(7):
            mean[i, k] = table[:, k].mean()
            b = math.sqrt(2 * table[:, k].var(ddof=1) * t / 85) + 7 * t / (3 * 84)
            left = norm.ppf(max(mean[i, k] - b, 0)) - 0.1 / 0.4
            wanted[i, k] = left <= norm.ppf(min(tau + h, 1))
    assert made.threshold == tau
    assert float((made.scores(x[80:], ids) - torch.tensor(mean)).abs().max()) < 1e-12
    assert made.sets(x[80:], ids).tolist() == wanted.tolist()
    assert 5 < int(wanted.sum()) < 65


def test_calibration_scores_are_those_of_the_true_class():
    x, y, net = known_posterior(50, 0)
    made = RSCP(draws=400, sigma=0.3)(net, World(calibration=(x, y)))
    # The mean of sigmoid(3 (x + 0.3 z)) over normal z, by quadrature.
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    at = torch.sigmoid(3 * (x[:, :1].double() + 0.3 * torch.tensor(nodes)))
    right = (at * torch.tensor(weights / weights.sum())).sum(1)
    wanted = torch.where(y == 1, 1 - right, right)
    gap = made.kit["scores"] - wanted
    spread = (at.square() @ torch.tensor(weights / weights.sum()) - right.square()).sqrt() / 20
    assert float((gap / spread).abs().max()) < 4.5
    assert float((gap / spread).square().mean()) == pytest.approx(1, abs=0.6)


@pytest.mark.exact("S110")
def test_the_empirical_bernstein_bound_of_four_numbers():
    # 0, 1, 1, 0: variance 1/3; ln(2 / 0.5) = ln 4; sqrt(2/3 ln 4 / 4) + 7 ln 4 / 9
    wanted = math.sqrt(math.log(4) / 6) + 7 * math.log(4) / 9
    assert float(empirical_bernstein(torch.tensor(1 / 3, dtype=torch.float64), 4, 0.5)) == pytest.approx(wanted)


@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_both_bounds_fail_no_more_often_than_beta(rate):
    draws, beta, runs = 60, 0.1, 4000
    coins = (torch.rand(runs, draws, generator=torch.Generator().manual_seed(1)) < rate).double()
    mean, variance = coins.mean(1), coins.var(1)
    allowed = beta + 3 * math.sqrt(beta / runs)
    assert float((mean + hoeffding(draws, beta) < rate).double().mean()) <= allowed
    assert float((mean - empirical_bernstein(variance, draws, beta) > rate).double().mean()) <= allowed


@pytest.mark.parametrize("ptt", [None, PTT(holdout=60, slope=12.0, bias=0.7)])
@pytest.mark.parametrize("shift", [0.0, 0.125])
def test_coverage_holds_clean_and_under_the_worst_move(ptt, shift):
    method = RSCP(draws=128, alpha=0.3, beta=0.02, ptt=ptt)
    covered, size = simulate(method, shift, runs=40, calibration=120)
    assert float(covered.mean()) + 3 * error(covered) >= 0.7
    assert 0.7 < float(size.mean()) < 1.95


def test_without_allowance_for_the_move_coverage_is_lost_and_with_it_kept():
    blind, _ = simulate(RSCP(delta=0.0, sigma=0.5, draws=64, alpha=0.2, plus=False), 0.5, 40, 100)
    wary, size = simulate(RSCP(delta=0.5, sigma=0.5, draws=64, alpha=0.2, plus=False), 0.5, 40, 100)
    assert float(blind.mean()) + 3 * error(blind) < 0.8
    assert float(wary.mean()) + 3 * error(wary) >= 0.8
    assert float(size.mean()) < 2


def test_with_few_draws_an_attack_breaks_rscp_but_not_rscp_plus():
    # The true class's score is close to 1 beyond x_0 = 2.05 noise deviations and to 0 before it.
    net = linear(torch.tensor([[400.0, 0.0], [0.0, 0.0]]), torch.tensor([-400 * 2.05 * 0.25, 0.0]))
    world = World(calibration=(torch.zeros(300, 2), torch.ones(300, dtype=torch.long)))
    near, far = torch.zeros(600, 2), torch.tensor([0.125, 0.0]).repeat(600, 1)
    plain, plus = (RSCP(draws=4, plus=flag)(net, world) for flag in (False, True))
    hits = [made.sets(x)[:, 1].double().mean() for made in (plain, plus) for x in (near, far)]
    assert hits[0] >= 0.9 - 3 * 0.0125
    assert hits[1] < 0.9 - 5 * 0.0125
    assert hits[2] == hits[3] == 1


def test_sets_grow_with_delta_and_shrink_with_alpha_and_plus_only_adds():
    x, y, net = known_posterior(400, 3)
    world, probe = World(calibration=(x[:300], y[:300])), x[300:]
    base = RSCP(draws=64, alpha=0.5, beta=0.05)
    kit = base.kit(net, world)

    def sets(**changes):
        return base.replace(**changes)(net, world, kit=kit).sets(probe)

    chains = [
        [sets(delta=d) for d in (0.0, 0.05, 0.125, 0.5)],
        [sets(alpha=a) for a in (0.8, 0.6, 0.4, 0.2)],
        [sets(plus=flag) for flag in (False, True)],
    ]
    for chain in chains:
        assert all(bool((small <= large).all()) for small, large in itertools.pairwise(chain))
        assert int(chain[0].sum()) < int(chain[-1].sum())


def test_every_set_is_full_and_said_to_be_exactly_when_the_largest_score_passes():
    x, y, net = known_posterior(200, 5)
    said: list[str] = []
    run = Run(watch=lambda event: said.append(event.name))
    lowest = 7 * math.log(2 / 0.001) / (3 * 399)
    seen = set()
    for alpha in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5):
        made = RSCP(draws=400, alpha=alpha)(net, World(calibration=(x, y)), run=run)
        top = made.threshold + math.sqrt(math.log(1000) / 800)
        full = bool(norm.ppf(1 - lowest) - 0.5 <= norm.ppf(min(top, 1)))
        assert full or top < 1
        assert made.trivial == full == bool(made.sets(100 * x).all())
        assert said == ["every set holds every class"] * full
        said.clear()
        seen.add(full)
    assert seen == {False, True}
    few = RSCP(plus=False, draws=48)(net, World(calibration=(x[:8], y[:8])))
    assert few.trivial and few.threshold == 1 and bool(few.sets(x).all())


def test_scores_of_zero_and_one_are_accepted_and_refused_as_infinities_say():
    mean = torch.tensor([[0.0, 1.0, 0.5]], dtype=torch.float64)
    none = torch.zeros_like(mean)
    assert robust_sets(mean, none, 0.5, 0.1).tolist() == [[True, False, True]]
    assert robust_sets(mean, none, 1.0, 0.1).tolist() == [[True, True, True]]
    assert robust_sets(mean, none, 0.0, 0.1).tolist() == [[True, False, False]]


def test_noise_belongs_to_the_sample_and_not_to_its_batch():
    x, y, net = known_posterior(150, 7)
    made = RSCP(draws=20, score="aps")(net, World(calibration=(x, y)))
    ids = torch.arange(500, 650)
    whole, one = made.scores(x, ids), torch.cat([made.scores(x[i : i + 1], ids[i : i + 1]) for i in range(0, 150, 29)])
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(whole[::29], one, atol=1e-6, rtol=0)
    assert torch.allclose(made.scores(x[order], ids[order]), whole[order], atol=1e-6, rtol=0)
    assert float((made.scores(x, ids + 1) - whole).abs().max()) > 1e-3


def test_ptt_keeps_order_and_range_and_pulls_low_ranks_to_zero():
    reference = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sort().values
    grid = torch.linspace(0, 1, 1001, dtype=torch.float64)
    made = PTT().transform(grid, reference)
    assert bool((made.diff() >= 0).all()) and 0 <= float(made.min()) <= float(made.max()) <= 1
    assert float(made[grid < reference[175]].max()) < 1e-4
    assert float(made[grid > reference[184]].min()) > 0.999


def test_ptt_sets_samples_aside_that_calibration_does_not_use_again():
    x, y, net = known_posterior(100, 11)
    kit = RSCP(draws=4, ptt=PTT(holdout=30)).kit(net, World(calibration=(x, y)))
    assert (len(kit["reference"]), len(kit["scores"])) == (30, 70)
    assert len(RSCP(draws=4).kit(net, World(calibration=(x, y)))["scores"]) == 100


def test_unknown_labels_are_left_out_and_misfits_refused():
    x, y, net = known_posterior(60, 13)
    hidden = y.clone()
    hidden[::2] = -100
    assert len(RSCP(draws=4).kit(net, World(calibration=(x, hidden)))["scores"]) == 30
    with pytest.raises(InputError, match="has a label"):
        RSCP(draws=4).kit(net, World(calibration=(x, torch.full((60,), -100))))
    with pytest.raises(InputError, match="labels outside"):
        RSCP(draws=4).kit(net, World(calibration=(x, y + 1)))
    with pytest.raises(InputError, match="aside"):
        RSCP(draws=4, ptt=PTT()).kit(net, World(calibration=(x, y)))
    with pytest.raises(InputError, match="one tensor of floating"):
        RSCP(draws=4).kit(net, World(calibration=({"a": x}, y)))
    with pytest.raises(NonFiniteError, match="x holds 1"):
        RSCP(draws=4)(net, World(calibration=(x, y))).sets(torch.tensor([[0.0, math.nan]]))
    with pytest.raises(SpecError, match="nothing is left"):
        RSCP(alpha=0.01, beta=0.005)


@pytest.mark.parametrize(
    "remedy", [RSCP(draws=8), RSCP(draws=8, score="raps", ptt=PTT(holdout=16)), RSCP(draws=8, plus=False, score="aps")]
)
def test_rscp_keeps_the_promises_of_a_remedy(remedy):
    check_remedy(remedy)


def test_sets_are_the_same_after_save_and_load(tmp_path):
    from homeostat.core.save import load, save

    x, y, net = known_posterior(80, 17)
    made = RSCP(draws=8, ptt=PTT(holdout=20), alpha=0.3)(net, World(calibration=(x, y)))
    save(made, tmp_path / "a")
    back = load(tmp_path / "a")
    assert isinstance(back, RobustSets)
    assert torch.equal(back.sets(x), made.sets(x)) and back.threshold == made.threshold
