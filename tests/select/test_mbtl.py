from __future__ import annotations

import numpy as np
import pytest
import torch

from homeostat.core.errors import InputError
from homeostat.core.reading import Reading
from homeostat.core.run import Run
from homeostat.core.trace import Entry, Trace
from homeostat.select import MBTL
from homeostat.select.mbtl import estimated_slope, predicted_gains, scaled_contexts


def landscape(seed: int, slope: float, count: int = 60) -> np.ndarray:
    """`[source, target]` performances: a smooth own performance that falls with distance."""
    generator = np.random.default_rng(seed)
    x = np.linspace(0, 1, count)
    own = sum(generator.normal() * np.cos(np.pi * k * x + generator.uniform(0, 6)) / k for k in range(1, 5))
    own = (own - own.min()) / np.ptp(own)
    return np.clip(own[:, None] - slope * np.abs(x[:, None] - x[None]), 0, 1)


def rounds(chooser, scores: np.ndarray, count: int) -> list[int]:
    trace, chosen = Trace(), []
    for step in range(count):
        index = chooser(trace, list(range(len(scores))), run=Run(seed=0))
        chosen.append(index)
        reading = Reading("performance", float(scores[index].mean()), arrays={"targets": torch.tensor(scores[index])})
        trace = trace.add(Entry(step, str(index), readings=(reading,)))
    return chosen


@pytest.mark.exact("S001")
def test_the_acquisition_equals_a_double_loop():
    generator = np.random.default_rng(0)
    optimistic, best = generator.random(7), generator.random(7)
    distance = np.abs(np.arange(7)[:, None] - np.arange(7)[None]) / 6
    by_hand = [np.mean([max(optimistic[i] - 0.5 * distance[i, j] - best[j], 0) for j in range(7)]) for i in range(7)]
    assert np.allclose(predicted_gains(optimistic, distance, 0.5, best), by_hand)


def test_the_slope_of_exactly_linear_transfers_is_found():
    distance = np.abs(np.arange(9)[:, None] - np.arange(9)[None]) / 8
    scores = np.stack([0.9 - 0.4 * distance[2], 0.7 - 0.4 * distance[6]])
    assert np.isclose(estimated_slope(distance, [2, 6], scores), 0.4)


def test_the_first_choice_is_the_middle_and_none_repeats():
    chosen = rounds(MBTL(), landscape(0, 1.0), 12)
    assert chosen[0] == 29 and len(set(chosen)) == 12


def test_few_chosen_sources_beat_random_ones_on_steep_landscapes():
    gains = []
    for seed in range(12):
        scores = landscape(seed, 4.0)
        mine = scores[rounds(MBTL(restarts=0), scores, 5)].max(0).mean()
        generator = np.random.default_rng(seed)
        random = np.mean([scores[generator.choice(60, 5, replace=False)].max(0).mean() for _ in range(40)])
        gains.append(mine - random)
    error = np.std(gains, ddof=1) / np.sqrt(len(gains))
    assert np.mean(gains) - 2 * error > 0


def test_the_floor_of_far_targets_does_not_flatten_the_slope():
    distance = np.abs(np.arange(41)[:, None] - np.arange(41)[None]) / 40
    scores = np.clip(0.8 - 3.0 * distance[[20]], 0, 1)
    assert np.isclose(estimated_slope(distance, [20], scores), 3.0, rtol=0.02)


def test_contexts_of_several_dimensions_are_scaled_each():
    assert scaled_contexts([(0, 10, 5), (4, 20, 5)]).tolist() == [[0, 0, 0], [1, 1, 0]]


def test_refusals():
    scores = landscape(0, 1.0, 3)
    with pytest.raises(InputError, match="all 3 tasks are trained"):
        rounds(MBTL(), scores, 4)
    with pytest.raises(InputError, match="no options"):
        MBTL()(Trace(), [])
    with pytest.raises(InputError, match="numbers or tuples"):
        MBTL()(Trace(), ["left", "right"])
    with pytest.raises(InputError, match="subject is the source's index"):
        MBTL()(Trace((Entry(0, "one", readings=(Reading("performance", 0.0),)),)), [0, 1])
