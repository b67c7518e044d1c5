"""Tables of a grid: their statistics against hand-worked cases and direct calls, and what is left out and said."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from homeostat.bench import Measured, Result, Results, against, harm_bound, ranked
from homeostat.bench.cases import Place
from homeostat.bench.summary import summarize
from homeostat.core.errors import InputError, UnknownName
from tests.bench.made import GAINS, grid


def cell(entrant: str, seed: int, values: tuple[float, ...], stream: str = "fog", better="higher", **more) -> Result:
    known = {"setting": "net", "protocol": "online"} | more
    return Result(
        f"{entrant}{stream}{seed}{values}", "small", stream=stream, entrant=entrant, seed=seed,
        phases=tuple(f"phase {i}" for i in range(len(values))),
        readings={"accuracy": Measured(values, better, "fraction")}, **known,
    )  # fmt: skip


HAND = [
    cell("Source", 0, (0.5, 0.6)), cell("Source", 1, (0.7, 0.8)),
    cell("Tent", 0, (0.6, 0.5)), cell("Tent", 1, (0.8, 0.804)),
]  # fmt: skip


def test_a_table_worked_by_hand():
    """Differences 0.1, -0.1 under seed 0 and 0.1, 0.004 under seed 1; means of seeds 0 and 0.052."""
    found = summarize(HAND)
    (table,) = found.tables
    tent, source = table.rows
    assert (tent.entrant, source.entrant, table.reference) == ("Tent", "Source", "Source")
    assert (source.mean, tent.mean) == (pytest.approx(0.65), pytest.approx(0.676))
    assert tent.difference == pytest.approx(0.026) and source.difference is None
    assert (tent.wins, tent.ties, tent.losses) == (2, 1, 1), "0.004 is within the margin"
    assert tent.worst == pytest.approx(-0.1) and tent.worst_at is not None
    assert (tent.worst_at.seed, tent.worst_at.phase) == (0, 1)
    assert tent.gains == pytest.approx((0.1, -0.048))
    assert tent.harm is not None and tent.harm.place == Place("net", "online", "fog", 1)
    assert tent.harm.mean == pytest.approx(-0.048)
    # min(0, d) is -0.1 and 0 there: mean -0.05, standard error 0.05, t of one degree of freedom 6.3138.
    assert tent.harm.bound == pytest.approx(-0.05 - 6.3138 * 0.05, abs=1e-4)
    assert tent.interval is not None and tent.interval.low <= 0 <= tent.interval.high
    assert any("2 groups are too few" in note for note in table.notes)


def test_differences_intervals_and_tests_are_those_of_a_direct_call_with_whole_seeds():
    cells = grid()
    scores: dict[str, list[float]] = {}
    seeds = []
    for stream in ("morning", "night"):
        for phase in range(3):
            for seed in range(5):
                for r in cells:
                    if (r.stream, r.seed) == (stream, seed):
                        scores.setdefault(r.entrant, []).append(r.readings["accuracy"].values[phase])
                seeds.append(seed)
    direct = {one.name: one for one in against(scores, "Source", seeds, margin=0.005)}
    table = summarize(cells).tables[0]
    assert [row.entrant for row in table.rows] == sorted(scores, key=lambda name: -np.mean(scores[name]))
    for row in table.rows:
        if row.entrant == "Source":
            continue
        one = direct[row.entrant]
        assert row.difference == pytest.approx(one.mean) and row.worst == pytest.approx(one.worst)
        assert row.interval is not None
        assert (row.interval.low, row.interval.high) == pytest.approx((one.interval.low, one.interval.high))
        assert (row.p, row.p_holm) == (pytest.approx(one.p), pytest.approx(one.p_holm))
        assert (row.wins, row.ties, row.losses) == (one.wins, one.ties, one.losses)
        gaps = np.subtract(scores[row.entrant], scores["Source"]).reshape(6, 5)
        assert row.harm is not None and row.harm.bound == pytest.approx(min(harm_bound(gap) for gap in gaps))
    assert table.cases == 30 and (table.streams, table.seeds) == (2, 5)


def test_ranks_are_over_streams_not_over_their_seeds_phases_or_protocols():
    cells = grid(streams=("a", "b", "c", "d"), protocols=("online", "episodic"))
    pooled, online, _ = summarize(cells).of("accuracy")
    means = {
        name: [np.mean([r.readings["accuracy"].mean for r in cells if (r.entrant, r.stream) == (name, stream)])
               for stream in "abcd"] for name in GAINS
    }  # fmt: skip
    assert pooled.ranking is not None and online.ranking is not None
    direct = ranked(means)
    assert pooled.ranking.ranks == pytest.approx(direct.ranks) and pooled.ranking.critical == direct.critical
    assert online.ranking.critical == pooled.ranking.critical, "as many streams"
    assert (pooled.ranked, pooled.streams) == (4, 4)
    twice = summarize(grid(streams=("a", "b"), settings=("small", "large"))).tables[0]
    assert (twice.ranked, twice.streams) == (4, 2), "another network is another case"
    alone = summarize(grid(streams=("a",))).tables[0]
    assert alone.ranking is None and any("No ranking" in note for note in alone.notes)


def test_a_probe_of_which_lower_is_better_counts_so_that_more_is_better():
    found = summarize(grid())
    right, loss = found.of("accuracy")[0], found.of("nll")[0]
    for a, b in zip(right.rows, loss.rows, strict=True):
        assert a.entrant == b.entrant, "nll is twice what accuracy lacks to 1 here"
        if a.difference is not None:
            assert b.difference == pytest.approx(2 * a.difference)
            assert a.harm is not None and b.harm is not None and b.harm.bound == pytest.approx(2 * a.harm.bound)
        assert b.mean == pytest.approx(2 * (1 - a.mean))
    neither = found.of("entropy")[0]
    assert neither.ranking is None and all(row.harm is None for row in neither.rows)
    assert [row.entrant for row in neither.rows] == list(GAINS), "in the order in which they were run"


def test_those_who_lack_cases_are_compared_only_where_all_have_one_and_it_is_said():
    cells = grid({"Source": (0.0,), "Tent": (0.1,), "LAME": (0.2,)}, seeds=6)
    broken = [
        replace(r, status="failed", readings={}, error="RuntimeError: no") if r.entrant == "Tent" and r.seed == 0 else r
        for r in cells if not (r.entrant == "LAME" and r.seed == 1 and r.stream == "night")
    ]  # fmt: skip
    found = summarize(broken)
    table = found.tables[0]
    assert (table.cases, table.possible) == (36 - 6 - 3, 36)
    keep = [r for r in cells if r.seed not in (0, 1) or (r.seed == 1 and r.stream == "morning")]
    same = summarize(keep).tables[0]
    assert [(r.mean, r.difference) for r in table.rows] == [
        (pytest.approx(r.mean), r.difference and pytest.approx(r.difference)) for r in same.rows
    ], "the same as if the others had never been run there"
    assert any("27 of 36 cases" in note and "Tent lacks 6, LAME lacks 3" in note for note in table.notes)
    assert found.notes[0] == "2 of 35 cells failed: Tent 2." and "LAME 1" in found.notes[1]
    assert found.missing == 1 and [r.entrant for r in found.failed] == ["Tent", "Tent"]


def test_who_has_less_than_half_of_the_cases_is_not_compared_and_takes_none_from_the_others():
    cells = [r for r in grid() if r.entrant != "LAME" or r.seed < 2]
    table = summarize(cells).tables[0]
    assert table.cases == table.possible == 30
    assert table.rows[-1].entrant == "LAME" and table.rows[-1].mean is None
    assert any("LAME has a value in 12 of 30 cases, and is not compared" in note for note in table.notes)
    no_source = [r for r in grid() if r.entrant != "Source" or r.seed < 2]
    table = summarize(no_source).tables[0]
    assert table.reference == "" and all(row.difference is None for row in table.rows)
    assert any("Source, the reference, cannot be compared here" in note for note in table.notes)


def test_a_phase_in_which_somebody_has_no_value_is_left_out_for_all_and_said():
    cells = [
        replace(r, readings=r.readings | {"accuracy": replace(r.readings["accuracy"], values=(0.5, math.nan, 0.5))})
        if r.entrant == "EATA" and r.stream == "night" else r for r in grid()
    ]  # fmt: skip
    found = summarize(cells)
    right, loss = found.of("accuracy")[0], found.of("nll")[0]
    assert (right.cases, loss.cases) == (25, 30)
    assert Place("small network", "online", "night", 1) not in right.places and len(right.places) == 5
    assert all(len(row.gains) == 5 for row in right.rows if row.gains)
    assert any("accuracy has no value in some phase of 5 cells" in note for note in found.notes)


def test_one_seed_gives_differences_but_no_interval_no_test_and_no_bound():
    table = summarize(grid(seeds=1)).tables[0]
    tent = next(row for row in table.rows if row.entrant == "Tent")
    assert tent.difference is not None and tent.wins + tent.ties + tent.losses == 6
    assert (tent.interval, tent.p, tent.p_holm) == (None, None, None)
    assert tent.harm is not None and tent.harm.bound is None and tent.harm.mean == min(tent.gains)
    assert any("one seed" in note for note in table.notes)


def test_one_entrant_alone_and_no_reference():
    alone = summarize(grid({"Source": (0.0,)})).tables[0]
    assert len(alone.rows) == 1 and alone.ranking is None and alone.rows[0].difference is None
    free = summarize(grid(), reference="").tables[0]
    assert free.reference == "" and free.ranking is not None and all(row.difference is None for row in free.rows)


def test_all_cells_failed():
    found = summarize([replace(r, status="failed", readings={}, error="no") for r in grid()])
    assert found.tables == () and len(found.failed) == found.cells == 50


def test_each_setting_and_protocol_has_a_table_after_one_over_all():
    found = summarize(grid(settings=("a", "b"), protocols=("online", "mixed")))
    mine = [(t.setting, t.protocol) for t in found.of("accuracy")]
    assert mine == [("", ""), ("a", "online"), ("a", "mixed"), ("b", "online"), ("b", "mixed")]
    assert found.probes == ["accuracy", "entropy", "nll"]
    assert summarize(grid(), probe="nll").probes[0] == "nll"
    pooled, *parts = found.of("accuracy")
    assert pooled.cases == sum(part.cases for part in parts) == 120


def test_the_last_result_of_a_cell_counts(tmp_path):
    store = Results(tmp_path / "results.sqlite")
    for r in [*HAND, replace(HAND[2], key="changed code", readings={"accuracy": Measured((0.9, 0.9), "higher")})]:
        store.add(r)
    found = summarize(store)
    assert found.cells == 4 and found.tables[0].rows[0].mean == pytest.approx((0.9 + 0.9 + 0.8 + 0.804) / 4)
    assert any("1 older results" in note for note in found.notes)


def test_different_versions_are_said():
    cells = grid()
    cells[3] = replace(cells[3], about={"versions": {"torch": "2.14.0"}})
    found = summarize(cells)
    assert found.versions == {"homeostat": ("0.1.0",), "torch": ("2.13.0", "2.14.0")}
    assert any("different versions of torch: 2.13.0, 2.14.0" in note for note in found.notes)


def test_speed_is_over_all_samples_and_preparation_is_a_mean():
    cells = [replace(r, samples=100, seconds=1.0 + r.seed, prepare_seconds=float(r.seed)) for r in HAND]
    row = summarize(cells).tables[0].rows[0]
    assert row.speed == pytest.approx(200 / 3) and row.prepare == 0.5


def test_two_hundred_entrants_keep_their_order_and_holm_counts_them_all():
    gains = {"Source": (0.0,), **{f"e{i}": (i / 100,) for i in range(1, 200)}}
    table = summarize(grid(gains, noise=0.002, seeds=6)).tables[0]
    assert [row.entrant for row in table.rows] == [f"e{i}" for i in range(199, 0, -1)] + ["Source"]
    assert table.rows[0].p == pytest.approx(2**-5) and table.rows[0].p_holm == 1.0
    assert any("199 comparisons cannot give p below 1" in note for note in table.notes)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [(lambda: summarize([]), InputError, "run the grid"),
     (lambda: summarize([*HAND, replace(HAND[0], suite="other")]), InputError, "2 suites"),
     (lambda: summarize(HAND, reference="source"), UnknownName, "Did you mean 'Source'"),
     (lambda: summarize(HAND, probe="acuracy"), UnknownName, "Did you mean 'accuracy'"),
     (lambda: summarize(HAND, tune=("fogg",)), UnknownName, "Did you mean 'fog'"),
     (lambda: summarize(HAND, tune=("fog",)), InputError, "name fewer in tune")],
)  # fmt: skip
def test_what_cannot_be_summarized_is_our_error(call, error, text):
    with pytest.raises(error, match=text):
        call()
