"""Killed, out of space, read-only, without power: what the store acknowledged is there, and a resumed run goes on.

`struck.py` and `killed.py` do it, as programs of their own. Here a sample of what they can do; all of it under
`make nightly`.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from homeostat.core.errors import CheckpointError, StoreError
from homeostat.core.save import content_hash
from homeostat.loop.store import SWITCHES, Store

HERE = Path(__file__).parent
COMPILED = runpy.run_path(str(HERE / "disk.py"))["compiled"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where that can be: it is the order of operations that counts, and a real disk takes its time."""
    made = tempfile.mkdtemp(prefix="homeostat-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    yield Path(made)
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> Path:
    made = COMPILED(tmp_path_factory.mktemp("shim"))
    if made is None:
        pytest.skip("a C compiler and Linux's /proc are needed (apt-get install gcc libc6-dev)")
    return made


def told(program: str, *arguments: object, shim: Path | None = None, timeout: float = 200) -> dict[str, Any]:
    """What a program of this folder says."""
    paths = os.pathsep.join([str(HERE.parents[1] / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    if shim is not None:
        environment["LD_PRELOAD"] = str(shim)
    command = [sys.executable, str(HERE / program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_killed_at_any_operation_on_its_files_a_store_is_whole_and_resumes(folder, shim):
    """Every third write, sync, rename, ... of all windows, before it and in the middle of writes; all are nightly."""
    found = told("struck.py", "kill", folder, 3, shim=shim)
    assert found["faults"] == {}
    assert found["operations"] > 150 and found["kinds"] == list(range(7)), "open, write, sync, rename, remove, ..."
    assert found["tried"] > 0.4 * found["operations"]


@pytest.mark.nightly
def test_killed_at_every_operation_every_run_resumes_as_if_it_had_not_stopped(folder, shim):
    found = told("struck.py", "kill", folder, 1, shim=shim, timeout=900)
    assert found["faults"] == {} and found["tried"] > 1.3 * found["operations"]


def test_a_full_or_read_only_disk_is_our_error_and_loses_nothing(folder, shim):
    found = told("struck.py", "full", folder, 12, shim=shim)
    assert found["faults"] == {} and found["errors"] > 0.8 * found["tried"] > 50


@pytest.mark.nightly
def test_a_disk_that_is_full_from_any_operation_on_is_our_error_and_loses_nothing(folder, shim):
    found = told("struck.py", "full", folder, 1, shim=shim, timeout=1200)
    assert found["faults"] == {} and found["errors"] > 0.8 * found["tried"] > 600


def test_what_was_acknowledged_is_there_after_a_power_loss(folder, shim):
    found = told("struck.py", "power", folder, 24, shim=shim)
    assert found["faults"] == {} and found["states"] > 100
    assert found["complete"], "what was recorded makes the files that are there: nothing went past the shim"


@pytest.mark.nightly
def test_what_was_acknowledged_is_there_after_a_power_loss_at_any_moment(folder, shim):
    found = told("struck.py", "power", folder, 1, shim=shim, timeout=1500)
    assert found["faults"] == {} and found["states"] > 2000


def test_killed_at_random_again_and_again_a_loop_loses_nothing(folder):
    found = told("killed.py", folder, 50, 3)
    assert found["faults"] == {} and found["kills"] == 50 and found["lives"] > 1
    assert found["refused"] > 0, "another process was refused with the pid of the one that ran"
    assert len(set(found["stops"])) > 5, "kills fell into different windows"


@pytest.mark.nightly
def test_killed_a_thousand_times_a_loop_loses_nothing(folder):
    found = told("killed.py", folder, 1000, 4, timeout=900)
    assert found["faults"] == {} and found["kills"] == 1000 and found["refused"] > 50


# -- checkpoints that are missing or damaged


def damage(folder: Path, how: str) -> None:
    file = folder / ("model.json" if how == "note cut" else "weights.safetensors")
    if how == "missing":
        shutil.rmtree(folder)
    elif how == "file missing":
        file.unlink()
    elif how == "flipped":
        file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("how", ["missing", "file missing", "cut", "flipped", "note cut"])
@pytest.mark.parametrize("which", ["snapshot", "commit", "start"])
def test_a_damaged_checkpoint_is_named_and_nothing_is_lost_once_it_is_put_back(problem, tmp_path, which, how):
    stream = problem.stream([(problem.CLEAN, 3), (problem.DARK, 8)])
    with problem.loop(tmp_path / "store", problem.net) as loop:
        loop.run(stream, labels=25)
        journal, served, name = problem.told(loop), content_hash(loop.state), loop.store.last(which).checkpoint
    assert "commit" in {row[1] for row in journal}
    checkpoint = tmp_path / "store" / "checkpoints" / name
    shutil.copytree(checkpoint, tmp_path / "copy")
    damage(checkpoint, how)
    if which == "snapshot":  # what a resumed loop needs
        with pytest.raises(CheckpointError, match=f"{name[:12]}"):
            problem.loop(tmp_path / "store", problem.net)
    else:
        with problem.loop(tmp_path / "store", problem.net) as loop:
            assert content_hash(loop.state) == served
            with pytest.raises(CheckpointError, match=f"{name[:12]}"):
                loop.store.load(name, base=problem.net)
    shutil.rmtree(checkpoint, ignore_errors=True)
    (tmp_path / "copy").rename(checkpoint)
    with problem.loop(tmp_path / "store", problem.net) as loop:
        assert problem.told(loop) == journal and content_hash(loop.state) == served
        for row in loop.store.rows(*SWITCHES):
            assert content_hash(loop.store.load(row.checkpoint, base=problem.net)) == row.checkpoint


def test_a_corrupt_row_stops_a_loop_from_resuming_and_is_named(problem, tmp_path):
    with problem.loop(tmp_path, problem.net) as loop:
        loop.run(problem.stream([(problem.CLEAN, 8)]))
        journal = problem.told(loop)
    connection = sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)
    last = "kind = 'snapshot' AND step = 8"
    (content,) = connection.execute(f"SELECT content FROM journal WHERE {last}").fetchone()
    assert '"at": 8' in content
    change = f"UPDATE journal SET content = ? WHERE {last}"
    connection.execute(change, (content.replace('"at": 8', '"at": 7'),))
    with pytest.raises(StoreError, match=r"row \d+ of the journal .* is corrupt"):
        problem.loop(tmp_path, problem.net)
    connection.execute(change, (content,))
    connection.close()
    with problem.loop(tmp_path, problem.net) as loop:
        assert problem.told(loop) == journal and loop.progress.at == 8


# -- size


def test_a_window_takes_less_than_a_kilobyte_and_old_checkpoints_go(problem, tmp_path):
    phases = [(problem.CLEAN, 40), (problem.DARK, 40), (problem.CLEAN, 40), (problem.DARK, 40), (problem.CLEAN, 40)]
    plan = problem.PLAN.replace(snapshot=50)
    with problem.loop(tmp_path, problem.net, plan=plan) as loop:
        loop.run(problem.stream(phases), labels=8)
        switches = {row.checkpoint for row in loop.store.rows(*SWITCHES)}
    assert len(switches) > 1
    assert (tmp_path / "journal.sqlite").stat().st_size < 1000 * 200
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    with Store(tmp_path) as store:
        assert kept <= switches | {store.last("snapshot").checkpoint}
