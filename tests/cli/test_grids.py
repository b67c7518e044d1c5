"""How a grid's results are printed: a table on a terminal, tabs in a pipe, JSON for scripts."""

from __future__ import annotations

import json
import sys

import pytest

from homeostat.bench.summary import summarize
from homeostat.cli.grids import as_json, show, tables
from homeostat.cli.printing import print_json
from tests.bench.made import grid, tuning


def test_json_holds_the_summary_and_nothing_that_json_has_not(capsys):
    found = summarize(tuning(settings=("a", "b")), tune=("tuning",))
    print_json(as_json(found))
    read = json.loads(capsys.readouterr().out)
    assert (read["suite"], read["reference"], read["probe"]) == ("small", "Source", "accuracy")
    first, mine = read["tables"][0], found.tables[0]
    assert [row["entrant"] for row in first["rows"]] == [row.entrant for row in mine.rows]
    assert first["rows"][0]["interval"]["low"] == mine.rows[0].interval.low
    assert first["rows"][0]["harm"]["place"]["stream"] == mine.rows[0].harm.place.stream
    assert first["ranking"]["critical"] == mine.ranking.critical
    assert read["sensitivity"][0]["optimism"] == found.sensitivity[0].optimism
    assert {one["how"] for one in read["chosen"]} == {"tuned", "unlabelled", "oracle"}
    assert "results" not in read and len(read["tables"]) == 3 * 3


def test_what_is_printed_has_a_row_an_entrant_and_every_column(capsys):
    found = summarize(tuning(), tune=("tuning",))
    made = tables(found)
    assert [len(one.rows) for one in made] == [5, 1] and all(
        set(one.columns) <= set(r) for one in made for r in one.rows
    )
    assert "Tent, oracle (upper bound)" in [row["entrant"] for row in made[0].rows]
    show(found)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("Over 2 streams and 5 seeds, EATA was best")
    row = next(line for line in said if line.startswith("EATA\t")).split("\t")
    assert row[1].endswith("%") and row[2].startswith("+") and " to " in row[3]
    assert any(line.startswith("Tent\t4\t") for line in said), "the sweep, with its trials"
    assert said[-1].startswith("What was chosen from a sweep had 4 trials")


def test_on_a_terminal_there_is_a_table_and_markup_of_names_is_text(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "140")
    show(summarize(grid({"Source": (0.0,), "[red]Tent[/red]": (0.1,)})))
    said = capsys.readouterr().out
    assert "won, tied, lost" in said and "[red]Tent[/red]" in said


@pytest.mark.parametrize("cells", [grid(seeds=1), grid({"Source": (0.0,)}), grid({"Source": (0.0,), "a": (0.1,)})])
def test_small_grids_are_printed(cells, capsys):
    for probe in (None, "entropy", "nll"):
        show(summarize(cells), probe)
    assert "None" not in capsys.readouterr().out
