from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st

from homeostat.nn.losses import (
    contrastive_loss,
    marginal_entropy,
    soft_cross_entropy,
    soft_likelihood_ratio,
    softmax_entropy,
    symmetric_cross_entropy,
)

Z, T = (torch.randn(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (0, 1))


def test_entropies_worked_by_hand():
    p = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
    assert float(softmax_entropy(p.log())) == pytest.approx(1.5 * math.log(2))
    q = torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64)
    assert float(soft_cross_entropy(q.log(), p.log())) == pytest.approx(1.75 * math.log(2))
    assert float(symmetric_cross_entropy(q.log(), p.log(), alpha=0.25)) == pytest.approx(1.75 * math.log(2))


def test_cross_entropy_to_a_soft_target_is_pytorchs():
    assert torch.allclose(soft_cross_entropy(T, Z), F.cross_entropy(Z, T.softmax(1), reduction="none"))


def test_cross_entropy_to_oneself_is_the_entropy_and_the_symmetric_one_is_symmetric():
    assert torch.allclose(soft_cross_entropy(Z, Z), softmax_entropy(Z))
    assert torch.allclose(symmetric_cross_entropy(T, Z), symmetric_cross_entropy(Z, T))
    assert torch.equal(symmetric_cross_entropy(T, Z, alpha=0.0), soft_cross_entropy(T, Z))


def test_the_likelihood_ratio_worked_by_hand_and_cut_off():
    even = torch.zeros(1, 2, dtype=torch.float64)
    assert float(soft_likelihood_ratio(even, eps=0.0)) == pytest.approx(0.0)
    p = torch.tensor([[0.8, 0.2]], dtype=torch.float64)
    assert float(soft_likelihood_ratio(p.log(), eps=0.0)) == pytest.approx(-0.6 * math.log(4))
    sure = torch.tensor([[100.0, 0.0]], dtype=torch.float64)
    assert float(soft_likelihood_ratio(sure, eps=0.0)) == pytest.approx(-0.99 * math.log(99))


def test_the_likelihood_ratio_still_pulls_where_entropy_is_flat():
    z = torch.tensor([[4.0, 0.0]], dtype=torch.float64, requires_grad=True)
    (entropy,) = torch.autograd.grad(softmax_entropy(z).sum(), z)
    (ratio,) = torch.autograd.grad(soft_likelihood_ratio(z).sum(), z)
    assert ratio[0, 0] < 0 and entropy[0, 0] < 0 and abs(ratio[0, 0]) > abs(entropy[0, 0])


def test_marginal_entropy_is_that_of_the_mean_and_at_least_the_mean_of_entropies():
    views = torch.stack([Z, T])
    mean = views.softmax(2).mean(0)
    assert torch.allclose(marginal_entropy(views), -(mean * mean.log()).sum(1))
    assert bool((marginal_entropy(views) >= (softmax_entropy(Z) + softmax_entropy(T)) / 2 - 1e-12).all())
    assert torch.allclose(marginal_entropy(torch.stack([Z, Z])), softmax_entropy(Z))


@given(st.integers(2, 4), st.integers(1, 5), st.sampled_from([0.1, 1.0]))
def test_the_contrastive_loss_is_the_double_loop(views, batch, temperature):
    draws = torch.Generator().manual_seed(views * 10 + batch)
    e = torch.randn(views, batch, 3, generator=draws, dtype=torch.float64)
    rows = [(v, n, e[v, n] / e[v, n].norm()) for v in range(views) for n in range(batch)]
    total = 0.0
    for v, n, row in rows:
        others = [(w, m, float(row @ other) / temperature) for w, m, other in rows if (w, m) != (v, n)]
        below = math.log(sum(math.exp(s) for _, _, s in others))
        total += sum(below - s for _, m, s in others if m == n) / (views - 1)
    assert float(contrastive_loss(e, temperature)) == pytest.approx(total / (views * batch), rel=1e-9)
