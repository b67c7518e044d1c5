"""The command line: what it prints, for people and for scripts, and how it ends when something is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from homeostat import cli
from homeostat.core import spec
from homeostat.core.errors import UnknownName
from homeostat.core.method import Remedy, Shift

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
    commands = (
        "demo init convert run resume status history why rollback report probe apply shift merge list show schema"
    )
    for command in (*commands.split(), "version"):
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
    assert json.loads(prints("version", "--json"))["homeostat"] == version("homeostat")


def test_help_takes_less_than_a_quarter_of_a_second():
    def takes() -> float:
        before = os.times()
        subprocess.run([sys.executable, "-m", "homeostat", "--help"], capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    # The processor's time, and the best of some: a busy machine is no defect of ours.
    assert min(takes() for _ in range(5)) < 0.25


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


@pytest.mark.parametrize("kind", ["remedy", "shift", "probe", "objective", "choose", "reader", "hook"])
def test_list_of_a_kind_has_that_kind_alone_and_no_abstract_bases(kind):
    rows = json.loads(prints("list", kind, "--json"))
    assert rows and {row["kind"] for row in rows} == {kind}
    bases = {"Remedy", "Shift", "Pointwise", "TextShift", "Probe", "Objective", "Reader", "Hook"}
    assert not {row["name"] for row in rows} & bases


def test_an_unknown_kind_suggests_the_nearest(ends):
    code, out, err = ends("list", "remedies")
    assert code == 2 and not out
    assert err.startswith("homeostat: no methods are of kind 'remedies'. Did you mean 'remedy'") and "probe" in err


def test_list_is_filtered_by_what_methods_handle_and_need():
    def names(*arguments: str) -> set[str]:
        return {row["name"] for row in json.loads(prints("list", *arguments, "--json"))}

    cards = {cls.__name__: cls.card for cls in spec.registered(Remedy) if not getattr(cls, "__abstractmethods__", None)}
    assert names("remedy", "--handles", "covariate") == {n for n, c in cards.items() if "covariate" in c.handles}
    asked = {name: set(card.needs | card.prepares) for name, card in cards.items()}
    assert names("remedy", "--needs", "source.y") == {name for name, needs in asked.items() if "source.y" in needs}
    from_source = {name for name, needs in asked.items() if {"source.x", "source.y"} & needs}
    assert names("remedy", "--needs", "source") == from_source == set(cards) - names("remedy", "--without", "source")
    assert "EATA" in from_source and "Tent" not in from_source


@pytest.mark.parametrize("option", ["--handles", "--needs", "--without"])
def test_a_filter_that_fits_nothing_is_refused_with_what_there_is(option, ends):
    code, out, err = ends("list", option, "covariats" if option == "--handles" else "sourc")
    assert code == 2 and not out and "Did you mean" in err and err.count("\n") == 1


def test_a_method_without_a_docstring_is_listed_all_the_same(monkeypatch):
    class Bare(Shift, register=False):
        def apply(self, data, model, run):
            return data

    monkeypatch.setattr(spec, "registered", lambda kind: [Bare] if kind is Shift else [])
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


def test_every_listed_method_can_be_shown_as_text_and_as_json():
    names = [row["name"] for row in json.loads(prints("list", "--json"))]
    for name in names:
        text = prints("show", name)
        assert text.startswith(f"{name}  (") and "MISSING" not in text
        found = json.loads(prints("show", name, "--json"))
        assert found["name"] == name and all(f"\n  {field['name']}: " in text for field in found["fields"])


def test_show_as_json_has_types_meanings_and_defaults():
    found = json.loads(prints("show", "EATA", "--json"))
    fields = {field["name"]: field for field in found["fields"]}
    assert fields["margin"] == {
        "name": "margin", "holds": "number > 0", "must": False, "default": 0.4,
        "text": "samples with an entropy above `margin log K` are unreliable.",
    }  # fmt: skip
    assert found["card"]["prepares"] == ["source.x"] and found["card"]["id"] == "S058"
    assert json.loads(prints("show", "ResNet", "--json"))["fields"] == []


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


# --------------------------------------------------------------------------------------------------- run and its store


EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.yaml"


def quick(**changes: str) -> str:
    """The example with a classifier of shifts that is fitted to little, and these texts replaced."""
    text = EXAMPLE.read_text()
    few = "Plan: {window: 100, diagnose: {ShiftKind: {simulations: 4, reference: 100}}}"
    for old, new in {"Plan: {window: 100}": few, **changes}.items():
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The example, run to its end: its store, and what was printed."""
    folder = tmp_path_factory.mktemp("ran") / "examples"
    folder.mkdir()
    (folder / "digits.yaml").write_text(quick())
    return folder.parent / "runs" / "digits", prints("run", str(folder / "digits.yaml"))


@pytest.fixture
def store(ran: tuple[Path, str], tmp_path: Path) -> str:
    """A copy of that store, to be changed."""
    return str(shutil.copytree(ran[0], tmp_path / "store"))


def said(text: str) -> dict[str, str]:
    return dict(line.split("\t", 1) for line in text.splitlines())


def test_run_says_how_it_went_and_where_the_report_is(ran):
    store, text = ran
    lines = said(text)
    assert list(lines) == ["right", "serves", "happened", "store", "report"]
    served, frozen = (float(number) for number in re.findall(r"([0-9.]+)%", lines["right"]))
    assert served > frozen + 5 and "left as it was" in lines["right"]
    assert Path(lines["store"]) == store and Path(lines["report"]).read_text().startswith("<!")
    assert re.fullmatch(
        r"\d+ alarms?, [1-9]\d* commits?, \d+ rollbacks?, \d+ trials? without a change", lines["happened"]
    )


def test_run_again_at_the_end_says_that_nothing_was_left_to_do_and_resume_too(store):
    lines = said(prints("resume", store))
    assert lines["done"].startswith("60 windows were served before") and "--fresh" in lines["done"]
    found = json.loads(prints("resume", store, "--json"))
    assert found["windows"] == 0 and found["of"] == 60 and found["accuracy"] > found["frozen"] + 0.05


def test_status_as_text_and_as_json(store):
    lines, found = said(prints("status", store)), json.loads(prints("status", store, "--json"))
    assert lines["windows"].startswith("60 of 60, the end of the stream") and "nobody serves" in lines["store"]
    assert found["windows"] == found["of"] == 60 and found["finished"] is True and found["process"] is None
    assert found["commits"] >= 1 and found["journal_bytes"] < 1000 * 60 and lines["serves"].split(",")[0]
    assert lines["last alarm"].startswith(f"window {found['last_alarm']['step']}: ")


def test_status_in_prometheus_text_says_the_same(store):
    text, found = prints("status", store, "--prometheus"), json.loads(prints("status", store, "--json"))
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    label = f'{{store="{store}"}}'
    assert samples[f"homeostat_up{label}"] == "1"
    assert float(samples[f"homeostat_windows_total{label}"]) == found["windows"]


def test_history_as_text_and_as_json_has_the_same_rows(store):
    rows = json.loads(prints("history", store, "--json"))
    text = [line.split("\t") for line in prints("history", store).splitlines()]
    assert [[str(row["step"]), row["kind"]] for row in rows] == [[line[0], line[2]] for line in text]
    assert {len(line) for line in text} == {4} and {row["kind"] for row in rows} >= {"start", "alarm", "commit"}
    assert prints("history", store, "--last", "2").splitlines() == prints("history", store).splitlines()[-2:]
    only = json.loads(prints("history", store, "--kind", "commit", "--kind", "start", "--json"))
    assert {row["kind"] for row in only} == {"commit", "start"}


def test_why_a_commit_was_made(store):
    (commit, *_) = json.loads(prints("history", store, "--kind", "commit", "--json"))
    text = prints("why", store, str(commit["step"]))
    assert text.startswith(f"Window {commit['step']}: commit.\n") and commit["content"]["why"] in text
    told = json.loads(prints("why", store, str(commit["step"]), "--json"))
    assert told["step"] == commit["step"] and "commit" in [row["kind"] for row in told["rows"]]
    assert told["tried"] and all(one["why"] in text for one in told["tried"])
    assert "Diagnosis: " in text and "(95% interval: " in text


def test_rollback_puts_the_network_as_deployed_back_and_status_says_so(store):
    (commit, *_) = json.loads(prints("history", store, "--kind", "commit", "--json"))
    name = commit["content"]["to"]
    row = json.loads(prints("rollback", store, "--to", str(commit["step"]), "--json"))
    assert row["kind"] == "rollback" and row["content"]["to"] == name
    assert json.loads(prints("status", store, "--json"))["served"] == name != "source"
    text = prints("rollback", store, "--why", "complaints")
    assert text.startswith(f"From window 60 on, the network as deployed is served in place of {name}.")
    after = json.loads(prints("status", store, "--json"))
    assert (after["served"], after["since"]) == ("source", 60)


def test_the_report_is_written_where_it_is_wanted(store, tmp_path):
    out = tmp_path / "sub" / "report.html"
    assert said(prints("report", store, "--out", str(out)))["report"] == str(out)
    assert out.read_text() == (Path(store) / "report.html").read_text()
    assert json.loads(prints("report", store, "--json")) == {"report": str(Path(store) / "report.html")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("status", "{none}"), "there is no store at .*none: no such folder"),
        (("status", "{tmp}"), "is not a store: a folder with a journal and checkpoints is wanted"),
        (("history", "{store}", "--kind", "comit"), "no row is of kind 'comit'. Did you mean 'commit'"),
        (("why", "{store}", "99"), "there is no window 99: the journal has windows 0 to 59. Something happened at "),
        (
            ("rollback", "{store}", "--to", "3"),
            r"nothing was put in service at window 3; that happened at 0 ",
        ),
        (("resume", "{none}"), "there is no store at"),
        (("run", "{none}"), "none cannot be read: No such file"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_is_wrong_ends_with_code_2_and_one_line(arguments, message, store, tmp_path, ends):
    places = {"store": store, "none": tmp_path / "none", "tmp": tmp_path}
    code, out, err = ends(*(argument.format(**places) for argument in arguments))
    assert code == 2 and not out and re.search(message, err) and err.startswith("homeostat: ") and err.count("\n") == 1


def test_a_corrupt_row_ends_every_command_that_reads_it_with_code_2(store, ends):
    connection = sqlite3.connect(Path(store) / "journal.sqlite")
    with connection:
        connection.execute("update journal set content = '{' where kind = 'commit'")
    connection.close()
    for command in (
        ("history", store),
        ("why", store, "30"),
        ("status", store),
        ("report", store),
        ("rollback", store),
    ):
        code, out, err = ends(*command)
        assert code == 2 and not out and re.search(r"row \d+ of the journal of .* is corrupt", err), command


def test_an_interrupted_run_ends_with_code_130_says_how_to_go_on_and_goes_on(tmp_path):
    """A real interrupt, to a process of its own, once it has served windows."""
    long = {"repeat: 10": "repeat: 400", "../runs": "runs", "epochs: 15": "epochs: 1"}
    (tmp_path / "long.yaml").write_text(quick(**long))
    code = "import sys; from homeostat.cli import main; sys.argv = ['homeostat', 'run', 'long.yaml']; main()"
    running = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Where a shell runs the tests in the background, they and what they start would ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    judged, store, until = (
        tmp_path / "runs" / "digits" / "judged.jsonl",
        tmp_path / "runs" / "digits",
        time.monotonic() + 60,
    )
    while not judged.exists() and running.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert json.loads(prints("status", str(store), "--json"))["process"] == running.pid
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130 and not out and err == "\ninterrupted; to go on: homeostat resume runs/digits\n"
    found = json.loads(prints("status", str(store), "--json"))
    assert found["process"] is None and 0 < found["windows"] < found["of"] == 2388


def test_status_needs_no_torch(store):
    code = (
        "import sys; from homeostat.cli import app; from typer.testing import CliRunner\n"
        f"assert CliRunner().invoke(app, ['status', {store!r}]).exit_code == 0\n"
        f"assert CliRunner().invoke(app, ['history', {store!r}]).exit_code == 0\n"
        "print([m for m in ('torch', 'numpy', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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
