"""The catalogue is whole, and what is registered belongs to it."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from homeostat.catalogue import systems
from homeostat.catalogue.listing import STAGES, carded
from homeostat.cli import app
from homeostat.core.errors import UnknownName

README = Path(__file__).parents[2] / "README.md"


def test_all_systems_are_there_each_with_a_sentence():
    assert list(systems()) == [f"S{number:03d}" for number in range(1, 321)]
    kinds = {"method", "system", "benchmark", "metric", "study", "theory", "application", "survey"}
    for system in systems().values():
        assert system.stage in STAGES and system.kind in kinds, system
        assert 20 <= len(system.does) <= 300 and len(system.title) >= 3, system
        assert not set("`*") & set(system.does), system
    assert {system.stage for system in systems().values()} == set(STAGES)


def test_every_id_of_a_method_is_in_the_catalogue():
    ids = {cls.card.id for cls in carded() if cls.card.id}
    assert ids and ids <= set(systems())
    assert all(systems()[name].methods() for name in ids)
    running = sum(bool(system.methods()) for system in systems().values())
    assert running == len(ids)


def test_the_command_lists_them_with_what_runs():
    rows = json.loads(CliRunner().invoke(app, ["list", "--catalogue", "--json"]).stdout)
    assert len(rows) == 320
    (eata,) = [row for row in rows if row["id"] == "S058"]
    assert eata["status"] == "runs" and eata["methods"] == ["EATA"] and eata["stage"] == "adapt"
    assert sum(row["status"] == "runs" for row in rows) == sum(bool(s.methods()) for s in systems().values())
    text = CliRunner().invoke(app, ["list", "--catalogue", "merge"]).stdout.splitlines()
    assert len(text) == sum(s.stage == "merge" for s in systems().values()) and all(
        line.split("\t")[2] == "merge" for line in text
    )
    error = CliRunner().invoke(app, ["list", "--catalogue", "marge"]).exception
    assert isinstance(error, UnknownName) and "merge" in str(error)


def test_the_readme_says_how_many_run():
    running = sum(bool(system.methods()) for system in systems().values())
    assert f"<!-- count -->{running} of 320<!-- /count -->" in README.read_text(), "make docs puts it right"
