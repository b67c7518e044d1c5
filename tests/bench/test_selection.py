"""Choices from sweeps: who is chosen by what, on which streams, and how much a choice flatters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from homeostat.bench import Measured, holm
from homeostat.bench.summary import summarize
from homeostat.core.errors import InputError
from tests.bench.made import grid, tuning


def mean(cells, **where) -> float:
    mine = [r for r in cells if all(getattr(r, name) == value for name, value in where.items())]
    return float(np.mean([r.readings["accuracy"].mean for r in mine]))


def rows(summary, probe="accuracy"):
    return {row.entrant: row for row in summary.of(probe)[0].rows}


def test_each_choice_takes_the_member_that_its_rule_says():
    cells = tuning()
    found = summarize(cells, tune=("tuning",))
    chosen = {one.how: one for one in found.chosen}
    assert dict(chosen["tuned"].members) == {"Tent(1)": 1}, "best on the tuning stream"
    assert dict(chosen["oracle"].members) == {"Tent(2)": 2}, "best on each of the two others"
    assert dict(chosen["unlabelled"].members) == {"Tent(2)": 10}, "lowest entropy in each of ten runs"
    mine = rows(found)
    assert set(mine) == {"Source", "EATA", "Tent, tuned elsewhere", "Tent, unlabelled", "Tent, oracle"}
    rest = [r for r in cells if r.stream != "tuning"]
    assert mine["Tent, tuned elsewhere"].mean == pytest.approx(mean(rest, entrant="Tent(1)"))
    assert mine["Tent, oracle"].mean == pytest.approx(mean(rest, entrant="Tent(2)"))
    assert {place.stream for table in found.tables for place in table.places} == {"morning", "night"}
    assert any("tuning" in note and "in no table" in note for note in found.notes)
    assert mine["Tent, oracle"].trials == 4 and mine["EATA"].trials == 1


def test_tuning_does_not_see_what_it_is_judged_on():
    """Whatever the members score on the other streams, the same member is taken."""
    cells = tuning()
    turned = [
        replace(r, readings=r.readings | {"accuracy": Measured((0.1 * int(r.entrant[5]),) * 3, "higher", "fraction")})
        if r.sweep and r.stream != "tuning" else r for r in cells
    ]  # fmt: skip
    by = [{one.how: dict(one.members) for one in summarize(c, tune=("tuning",)).chosen} for c in (cells, turned)]
    assert by[0]["tuned"] == by[1]["tuned"] and by[0]["oracle"] != by[1]["oracle"]


def test_an_oracle_is_at_least_as_good_as_each_member_on_each_stream_and_is_not_ranked_or_tested():
    members = {f"Tent({i})": (0.0,) for i in range(6)}
    cells = grid({"Source": (0.0,), "EATA": (0.05,)}) + grid(members, sweep="Tent", noise=0.05)
    found = summarize(cells)
    oracle = next(one for one in found.chosen if one.how == "oracle")
    for stream in ("morning", "night"):
        best = max(mean(cells, entrant=name, stream=stream) for name in members)
        assert mean(oracle.results, stream=stream) == pytest.approx(best)
    table = found.tables[0]
    row = rows(found)["Tent, oracle"]
    assert row.p is None and row.rank is None and row.interval is not None
    assert table.ranking is not None and "Tent, oracle" not in table.ranking.ranks
    tested = [rows(found)["EATA"], rows(found)["Tent, unlabelled"]]
    assert [one.p_holm for one in tested] == holm([one.p for one in tested]), "the oracle is not corrected for"
    assert tested[0].p_holm == pytest.approx(2 * 2.0**-4)
    assert any("No streams are for tuning" in note for note in found.notes)


@pytest.mark.parametrize(("better", "taken"), [("none", "Tent(0)"), ("lower", "Tent(0)"), ("higher", "Tent(1)")])
def test_a_reading_without_labels_decides_in_its_own_direction(better, taken):
    cells = grid({"Source": (0.0,)}) + [
        replace(r, readings=r.readings | {"sureness": Measured((float(r.entrant[5]),) * 3, better)})
        for r in grid({"Tent(0)": (0.0,), "Tent(1)": (0.0,)}, sweep="Tent")
    ]
    found = summarize(cells, unlabelled="sureness")
    chosen = next(one for one in found.chosen if one.how == "unlabelled")
    assert dict(chosen.members) == {taken: 10}
    none = summarize(cells, unlabelled="nothing of the kind")
    assert [one.how for one in none.chosen] == ["oracle"]
    assert any("No cell read 'nothing of the kind'" in note for note in none.notes)


def test_sensitivity_is_what_direct_calls_give():
    cells = tuning(trials=5)
    found = summarize(cells, tune=("tuning",))
    (one,) = found.sensitivity
    rest = [r for r in cells if r.stream != "tuning"]
    here = {f"Tent({i})": mean(rest, entrant=f"Tent({i})") for i in range(5)}
    there = {name: mean(cells, entrant=name, stream="tuning") for name in here}
    assert one.members == pytest.approx(here) and next(iter(one.members)) == "Tent(2)"
    assert one.spread == pytest.approx(max(here.values()) - min(here.values()))
    assert one.best == pytest.approx(here["Tent(2)"]) == pytest.approx(one.oracle)
    assert one.tuned == pytest.approx(here["Tent(1)"])
    assert one.optimism == pytest.approx(here["Tent(2)"] - here["Tent(1)"]) and (one.optimism or 0) > 0.03
    direct = stats.spearmanr([there[name] for name in here], list(here.values()))
    assert one.spearman == pytest.approx(float(np.asarray(direct)[0]))
    assert one.place == sorted(here.values(), reverse=True).index(here["Tent(1)"]) + 1
    assert (one.trials, one.chosen) == (5, ("Tent(1)",))


def test_the_rank_of_a_method_may_change_with_how_it_was_chosen():
    """By oracle a sweep beats EATA (+ 0.03), as tuned it does not."""
    plain = grid({"Source": (0.0,), "EATA": (0.03,)}, streams=("tuning", "morning", "night"), noise=0.001)
    swept = grid({"T(0)": (0.06,), "T(1)": (0.0,)}, streams=("morning", "night"), sweep="T", noise=0.001)
    swept += grid({"T(0)": (0.0,), "T(1)": (0.06,)}, streams=("tuning",), sweep="T", noise=0.001)
    (one,) = summarize(plain + swept, tune=("tuning",)).sensitivity
    assert (one.rank_oracle, one.rank_tuned) == (1, 2) or (one.rank_oracle, one.rank_tuned) == (1, 3)
    assert one.optimism == pytest.approx(0.06, abs=0.002) and one.spearman is None, "of two members there is none"


def test_of_a_probe_of_which_lower_is_better_the_lowest_member_is_best():
    (one,) = summarize(tuning(), probe="nll", tune=("tuning",)).sensitivity
    assert next(iter(one.members)) == "Tent(2)" and one.spread > 0
    assert (one.optimism or 0) > 0 and (one.place or 0) > 1


def test_who_failed_somewhere_is_not_chosen_there_but_stays_chosen_by_tuning():
    cells = [
        replace(r, status="failed", readings={}) if r.entrant == "Tent(2)" and (r.stream, r.seed) == ("night", 0) else r
        for r in tuning()
    ]
    chosen = {one.how: one for one in summarize(cells, tune=("tuning",)).chosen}
    assert dict(chosen["oracle"].members) == {"Tent(2)": 1, "Tent(1)": 1} or dict(chosen["oracle"].members) == {
        "Tent(2)": 1, "Tent(3)": 1,
    }  # fmt: skip
    assert chosen["unlabelled"].members["Tent(2)"] == 9
    cells = [
        replace(r, status="failed", readings={}) if r.entrant == "Tent(1)" and (r.stream, r.seed) == ("night", 0) else r
        for r in tuning()
    ]
    found = summarize(cells, tune=("tuning",))
    assert any("Tent, tuned elsewhere lacks 3" in note for note in found.tables[0].notes)


def test_tuning_falls_back_to_the_same_protocol_elsewhere():
    """A network without a tuning stream takes what was best on the other one's."""
    cells = [r for r in tuning(settings=("small", "large")) if (r.setting, r.stream) != ("large", "tuning")]
    chosen = next(one for one in summarize(cells, tune=("tuning",)).chosen if one.how == "tuned")
    assert dict(chosen.members) == {"Tent(1)": 2} and {r.setting for r in chosen.results} == {"small", "large"}


def test_unequal_search_is_said_and_a_name_that_is_taken_is_refused():
    two = grid({"Source": (0.0,)}) + grid({"a": (0.0,), "b": (0.0,)}, sweep="A") + grid({"c": (0.0,)}, sweep="C")
    assert any("A 2, C 1" in note and "more trials" in note for note in summarize(two).notes)
    with pytest.raises(InputError, match="give it another name"):
        summarize([*two, *grid({"A, oracle": (0.0,)})])
