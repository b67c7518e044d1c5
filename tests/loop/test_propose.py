"""The proposer: the posterior against brute force, regret on simulated journals, and the safe default."""

from __future__ import annotations

import pytest
import torch

from homeostat.core.reading import Reading
from homeostat.core.run import Run
from homeostat.core.trace import Choose, Entry, Trace
from homeostat.loop import Bandit, ByRecord
from homeostat.loop.propose import NOTHING


def trial(name: str, kind: str, gain: float, step: int = 0) -> Entry:
    return Entry(step, name, kind, (Reading("gain", gain),))


def posterior(bandit: Bandit, gains: list[tuple[str, float]], context: str) -> tuple[float, float]:
    """Mean and variance of the gain in a context, by conditioning the joint normal of all trials."""
    kinds = [kind for kind, _ in gains]
    shared, own = bandit.between**2, bandit.within**2
    n = len(gains)
    k = torch.tensor([[shared + own * (a == b) for b in kinds] for a in kinds], dtype=torch.float64).reshape(n, n)
    side = torch.tensor([shared + own * (kind == context) for kind in kinds], dtype=torch.float64)
    seen = torch.tensor([gain for _, gain in gains], dtype=torch.float64) - bandit.prior
    weights = torch.linalg.solve(k + bandit.noise**2 * torch.eye(n, dtype=torch.float64), side)
    return bandit.prior + float(weights @ seen), shared + own - float(weights @ side)


@pytest.mark.parametrize("context", ["label", "covariate", "concept"])
def test_the_optimistic_value_is_that_of_the_joint_normal_distribution(context):
    gains = [("label", 0.1), ("covariate", -0.2), ("label", 0.14), ("covariate", -0.1), ("novel-class", 0.05)]
    trace = Trace(tuple(trial("A", kind, gain) for kind, gain in gains))
    bandit = Bandit(explore=1.0)
    mean, variance = posterior(bandit, gains, context)
    assert bandit.optimistic(trace, "A", context) == pytest.approx(mean + variance**0.5, abs=1e-9)
    assert bandit.replace(explore=0.0).optimistic(trace, "A", context) == pytest.approx(mean, abs=1e-9)


def test_without_a_record_options_come_in_the_order_given_and_before_nothing():
    assert Bandit()(Trace(), ["A", "B", NOTHING]) == 0 and ByRecord()(Trace(), ["A", "B", NOTHING]) == 0


def test_an_option_whose_trials_came_to_nothing_here_is_not_tried_here_and_still_elsewhere():
    trace = Trace(tuple(trial("A", "label", -0.3) for _ in range(4)))
    assert Bandit()(trace.add(Entry(1, "diagnosis", "label")), ["A", NOTHING]) == 1
    elsewhere = trace.add(*(trial("A", "covariate", 0.3, 1) for _ in range(4)), Entry(2, "diagnosis", "covariate"))
    assert Bandit()(elsewhere, ["A", NOTHING]) == 0


def regret(choose: Choose, seed: int, rounds: int = 120) -> float:
    """Sum of gains missed against the best option of each round's kind, nothing included."""
    draws = torch.Generator().manual_seed(seed)
    true = {(o, k): 0.12 * float(torch.randn(1, generator=draws)) for o in "ABCD" for k in ("label", "covariate")}
    trace, missed = Trace(), 0.0
    for step in range(rounds):
        kind = ("label", "covariate")[int(torch.rand(1, generator=draws) < 0.5)]
        options = [*"ABCD", NOTHING]
        taken = options[choose(trace.add(Entry(step, "diagnosis", kind)), options, run=Run())]
        gain = true.get((taken, kind), 0.0)
        missed += max(0.0, *(true[o, kind] for o in "ABCD")) - gain
        if taken != NOTHING:
            trace = trace.add(trial(taken, kind, gain + 0.05 * float(torch.randn(1, generator=draws)), step))
    return missed


def test_over_many_journals_it_misses_less_than_a_record_that_knows_no_context_and_ever_less():
    seeds = range(30)
    contextual = [regret(Bandit(), seed) for seed in seeds]
    record = [regret(ByRecord(), seed) for seed in seeds]
    assert sum(contextual) < 0.6 * sum(record), (sum(contextual), sum(record))
    early, late = (sum(regret(Bandit(), seed, rounds) for seed in seeds) for rounds in (30, 120))
    assert late - early < 1.5 * early, "three times as many rounds, and less than 1.5 times the regret again"
