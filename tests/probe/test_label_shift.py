"""The class balance now: BBSE and expectation-maximisation, where the answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.optimize import minimize
from scipy.stats import binom, chi2_contingency
from torch import Tensor, nn

from homeostat.core.errors import InputError
from homeostat.core.probe import Outputs, Probe
from homeostat.core.reading import Reading
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.probe import BBSE, SaerensEM, bbse_weights, em_prior
from homeostat.probe.label_shift import histogram_test

ESTIMATES = [BBSE(), BBSE(soft=True), SaerensEM()]


def named(probe: Probe) -> str:
    return f"{type(probe).__name__}{'-soft' if probe.fields().get('soft') else ''}"


def drawn(count: int, prior: tuple[float, ...], seed: int, apart: float = 2.0) -> tuple[Tensor, Tensor]:
    """Labels from a prior, and the exact log-posterior under a uniform one, up to a constant."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.multinomial(torch.tensor(prior), count, replacement=True, generator=generator)
    x = torch.randn(count, len(prior), generator=generator, dtype=torch.float64)
    x[torch.arange(count), y] += apart
    return apart * x, y


UNIFORM = (1 / 3, 1 / 3, 1 / 3)


def estimated(probe: Probe, source: tuple[Tensor, Tensor], window: Tensor) -> Reading:
    kit = probe.prepare(nn.Identity(), World(source=source), Run())
    return probe.measure(Outputs(window, None, torch.arange(len(window))), World(), kit, Run())


@given(st.integers(2, 5), st.integers(0, 999))
def test_bbse_recovers_the_prior_exactly_when_the_confusion_is_known(classes, seed):
    generator = torch.Generator().manual_seed(seed)
    given_class = (
        torch.rand(classes, classes, generator=generator, dtype=torch.float64) + 2 * torch.eye(classes)
    ).softmax(0)
    old, new = torch.rand(2, classes, generator=generator, dtype=torch.float64).softmax(1)
    weights = bbse_weights(given_class * old, given_class @ new)
    torch.testing.assert_close(weights * old, new)


def test_where_the_solution_would_be_negative_it_is_the_constrained_least_squares_one():
    given_class = torch.tensor([[0.8, 0.3, 0.1], [0.1, 0.6, 0.2], [0.1, 0.1, 0.7]], dtype=torch.float64)
    old, seen = (
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        torch.tensor([0.95, 0.03, 0.02], dtype=torch.float64),
    )
    assert bool((torch.linalg.solve(given_class, seen) < 0).any())
    prior = (bbse_weights(given_class * old, seen) * old).numpy()
    wanted = minimize(
        lambda q: np.square(given_class.numpy() @ q - seen.numpy()).sum(),
        np.full(3, 1 / 3),
        bounds=[(0, 1)] * 3,
        constraints={"type": "eq", "fun": lambda q: q.sum() - 1},
        tol=1e-12,
    ).x
    np.testing.assert_allclose(prior, wanted, atol=1e-5)
    assert math.isclose(prior.sum(), 1.0)


def test_em_finds_the_largest_likelihood():
    logits, _ = drawn(200, (0.7, 0.2, 0.1), 0, apart=1.0)
    p, old = logits.softmax(1), torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    found = em_prior(p, old, 10_000, 1e-12)
    ratio = (p / old).numpy()
    wanted = minimize(
        lambda q: -np.log(ratio @ q).sum(),
        old.numpy(),
        bounds=[(1e-9, 1)] * 3,
        constraints={"type": "eq", "fun": lambda q: q.sum() - 1},
        tol=1e-14,
    ).x
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@given(st.integers(10, 60), st.integers(2, 5), st.integers(0, 999), st.integers(1, 20))
def test_every_round_of_em_raises_the_likelihood_and_keeps_a_prior(count, classes, seed, rounds):
    logits, _ = drawn(count, (1 / classes,) * classes, seed, apart=0.7)
    p, old = logits.softmax(1), torch.full((classes,), 1 / classes, dtype=torch.float64)
    before, after = em_prior(p, old, rounds, 1e-300), em_prior(p, old, rounds + 1, 1e-300)
    assert math.isclose(float(after.sum()), 1.0) and float(after.min()) >= 0
    assert float((p / old @ after).log().mean()) >= float((p / old @ before).log().mean()) - 1e-12


@pytest.mark.parametrize("probe", ESTIMATES, ids=named)
def test_a_new_balance_is_estimated_and_found(probe):
    source, (window, _) = drawn(3000, UNIFORM, 0), drawn(2000, (0.6, 0.3, 0.1), 1)
    reading = estimated(probe, source, window)
    np.testing.assert_allclose(reading.arrays["prior"], [0.6, 0.3, 0.1], atol=0.03)
    assert abs(reading.value - (0.6 - 1 / 3)) < 0.04
    assert reading.finding is not None and reading.finding.detected and reading.finding.kind == "label"
    assert set(reading.finding.subjects[:2]) == {0, 2}


@pytest.mark.parametrize("probe", ESTIMATES, ids=named)
@given(st.integers(30, 200), st.integers(0, 999))
def test_the_new_prior_is_a_distribution_and_order_does_not_matter(probe, count, seed):
    source, (window, _) = drawn(300, UNIFORM, seed), drawn(count, (0.98, 0.01, 0.01), seed + 1, apart=0.8)
    reading = estimated(probe, source, window)
    prior = reading.arrays["prior"]
    assert float(prior.min()) >= 0 and math.isclose(float(prior.sum()), 1.0, rel_tol=1e-9)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(estimated(probe, source, window[order]).arrays["prior"], prior)


@pytest.mark.parametrize("window", [60, 400])
@pytest.mark.parametrize("probe", [BBSE(min_effect=0.0), SaerensEM(min_effect=0.0)], ids=named)
def test_false_alarms_are_as_rare_as_stated_also_in_windows_as_large_as_the_source(probe, window):
    runs, count = 120, 0
    for seed in range(runs):
        finding = estimated(probe, drawn(400, UNIFORM, 2 * seed), drawn(window, UNIFORM, 2 * seed + 1)[0]).finding
        assert finding is not None
        count += finding.detected
    assert count <= binom.ppf(0.999, runs, 0.05)


def test_em_is_more_precise_than_counting_predictions_when_classes_overlap():
    truth = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    errors = {named(probe): 0.0 for probe in ESTIMATES}
    for seed in range(20):
        source, (window, _) = (
            drawn(1000, UNIFORM, 2 * seed, apart=1.0),
            drawn(300, (0.6, 0.3, 0.1), 2 * seed + 1, apart=1.0),
        )
        for probe in ESTIMATES:
            errors[named(probe)] += float((estimated(probe, source, window).arrays["prior"] - truth).abs().sum())
    assert errors["SaerensEM"] < errors["BBSE-soft"] < errors["BBSE"]


def test_the_histogram_test_is_scipys_chi_square_where_no_class_is_rare():
    a, b = torch.tensor([20, 30, 50]), torch.tensor([200, 250, 300])
    wanted = chi2_contingency(torch.stack([a, b]).numpy(), correction=False).pvalue
    assert math.isclose(histogram_test(a, b), wanted, rel_tol=1e-9)


def test_rare_classes_are_pooled_for_the_test():
    a, b = torch.tensor([40, 50, 1, 1, 8]), torch.tensor([400, 500, 20, 15, 65])
    pooled = chi2_contingency([[40, 50, 8, 2], [400, 500, 65, 35]], correction=False).pvalue
    assert math.isclose(histogram_test(a, b), pooled, rel_tol=1e-9)
    assert histogram_test(torch.tensor([0, 30]), torch.tensor([0, 500])) == 1.0
    with pytest.raises(InputError, match=r"at least 2 classes .* got 1"):
        histogram_test(torch.tensor([2, 2, 1]), torch.tensor([200, 300, 100]))


def test_a_class_without_source_labels_and_a_network_that_mixes_classes_up_are_refused():
    logits, y = drawn(100, UNIFORM, 0)
    for probe in (BBSE(), SaerensEM()):
        with pytest.raises(InputError, match=r"every class .* classes \[2\] have no sample"):
            probe.prepare(nn.Identity(), World(source=(logits, y.clamp(max=1))), Run())
    same = torch.zeros(100, 3).index_fill_(1, torch.tensor([0]), 1.0)
    with pytest.raises(InputError, match=r"do not tell the classes apart.*soft=True, or use SaerensEM"):
        BBSE().prepare(nn.Identity(), World(source=(same, y)), Run())
