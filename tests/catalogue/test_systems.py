"""The catalogue is whole, and what is registered belongs to it."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from homeostat.catalogue import System, listing, systems
from homeostat.catalogue.exact import exact_tests
from homeostat.catalogue.listing import STAGES, carded
from homeostat.cli import app
from homeostat.core.errors import UnknownName
from homeostat.evidence import Evidence, verdicts

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
    assert all(systems()[name].methods() and systems()[name].runs for name in ids)
    assert {system.id for system in systems().values() if system.methods()} == ids


def test_what_is_known_of_a_system_is_read_from_tests_and_evidence(tmp_path):
    """Status is derived: from registered ids, marks of tests, and what is on record of claims."""
    assert set(exact_tests()) <= {system.id for system in systems().values() if system.runs}
    for tests in exact_tests().values():
        for test in tests:
            path, _, name = test.partition("::")
            assert f"def {name}(" in (README.parent / path).read_text()
    for id, held in verdicts().items():
        if id in systems():
            assert systems()[id].claims() == tuple(held) and systems()[id].status.count("claims: ") == 1
    assert systems()["S002"].status == "not started" and not systems()["S002"].runs
    (tmp_path / "test_house.py").write_text("")
    (tmp_path / "test_a.py").write_text(
        "import pytest\n@pytest.mark.exact('S002')\n@pytest.mark.parametrize('a', [1])\ndef test_x(a): ...\n"
    )
    assert exact_tests(tmp_path) == {"S002": (f"{tmp_path.name}/test_a.py::test_x",)}


def test_a_status_says_what_runs_what_is_exact_and_what_held(monkeypatch):
    one = System("S002", "A title", "shift", "method", "Does nothing that anybody has seen so far")
    assert one.status == "not started"
    some = [object.__new__(Evidence) for _ in range(3)]
    for empty, word in zip(some, ("held", "undecided", "held"), strict=True):
        object.__setattr__(empty, "verdict", word)
    monkeypatch.setattr(listing, "_recorded", lambda: {"S002": tuple(some)})
    assert one.runs and one.status == "runs; claims: 2 held, 1 undecided"
    monkeypatch.setattr(listing, "exact_tests", lambda: {"S002": ("tests/a.py::test_b",)})
    assert one.status == "exact; claims: 2 held, 1 undecided"


def test_the_command_lists_them_with_what_runs():
    rows = json.loads(CliRunner().invoke(app, ["list", "--catalogue", "--json"]).stdout)
    assert len(rows) == 320
    (eata,) = [row for row in rows if row["id"] == "S058"]
    assert eata["status"] == systems()["S058"].status != "not started"
    assert eata["methods"] == ["EATA"] and eata["stage"] == "adapt" and len(eata["exact"]) >= 1
    assert [one["name"] for one in eata["claims"]] == [one.name for one in systems()["S058"].claims()]
    assert sum(row["status"] != "not started" for row in rows) == sum(s.runs for s in systems().values())
    text = CliRunner().invoke(app, ["list", "--catalogue", "merge"]).stdout.splitlines()
    assert len(text) == sum(s.stage == "merge" for s in systems().values()) and all(
        line.split("\t")[2] == "merge" for line in text
    )
    error = CliRunner().invoke(app, ["list", "--catalogue", "marge"]).exception
    assert isinstance(error, UnknownName) and "merge" in str(error)


def test_the_readme_says_how_many_run():
    running = sum(system.runs for system in systems().values())
    assert f"<!-- count -->{running} of 320<!-- /count -->" in README.read_text(), "make docs puts it right"
