"""Split conformal sets: scores by hand, thresholds by counting, coverage by simulation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from homeostat.core.check import check_remedy
from homeostat.core.errors import ModelError, NonFiniteError
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.trust import RSCP, Conformal, conformal_threshold, coverage, nonconformity, set_size

ROW = torch.tensor([[0.2, 0.5, 0.3]])
HALF = torch.tensor([0.5])


def test_the_scores_of_a_hand_worked_row():
    assert nonconformity(ROW, HALF).tolist()[0] == pytest.approx([0.8, 0.5, 0.7])
    # Falling order 0.5, 0.3, 0.2: 0.25, 0.5 + 0.15, 0.8 + 0.1
    assert nonconformity(ROW, HALF, "aps").tolist()[0] == pytest.approx([0.9, 0.25, 0.65])
    # Ranks 3, 1, 2 with one free: penalties 0.4 * 2 / 2, 0, 0.4 * 1 / 2
    wanted = [(0.9 + 0.4) / 1.4, 0.25 / 1.4, (0.65 + 0.2) / 1.4]
    assert nonconformity(ROW, HALF, "raps", 0.4, 1).tolist()[0] == pytest.approx(wanted)


def test_aps_of_the_true_class_is_uniform_when_probabilities_are_right():
    draw = torch.Generator().manual_seed(0)
    p = torch.randn(20000, 5, generator=draw, dtype=torch.float64).mul(2).softmax(1)
    y = torch.multinomial(p, 1, generator=draw)
    found = nonconformity(p, torch.rand(20000, generator=draw, dtype=torch.float64), "aps").gather(1, y)[:, 0]
    distance = (found.sort().values - torch.arange(1, 20001) / 20000).abs().max()
    assert float(distance) < 1.63 / math.sqrt(20000)  # the 1 % point of Kolmogorov's statistic


@given(st.integers(2, 8), st.integers(0, 10_000))
def test_scores_lie_in_0_to_1_and_fall_as_probability_rises(classes, seed):
    draw = torch.Generator().manual_seed(seed)
    p = (5 * torch.randn(6, classes, generator=draw, dtype=torch.float64)).softmax(1)
    u = torch.rand(6, generator=draw, dtype=torch.float64)
    for score in ("hps", "aps", "raps"):
        found = nonconformity(p, u, score)
        assert float(found.min()) >= 0 and float(found.max()) <= 1
        by_probability = found.gather(1, p.argsort(1, descending=True))
        assert bool((by_probability.diff(dim=1) >= 0).all())


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 99))
def test_the_threshold_is_the_smallest_score_with_enough_scores_up_to_it(values, percent):
    needed = (len(values) + 1) * (100 - percent)
    enough = [v for v in values if 100 * sum(w <= v for w in values) >= needed]
    found = conformal_threshold(torch.tensor(values, dtype=torch.float64), percent / 100)
    assert found == (min(enough) if enough else math.inf)


@pytest.mark.parametrize("score", ["hps", "aps", "raps"])
def test_coverage_is_1_minus_alpha_up_to_one_part_in_n(score):
    hits, runs, count, alpha = [], 150, 19, 0.2
    weight = torch.randn(6, 3, generator=torch.Generator().manual_seed(9))
    net = nn.Linear(3, 6, bias=False)
    with torch.no_grad():
        net.weight.copy_(weight)
    for seed in range(runs):
        draw = torch.Generator().manual_seed(seed)
        x = torch.randn(count + 20, 3, generator=draw)
        y = torch.multinomial((0.5 * x @ weight.T).softmax(1), 1, generator=draw)[:, 0]  # the network is overconfident
        made = Conformal(score=score, alpha=alpha, free=1)(net, World(calibration=(x[20:], y[20:])), run=Run(seed))
        hits.append(coverage(made.sets(x[:20]), y[:20]).value)
    found = torch.tensor(hits, dtype=torch.float64)
    error = float(found.std()) / math.sqrt(runs)
    # 20 * 0.8 is an integer, so that the coverage of continuous scores is exactly 0.8.
    assert abs(float(found.mean()) - 0.8) < 3 * error < 0.04


def test_robust_sets_without_attack_and_noise_are_ordinary_ones():
    draw = torch.Generator().manual_seed(4)
    x, y = torch.randn(120, 4, generator=draw), torch.randint(4, (120,), generator=draw)
    world = World(calibration=(x[:80], y[:80]))
    for score in ("hps", "raps"):
        plain = Conformal(score=score, alpha=0.3)(nn.Identity(), world)
        robust = RSCP(score=score, alpha=0.3, delta=0.0, sigma=1e-9, draws=2, plus=False)(nn.Identity(), world)
        if score == "hps":
            assert torch.equal(plain.sets(x[80:]), robust.sets(x[80:]))
        assert 0 < int(robust.sets(x[80:]).sum()) < 160


def test_readings_of_coverage_and_size():
    sets = torch.tensor([[True, False], [True, True], [False, True], [False, False]])
    read = coverage(sets, torch.tensor([0, 1, 0, 1]))
    assert read.value == 0.5 and read.interval.low < 0.5 < read.interval.high
    size = set_size(sets)
    # Sizes 1, 2, 1, 0: mean 1, deviation sqrt(2/3), Student's 97.5 % point with 3 degrees of freedom
    assert size.value == 1.0
    assert size.interval.high == pytest.approx(min(2.0, 1 + 3.182446 * math.sqrt(2 / 3) / 2))


def test_too_few_samples_give_the_full_set_and_say_so():
    made = Conformal(alpha=0.1)(nn.Identity(), World(calibration=(torch.randn(8, 3), torch.zeros(8, dtype=torch.long))))
    assert made.trivial and bool(made.sets(torch.randn(5, 3)).all())


def test_outputs_that_are_no_logits_and_inputs_that_are_not_finite_are_refused():
    made = Conformal()(nn.Identity(), World(calibration=(torch.randn(30, 3), torch.zeros(30, dtype=torch.long))))
    with pytest.raises(NonFiniteError, match="x holds 1"):
        made.sets(torch.tensor([[0.0, math.inf, 1.0]]))
    with pytest.raises(ModelError, match="float logits"):
        Conformal()(nn.Flatten(0), World(calibration=(torch.randn(8, 3), torch.zeros(8, dtype=torch.long))))


@pytest.mark.parametrize("remedy", [Conformal(), Conformal(score="raps", free=1)])
def test_conformal_keeps_the_promises_of_a_remedy(remedy):
    check_remedy(remedy)
