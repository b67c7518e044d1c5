"""Estimates without labels: zero where nothing differs, exact against brute force, wide where nothing is known."""

from __future__ import annotations

import math

import pytest
import torch

from homeostat.core.errors import InputError, NonFiniteError
from homeostat.core.probe import Outputs
from homeostat.loop.estimate import (
    FLOOR,
    LEAST,
    Estimate,
    Least,
    Normal,
    Same,
    Signs,
    Unknown,
    confidence,
    mean_signs,
)  # fmt: skip
from homeostat.loop.rehearsal import Rehearsal, Scenario


def outputs(logits: torch.Tensor) -> Outputs:
    return Outputs(logits, None, torch.arange(len(logits)))


def scenarios(count: int, seed: int, samples: int = 800) -> tuple[list[Signs], list[float]]:
    """Gains that are the disagreement times a share won, which depends on rise and drop, with sampling noise."""
    draws = torch.Generator().manual_seed(seed)
    rows = torch.rand(count, 4, generator=draws, dtype=torch.float64) * torch.tensor([0.5, 0.3, 0.4, 0.3])
    share = (2 * rows[:, 1] + 1.5 * rows[:, 3] - 0.4).clamp(-1, 1)
    noise = (rows[:, 0] / samples).sqrt() * torch.randn(count, generator=draws, dtype=torch.float64)
    return [Signs(*row) for row in rows.tolist()], (rows[:, 0] * share + noise).tolist()


def dense(estimate: Estimate, signs: list[Signs], gains: list[float], at: Signs) -> tuple[float, float]:
    """Posterior mean and latent variance from the joint normal distribution, entry by entry."""
    constant, linear, smooth, length = estimate.weights
    rows = torch.tensor([s.row() for s in signs], dtype=torch.float64)
    scale = rows.pow(2).mean(0).sqrt().clamp(min=1e-3)

    def kernel(a: Signs, b: Signs) -> float:
        x, w = (torch.tensor(s.row(), dtype=torch.float64) / scale for s in (a, b))
        h = constant + linear * float(x @ w) / 4 + smooth * math.exp(-float((x - w) @ (x - w)) / (2 * length**2))
        return a.disagreement * b.disagreement * h

    n = len(signs)
    k = torch.tensor([[kernel(a, b) for b in signs] for a in signs], dtype=torch.float64)
    k += torch.diag(torch.tensor([(s.disagreement + FLOOR) / estimate.samples + 1e-9 for s in signs]).double())
    side = torch.tensor([kernel(at, s) for s in signs], dtype=torch.float64)
    mean = side @ torch.linalg.solve(k, torch.tensor(gains, dtype=torch.float64))
    assert n == len(side)
    return float(mean), kernel(at, at) - float(side @ torch.linalg.solve(k, side))


@pytest.mark.parametrize("seed", range(3))
def test_mean_and_margin_are_those_of_the_normal_distribution_and_q_is_leave_one_out(seed):
    signs, gains = scenarios(9, seed)
    made, at = Estimate(signs, gains, 800), Signs(0.3, 0.1, 0.1, 0.2)
    mean, variance = dense(made, signs, gains, at)
    assert made.gain(at) == pytest.approx(mean, abs=1e-8)
    assert made.margin(at) == pytest.approx(made.q * math.sqrt(variance), rel=1e-5)
    # One scenario left out, its prediction by the others: with the whole set's scale and weights.
    worst = 1.0
    for out in range(9):
        keep = [i for i in range(9) if i != out]
        k = made._kernel(made.z, made.z) + torch.diag(made._noise(made.z))
        inner = torch.linalg.inv(k[keep][:, keep])
        mean = k[out, keep] @ inner @ made.y[keep]
        spread = k[out, out] - k[out, keep] @ inner @ k[keep, out]
        worst = max(worst, float((mean - made.y[out]) / spread.sqrt()))
    assert made.q == pytest.approx(worst, rel=1e-6)


def test_where_nothing_differs_nothing_is_gained_and_that_is_sure():
    made = Estimate(*scenarios(12, 1))
    for signs in (Signs(), Signs(0.0, 0.2, 0.1, 0.4)):
        assert made.gain(signs) == 0.0 and made.margin(signs) == 0.0


def test_signs_unlike_all_that_was_simulated_widen_the_margin():
    made = Estimate(*scenarios(14, 2))
    near, far = Signs(0.3, 0.15, 0.2, 0.15), Signs(0.3, -0.9, -0.8, 0.9)
    assert made.margin(far) > 3 * made.margin(near)


def test_the_lower_bound_holds_for_most_new_shifts_that_are_like_the_simulated_ones():
    broken = total = 0
    for seed in range(40):
        made = Estimate(*scenarios(12, seed))
        fresh, _ = scenarios(25, 1000 + seed)
        for s in fresh:
            truth = s.disagreement * min(1.0, max(-1.0, 2 * s.rise + 1.5 * s.drop - 0.4))
            broken += made.gain(s) - made.margin(s) > truth
            total += 1
    # The largest of n + 1 exchangeable overestimates is the new one with probability 1 / (n + 1).
    rate = 1 / 13
    assert broken / total <= rate + 3 * math.sqrt(rate * (1 - rate) / total), broken / total


def test_estimates_find_gains_that_are_there():
    made = Estimate(*scenarios(16, 3))
    fresh, _ = scenarios(200, 77)
    truth = [s.disagreement * min(1.0, max(-1.0, 2 * s.rise + 1.5 * s.drop - 0.4)) for s in fresh]
    error = [abs(made.gain(s) - g) for s, g in zip(fresh, truth, strict=True)]
    assert sum(error) / len(error) < 0.02
    shown = [s for s, g in zip(fresh, truth, strict=True) if g > 0.1]
    assert sum(made.gain(s) - made.margin(s) > 0 for s in shown) > 0.8 * len(shown)


def test_the_frozen_network_gains_nothing_for_sure_and_of_the_unknown_nothing_is_known():
    at = Signs(0.5, 0.1, 0.1, 0.1)
    assert (Same().known, Same().gain(at), Same().margin(at)) == (True, 0.0, 0.0)
    assert (Unknown().known, Unknown().margin(at)) == (False, math.inf)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_fewer_than_four_shifts_are_refused(count):
    with pytest.raises(InputError, match=f"at least 4 simulated shifts; got {count}"):
        Estimate(*scenarios(count, 0))


def test_signs_or_gains_that_are_not_numbers_are_refused():
    signs, gains = scenarios(6, 0)
    with pytest.raises(NonFiniteError):
        Estimate([*signs[:5], Signs(0.1, math.nan)], gains)
    with pytest.raises(NonFiniteError):
        Estimate(signs, [*gains[:5], math.inf])


def test_scenarios_in_which_no_candidate_ever_differs_give_a_flat_estimate():
    made = Estimate([Signs()] * 5, [0.0] * 5)
    assert made.gain(Signs()) == 0.0 and math.isfinite(made.margin(Signs(0.4, 0.1, 0.0, 0.1)))


def test_signs_by_hand():
    frozen = torch.tensor([[0.0, 0.0], [0.0, 0.0], [9.0, -9.0], [math.log(3), 0.0]])
    out = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0], [-9.0, 9.0], [math.log(3), 0.0]])
    normal = Normal(0.9, torch.tensor([0.5, 0.5]).double())
    found = Signs.of(out, outputs(frozen), normal)
    assert found.disagreement == 0.5 and found.rise == pytest.approx(0.125)
    assert found.balance == pytest.approx(0.5), "four of class 0 before, two and two after"
    assert found.drop == pytest.approx(0.9 - (0.5 + 0.5 + 1.0 + 0.75) / 4)
    assert confidence(frozen[:2]) == pytest.approx(0.5)
    same = Signs.of(frozen, outputs(frozen), Normal.of(outputs(frozen)))
    assert same == Signs(0.0, 0.0, 0.0, 0.0)
    assert mean_signs([Signs(0.2, 0.4), Signs(0.4, -0.2, 0.1, 0.2)]).row() == pytest.approx([0.3, 0.1, 0.05, 0.1])
    assert mean_signs([]) == Signs()


def test_the_least_of_estimates_has_the_least_gain_and_the_least_bound():
    """At one place the wide one has the larger gain and the lower bound."""
    sure, wide = Estimate(*scenarios(16, 3)), Estimate(*scenarios(5, 11, samples=20))
    both, at = Least(sure, wide), Signs(0.4, 0.25, 0.1, 0.2)
    assert both.known and not Least(sure, Unknown()).known
    for signs in (at, Signs(0.1, 0.0, 0.3, 0.0), Signs()):
        assert both.gain(signs) == min(sure.gain(signs), wide.gain(signs))
        assert both.low(signs) == pytest.approx(min(sure.low(signs), wide.low(signs)))
        assert both.margin(signs) >= 0


def test_what_is_served_is_judged_by_what_candidates_did_in_another_world_too():
    """Fresh they gain as much as they disagree; from another world they lose as much, and the drop tells them apart."""
    signs, _ = scenarios(2 * LEAST, 0)
    fresh = [Scenario(s, s.disagreement, 1, frozenset(), 800, False) for s in signs]
    stale = [Scenario(Signs(s.disagreement, s.rise, s.balance, 0.0), -s.disagreement, 0, frozenset(), 200, True)
             for s in signs]  # fmt: skip
    made = Rehearsal((*fresh, *stale))
    assert made.first == fresh
    back = Signs(0.3, 0.1, 0.2, 0.0)
    assert made.estimate(()).gain(back) > 0.1 > -0.1 > made.estimate((), served=True).gain(back)
    plain, served = made.estimate(()), made.estimate((), served=True)
    for one in signs:
        assert served.gain(one) <= plain.gain(one) + 1e-12 and served.low(one) <= plain.low(one) + 1e-12
