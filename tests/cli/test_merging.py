"""The command `merge`: plans and methods, what it says, and how it ends when something is wrong."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from homeostat import cli
from homeostat.cli import merging
from homeostat.cli.printing import Progress
from homeostat.core.mapped import INDEX, Mapped
from homeostat.core.run import Event
from homeostat.merge import DARE, DELLA, TIES, Average, Breadcrumbs, ModelStock, TaskArithmetic, merge_checkpoints
from tests.merge.on_disk import family, llama, put


@pytest.fixture
def nets(tmp_path, monkeypatch) -> Path:
    family(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prints(*arguments: str) -> dict[str, str]:
    result = CliRunner().invoke(cli.app, ["merge", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    return {text if name == "note" else name: "note" if name == "note" else text for name, text in rows}


@pytest.fixture
def fails(monkeypatch, capsys):
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["homeostat", "merge", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        shown = capsys.readouterr()
        assert stop.value.code == 2 and not shown.out and len(shown.err.splitlines()) == 1, shown
        return shown.err

    return run


def test_a_method_merges_a_base_and_donors_as_the_library_does(nets):
    said = prints(
        "--method", "ties", "base", "donor0", "donor1", "--out", "out", "--density", "0.3", "--weight", "1,2",
        "--skip", "lm_head*", "--dtype", "bfloat16", "--shard-size", "4kB",
    )  # fmt: skip
    merge_checkpoints(
        TIES(density=0.3, weights=(1.0, 2.0), skip=("lm_head*",)), "base", ["donor0", "donor1"], "own", dtype="bfloat16"
    )
    found, wanted = Mapped("out"), Mapped("own")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items()) and (nets / "out" / INDEX).is_file()
    assert said["method"] == "TIES(density=0.3, weights=(1, 2), skip=('lm_head*',)), 20 tensors"
    assert said["tensors"].startswith("20 merged, 1 as in the base; ") and said["saved"] == "out"
    assert re.search(r"of changes kept, .* of these outvoted", said["signs"]) and "at most" in said["memory"]


def test_a_plan_merges_and_tells_what_has_no_effect(nets):
    (nets / "plan.yaml").write_text(
        "merge_method: slerp\nbase_model: base\nmodels: [base, donor0]\nparameters: {t: [0, 1], density: 0.5}\n"
    )
    said = prints("plan.yaml", "out")
    assert said["density has no effect with slerp"] == "note" and said["tensors"].startswith("21 merged")
    found = Mapped("out")
    assert torch.allclose(found["model.layers.0.mlp.up_proj.weight"], llama()["model.layers.0.mlp.up_proj.weight"])
    assert "there already" in CliRunner().invoke(cli.app, ["merge", "plan.yaml", "out"]).exception.args[0]
    prints("plan.yaml", "--out", "out", "--overwrite")


def test_a_dry_run_says_what_it_takes_and_writes_nothing(nets):
    said = prints("--method", "task_arithmetic", "base", "donor0", "donor1", "--out", "out", "--dry-run")
    size = 4 * sum(t.numel() for t in llama().values())
    assert said["bytes"] == f"{3 * size / 1000:,.1f} kB would be read, {size / 1000:,.1f} kB would be written"
    assert said["dry run"] == "all fits; nothing was written" and not (nets / "out").exists()


def test_json_has_all(nets):
    result = CliRunner().invoke(cli.app, ["merge", "--method", "TIES", "base", "donor0", "--out", "out", "--json"])
    told = json.loads(result.stdout)
    assert told["merged"] == 21 and set(told["tensors"]) == set(llama()) and told["out"] == "out"


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("linear", Average()), ("average", Average()), ("task_arithmetic", TaskArithmetic()), ("ties", TIES()),
        ("TIES(density=0.3,scope=tensor)", TIES(density=0.3, scope="tensor")), ("dare_ties", DARE(elect=True)),
        ("dare", DARE()), ("breadcrumbs_ties", Breadcrumbs(elect=True)), ("model-stock", ModelStock()),
        ("della_linear", DELLA(elect=False)),
    ],
)  # fmt: skip
def test_methods_are_named_as_here_or_as_elsewhere(text, made):
    assert merging._method(text, {}) == made


def test_what_is_wrong_is_one_line(nets, fails):
    assert "a plan and where its result goes are wanted, and 3 paths given" in fails("base", "donor0", "donor1")
    assert "--density, --weight belong to a --method" in fails("p.yaml", "out", "--density", "0.3", "--weight", "1")
    assert "p.yaml cannot be read" in fails("p.yaml", "out")
    assert "--out says where" in fails("--method", "ties", "base", "donor0")
    assert "one donor or more" in fails("--method", "ties", "base", "--out", "out")
    assert "no merging method is called 'tie'. Did you mean 'ties'" in fails(
        "--method", "tie", "base", "donor0", "--out", "out"
    )
    assert "ModelStock has no density" in fails(
        "--method", "model_stock", "base", "donor0", "--out", "o", "--density", "1"
    )
    assert "is no number and no list of them" in fails(
        "--method", "ties", "base", "donor0", "--out", "out", "--weight", "1;2"
    )
    assert "TIES.density" in fails("--method", "ties", "base", "donor0", "--out", "out", "--density", "1.2")
    assert "4XB is no size" in fails("--method", "ties", "base", "donor0", "--out", "out", "--shard-size", "4XB")
    assert "none is not there" in fails("--method", "ties", "base", "none", "--out", "out")
    small = "nothing was written, as the checkpoints do not fit: smaller lacks "
    put(nets / "smaller", llama(layers=1))
    assert small in fails("--method", "ties", "base", "smaller", "--out", "out")
    assert not (nets / "out").exists()


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5 MB", 1_500_000), ("700", 700), ("2kb", 2000)])
def test_sizes(text, size):
    assert merging._bytes(text) == size


def test_an_interrupt_keeps_what_is_finished(nets, monkeypatch, capsys):
    from homeostat.merge import writing

    finish, left = writing.CheckpointSink.finish, [5]

    def stop(self, name, note=None):
        finish(self, name, note)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    arguments = ["homeostat", "merge", "--method", "average", "base", "donor0", "--out", "out", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    with monkeypatch.context() as patched:
        patched.setattr(writing.CheckpointSink, "finish", stop)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 130 and not (nets / "out").exists()
    with pytest.raises(SystemExit):
        cli.main()
    resumed = re.search(r"resumed\t(\d+) tensors", capsys.readouterr().out)
    assert resumed and int(resumed[1]) >= 5


def test_progress_is_shown_in_bytes(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress() as progress:
        progress(Event("survey", 3, 9))
        progress(Event("merge", 1_500_000_000, 3_000_000_000))
        assert [task.description for task in progress._bars.tasks] == ["merging 1.5 GB of 3.0 GB"]
