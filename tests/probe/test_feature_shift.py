"""Feature shift: the Gaussian score in closed form, its null, and finding the sensor that was tampered with."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.optimize import brentq
from scipy.stats import beta, binom, ks_2samp, norm
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from homeostat.core.errors import InputError
from homeostat.core.probe import Outputs
from homeostat.core.reading import Finding, Reading
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.probe import KS, FeatureShift, gaussian_score, knn_scores, score_difference
from homeostat.probe.feature_shift import gaussian, moved_by

SMALL = FeatureShift(bootstraps=200, window=150, reference=200)


def measured(probe: FeatureShift | KS, x: Tensor, kit: nn.Module, seed: int = 0) -> Reading:
    return probe.measure(Outputs(None, None, torch.arange(len(x)), x=x), World(), kit, Run(seed))


def found(reading: Reading) -> Finding:
    assert reading.finding is not None
    return reading.finding


def fitted(features: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of some Gaussian."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(features, features, generator=generator, dtype=torch.float64)
    mean = torch.randn(features, generator=generator, dtype=torch.float64)
    return mean, root @ root.T + 0.3 * torch.eye(features, dtype=torch.float64)


def walk(count: int, features: int, seed: int) -> Tensor:
    """Rows whose columns are correlated: a random walk across columns."""
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed)).cumsum(1)


def permuted(x: Tensor, column: int, seed: int = 0) -> Tensor:
    """The rows with one column's values put in another order: its histogram stays, its relations break."""
    x = x.clone()
    x[:, column] = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)), column]
    return x


@given(st.integers(1, 6), st.integers(0, 999))
@pytest.mark.exact("S290")
def test_the_score_is_the_gradient_of_torchs_log_density(features, seed):
    mean, covariance = fitted(features, seed)
    x = torch.randn(5, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()
    (wanted,) = torch.autograd.grad(MultivariateNormal(mean, covariance).log_prob(x).sum(), x)
    torch.testing.assert_close(gaussian_score(x.detach(), mean, covariance), wanted, rtol=1e-8, atol=1e-8)


@given(st.integers(2, 6), st.integers(0, 999))
def test_a_features_score_is_that_of_its_conditional_given_the_others(features, seed):
    mean, covariance = fitted(features, seed)
    x = torch.randn(3, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    score = gaussian_score(x, mean, covariance)
    for j in range(features):
        rest = [k for k in range(features) if k != j]
        slope = torch.linalg.solve(covariance[rest][:, rest], covariance[rest, j])
        centre = mean[j] + (x[:, rest] - mean[rest]) @ slope
        variance = covariance[j, j] - covariance[j, rest] @ slope
        torch.testing.assert_close(score[:, j], -(x[:, j] - centre) / variance, rtol=1e-7, atol=1e-7)


def test_the_closed_form_is_the_mean_over_points_drawn_from_both_gaussians():
    p, q = fitted(4, 0), fitted(4, 1)
    generator = torch.Generator().manual_seed(0)
    points = []
    for mean, covariance in (p, q):
        white = torch.randn(200_000, 4, generator=generator, dtype=torch.float64)
        points.append(mean + white @ torch.linalg.cholesky(covariance).T)
    x = torch.cat(points)
    wanted = (gaussian_score(x, *p) - gaussian_score(x, *q)).square().mean(0)
    torch.testing.assert_close(score_difference(*p, *q), wanted, rtol=0.02, atol=0)


@given(st.integers(1, 5), st.integers(0, 999))
def test_the_difference_is_zero_for_one_gaussian_symmetric_and_batched(features, seed):
    p, q = fitted(features, seed), fitted(features, seed + 1)
    assert float(score_difference(*p, *p).max()) < 1e-9 * float(torch.linalg.inv(p[1]).diagonal().max())
    torch.testing.assert_close(score_difference(*p, *q), score_difference(*q, *p), rtol=1e-8, atol=1e-8)
    means, covariances = torch.stack([p[0], q[0]]), torch.stack([p[1], q[1]])
    both = score_difference(means, covariances, means.flip(0), covariances.flip(0))
    torch.testing.assert_close(both[0], score_difference(*p, *q), rtol=1e-8, atol=1e-8)


@pytest.mark.exact("S290")
def test_one_feature_with_a_moved_mean_is_worked_out_by_hand():
    one = torch.ones(1, 1, dtype=torch.float64)
    moved = score_difference(torch.zeros(1).double(), 2 * one, torch.ones(1).double(), 2 * one)
    assert math.isclose(float(moved), 0.25)  # (1 / 2 - 0)^2 under either


def test_the_fitted_gaussian_is_numpys_with_the_ridge():
    x = walk(50, 3, 0).double()
    mean, covariance = gaussian(x, 0.1)
    np.testing.assert_allclose(mean, x.mean(0))
    np.testing.assert_allclose(covariance, np.cov(x.numpy(), rowvar=False) + 0.1 * np.eye(3))


@pytest.mark.parametrize("bootstrap", ["simple", "time"])
def test_false_alarms_are_as_rare_as_stated(bootstrap):
    probe = SMALL.replace(bootstrap=bootstrap, min_effect=0.0)
    kits, windows, alarms = 15, 20, 0
    for k in range(kits):
        kit = probe.prepare(None, World(source=walk(40 * 350, 4, k)), Run(k))
        alarms += sum(found(measured(probe, walk(150, 4, 1000 + 50 * k + w), kit)).detected for w in range(windows))
    assert alarms <= binom.ppf(0.9999, kits * windows, 0.05)


def test_the_column_that_was_permuted_is_named_though_its_histogram_is_the_same():
    source = walk(600, 6, 0)
    kit, blind = SMALL.prepare(None, World(source=source), Run()), KS(on="x")
    columns = blind.prepare(None, World(source=source), Run())
    for j in range(6):
        x = walk(150, 6, 10 + j)
        said = found(measured(SMALL, permuted(x, j), kit))
        assert said.detected and said.subjects == (j,)
        assert measured(blind, permuted(x, j), columns).value == measured(blind, x, columns).value


def test_as_many_features_are_named_as_the_budget_allows():
    def common(count: int, seed: int) -> Tensor:
        noise = torch.randn(count, 7, generator=torch.Generator().manual_seed(seed))
        return 0.7 * noise[:, :6] + noise[:, 6:]

    source, x = common(600, 0), permuted(permuted(common(150, 1), 1, 0), 4, 1)
    probe = SMALL.replace(budget=2)
    said = found(measured(probe, x, probe.prepare(None, World(source=source), Run())))
    assert set(said.subjects) == {1, 4}


def test_units_and_offsets_do_not_matter():
    source, x = walk(400, 4, 0).double(), permuted(walk(150, 4, 1), 2).double()
    scale, offset = torch.tensor([1e3, 1.0, 1e-3, 7.0]).double(), torch.tensor([5.0, -100.0, 0.0, 2.0]).double()
    plain = measured(SMALL, x, SMALL.prepare(None, World(source=source), Run()))
    moved = measured(SMALL, x * scale + offset, SMALL.prepare(None, World(source=source * scale + offset), Run()))
    assert math.isclose(plain.value, moved.value, rel_tol=1e-6)


def test_a_column_that_is_constant_alarms_only_when_it_moves():
    source, x = torch.cat([walk(400, 3, 0), torch.ones(400, 1)], 1), torch.cat([walk(150, 3, 1), torch.ones(150, 1)], 1)
    kit = SMALL.prepare(None, World(source=source), Run())
    assert float(measured(SMALL, x, kit).arrays["p_value"][3]) == 1.0
    x[:, 3] += 0.1
    said = found(measured(SMALL, x, kit))
    assert said.detected and said.subjects == (3,)


def test_a_window_of_another_size_gets_a_null_of_its_own():
    probe = SMALL.replace(min_effect=0.0)
    kit = probe.prepare(None, World(source=walk(2000, 4, 0)), Run())
    alarms = sum(found(measured(probe, walk(60, 4, 100 + w), kit)).detected for w in range(60))
    assert alarms <= binom.ppf(0.999, 60, 0.05)
    # With the null of windows of 150 most windows of 60 would alarm: their scores are larger.
    null_150, reading = kit["null"], measured(probe, walk(60, 4, 100), kit)
    assert bool((reading.arrays["score"] > null_150.mean(0)).all())


def test_what_is_too_small_is_refused_with_the_number_needed():
    source = walk(400, 6, 0)
    with pytest.raises(InputError, match=r"100 bootstraps .* 6 features; give bootstraps=119 or more"):
        SMALL.replace(bootstraps=100).prepare(None, World(source=source), Run())
    SMALL.replace(bootstraps=119).prepare(None, World(source=source), Run())
    with pytest.raises(InputError, match=r"at least 14 samples of source\.x \(6 features\); got 13"):
        SMALL.prepare(None, World(source=source[:13]), Run())
    with pytest.raises(InputError, match=r"at least 14 samples a window .* got 10"):
        SMALL.replace(window=10).prepare(None, World(source=source), Run())
    with pytest.raises(InputError, match=r"at least 1400 samples of source\.x .* got 400"):
        SMALL.replace(bootstrap="time").prepare(None, World(source=source), Run())
    with pytest.raises(InputError, match=r"at least 14 samples in the window .* got 5"):
        SMALL(None, World(source=source, target=source[:5]))


def test_neighbours_are_scikit_learns_and_their_distances_scipys():
    x, y = walk(80, 3, 0).double(), (1.5 * walk(70, 3, 1)).double()
    found_scores = knn_scores(x, y, 5, 20, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    points = torch.cat([s[torch.randint(len(s), (5,), generator=generator)] for s in (x, y)]).numpy()
    for j in range(3):
        near = []
        for sample in (x.numpy(), y.numpy()):
            index = NearestNeighbors(n_neighbors=20).fit(np.delete(sample, j, 1))
            near.append(sample[index.kneighbors(np.delete(points, j, 1), return_distance=False), j])
        wanted = np.mean([ks_2samp(a, b).statistic for a, b in zip(*near, strict=True)])
        assert math.isclose(float(found_scores[j]), wanted, abs_tol=1e-12)


def test_neighbours_find_a_dependence_that_covariances_cannot_see():
    def ring(count: int, seed: int) -> Tensor:
        noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
        x = noise[:, 0]
        return torch.stack([x, x.square() + 0.2 * noise[:, 1]], 1)  # uncorrelated, and yet bound together

    probe = FeatureShift(
        statistic="knn", bootstraps=60, window=200, reference=200, expectation=10, neighbors=20, level=0.05
    )
    gauss = probe.replace(statistic="score")
    kit, blind = (p.prepare(None, World(source=ring(600, 0)), Run()) for p in (probe, gauss))
    assert found(measured(probe, permuted(ring(200, 1), 1), kit)).detected
    assert not found(measured(probe, ring(200, 2), kit)).detected
    assert not found(measured(gauss, permuted(ring(200, 1), 1), blind)).detected


@given(st.floats(0.01, 3.0))
def test_a_distance_becomes_the_move_of_a_normal_that_has_it(move):
    grid = np.linspace(-6, 9, 20_001)
    distance = float(np.abs(norm.cdf(grid) - norm.cdf(grid - move)).max())
    assert math.isclose(float(moved_by(torch.tensor(distance, dtype=torch.float64))), move, rel_tol=1e-4)
    assert float(moved_by(torch.tensor(-distance))) == 0


def test_neighbours_do_not_keep_quiet_about_a_shift_among_many_features():
    # In wide neighbourhoods the distance exceeds its null by less than 0.1 although the dependence is gone.
    def common(count: int, seed: int) -> Tensor:
        noise = torch.randn(count, 9, generator=torch.Generator().manual_seed(seed))
        return 1.5 * noise[:, :8] + noise[:, 8:]

    probe = FeatureShift(statistic="knn", bootstraps=160, window=300, reference=300, expectation=15, neighbors=60)
    kit, x = probe.prepare(None, World(source=common(900, 0)), Run()), permuted(common(300, 1), 3)
    reading = measured(probe, x, kit)
    beyond = reading.arrays["score"] - kit["null"].mean(0)
    assert found(reading).subjects == (3,) and float(beyond.max()) < 0.1


def copula(count: int, covariance: np.ndarray, generator: np.random.Generator) -> Tensor:
    """Gaussian copula with Beta(1/2, 1/2) margins."""
    normal = generator.multivariate_normal(np.zeros(len(covariance)), covariance, size=count)
    return torch.from_numpy(beta.ppf(norm.cdf(normal / np.sqrt(np.diag(covariance))), 0.5, 0.5))


def test_the_papers_copula_with_a_permuted_sensor_is_found_and_located():
    # 5 x 5 sensors, all connected with one weight; the middle one has a mutual information of 0.2 with the rest.
    size = 25

    def precision(weight: float) -> np.ndarray:
        return np.eye(size) + weight * (np.ones((size, size)) - np.eye(size))

    def information(weight: float) -> float:
        return 0.5 * math.log(np.linalg.inv(precision(weight))[12, 12] * precision(weight)[12, 12])

    covariance = np.linalg.inv(precision(brentq(lambda w: information(w) - 0.2, 0.0, 0.999)))
    generator = np.random.default_rng(0)
    probe = FeatureShift()
    kit = probe.prepare(None, World(source=copula(1000, covariance, generator)), Run())
    hits = right = alarms = 0
    for trial in range(15):
        x, column = copula(1000, covariance, generator), int(generator.integers(size))
        alarms += found(measured(probe, x, kit)).detected
        said = found(measured(probe, permuted(x, column, trial), kit))
        hits, right = hits + said.detected, right + (said.subjects == (column,))
    # The paper's own code on 60 trials: recall 1.00, right column 0.95, false alarms 0.05 to 0.13.
    assert hits == 15 and right >= 13 and alarms <= 4
