"""Statistics of scores: intervals that cover, tests against scipy and tables, notes where there is too little."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from homeostat.bench import against, difference, harm_bound, holm, ranked
from homeostat.core.errors import InputError, NonFiniteError


@pytest.mark.parametrize(("groups", "least"), [(5, 0.915), (20, 0.95)])
def test_intervals_cover_the_mean_difference_as_often_as_the_docstring_says(groups, least):
    rng, hit, runs = np.random.default_rng(1), 0, 600
    for run in range(runs):
        gaps = 0.3 + rng.normal(size=groups)
        hit += (
            difference(gaps, np.zeros(groups), seed=run).interval.low
            <= 0.3
            <= (difference(gaps, np.zeros(groups), seed=run).interval.high)
        )
    assert hit / runs > least - 3 * math.sqrt(least * (1 - least) / runs)


def test_cases_of_a_seed_are_drawn_together():
    """Ten phases of a seed share its luck: as if independent, the interval would be far too narrow."""
    rng, together, alone = np.random.default_rng(2), 0, 0
    for run in range(200):
        luck = rng.normal(size=8).repeat(10)
        gaps, seeds = luck + 0.1 * rng.normal(size=80), np.arange(8).repeat(10)
        mine, plain = difference(gaps, 0 * gaps, seeds, seed=run), difference(gaps, 0 * gaps, seed=run)
        together += mine.interval.low <= 0 <= mine.interval.high
        alone += plain.interval.low <= 0 <= plain.interval.high
    assert together > 175 and alone < 120


def test_wins_ties_and_losses_count_cases_and_the_worst_is_named():
    found = difference([3.0, 1.0, 2.0, 0.5], [1.0, 1.0, 1.95, 2.0], margin=0.1)
    assert (found.wins, found.ties, found.losses, found.worst) == (1, 2, 1, -1.5)
    assert found.notes and "4 groups are too few" in found.notes[0]


def test_one_against_many_is_wilcoxon_with_holm():
    rng = np.random.default_rng(3)
    base = rng.normal(size=30)
    scores = {"base": base, "better": base + 0.5 + 0.3 * rng.normal(size=30), "same": base + 0.3 * rng.normal(size=30)}
    better, same = against(scores, "base")
    assert (better.name, same.name) == ("better", "same")
    p = [float(stats.wilcoxon(scores[name] - base).pvalue) for name in ("better", "same")]
    assert [better.p, same.p] == pytest.approx(p)
    assert [better.p_holm, same.p_holm] == pytest.approx([2 * p[0], max(2 * p[0], p[1])])
    assert better.p_holm is not None and better.p_holm < 0.001 and not better.notes


def test_too_few_pairs_are_said_to_be_too_few():
    scores = {"a": [1.0, 2.0, 3.0, 4.0, 5.0], "b": [0.0, 0.5, 1.0, 2.0, 3.0], "c": [0.0] * 5}
    found = against(scores, "c")
    assert all("5 pairs and 2 comparisons cannot give p below 0.12" in one.notes[-1] for one in found)
    assert min(one.p or 0.0 for one in found) == pytest.approx(2.0**-4), "the least that five pairs can give"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_holm_keeps_the_order_and_rejects_what_bonferroni_rejects(p):
    made = holm(p)
    for (a, b), (x, y) in zip(itertools.combinations(p, 2), itertools.combinations(made, 2), strict=True):
        assert (a <= b) <= (x <= y)
    assert all(one <= corrected <= min(1.0, len(p) * one) + 1e-12 for one, corrected in zip(p, made, strict=True))


def test_the_critical_difference_is_that_of_the_table():
    """Demsar 2006, table 5: q at 0.05 for 2 to 10 methods; and his example of 4 methods on 14 data sets."""
    rng = np.random.default_rng(4)
    for k, q in ((3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)):
        found = ranked({str(i): rng.normal(size=14) for i in range(k)})
        assert found.critical == pytest.approx(q * math.sqrt(k * (k + 1) / (6 * 14)), rel=5e-4)


def test_friedman_is_scipys_and_methods_that_cannot_be_told_apart_stand_together():
    rng = np.random.default_rng(5)
    cases = rng.normal(size=40)
    scores = {
        "worst": cases - 2, "good": cases + 0.05 * rng.normal(size=40), "also good": cases + 0.05 * rng.normal(size=40),
        "best": cases + 2,
    }  # fmt: skip
    found = ranked(scores)
    assert next(iter(found.ranks)) == "best" and list(found.ranks)[-1] == "worst" and found.ranks["best"] == 1
    assert [set(group) for group in found.alike] == [{"good", "also good"}]
    assert found.p == pytest.approx(float(stats.friedmanchisquare(*scores.values()).pvalue))
    back = ranked({name: -values for name, values in scores.items()}, higher=False)
    assert back.ranks == found.ranks and back.alike == found.alike
    equal = ranked(dict.fromkeys("abc", cases))
    assert equal.p == 1 and equal.alike == (("a", "b", "c"),) and set(equal.ranks.values()) == {2.0}
    assert "cannot tell 4 methods apart" in ranked({name: values[:2] for name, values in scores.items()}).notes[0]


def test_a_bound_of_harm_is_not_made_better_by_what_is_won_elsewhere():
    assert harm_bound([5.0, -1.0, 4.0]) == harm_bound([50.0, -1.0, 0.0]) < -1 / 3
    assert harm_bound([0.0, 3.0]) == 0 and harm_bound([-1.0, -1.0, -1.0]) == -1
    rng, runs = np.random.default_rng(6), 1000
    for mean in (-2.0, -1.0, -0.3, 0.0, 0.5):
        below = sum(harm_bound(mean + rng.normal(size=5)) <= mean for _ in range(runs))
        assert below / runs > 0.95 - 3 * math.sqrt(0.05 * 0.95 / runs), (mean, below / runs)


@pytest.mark.parametrize(
    ("call", "error"),
    [(lambda: difference([1.0], [1.0, 2.0]), InputError), (lambda: difference([1.0], [1.0]), InputError),
     (lambda: difference([1.0, math.nan], [1.0, 2.0]), NonFiniteError), (lambda: difference([], []), InputError),
     (lambda: difference([1.0, 2.0], [1.0, 2.0], [1]), InputError),
     (lambda: difference([1.0, 2.0], [1.0, 2.0], level=1.5), InputError),
     (lambda: against({"a": [1.0, 2.0]}, "a"), InputError), (lambda: against({"a": [1.0]}, "b"), InputError),
     (lambda: ranked({"a": [1.0], "b": [1.0]}), InputError), (lambda: harm_bound([1.0]), InputError),
     (lambda: ranked({"a": [1.0, 2.0], "b": [1.0, 2.0], "c": [1.0]}), InputError)],
)  # fmt: skip
def test_bad_scores_are_our_errors(call, error):
    with pytest.raises(error):
        call()
