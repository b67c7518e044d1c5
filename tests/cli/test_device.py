"""`--device`: where commands compute, on the strict device of the tests, which is not the CPU and gives its numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from homeostat.core.place import device_of
from homeostat.core.run import Event
from homeostat.loop.deployment import deploy, read_deployment

FILE = """
Deployment:
  model: net
  before: {NPZ: {path: before.npz}}
  stream: {NPZ: {path: now.npz, stop: 280}}
  remedies: [Tent, {BatchNormBlend: {blend: 0.0}}]
  plan:
    Plan: {window: 40, trial: 1, verify: 1, snapshot: 2, diagnose: {ShiftKind: {simulations: 3, reference: 60}}}
  labels: 40
  store: {store}
"""


@pytest.fixture
def here(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shop, to write into."""
    shutil.copytree(shop / "net", tmp_path / "net")
    for name in ("before.npz", "now.npz"):
        shutil.copy(shop / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(here: Path, store: str) -> str:
    (here / f"{store}.yaml").write_text(FILE.replace("{store}", store))
    return f"{store}.yaml"


@pytest.mark.parametrize("command", [("demo", "--folder", "runs"), ("run", "shop.yaml"), ("resume", "shop")])
def test_a_device_that_cannot_be_used_is_said_first_and_nothing_is_written(command, here, ends):
    written(here, "shop")
    files = sorted(path.name for path in here.iterdir())
    code, out, err = ends(*command, "--device", "nowhere")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("homeostat: --device nowhere cannot be used here (there is no such kind of device)")
    assert sorted(path.name for path in here.iterdir()) == files


def test_run_and_resume_give_the_same_on_either_device(here, prints, strict):
    alone = json.loads(prints("run", written(here, "alone"), "--json"))

    def stop(event: Event) -> None:
        if event.name == "window" and event.step == 5:
            raise InterruptedError

    file = written(here, "moved")
    loop, stream = deploy(read_deployment(file), watch=stop, device=strict.NAME)
    with loop, pytest.raises(InterruptedError):
        assert device_of(loop.frozen).type == strict.NAME
        loop.run(stream, labels=40)
    resumed = json.loads(prints("resume", "moved", "--json"))
    assert resumed["windows"] in (2, 3)
    there = json.loads(prints("run", written(here, "there"), "--device", strict.NAME, "--json"))
    for key in ("accuracy", "frozen", "served", "alarms", "commits", "rollbacks"):
        assert there[key] == alone[key]
        assert resumed[key] == alone[key] or key in ("accuracy", "frozen")
    assert alone["commits"] >= 1
    rows = prints("history", "moved", "--kind", "device")
    assert "on strict:0 from here on, before on cpu" in rows and "on cpu from here on" in rows
    assert "strict" not in prints("history", "alone")


def test_probe_and_apply_give_the_same_on_either_device(here, prints, strict):
    def said(*more: str) -> str:
        return prints(
            "probe", "net", "now.npz", "--before", "before.npz", "--probe", "Accuracy", "--probe", "KS", *more
        )

    assert said("--device", strict.NAME) == said()
    for out, more in (("a", ()), ("b", ("--device", strict.NAME))):
        prints("apply", "EATA", "net", "--before", "before.npz", "--target", "now.npz", "--out", out, *more)
    assert json.loads((here / "a" / "model.json").read_text()) == json.loads((here / "b" / "model.json").read_text())
