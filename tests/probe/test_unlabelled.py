"""Entropy, confidence and class balance: what can be said without labels."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, strategies as st
from scipy.stats import binom, entropy
from torch import Tensor, nn

from homeostat.core.errors import MissingPart
from homeostat.core.probe import Outputs, Probe
from homeostat.core.reading import Reading
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.probe import ClassBalance, Confidence, Entropy


def measured(probe: Probe, logits: Tensor, kit: nn.Module | None = None, seed: int = 0) -> Reading:
    return probe.measure(Outputs(logits, None, torch.arange(len(logits))), World(), kit, Run(seed))


def drawn(count: int, classes: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(count, classes, generator=generator, dtype=torch.float64)


@given(st.integers(2, 100), st.integers(2, 6), st.integers(0, 999))
def test_entropy_is_scipys_mean_and_lies_between_zero_and_log_k(count, classes, seed):
    logits = drawn(count, classes, seed)
    reading = measured(Entropy(), logits)
    assert math.isclose(reading.value, float(entropy(logits.softmax(1).numpy(), axis=1).mean()), rel_tol=1e-9)
    assert reading.interval is not None
    assert 0 <= reading.interval.low <= reading.value <= reading.interval.high <= math.log(classes) + 1e-12


def test_entropy_and_confidence_take_a_class_that_is_ruled_out():
    logits = torch.tensor([[0.0, 0.0, -math.inf]] * 2)
    assert math.isclose(measured(Entropy(), logits).value, math.log(2), rel_tol=1e-6)
    assert measured(Confidence(), logits).value == 0.5


@pytest.mark.parametrize("probe", [Entropy(), Confidence()], ids=lambda p: type(p).__name__)
def test_intervals_of_means_cover_as_often_as_stated(probe):
    truth = measured(probe, drawn(300_000, 4, 10_000)).value
    runs, hits = 300, 0
    for seed in range(runs):
        interval = measured(probe, drawn(100, 4, seed)).interval
        assert interval is not None
        hits += truth in interval
    low, high = binom.ppf([0.001, 0.999], runs, 0.95)
    assert low <= hits <= high


def test_a_hand_worked_balance_against_uniform():
    reading = measured(ClassBalance(), torch.eye(4)[[0] * 5 + [1] * 3 + [2] * 2])
    # shares .5 .3 .2 0 against .25: (.25 + .05 + .05 + .25) / 2
    assert math.isclose(reading.value, 0.3)
    assert reading.arrays["share"].tolist() == [0.5, 0.3, 0.2, 0.0]
    assert math.isclose(float(reading.arrays["entropy"]), float(entropy([0.5, 0.3, 0.2])), rel_tol=1e-9)


def test_a_collapse_onto_one_class_reads_nearly_one():
    assert math.isclose(measured(ClassBalance(), torch.eye(10)[[3] * 50]).value, 0.9)


def test_against_the_source_the_source_itself_is_at_distance_zero():
    source = drawn(200, 3, 0) + torch.tensor([2.0, 0.0, 0.0])
    probe = ClassBalance(against="source")
    kit = probe.prepare(nn.Identity(), World(source=source), Run())
    assert measured(probe, source, kit).value == 0.0
    assert measured(probe, source.roll(1, 1), kit).value > 0.2
    assert measured(ClassBalance(), source).value > 0.2


@pytest.mark.parametrize("against", ["uniform", "source"])
@pytest.mark.parametrize("shares", [(0.25, 0.25, 0.25, 0.25), (0.6, 0.2, 0.1, 0.1)])
def test_the_interval_covers_the_true_distance_at_least_as_often_as_stated(against, shares):
    probe, old = ClassBalance(against=against), torch.tensor([0.25] * 4)
    truth = float((torch.tensor(shares) - old).abs().sum()) / 2
    runs, hits = 100, 0
    for seed in range(runs):
        generator = torch.Generator().manual_seed(seed)

        def predicted(p: Tensor, count: int, generator: torch.Generator = generator) -> Tensor:
            return torch.eye(4)[torch.multinomial(p, count, replacement=True, generator=generator)]

        world = World(source=predicted(old, 150))
        kit = probe.prepare(nn.Identity(), world, Run())
        interval = measured(probe, predicted(torch.tensor(shares), 300), kit, seed).interval
        assert interval is not None
        hits += interval.low - 1e-9 <= truth <= interval.high + 1e-9
    assert hits >= binom.ppf(0.001, runs, 0.95)


def test_only_the_reference_that_is_used_is_asked_for():
    assert ClassBalance().prepares() == frozenset()
    assert ClassBalance(against="source").prepares() == {"source.x"}
    with pytest.raises(MissingPart, match=r"source\.x.*World\(source=x\)"):
        ClassBalance(against="source")(nn.Identity(), World(target=drawn(10, 3, 0)))
