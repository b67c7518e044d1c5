"""How long neighbours are alike, and the blocks that this calls for."""

from __future__ import annotations

import math

import pytest
import torch

from homeostat.loop.neighbours import LAGS, block_length, block_means, dependence, likeness, likeness_between, pairs_of


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("alike", "low", "high"), [(1, 1, 1), (5, 6, 30), (20, 25, 100)])
def test_blocks_are_longer_than_runs_of_samples_that_are_alike(alike, low, high):
    g, sums, pairs = draws(alike), torch.zeros(LAGS).double(), torch.zeros(LAGS).double()
    for _ in range(25):
        run = torch.rand(100 // alike + 2, generator=g).repeat_interleave(alike).double()
        start = int(torch.randint(alike, (1,), generator=g))
        sums += dependence(run[None, start : start + 100])[0]
        pairs += pairs_of(100)
    assert low <= block_length(likeness(sums.tolist(), pairs.tolist(), 100), 100) <= high


def test_products_of_neighbours_by_hand():
    x = torch.tensor([[1.0, 3.0, 2.0, 6.0]]).double()
    away_from = [-2.0, 0.0, -1.0, 3.0]
    by_hand = [sum(away_from[i] * away_from[i + k] for i in range(4 - k)) for k in range(4)]
    assert dependence(x)[0, :4].tolist() == pytest.approx(by_hand) and dependence(x)[0, 4:].abs().max() == 0
    assert pairs_of(4)[:6].tolist() == [4, 3, 2, 1, 0, 0]


def test_likeness_as_long_as_a_window_shows_between_windows_only():
    g = draws(5)
    level = torch.rand(30, generator=g).double()  # every window is one run
    within = [0.0] * LAGS
    assert likeness(within, (30 * pairs_of(100)).tolist(), 100) == math.inf
    steps = float((level[1:] - level[:-1]).square().sum())
    assert block_length(likeness_between(steps, 29, 1 / 12, 100), 100) == 100
    means = torch.rand(30, 100, generator=g).double().mean(1)
    assert likeness_between(float((means[1:] - means[:-1]).square().sum()), 29, 1 / 12, 100) < 1.5
    jump = torch.cat([torch.full((15,), 0.4), torch.full((15,), 0.6)]).double()  # a shift is one step
    assert likeness_between(float((jump[1:] - jump[:-1]).square().sum()), 29, 1 / 12, 100) < 1.5


def test_blocks_leave_no_sample_out():
    x = torch.arange(10.0)[None].double()
    assert block_means(x, 1) is x and block_means(x, 5).tolist() == [[2.0, 7.0]]
    assert block_means(x, 3).tolist() == [[1.5, 5.0, 8.0]] and block_means(x, 50).tolist() == [[4.5]]
