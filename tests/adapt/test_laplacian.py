from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

from homeostat.adapt import LAME, lame
from homeostat.core.errors import ModelError


def slow_lame(
    p: Tensor, features: Tensor, affinity: str, k: int, lam: float, symmetric: bool, steps: int = 100
) -> list[list[float]]:
    """LAME with lists and loops."""
    n, classes = p.shape
    rows = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in features.tolist()]
    distance = [[math.sqrt(sum((a - b) ** 2 for a, b in zip(r, s, strict=True))) for s in rows] for r in rows]
    if affinity == "linear":
        weight = [[sum(a * b for a, b in zip(r, s, strict=True)) for s in rows] for r in rows]
    elif affinity == "rbf":
        sigma = sum(sorted(row)[min(k, n) - 1] for row in distance) / n
        weight = [[math.exp(-(d**2) / (2 * sigma**2)) for d in row] for row in distance]
    else:
        weight = [[0.0] * n for _ in range(n)]
        for i in range(n):
            for j in sorted((j for j in range(n) if j != i), key=lambda j: distance[i][j])[:k]:
                weight[i][j] = 1.0
    if symmetric:
        weight = [[(weight[i][j] + weight[j][i]) / 2 for j in range(n)] for i in range(n)]
    unary = [[-math.log(v + 1e-10) for v in row] for row in p.tolist()]

    def softmax(row: list[float]) -> list[float]:
        top = max(row)
        e = [math.exp(v - top) for v in row]
        return [v / sum(e) for v in e]

    z = [softmax([-u for u in row]) for row in unary]
    last = math.inf
    for step in range(steps):
        pull = [[lam * sum(weight[i][j] * z[j][c] for j in range(n)) for c in range(classes)] for i in range(n)]
        z = [softmax([a - u for a, u in zip(pull[i], unary[i], strict=True)]) for i in range(n)]
        energy = sum(
            z[i][c] * (unary[i][c] - pull[i][c] + math.log(max(z[i][c], 1e-20)))
            for i in range(n)
            for c in range(classes)
        )
        if step > 1 and abs(energy - last) <= 1e-8 * abs(last):
            break
        last = energy
    return z


def problem(n: int = 24, classes: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    p = torch.randn(n, classes, generator=draws, dtype=torch.float64).softmax(1)
    return p.to(dtype), torch.randn(n, 5, generator=draws, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("affinity", ["rbf", "knn", "linear"])
@pytest.mark.parametrize(("k", "lam", "symmetric"), [(5, 1.0, False), (3, 0.4, True)])
@pytest.mark.exact("S037")
def test_equals_the_definition_in_plain_loops(affinity, k, lam, symmetric, dtype, tolerance):
    p, features = problem(dtype=dtype)
    expected = torch.tensor(slow_lame(p, features, affinity, k, lam, symmetric), dtype=dtype)
    found = lame(p, features, affinity, k, lam, symmetric=symmetric)
    assert found.dtype == dtype and torch.allclose(found.exp(), expected, rtol=0, atol=tolerance)


@pytest.mark.exact("S037")
def test_three_samples_worked_by_hand():
    """Two equal rows and an orthogonal one, linear affinity: W = [[1,1,0],[1,1,0],[0,0,1]], one step."""
    p = torch.tensor([[0.8, 0.2], [0.4, 0.6], [0.5, 0.5]], dtype=torch.float64)
    phi = torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    z = lame(p, phi, "linear", max_steps=1).exp()
    first = 0.8 * math.exp(1.2), 0.2 * math.exp(0.8)
    second = 0.4 * math.exp(1.2), 0.6 * math.exp(0.8)
    expected = [[v / sum(first) for v in first], [v / sum(second) for v in second], [0.5, 0.5]]
    assert torch.allclose(z, torch.tensor(expected, dtype=torch.float64), atol=1e-9)


def test_k_counts_the_sample_itself_in_rbf():
    """With k = 1 the width is the distance to oneself, 0, so that only equal rows pull."""
    p, features = problem()
    assert torch.allclose(lame(p, features, "rbf", k=1).exp(), slow_self(p), atol=1e-9)


def slow_self(p: Tensor) -> Tensor:
    z = p
    for _ in range(100):
        z = ((p + 1e-10).log() + z).softmax(1)
    return z


@given(st.sampled_from(["rbf", "knn", "linear"]), st.integers(2, 30), st.integers(0, 99))
def test_samples_may_come_in_any_order(affinity, n, seed):
    p, features = problem(n, seed=seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(lame(p[order], features[order], affinity), lame(p, features, affinity)[order], atol=1e-6)


@given(st.sampled_from(["rbf", "knn", "linear"]), st.integers(1, 12), st.floats(0, 3))
def test_rows_are_log_probabilities(affinity, n, lam):
    p, features = problem(n)
    assert torch.allclose(lame(p, features, affinity, lam=lam).exp().sum(1), torch.ones(n, dtype=torch.float64))


def test_without_a_pull_nothing_changes():
    p, features = problem()
    assert torch.allclose(lame(p, features, lam=0.0).exp(), p, atol=1e-8)


def test_equal_and_zero_features_are_no_trouble():
    p, _ = problem()
    for features in (torch.ones(24, 3, dtype=torch.float64), torch.zeros(24, 3, dtype=torch.float64)):
        for affinity in ("rbf", "knn", "linear"):
            assert bool(torch.isfinite(lame(p, features, affinity)).all())


def test_a_batch_of_one_keeps_its_ranking():
    p, features = problem(1)
    for affinity in ("rbf", "knn", "linear"):
        assert int(lame(p, features, affinity).argmax()) == int(p.argmax())


def test_correlated_batches_are_mended():
    """Noisy predictions over well separated clusters: neighbours outvote the noise."""
    draws = torch.Generator().manual_seed(3)
    y = torch.arange(90) // 30
    centres = torch.eye(3, dtype=torch.float64)
    features = centres[y] + 0.1 * torch.randn(90, 3, generator=draws, dtype=torch.float64)
    p = (2.0 * centres[y] + 1.5 * torch.randn(90, 3, generator=draws, dtype=torch.float64)).softmax(1)
    before, after = (float((q.argmax(1) == y).double().mean()) for q in (p, lame(p, features)))
    assert before < 0.9 and after > before + 0.08


def test_the_served_model_uses_the_input_of_the_last_linear_layer(network, stream):
    net, x = network(), stream(1)[0]
    served = LAME(k=4)(net)
    expected = lame(net(x).softmax(1), net[:8](x), k=4)
    assert torch.equal(served(x), expected) and torch.equal(served.observe(x), expected)
    other = LAME(k=4, layer="3")(net)
    assert torch.equal(other(x), lame(net(x).softmax(1), net[:3](x).flatten(1), k=4))


def test_the_network_keeps_its_stored_statistics(network, stream):
    served, x = LAME(lam=0.0)(network()), stream(1)[0]
    assert torch.allclose(served(x[:5]), served(x)[:5], atol=1e-6)


def test_an_unknown_layer_is_refused(network, stream):
    with pytest.raises(ModelError, match="no layer 'heads'"):
        LAME(layer="heads")(network())(stream(1)[0])
    with pytest.raises(ModelError, match="linear layer"):
        LAME()(nn.Flatten())
