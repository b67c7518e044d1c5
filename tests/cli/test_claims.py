"""`homeostat claims`: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from homeostat import cli
from homeostat.core.errors import HomeostatError

FILE = """
from __future__ import annotations
import torch
from homeostat.evidence import claim

def made(name, least, tier="a minute"):
    return claim("S001", says="a is above b.", ours="a", baseline="b", metric="score", least=least, tier=tier,
                 tuned="nothing", shrunk="all of it")

@made("high", 0.1)
def high(run):
    return {"a": 1 + 0.1 * float(torch.randn((), generator=run.rng("x"))), "b": 0.5, "c": 3.0}
"""
LOW = """
@made("low", 0.1)
def low(run):
    return {"a": 0.4 + 0.01 * run.seed, "b": 0.5}
"""
BAD = """
@made("bad", 0.1)
def bad(run):
    raise ValueError("no such thing")
"""


def call(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["claims", *arguments, "--claims", str(folder)])


def written(folder: Path, content: str, file: str = "s001_made.py") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(content)
    return folder


def test_run_writes_evidence_that_list_shows_and_check_takes(tmp_path):
    folder = written(tmp_path, FILE + LOW)
    assert "no evidence" in call(folder, "list").output
    first = call(folder, "run", "S001")
    assert first.exit_code == 0 and "verdict\theld: +0.5" in first.output and "verdict\tnot held: -0.08" in first.output
    assert "on record" not in first.output and str(folder / "evidence") in first.output
    rows = [line.split("\t") for line in call(folder, "list").output.splitlines()]
    assert [(row[0], row[1], row[2], row[4]) for row in rows] == [
        ("S001/high", "a minute", "held", "current"), ("S001/low", "a minute", "not held", "current"),
    ]  # fmt: skip
    assert re.fullmatch(r"\+0\.\d+ \[\+0\.\d+, \+0\.\d+\]", rows[0][3])
    checked = call(folder, "check")
    assert checked.exit_code == 0 and "again\tS001/high: every number is the same" in checked.output
    again = call(folder, "run", "S001/high", "--json")
    said = json.loads(again.stdout)
    assert [row["claim"] for row in said["claims"]] == ["S001/high"]
    assert said["claims"][0]["before"]["arms"] == said["claims"][0]["evidence"]["arms"]


def test_check_catches_a_changed_number_and_fails(tmp_path):
    folder = written(tmp_path, FILE)
    assert call(folder, "run", "--all").exit_code == 0
    path = folder / "evidence" / "S001.json"
    said = json.loads(path.read_text())
    entry = said["claims"]["high"]
    from homeostat.evidence.recorded import judge

    entry["arms"]["a"][2] += 0.001
    made = judge(entry["arms"]["a"], entry["arms"]["b"], "higher", 0.1)
    entry |= {"differences": made.differences, "effect": made.effect, "interval": made.interval}
    path.write_text(json.dumps(said))
    done = call(folder, "check")
    assert done.exit_code == 1 and "wrong\tS001/high: a, seed 2:" in done.output
    assert call(folder, "check", "--sample", "0").exit_code == 0, "nothing is stale, and nothing was run"


def test_check_fails_on_missing_evidence_and_on_a_broken_file(tmp_path):
    folder = written(tmp_path, FILE)
    done = call(folder, "check", "--json")
    assert done.exit_code == 1 and json.loads(done.stdout)["faults"] == ["S001/high: no evidence"]
    written(folder, "import not_there", "s002_broken.py")
    faults = json.loads(call(folder, "check", "--json").stdout)["faults"]
    assert len(faults) == 2 and faults[0].startswith("s002_broken.py: ") and "not_there" in faults[0]
    listed = call(folder, "list")
    assert listed.exit_code == 0 and "S001/high" in listed.stdout and "s002_broken.py" in listed.stderr


def test_a_rehearsal_takes_other_seeds_and_writes_nothing(tmp_path):
    folder = written(tmp_path, FILE)
    done = call(folder, "run", "--all", "--rehearse", "--seeds", "2", "--json")
    said = json.loads(done.stdout)
    assert said["claims"][0]["evidence"]["seeds"] == [100, 101] and said["written"] == ""
    assert not (folder / "evidence").exists()


def test_run_writes_elsewhere_when_told_to(tmp_path):
    folder = written(tmp_path / "claims", FILE)
    assert call(folder, "run", "--tier", "a minute", "--out", str(tmp_path / "new")).exit_code == 0
    assert (tmp_path / "new" / "S001.json").is_file() and not (folder / "evidence").exists()


def test_a_claim_that_cannot_be_run_ends_with_1_and_the_others_are_written(tmp_path):
    folder = written(tmp_path, FILE + BAD)
    done = call(folder, "run", "--all")
    assert done.exit_code == 1 and "failed\tValueError: no such thing" in done.output
    assert list(json.loads((folder / "evidence" / "S001.json").read_text())["claims"]) == ["high"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run",), "which claims are to be run"),
        (("run", "S99"), "no claim S99"),
        (("run", "--all", "--seeds", "3"), "too few for evidence: 5 are wanted"),
        (("list", "--tier", "an hour"), "no tier 'an hour'"),
        (("check", "--tier", "an hour"), "no tier 'an hour'"),
    ],
)
def test_what_cannot_be_is_one_of_our_errors(tmp_path, arguments, said):
    done = call(written(tmp_path, FILE), *arguments)
    assert isinstance(done.exception, HomeostatError) and said in str(done.exception)
