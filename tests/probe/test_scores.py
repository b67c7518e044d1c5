"""Accuracy, log-loss, Brier score and macro-F1: scikit-learn's numbers, and intervals that cover as stated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.stats import binom, binomtest
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss
from torch import Tensor

from homeostat.core.data import UNKNOWN
from homeostat.core.probe import Outputs, Probe
from homeostat.core.reading import Reading
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.probe import NLL, Accuracy, Brier, MacroF1, class_f1, wilson

SCORES = [Accuracy(), NLL(), Brier(), MacroF1()]


def seen(logits: Tensor, y: Tensor | None = None) -> Outputs:
    return Outputs(logits, y, torch.arange(len(logits)))


def measured(probe: Probe, logits: Tensor, y: Tensor, seed: int = 0) -> Reading:
    return probe.measure(seen(logits, y), World(), None, Run(seed))


def drawn(count: int, classes: int, seed: int, sharp: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits of a calibrated classifier and labels drawn from its probabilities."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharp * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


@given(st.integers(2, 200), st.integers(2, 6), st.integers(0, 999))
def test_values_are_scikit_learns(count, classes, seed):
    logits, y = drawn(count, classes, seed)
    p, predicted, every = logits.softmax(1).numpy(), logits.argmax(1).numpy(), list(range(classes))
    assert math.isclose(measured(Accuracy(), logits, y).value, accuracy_score(y.numpy(), predicted))
    assert math.isclose(measured(NLL(), logits, y).value, log_loss(y.numpy(), p, labels=every), rel_tol=1e-9)
    brier = brier_score_loss(np.eye(classes, dtype=int)[y.numpy()], p, scale_by_half=False) if classes > 2 else None
    brier = 2 * brier_score_loss(y.numpy(), p[:, 1], labels=every) if brier is None else brier
    assert math.isclose(measured(Brier(), logits, y).value, brier, rel_tol=1e-9)
    assert math.isclose(
        measured(MacroF1(), logits, y).value, f1_score(y.numpy(), predicted, average="macro"), rel_tol=1e-9
    )


def test_class_f1_is_scikit_learns_and_nan_for_a_class_that_never_occurs():
    logits, y = drawn(50, 4, 0)
    predicted = logits.argmax(1)
    ours = class_f1(y, predicted, 5)
    np.testing.assert_allclose(ours[:4], f1_score(y.numpy(), predicted.numpy(), average=None, labels=range(4)))
    assert bool(ours[4].isnan())


@given(st.integers(1, 400), st.data(), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_the_wilson_interval_is_scipys(count, data, level):
    hits = data.draw(st.integers(0, count))
    ours, scipys = wilson(hits, count, level), binomtest(hits, count).proportion_ci(level, "wilson")
    assert math.isclose(ours.low, scipys.low, abs_tol=1e-12) and math.isclose(ours.high, scipys.high, abs_tol=1e-12)


@pytest.mark.parametrize("probe", SCORES, ids=lambda p: type(p).__name__)
@given(st.integers(2, 60), st.integers(2, 5), st.integers(0, 999))
def test_order_does_not_matter_and_intervals_hold_the_value_and_stay_in_range(probe, count, classes, seed):
    logits, y = drawn(count, classes, seed)
    reading = measured(probe, logits, y)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    again = measured(probe, logits[order], y[order])
    assert math.isclose(again.value, reading.value, rel_tol=1e-12)
    assert reading.interval is not None and again.interval is not None
    assert math.isclose(again.interval.low, reading.interval.low, rel_tol=1e-9, abs_tol=1e-12)
    assert reading.interval.low - 1e-12 <= reading.value <= reading.interval.high + 1e-12
    assert reading.interval.low >= 0
    assert reading.interval.high <= {"nll": math.inf, "brier": 2.0}.get(reading.name, 1.0)


@pytest.mark.parametrize("probe", SCORES, ids=lambda p: type(p).__name__)
def test_unknown_labels_are_left_out(probe):
    logits, y = drawn(60, 3, 1)
    hidden = y.clone()
    hidden[40:] = UNKNOWN
    assert measured(probe, logits, hidden).value == measured(probe, logits[:40], y[:40]).value


@pytest.mark.parametrize("probe", SCORES, ids=lambda p: type(p).__name__)
def test_logits_and_log_probabilities_read_the_same_in_any_float_type(probe):
    logits, y = drawn(40, 3, 2)
    logits = logits.bfloat16().double()
    value = measured(probe, logits, y).value
    assert math.isclose(measured(probe, logits.log_softmax(1), y).value, value, rel_tol=1e-9)
    assert math.isclose(measured(probe, logits.bfloat16(), y).value, value, rel_tol=1e-5)


@pytest.mark.parametrize("probe", SCORES, ids=lambda p: type(p).__name__)
def test_the_interval_covers_the_truth_as_often_as_stated(probe):
    # The truth is the value on 300,000 samples of the same distribution, whose own error is negligible here.
    truth = measured(probe, *drawn(300_000, 4, 10_000)).value
    runs, hits = 400, 0
    for seed in range(runs):
        interval = measured(probe, *drawn(300, 4, seed)).interval
        assert interval is not None
        hits += truth in interval
    low, high = binom.ppf([0.001, 0.999], runs, 0.95)
    assert low <= hits <= high


@pytest.mark.parametrize("probe", [Accuracy(), MacroF1()], ids=lambda p: type(p).__name__)
def test_all_right_is_not_taken_for_certainty(probe):
    logits = torch.eye(2)[torch.arange(20) % 2]
    reading = measured(probe, logits, torch.arange(20) % 2)
    assert reading.value == 1.0 and reading.interval is not None
    # Wilson: with 20 of 20 right the lower end is n / (n + z^2).
    assert math.isclose(reading.interval.low, 20 / (20 + 1.959964**2), rel_tol=1e-6)


def test_macro_f1_intervals_of_rare_classes_are_wide():
    y = torch.cat([torch.zeros(95), torch.ones(5)]).long()
    rare = measured(MacroF1(), torch.eye(2)[y], y).interval
    even = measured(MacroF1(), torch.eye(2)[torch.arange(100) % 2], torch.arange(100) % 2).interval
    assert rare is not None and even is not None and rare.low < even.low - 0.05
