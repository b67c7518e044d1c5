"""What the monitor reads off a network: scores of samples, as ranks among those from before."""

from __future__ import annotations

import math

import pytest
import torch

from homeostat.core.probe import Outputs
from homeostat.loop.scores import (
    CLASSES,
    KEPT,
    Scores,
    away,
    mean_entropy,
    mid_ranks,
    order_statistics,
    principal_axes,
    ranked_among,
)


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_entropy_is_nought_when_sure_and_one_when_all_classes_are_alike():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1000.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1000.0, -1000.0]])
    assert [mean_entropy(row[None]) for row in logits] == pytest.approx([1.0, 0.0, 0.5])
    assert mean_entropy(logits) == pytest.approx(0.5)
    ruled_out = torch.tensor([[0.0, 0.0, -math.inf, -math.inf]])
    assert mean_entropy(ruled_out) == pytest.approx(0.5)
    log_p = torch.randn(6, 5, generator=draws(1)).log_softmax(-1)
    expected = torch.distributions.Categorical(log_p.exp()).entropy() / math.log(5)
    assert mean_entropy(log_p) == pytest.approx(float(expected.mean()))


def test_few_order_statistics_give_nearly_the_ranks_of_all():
    values = torch.randn(1, 20_000, generator=draws(2))
    some = torch.randn(1, 1000, generator=draws(3))
    known = order_statistics(values, KEPT)
    exact = (values < some.T).double().mean(1)
    assert (mid_ranks(known, some)[0] - exact).abs().max() < 1.1 / KEPT
    few = values[:, :200].sort(-1).values
    assert torch.equal(order_statistics(few, 200), few)
    assert torch.equal(mid_ranks(order_statistics(few, 400), some), mid_ranks(few, some)), "each twice is the same"


def test_ranks_of_equal_values_count_half():
    known = torch.randint(6, (3, 50), generator=draws(1)).float().sort(-1).values
    some = torch.cat([torch.randint(-1, 7, (3, 40), generator=draws(2)).float(), torch.full((3, 1), 2.5)], 1)
    below = (known[:, :, None] < some[:, None]).double().mean(1)
    equal = (known[:, :, None] == some[:, None]).double().mean(1)
    assert torch.allclose(mid_ranks(known, some), below + equal / 2, atol=1e-12)
    assert torch.allclose(
        mid_ranks(known + 0.5, some),
        (known[:, :, None] + 0.5 < some[:, None]).double().mean(1)
        + (known[:, :, None] + 0.5 == some[:, None]).double().mean(1) / 2,
        atol=1e-12,
    )
    assert mid_ranks(torch.zeros(1, 60), torch.zeros(1, 3)).tolist() == [[0.5] * 3]


def test_distances_rank_new_samples_of_the_reference_evenly_however_few_there_are():
    means = []
    for seed in range(40):
        g = draws(seed)
        x = torch.randn(60, 30, generator=g)
        rest = ranked_among(60, ordered=False)
        kept = principal_axes(x[~rest])
        known = order_statistics(away(x[rest], kept), 30)
        means.append(mid_ranks(known, away(torch.randn(200, 30, generator=g), kept)).mean(1))
    assert (torch.stack(means).mean(0) - 0.5).abs().max() < 4 / math.sqrt(12 * 30 * 40)


def test_rare_classes_beyond_the_number_kept_share_the_last_place():
    logits = torch.zeros(200, CLASSES + 20)
    y = torch.arange(200) % (CLASSES + 20)
    y[:100] = 7
    logits[torch.arange(200), y] = 5.0
    sensor = Scores.fit(Outputs(logits, None, torch.arange(200)), ordered=False)
    layout, read = sensor.read(Outputs(logits, None, torch.arange(200)), ("classes",))
    places = read.T
    assert (
        layout.widths == (("classes", CLASSES),) and places.shape == (200, CLASSES) and bool((places.sum(1) == 1).all())
    )
    assert int(sensor.kept["classes"][0]) == 7 and places[:100, 0].sum() == 100
    hidden = [k for k in range(CLASSES + 20) if k not in sensor.kept["classes"].tolist()]
    assert bool((places[[int((y == k).nonzero()[-1]) for k in hidden], -1] == 1).all())
