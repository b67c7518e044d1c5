"""S001 MBTL: training on a few well chosen tasks serves a whole range of them (Cho et al., NeurIPS 2024).

The paper trains policies on few of 100 variants of a task (CartPole with poles of many lengths among them), uses them
on all by zero-shot transfer, and reports up to 50 times fewer samples than training on every variant, and better
choices than random ones.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from homeostat import Entry, Reading, Run, Trace
from homeostat.evidence import claim
from homeostat.select import MBTL

TASKS, BUDGET, HORIZON = 20, 4, 200
TUNED = "nothing; the defaults of the library"


def chosen(scores: np.ndarray, budget: int, run: Run) -> list[int]:
    """The sources that MBTL takes one after another."""
    trace, found = Trace(), list[int]()
    for step in range(budget):
        index = MBTL()(trace, list(range(len(scores))), run=run)
        reading = Reading("performance", float(scores[index].mean()), arrays={"targets": torch.tensor(scores[index])})
        trace, found = trace.add(Entry(step, str(index), readings=(reading,))), [*found, index]
    return found


def covered(scores: np.ndarray, sources: list[int]) -> float:
    """Mean performance on all targets, each by the best of these sources."""
    return float(scores[sources].max(0).mean())


def arms(scores: np.ndarray, budget: int, run: Run) -> dict[str, float]:
    count = len(scores)
    draws = [torch.randperm(count, generator=run.rng("random", i))[:budget].tolist() for i in range(200)]
    even = [int((i + 0.5) * count / budget) for i in range(budget)]
    return {
        "MBTL": covered(scores, chosen(scores, budget, run)),
        "random": float(np.mean([covered(scores, draw) for draw in draws])),
        "evenly spaced": covered(scores, even),
        "every task by itself": float(scores.diagonal().mean()),
    }


def balanced(weights: np.ndarray, length: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Share of the steps that linear policies `[n, 4]` keep poles of half-lengths `[n]` up, of gym's CartPole."""
    x, v, angle, spin = (start[..., i].copy() for i in range(4))
    alive, total = np.ones(x.shape, dtype=bool), np.zeros(x.shape)
    for _ in range(HORIZON):
        state = np.stack([x, v, angle, spin], -1)
        push = np.where((weights * state).sum(-1) > 0, 10.0, -10.0)
        cosine, sine = np.cos(angle), np.sin(angle)
        force = (push + 0.1 * length * spin**2 * sine) / 1.1
        turn = (9.8 * sine - cosine * force) / (length * (4 / 3 - 0.1 * cosine**2 / 1.1))
        x, angle = x + 0.02 * v, angle + 0.02 * spin
        v, spin = v + 0.02 * (force - 0.1 * length * turn * cosine / 1.1), spin + 0.02 * turn
        # Where the pole is down, the state no longer matters; it is kept from overflowing.
        alive &= (np.abs(x) < 2.4) & (np.abs(angle) < 12 * math.pi / 180)
        x, v, angle, spin = (np.where(alive, value, 0.0) for value in (x, v, angle, spin))
        total += alive
    return total / HORIZON


def cartpole(run: Run) -> np.ndarray:
    """`[source, target]` performance: a linear policy for each pole, by the cross-entropy method, on every pole."""
    generator = np.random.default_rng(run.seed_for("cartpole"))
    length = np.geomspace(0.05, 5.0, TASKS)
    mean, spread = np.zeros((TASKS, 4)), np.ones((TASKS, 4))
    for _ in range(5):
        policies = mean[:, None] + spread[:, None] * generator.normal(size=(TASKS, 24, 4))
        start = generator.uniform(-0.05, 0.05, size=(TASKS, 24, 4))
        reached = balanced(policies, length[:, None], start)
        best = np.take_along_axis(policies, reached.argsort(1)[:, -4:, None], 1)
        mean, spread = best.mean(1), best.std(1) + 0.1
    start = generator.uniform(-0.05, 0.05, size=(TASKS, TASKS, 20, 4))
    return balanced(mean[:, None, None], length[None, :, None], start).mean(2)


def landscapes(run: Run, count: int = 10, tasks: int = 60) -> list[np.ndarray]:
    """Made-up ones: a smooth own performance that falls steeply, by 4 of a range of 1, over the whole range."""
    made = []
    for number in range(count):
        generator = np.random.default_rng(run.seed_for("landscape", number))
        x = np.linspace(0, 1, tasks)
        own = sum(generator.normal() * np.cos(np.pi * k * x + generator.uniform(0, 6)) / k for k in range(1, 5))
        own = (own - own.min()) / np.ptp(own)
        made.append(np.clip(own[:, None] - 4.0 * np.abs(x[:, None] - x[None]), 0, 1))
    return made


def over_landscapes(run: Run) -> dict[str, float]:
    found = [arms(scores, 5, run) for scores in landscapes(run)]
    return {name: float(np.mean([row[name] for row in found])) for name in found[0]}


@claim(
    "S001",
    says="Policies for four poles of MBTL's choice serve CartPole with poles of 20 lengths better than for random.",
    ours="MBTL", baseline="random", metric="share of steps balanced, mean over all poles", least=0.02,
    tier="a minute", tuned=TUNED,
    shrunk="20 lengths in place of 100, and linear policies by the cross-entropy method in place of PPO",
)  # fmt: skip
def cartpole_better_than_random(run: Run) -> dict[str, float]:
    return arms(cartpole(run), BUDGET, run)


@claim(
    "S001",
    says="Where performance falls steeply with distance, five tasks of MBTL's choice serve all better than random.",
    ours="MBTL", baseline="random", metric="performance in 0..1, mean over all tasks", least=0.02, tier="a minute",
    tuned=TUNED, shrunk="10 made-up landscapes of 60 tasks a seed in place of trained policies",
)  # fmt: skip
def steep_better_than_random(run: Run) -> dict[str, float]:
    return over_landscapes(run)


@claim(
    "S001",
    says="Where performance falls steeply with distance, MBTL's choice is better than evenly spaced tasks.",
    ours="MBTL", baseline="evenly spaced", metric="performance in 0..1, mean over all tasks", least=0.02,
    tier="a minute", tuned=TUNED, shrunk="10 made-up landscapes of 60 tasks a seed in place of trained policies",
)  # fmt: skip
def steep_better_than_even(run: Run) -> dict[str, float]:
    return over_landscapes(run)
