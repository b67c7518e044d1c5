"""The command line: what it prints, for people and for scripts, and how it ends when something is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from homeostat import cli
from homeostat.core import spec
from homeostat.core.errors import UnknownName
from homeostat.core.method import Shift

Ends = Callable[..., tuple[int, str, str]]


def prints(*arguments: str) -> str:
    """What a command that succeeds prints, without styling."""
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return re.sub(r"\x1b\[[0-9;]*m", "", result.output)


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ends:
    """`main` with these arguments: exit code, output, errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["homeostat", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        shown = capsys.readouterr()
        return int(stop.value.code or 0), shown.out, shown.err

    return run


# ----------------------------------------------------------------------------------------------------- light start


def test_help_names_every_command():
    text = prints("--help")
    for command in ("demo", "list", "show", "version"):
        assert re.search(rf"(?m)^\W*{command} ", text), command


def test_neither_the_module_nor_help_imports_anything_heavy():
    code = (
        "import sys, homeostat.cli as cli; from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(cli.app, ['--help']).exit_code == 0\n"
        "print([m for m in ('torch', 'numpy', 'sklearn', 'sqlalchemy', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version_is_that_of_the_installed_package():
    assert prints("version") == version("homeostat") + "\n"


# ------------------------------------------------------------------------------------------------------------ list


def test_list_is_tab_separated_where_output_is_no_terminal(monkeypatch):
    # A wish for color must not change the format that a script reads.
    monkeypatch.setenv("FORCE_COLOR", "1")
    lines = [line.split("\t") for line in prints("list").splitlines()]
    assert {len(line) for line in lines} == {6}
    rows = {line[0]: line[1:] for line in lines}
    assert rows["EATA"][:2] == ["remedy", "S058"] and rows["EATA"][3] == "model.norm"
    assert rows["Corrupt"][0] == "shift" and rows["Corrupt"][2] == "covariate"
    assert rows["CharacterNoise"][0] == "shift" and rows["WordNoise"][4].startswith("Words lost")


def test_list_as_json_has_the_same_rows_as_the_text():
    rows = json.loads(prints("list", "--json"))
    (eata,) = [row for row in rows if row["name"] == "EATA"]
    assert eata["id"] == "S058" and eata["kind"] == "remedy" and eata["does"]
    text = [line.split("\t") for line in prints("list").splitlines()]
    assert [[row[key] for key in ("name", "kind", "id", "handles", "needs", "does")] for row in rows] == text


@pytest.mark.parametrize("kind", ["remedy", "shift", "probe", "objective", "choose"])
def test_list_of_a_kind_has_that_kind_alone_and_no_abstract_bases(kind):
    rows = json.loads(prints("list", kind, "--json"))
    assert rows and {row["kind"] for row in rows} == {kind}
    assert not {row["name"] for row in rows} & {"Remedy", "Shift", "Pointwise", "TextShift", "Probe", "Objective"}


def test_an_unknown_kind_suggests_the_nearest(ends):
    code, out, err = ends("list", "remedies")
    assert code == 2 and not out
    assert err.startswith("homeostat: no methods are of kind 'remedies'. Did you mean 'remedy'") and "probe" in err


def test_a_method_without_a_docstring_is_listed_all_the_same(monkeypatch):
    class Bare(Shift, register=False):
        def apply(self, data, model, run):
            return data

    monkeypatch.setattr(spec, "registered", lambda kind: [Bare] if isinstance(kind, tuple) else [])
    assert prints("list") == "Bare\tshift\t\t\t\t\n"


# ------------------------------------------------------------------------------------------------------------ show


def test_show_has_hyper_parameters_with_defaults_needs_and_the_reference():
    text = prints("show", "EATA")
    assert text.startswith("EATA  (homeostat.adapt.eata)\n")
    assert re.search(r"Reference: Niu et al\..*ICML 2022", text)
    for field in spec.find("EATA")().fields():
        assert re.search(rf"(?m)^  {field}: .+ = .+$", text), field
    assert "  margin: Positive = 0.4\n" in text and "Needs model.norm; to prepare, source.x." in text


def test_show_finds_layers_and_shifts_too():
    assert "fog" in prints("show", "Corrupt") and "severity" in prints("show", "Corrupt")
    assert prints("show", "ResNet").startswith("ResNet  (homeostat.nn.resnet)")


def test_every_listed_method_can_be_shown():
    names = [row["name"] for row in json.loads(prints("list", "--json"))]
    for name in names:
        text = prints("show", name)
        assert text.startswith(f"{name}  (") and "MISSING" not in text


def test_an_unknown_method_ends_with_code_2_and_one_line_that_suggests_the_nearest():
    code = "import sys; from homeostat.cli import main; sys.argv = ['homeostat', 'show', 'EATTA']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"homeostat: [^\n]*'EATTA'\. Did you mean 'EATA'[^\n]*\n", done.stderr)


# ------------------------------------------------------------------------------------------------------------ demo


def plan_file(folder: Path, text: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text(text)
    return path


def no_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused plans must not get as far as the demonstration."""
    from homeostat.loop import demo

    def reached(*args: object, **kwargs: object) -> None:
        raise AssertionError("the demonstration began")

    monkeypatch.setattr(demo, "demo", reached)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Plan:\n  window: 50\n  patiense: 4\n", "plan.yaml, line 3: Plan has no field 'patiense'. Did you mean 'pat"),
        ("Plan:\n  window: 50\n  gain: 2.0\n", "plan.yaml, line 3: Plan.gain = 2.0, but it must be <= 1"),
        ("# mine\nPlam:\n  window: 50\n", "plan.yaml, line 2: no method, shift, probe or layer is called 'Plam'."),
        ("SGD:\n  lr: 0.1\n", "plan.yaml, line 1: SGD is not a Plan"),
        ("Plan: [\n", "this is not YAML"),
    ],
    ids=["misspelt key", "out of range", "unknown name", "another spec", "no YAML"],
)  # fmt: skip
def test_a_faulty_plan_ends_with_code_2_at_file_and_line_before_anything_is_written(
    text, message, tmp_path, ends, monkeypatch
):
    no_demo(monkeypatch)
    folder = tmp_path / "runs" / "demo"
    code, out, err = ends("demo", "--folder", str(folder), "--plan", str(plan_file(tmp_path, text)))
    assert code == 2 and not out
    assert err.startswith("homeostat: ") and message in err and err.count("\n") == 1 and "Traceback" not in err
    assert not folder.exists() and not folder.parent.exists()


def test_a_plan_that_is_not_there_ends_with_code_2(tmp_path, ends, monkeypatch):
    no_demo(monkeypatch)
    code, _, err = ends("demo", "--folder", str(tmp_path / "runs"), "--plan", str(tmp_path / "none.yaml"))
    assert code == 2 and "none.yaml cannot be read: No such file" in err and not (tmp_path / "runs").exists()


def test_a_negative_number_of_labels_is_refused_by_the_option(ends, tmp_path):
    code, _, err = ends("demo", "--folder", str(tmp_path / "runs"), "--labels", "-1")
    assert code == 2 and "--labels" in err and not (tmp_path / "runs").exists()


# ------------------------------------------------------------------------------------------------------------ ends


def test_an_interrupt_ends_with_code_130_and_no_traceback(ends, monkeypatch):
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(spec, "find", interrupted)
    code, _, err = ends("show", "EATA")
    assert code == 130 and "Traceback" not in err


def test_errors_that_are_not_ours_are_not_hidden(monkeypatch):
    def broken(name: str) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(spec, "find", broken)
    monkeypatch.setattr(sys, "argv", ["homeostat", "show", "EATA"])
    with pytest.raises(ZeroDivisionError, match="a defect"):
        cli.main()


def test_the_app_itself_raises_our_errors_for_callers_in_python():
    result = CliRunner().invoke(cli.app, ["show", "EATTA"])
    assert isinstance(result.exception, UnknownName)


def test_an_unknown_command_ends_with_code_2(ends):
    code, _, err = ends("shwo")
    assert code == 2 and "No such command" in err
