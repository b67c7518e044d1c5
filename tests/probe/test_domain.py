"""The classifier two-sample test: a valid p-value whatever the classifier learnt."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.stats import binom
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from homeostat.core.probe import Outputs
from homeostat.core.reading import Finding, Reading
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.probe import ClassifierTwoSample, domain_scores, rank_test


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def measured(probe: ClassifierTwoSample, x: Tensor, kit: nn.Module, seed: int = 0) -> Reading:
    return probe.measure(Outputs(None, None, torch.arange(len(x)), x=x), World(), kit, Run(seed))


def found(reading: Reading) -> Finding:
    assert reading.finding is not None
    return reading.finding


@given(st.integers(2, 30), st.integers(2, 30), st.integers(0, 999), st.booleans())
def test_the_area_under_the_curve_is_scikit_learns(a, b, seed, ties):
    high, low = normal(a, seed=seed) + 0.3, normal(b, seed=seed + 1)
    if ties:
        high, low = high.round(), low.round()
    area, _ = rank_test(high, low)
    truth = np.r_[np.ones(a), np.zeros(b)]
    assert math.isclose(area, roc_auc_score(truth, torch.cat([high, low]).numpy()), abs_tol=1e-12)


def test_scores_are_of_rows_the_classifier_never_saw():
    window, reference = normal(40, 3), normal(60, 3, seed=1)
    scores = domain_scores(window, reference)
    changed = window.clone()
    changed[25] += 5.0  # held out: only its own score may move
    moved = (domain_scores(changed, reference)[0] - scores[0]).abs()
    assert [len(s) for s in scores] == [20, 30]
    assert float(moved[5]) > 0 and float(moved[torch.arange(20) != 5].max()) < 1e-12


@pytest.mark.parametrize("score", ["auc", "accuracy"])
def test_false_alarms_are_as_rare_as_stated_in_more_columns_than_training_rows(score):
    probe, kits, windows = ClassifierTwoSample(on="x", score=score, reference=60, min_effect=0.0), 30, 5
    count = 0
    for k in range(kits):
        kit = probe.prepare(None, World(source=normal(80, 70, seed=k)), Run(k))
        for w in range(windows):
            count += found(measured(probe, normal(40, 70, seed=1000 + 50 * k + w), kit, seed=w)).detected
    assert count <= binom.ppf(0.999, kits * windows, 0.05)


@pytest.mark.parametrize(("score", "shift"), [("auc", 1.0), ("accuracy", 1.5)])
def test_a_shift_of_the_mean_is_found(score, shift):
    probe = ClassifierTwoSample(on="x", score=score)
    kit = probe.prepare(None, World(source=normal(600, 4)), Run())
    offset = shift * torch.eye(4)[2]
    hits = [found(measured(probe, normal(100, 4, seed=s) + offset, kit, seed=s)).detected for s in range(1, 11)]
    assert sum(hits) >= 9


def test_the_area_approaches_that_of_the_best_classifier():
    probe = ClassifierTwoSample(on="x", reference=4000)
    kit = probe.prepare(None, World(source=normal(4000, 2)), Run())
    reading = measured(probe, normal(4000, 2, seed=1) + torch.tensor([1.0, 0.0]), kit)
    # Between N(1, 1) and N(0, 1) it is Phi(1 / sqrt 2) = 0.7602.
    assert abs(reading.value - 0.7602) < 0.02
    assert math.isclose(found(reading).effect or 0, reading.value - 0.5)


def test_a_shift_smaller_than_the_least_effect_is_no_finding():
    probe = ClassifierTwoSample(on="x", reference=4000)
    kit = probe.prepare(None, World(source=normal(4000, 2)), Run())
    said = found(measured(probe, normal(4000, 2, seed=1) + torch.tensor([0.2, 0.0]), kit))
    assert said.p_value is not None and said.p_value < 0.01 and not said.detected


def test_which_rows_train_goes_by_id_so_order_does_not_matter():
    probe, x = ClassifierTwoSample(on="x"), normal(50, 3, seed=1) + 0.5
    kit = probe.prepare(None, World(source=normal(100, 3)), Run())
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    straight = measured(probe, x, kit)
    mixed = probe.measure(Outputs(None, None, order, x=x[order]), World(), kit, Run())
    assert mixed.value == straight.value


def test_constant_columns_and_scales_do_not_matter():
    probe, source, x = ClassifierTwoSample(on="x"), normal(200, 2), normal(60, 2, seed=1) + 1
    scale = torch.tensor([1e4, 1e-4])
    kits = [
        probe.prepare(None, World(source=torch.cat([s, torch.ones(200, 1)], 1)), Run())
        for s in (source, source * scale)
    ]
    values = [
        measured(probe, torch.cat([w, torch.ones(60, 1)], 1), k).value
        for w, k in zip((x, x * scale), kits, strict=True)
    ]
    assert abs(values[0] - values[1]) < 0.01
