"""Accuracy without labels: identities on the source, and intervals where the estimates' assumptions hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.stats import binom
from torch import Tensor, nn

from homeostat.core.errors import MissingPart
from homeostat.core.probe import Outputs, Probe
from homeostat.core.reading import Reading
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.probe import ATC, AverageConfidence, DifferenceOfConfidences, atc_threshold

ESTIMATES = [AverageConfidence(), ATC(), ATC(score="confidence"), DifferenceOfConfidences()]


def named(probe: Probe) -> str:
    return f"{type(probe).__name__}-{probe.fields().get('score', '')}".rstrip("-")


def drawn(count: int, seed: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Labels drawn from the softmax of logits that are reported divided by a temperature."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return logits / temperature, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


def mixed(count: int, hard: float, seed: int) -> tuple[Tensor, Tensor]:
    """Sure samples and unsure ones, with labels drawn from the softmax; a share `hard` is unsure."""
    generator = torch.Generator().manual_seed(seed)
    unsure = torch.rand(count, 1, generator=generator) < hard
    top = torch.nn.functional.one_hot(torch.randint(4, (count,), generator=generator), 4).double()
    logits = 0.2 * torch.randn(count, 4, generator=generator, dtype=torch.float64) + torch.where(unsure, 0.3, 6.0) * top
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


def estimated(probe: Probe, source: tuple[Tensor, Tensor], window: Tensor, seed: int = 0) -> Reading:
    kit = probe.prepare(nn.Identity(), World(source=source), Run())
    return probe.measure(Outputs(window, None, torch.arange(len(window))), World(), kit, Run(seed))


def accuracy(data: tuple[Tensor, Tensor]) -> float:
    return float((data[0].argmax(1) == data[1]).double().mean())


@pytest.mark.parametrize("probe", ESTIMATES[1:], ids=named)
@given(st.integers(10, 200), st.integers(0, 999), st.sampled_from([0.5, 1.0, 2.0]))
def test_on_the_source_itself_the_estimate_is_the_sources_accuracy(probe, count, seed, temperature):
    source = drawn(count, seed, temperature)
    assert math.isclose(estimated(probe, source, source[0]).value, accuracy(source), abs_tol=1e-9)


def test_average_confidence_is_the_mean_of_the_largest_probability():
    window, _ = drawn(30, 0)
    p = np.exp(window.numpy())
    wanted = (p.max(1) / p.sum(1)).mean()
    assert math.isclose(AverageConfidence()(nn.Identity(), World(target=window)).value, wanted, rel_tol=1e-12)


def test_difference_of_confidences_is_the_hand_worked_one():
    source, window = drawn(50, 0, 0.5), drawn(40, 1)[0]
    fall = source[0].softmax(1).amax(1).mean() - window.softmax(1).amax(1).mean()
    reading = estimated(DifferenceOfConfidences(), source, window)
    assert math.isclose(reading.value, accuracy(source) - float(fall), rel_tol=1e-9)


def test_the_threshold_leaves_as_many_scores_below_as_there_are_errors():
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    assert atc_threshold(scores, torch.tensor([True, False, True, False])) == scores[2]
    assert atc_threshold(scores, torch.tensor([True] * 4)) == scores[0]
    assert atc_threshold(scores, torch.tensor([False] * 4)) == math.inf


@pytest.mark.parametrize("probe", ESTIMATES[1:], ids=named)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_without_shift_the_interval_covers_the_accuracy_as_often_as_stated(probe, temperature):
    truth, runs, hits = accuracy(drawn(300_000, 10_000)), 90, 0
    for seed in range(runs):
        source, window = drawn(150, seed, temperature), drawn(300, 1000 + seed, temperature)[0]
        interval = estimated(probe, source, window, seed).interval
        assert interval is not None
        hits += truth in interval
    low, high = binom.ppf([0.001, 0.9999], runs, 0.95)
    assert low <= hits <= high


def test_the_interval_of_a_threshold_covers_also_when_scores_say_nothing_about_errors():
    def guessed(count: int, seed: int) -> tuple[Tensor, Tensor]:
        logits, _ = drawn(count, seed)
        right = torch.rand(count, generator=torch.Generator().manual_seed(seed + 1)) < 0.6
        return logits, torch.where(right, logits.argmax(1), logits.argmin(1))

    runs, hits = 150, 0
    for seed in range(runs):
        interval = estimated(
            ATC(bootstraps=300), guessed(100, 2 * seed), guessed(1000, 10_000 + 2 * seed)[0], seed
        ).interval
        assert interval is not None
        hits += 0.6 in interval
    assert hits >= binom.ppf(0.001, runs, 0.95)


def test_average_confidence_covers_if_calibrated_and_fails_if_overconfident():
    truth, runs, hits = accuracy(drawn(300_000, 10_000)), 200, {1.0: 0, 0.5: 0}
    for temperature in hits:
        for seed in range(runs):
            interval = AverageConfidence()(nn.Identity(), World(target=drawn(150, seed, temperature)[0])).interval
            assert interval is not None
            hits[temperature] += truth in interval
    assert hits[1.0] >= binom.ppf(0.001, runs, 0.95)
    assert hits[0.5] == 0


@pytest.mark.parametrize("probe", ESTIMATES[1:], ids=named)
def test_estimates_follow_a_fall_of_accuracy_when_more_samples_are_hard(probe):
    source, window = mixed(3000, 0.2, 0), mixed(3000, 0.6, 1)
    assert accuracy(source) - accuracy(window) > 0.2
    assert abs(estimated(probe, source, window[0]).value - accuracy(window)) < 0.05


def test_thresholds_fail_when_every_sample_becomes_a_little_less_sure_and_confidence_does_not():
    # Logits shrink, and labels are drawn from the shrunken ones: calibrated, but all near the threshold.
    source, window = drawn(2000, 0), drawn(2000, 1, temperature=1.0)
    generator = torch.Generator().manual_seed(2)
    harder = window[0] / 2
    truth = accuracy((harder, torch.multinomial(harder.softmax(1), 1, generator=generator)[:, 0]))
    assert truth - estimated(ATC(), source, harder).value > 0.2
    assert abs(estimated(DifferenceOfConfidences(), source, harder).value - truth) < 0.03


@pytest.mark.parametrize("probe", ESTIMATES, ids=named)
@given(st.integers(2, 50), st.integers(0, 99))
def test_estimates_are_shares_inside_their_interval_and_order_does_not_matter(probe, count, seed):
    source, window = drawn(60, seed), 3 * drawn(count, seed + 1)[0]
    reading = estimated(probe, source, window)
    assert reading.interval is not None
    assert 0 <= reading.interval.low <= reading.interval.high <= 1 and 0 <= reading.value <= 1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    again = estimated(probe, source, window[order])
    assert math.isclose(again.value, reading.value, abs_tol=1e-12) and again.interval is not None
    assert math.isclose(again.interval.low, reading.interval.low, abs_tol=1e-9)


@pytest.mark.parametrize("probe", ESTIMATES[1:], ids=named)
def test_the_calibration_data_can_stand_for_the_source(probe):
    data, other, window = drawn(60, 0), drawn(60, 5), drawn(30, 1)[0]
    from_source = probe(nn.Identity(), World(source=data, target=window))
    from_calibration = probe.replace(split="calibration")(
        nn.Identity(), World(calibration=data, source=other, target=window)
    )
    assert from_calibration.value == from_source.value
    with pytest.raises(MissingPart, match=r"calibration\.y"):
        probe.replace(split="calibration")(nn.Identity(), World(source=data, target=window))
