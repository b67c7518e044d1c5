"""Kolmogorov-Smirnov by column with Holm's correction, against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.stats import binom, ks_2samp
from torch import Tensor, nn

from homeostat.core.probe import Outputs
from homeostat.core.reading import Finding
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.probe import KS, holm, ks_columns, ks_p_values


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def finding(probe: KS, x: Tensor, kit: nn.Module) -> Finding:
    made = probe.measure(Outputs(None, None, torch.arange(len(x)), x=x), World(), kit, Run()).finding
    assert made is not None
    return made


@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 4), st.integers(0, 999), st.booleans())
def test_distances_are_scipys_with_and_without_ties(m, n, columns, seed, ties):
    reference, window = normal(columns, m, seed=seed), 1.3 * normal(columns, n, seed=seed + 1) + 0.2
    if ties:
        reference, window = reference.round(), window.round()
    ours = ks_columns(reference.sort(1).values, window)
    scipys = [ks_2samp(a.numpy(), b.numpy(), method="asymp") for a, b in zip(reference, window, strict=True)]
    np.testing.assert_allclose(ours, [s.statistic for s in scipys], atol=1e-12)


@pytest.mark.parametrize(("m", "n", "excess"), [(500, 100, 1.2), (100, 100, 1.2), (300, 30, 1.6), (48, 48, 1.3)])
def test_p_values_are_never_smaller_than_the_exact_ones_and_not_much_larger(m, n, excess):
    for offset in (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4):
        exact = ks_2samp(np.arange(m) / m, np.arange(n) / n + offset + 1e-9, method="exact")
        if exact.pvalue > 1e-4:
            ours = float(ks_p_values(torch.tensor([exact.statistic], dtype=torch.float64), m, n)[0])
            assert 0.99 < ours / exact.pvalue < excess


def test_a_hand_worked_holm_correction():
    p = torch.tensor([0.01, 0.04, 0.03, 0.005], dtype=torch.float64)
    # sorted .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04, made monotone .02 .03 .06 .06
    assert [round(v, 10) for v in holm(p).tolist()] == [0.03, 0.06, 0.06, 0.02]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_no_correction_and_bonferroni_and_keeps_the_order(values):
    p = torch.tensor(values, dtype=torch.float64)
    adjusted = holm(p)
    assert bool((adjusted >= p).all()) and bool((adjusted <= (p * len(p)).clamp(max=1) + 1e-15).all())
    order = p.argsort(stable=True)
    assert bool((adjusted[order].diff() >= 0).all())


def test_any_monotone_transform_of_a_column_changes_nothing():
    probe, source, x = KS(on="x"), normal(200, 3), normal(80, 3, seed=1) + 0.2
    plain = probe(None, World(source=source, target=x))
    bent = probe(None, World(source=source.exp(), target=x.exp()))
    assert plain.value == bent.value


def test_false_alarms_over_all_columns_are_as_rare_as_stated():
    probe, kits, windows = KS(on="x", min_effect=0.0), 40, 10
    count = 0
    for k in range(kits):
        kit = probe.prepare(None, World(source=normal(400, 8, seed=k)), Run(k))
        count += sum(finding(probe, normal(60, 8, seed=1000 + 100 * k + w), kit).detected for w in range(windows))
    assert count <= binom.ppf(0.999, kits * windows, 0.05)


def test_the_columns_that_changed_are_named_largest_first():
    x = normal(150, 6, seed=1)
    x[:, 4] += 1.5
    x[:, 1] *= 3.0
    kit = KS(on="x").prepare(None, World(source=normal(500, 6)), Run())
    said = finding(KS(on="x"), x, kit)
    assert said.detected and said.subjects == (4, 1)
    assert said.p_value is not None and said.p_value < 1e-3 and said.effect is not None and said.effect > 0.4


def test_in_a_large_window_a_trifle_is_significant_but_no_finding():
    source, x = normal(20_000, 1), normal(20_000, 1, seed=1) + 0.06
    kit = KS(on="x").prepare(None, World(source=source), Run())
    said = finding(KS(on="x"), x, kit)
    assert said.p_value is not None and said.p_value < 1e-3 and not said.detected
    assert finding(KS(on="x", min_effect=0.0), x, kit).detected


def test_a_change_of_dependence_alone_is_invisible():
    x = normal(500, 1).repeat(1, 2)
    kit = KS(on="x").prepare(None, World(source=x), Run())
    broken = torch.stack([x[:, 0], x[torch.randperm(500, generator=torch.Generator().manual_seed(0)), 1]], 1)
    assert math.isclose(finding(KS(on="x"), broken, kit).p_value or 0, 1.0)
