"""Calibration error: hand-worked bins, and an interval that holds the truth where a plug-in estimate does not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.stats import binom
from torch import Tensor

from homeostat.core.probe import Outputs
from homeostat.core.reading import Reading
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.probe import ECE, expected_calibration_error, mass_bins, width_bins
from homeostat.probe.intervals import absolute_sum, grouped_noise


def measured(probe: ECE, logits: Tensor, y: Tensor) -> Reading:
    return probe.measure(Outputs(logits, y, torch.arange(len(logits))), World(), None, Run())


def drawn(count: int, seed: int, temperature: float = 1.0, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Labels drawn from the softmax of logits that are reported divided by a temperature."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return logits / temperature, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


def test_a_hand_worked_example_in_five_bins():
    confidence = torch.tensor([0.55, 0.58, 0.65, 0.75, 0.95, 0.90], dtype=torch.float64)
    right = torch.tensor([True, False, True, False, True, True])
    # (0.4, 0.6]: mean confidence 0.565, accuracy 0.5, 2 samples; (0.6, 0.8]: 0.70, 0.5, 2; (0.8, 1]: 0.925, 1, 2.
    wanted = (0.065 + 0.20 + 0.075) / 3
    logits = torch.stack([confidence, 1 - confidence], 1).log()
    reading = measured(ECE(bins=5), logits, (~right).long())
    assert math.isclose(reading.value, wanted, rel_tol=1e-12)
    assert reading.arrays["count"].tolist() == [0, 0, 2, 2, 2]
    assert reading.arrays["accuracy"].tolist() == [0, 0, 0.5, 0.5, 1]
    assert math.isclose(expected_calibration_error(confidence, right, width_bins(confidence, 5)), wanted)


def test_bins_of_equal_width_are_closed_on_the_right():
    confidence = torch.tensor([0.2, 0.2000001, 0.4, 1.0, 0.01], dtype=torch.float64)
    assert width_bins(confidence, 5).tolist() == [0, 1, 1, 4, 0]


@given(st.integers(2, 300), st.integers(1, 20), st.integers(0, 99))
def test_bins_of_equal_mass_differ_by_at_most_one_sample(count, bins, seed):
    confidence = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sizes = torch.bincount(mass_bins(confidence, bins), minlength=bins)
    if count >= bins:
        assert int(sizes.max() - sizes.min()) <= 1
    else:
        assert int(sizes.max()) == 1


def test_equal_confidences_share_a_bin_so_that_order_cannot_matter():
    confidence = torch.tensor([0.5] * 7 + [0.9] * 3, dtype=torch.float64)
    assert len(mass_bins(confidence, 4)[:7].unique()) == 1


@pytest.mark.parametrize("adaptive", [False, True])
@given(st.integers(2, 80), st.integers(1, 20), st.integers(0, 999))
def test_order_does_not_matter_and_the_error_is_at_most_the_largest_gap(adaptive, count, bins, seed):
    logits, y = drawn(count, seed)
    reading = measured(ECE(bins=bins, adaptive=adaptive), logits, y)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    again = measured(ECE(bins=bins, adaptive=adaptive), logits[order], y[order])
    assert math.isclose(again.value, reading.value, abs_tol=1e-12)
    confidence, predicted = logits.softmax(1).max(1)
    assert reading.value <= float(((predicted == y).double() - confidence).abs().mean()) + 1e-12
    assert reading.interval is not None
    assert 0 <= reading.interval.low <= reading.value <= reading.interval.high


def test_one_bin_is_the_gap_of_the_means():
    logits, y = drawn(50, 3)
    confidence, predicted = logits.softmax(1).max(1)
    wanted = abs(float(confidence.mean()) - float((predicted == y).double().mean()))
    assert math.isclose(measured(ECE(bins=1), logits, y).value, wanted)
    assert math.isclose(measured(ECE(bins=1, adaptive=True), logits, y).value, wanted)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_the_interval_covers_the_binned_error_at_least_as_often_as_stated(adaptive, temperature):
    logits, y = drawn(200_000, 10_000, temperature)
    confidence, predicted = logits.softmax(1).max(1)
    which = mass_bins(confidence, 15) if adaptive else width_bins(confidence, 15)
    truth = expected_calibration_error(confidence, predicted == y, which)
    runs, hits = 100, 0
    for seed in range(runs):
        interval = measured(ECE(adaptive=adaptive), *drawn(500, seed, temperature)).interval
        assert interval is not None
        hits += truth in interval
    assert hits >= binom.ppf(0.001, runs, 0.95)


def test_a_calibrated_network_has_zero_in_its_interval_though_it_reads_a_positive_error():
    readings = [measured(ECE(), *drawn(500, seed)) for seed in range(50)]
    assert min(r.value for r in readings) > 0.01
    assert sum(r.interval is not None and r.interval.low < 0.002 for r in readings) >= 45


def test_simulated_noise_has_the_covariance_of_grouped_means():
    generator = torch.Generator().manual_seed(0)
    group = torch.tensor([0, 0, 0, 1, 1, 2])
    value = torch.tensor([0.5, -0.2, 0.1, 0.9, 0.8, -0.4], dtype=torch.float64)
    table = torch.zeros(6, 4, dtype=torch.float64)
    table[torch.arange(6), group] = value  # the last group is empty
    noise = grouped_noise(table.mean(0), table.square().mean(0), 50, generator, 200_000)
    wanted = np.cov(table.numpy(), rowvar=False, bias=True) / 50
    np.testing.assert_allclose(np.cov(noise.numpy(), rowvar=False), wanted, atol=3e-5)


def test_far_from_zero_the_interval_of_an_absolute_sum_is_the_normal_one():
    estimate = torch.tensor([3.0, -2.0], dtype=torch.float64)
    noise = 0.1 * torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    interval = absolute_sum(estimate, noise, 100)
    half = 1.96 * 0.1 * math.sqrt(2)
    assert abs(interval.low - (5 - half)) < 0.005 and abs(interval.high - (5 + half)) < 0.005
