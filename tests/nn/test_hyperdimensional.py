"""Hypervectors, and scores of networks that were never trained."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from homeostat.nn.hyperdimensional import hypervectors, pack_signs, projection, similarity, unpack_signs
from homeostat.nn.zero_cost import activation_diversity, best_by_rank, candidates, gradient_flow, size


@pytest.mark.parametrize("dimension", [1, 7, 8, 9, 64, 1000])
def test_packed_signs_come_back_in_an_eighth_of_the_bytes(dimension):
    v = torch.randint(0, 2, (5, dimension), generator=torch.Generator().manual_seed(0)).mul(2).sub(1).to(torch.int8)
    packed = pack_signs(v)
    assert packed.shape == (5, math.ceil(dimension / 8)) and torch.equal(unpack_signs(packed, dimension), v)


def test_signs_agree_as_often_as_the_angle_says():
    """Goemans and Williamson: the cosine of signs is 1 - 2 angle / pi."""
    matrix = projection(20_000, 3, seed=1)
    for angle in (0.0, 0.3, 1.0, math.pi / 2, 3.0):
        x = torch.tensor([[1.0, 0.0, 0.0], [math.cos(angle), math.sin(angle), 0.0]]) + 5
        a, b = hypervectors(x, torch.full((3,), 5.0), matrix)
        agree = float((a.float() * b.float()).mean())
        assert agree == pytest.approx(1 - 2 * angle / math.pi, abs=4 / math.sqrt(20_000))


def test_similarity_is_the_cosine():
    v = hypervectors(torch.randn(6, 4), torch.zeros(4), projection(300, 4, 0))
    bundles = torch.stack([v[:3].int().sum(0), torch.zeros(300, dtype=torch.int32)])
    expected = torch.cosine_similarity(v[:, None].double(), bundles[None].double(), dim=2)
    assert torch.allclose(similarity(v, bundles).double(), expected, atol=1e-6)


def layers(*widths: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draws = torch.Generator().manual_seed(0)
    return [
        (torch.randn(b, a, generator=draws).double(), torch.randn(b, generator=draws).double())
        for a, b in itertools.pairwise(widths)
    ]


@pytest.mark.exact("S247")
def test_gradient_flow_is_the_sum_over_all_paths_once_a_layer():
    """R is the sum over paths of products of |w|, so w . dR/dw over a layer is R, and the score log(layers R)."""
    made = layers(3, 4, 2)
    paths = sum(
        abs(float(made[0][0][j, i])) * abs(float(made[1][0][k, j]))
        for i in range(3)
        for j in range(4)
        for k in range(2)
    )
    assert gradient_flow(made) == pytest.approx(math.log(2 * paths), abs=1e-12)


@pytest.mark.exact("S247")
def test_activation_diversity_counts_agreements_by_hand():
    made, x = layers(2, 6, 5, 3), torch.randn(7, 2, generator=torch.Generator().manual_seed(4)).double()
    codes = []
    for row in x:
        first = made[0][0] @ row + made[0][1]
        second = made[1][0] @ first.clamp(min=0) + made[1][1]
        codes.append([bool(v > 0) for v in (*first, *second)])
    agree = [[sum(p == q for p, q in zip(a, b, strict=True)) for b in codes] for a in codes]
    expected = torch.logdet(torch.tensor(agree, dtype=torch.float64) + 1e-3 * torch.eye(7, dtype=torch.float64))
    assert activation_diversity(made, x) == pytest.approx(float(expected), abs=1e-9)
    assert activation_diversity(layers(2, 3), x) == -math.inf


def test_candidates_lie_in_the_band_of_parameters():
    for widths in candidates(64, 10, 5000, 0.5):
        counted = sum(p.numel() for a, b in itertools.pairwise(widths) for p in nn.Linear(a, b).parameters())
        assert 2500 <= counted == size(widths) <= 5000
    assert candidates(64, 10, 100) == [(64, 10)]
    assert candidates(64, 10, 700, 1.0) == [(64, 8, 8, 10)]  # none in the band: the largest that fits


def test_ranks_decide_not_the_size_of_scores():
    assert best_by_rank([[1.0, 1.0], [1e9, 0.0], [2.0, 2.0]]) == 2
    assert best_by_rank([[-math.inf], [-5.0]]) == 1
