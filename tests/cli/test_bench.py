"""`homeostat bench` as typed: what ships, a grid that is computed once, its table, its report, its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from homeostat.adapt import BatchNormBlend, Source
from homeostat.bench import Continual
from homeostat.cli import app
from homeostat.core.errors import InputError, MissingPart, UnknownName
from tests.bench.grids import Raises, tiny


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    made = tiny(entrants=(Source(), BatchNormBlend()), protocols=(Continual(batch=20),))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(made.to_config(), sort_keys=False))
    return folder / "tiny.yaml"


def said(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["bench", *words])
    assert done.exit_code == code, done.output
    return done.stdout


def test_without_a_name_the_suites_that_ship_are_listed() -> None:
    known = {"corruption-small", "loop-small", "tta-small", "ttab-small"}
    assert {line.split("\t")[0] for line in said().splitlines()} == known
    assert all(row["about"] for row in json.loads(said("--json")))


def test_a_grid_ends_in_a_table_and_a_report_and_is_computed_once(suite: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    first = said(str(suite), "--out", out, "--on", "here")
    assert "4 cells computed, 0 kept, 0 failed" in first and "BatchNormBlend" in first
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<title>" in page and "BatchNormBlend" in page
    again = json.loads(said(str(suite), "--out", out, "--on", "here", "--json"))
    assert (again["computed"], again["kept"], again["cells_failed"]) == (0, 4, 0)
    (table, *_) = again["tables"]
    assert table["reference"] == "Source" and {row["entrant"] for row in table["rows"]} == {"Source", "BatchNormBlend"}


def test_failed_cells_end_it_with_one_and_are_in_the_report(tmp_path: Path) -> None:
    made = tiny(entrants=(Source(), Raises("out of luck")), seeds=1)
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(made.to_config(), sort_keys=False))
    text = said(str(tmp_path / "bad.yaml"), "--out", str(tmp_path / "o"), "--on", "here", code=1)
    assert "1 failed" in text
    assert "out of luck" in (tmp_path / "o" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        (("tta-smal",), MissingPart, "Did you mean 'tta-small'"),
        (("SUITE", "--on", "moon"), InputError, "'here', 'processes' or 'ray'"),
        (("SUITE", "--address", "x"), InputError, "Ray cluster"),
        (("SUITE", "--on", "here", "--reference", "Surce"), UnknownName, "Source"),
        (("SUITE", "--on", "here", "--probe", "acuracy"), UnknownName, "accuracy"),
    ],
)
def test_what_is_wrong_is_said(suite: Path, tmp_path: Path, words: tuple[str, ...], error: type, text: str) -> None:
    given = [str(suite) if word == "SUITE" else word for word in words]
    done = CliRunner().invoke(app, ["bench", *given, "--out", str(tmp_path), "--seeds", "1"])
    assert isinstance(done.exception, error) and text in str(done.exception)
