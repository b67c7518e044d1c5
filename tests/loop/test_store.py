"""The store: rows once and in order, checkpoints that are what the journal says, one process at a time."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys

import pytest
import torch
from torch import nn

from homeostat.core.errors import CheckpointError, HomeostatError, InputError, MissingExtra, StoreError
from homeostat.loop.store import Row, Store

HELD_ELSEWHERE = """
import fcntl, os, sys
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.truncate(0)
file.write(str(os.getpid()))
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


def layer(seed: int) -> nn.Module:
    made = nn.Linear(3, 2)
    with torch.no_grad():
        made.weight.copy_(torch.rand(2, 3, generator=torch.Generator().manual_seed(seed)))
        made.bias.zero_()
    return made.eval()


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store") as made:
        yield made


def change(store: Store, sql: str, *values: object) -> None:
    connection = sqlite3.connect(store.path / "journal.sqlite")
    with connection:
        connection.execute(sql, values)
    connection.close()


def test_rows_come_back_in_order_of_step_then_of_writing_with_their_content(store):
    store.write([Row(2, "window", {"a": [1, None, "é"]}), Row(0, "start", {}, "c0")])
    store.write([Row(1, "window"), Row(0, "alarm", {"x": 0.1}), Row(0, "propose")])
    assert [(r.step, r.kind) for r in store.rows()] == [
        (0, "start"), (0, "alarm"), (0, "propose"), (1, "window"), (2, "window"),
    ]  # fmt: skip
    assert next(store.rows("alarm")).content == {"x": 0.1}
    assert [r.content for r in store.rows("window")] == [{}, {"a": [1, None, "é"]}]
    first, last = next(store.rows("start")), store.last("window", "start")
    assert first.checkpoint == "c0" and first.time > 1e9
    assert last is not None and last.step == 2 and store.last("commit") is None


def test_a_repeated_row_is_written_once_and_another_of_the_same_window_is_kept(store):
    store.write([Row(3, "window", {"entropy": 0.2, "ms": 4.1}), Row(3, "window", {"entropy": 0.2, "ms": 9.75e-05})])
    store.write([Row(3, "window", {"entropy": 0.2, "ms": 5.0}), Row(3, "window", {"entropy": 0.3, "ms": 4.1})])
    assert [row.content for row in store.rows()] == [{"entropy": 0.2, "ms": 4.1}, {"entropy": 0.3, "ms": 4.1}]


def test_rows_of_one_call_are_written_together_or_not_at_all(store):
    with pytest.raises(ValueError, match="JSON"):
        store.write([Row(0, "start", {"fine": 1}), Row(1, "window", {"entropy": float("nan")})])
    assert list(store.rows()) == []


def test_what_was_written_is_there_after_closing(tmp_path):
    with Store(tmp_path) as store:
        store.write([Row(0, "start", {"a": 1}, store.keep(layer(0)))])
    with Store(tmp_path) as store:
        row = store.last("start")
        assert row is not None and row.content == {"a": 1}
        assert torch.equal(store.load(str(row.checkpoint)).weight, layer(0).weight)


@pytest.mark.parametrize("content", ["{", "", "[1]", "3", "null"])
def test_a_corrupt_row_is_our_error_that_names_it(store, content):
    store.write([Row(0, "start"), Row(1, "window")])
    change(store, "update journal set content = ? where step = 1", content)
    assert [row.kind for row in store.rows("start")] == ["start"]
    with pytest.raises(StoreError, match=r"row 2 .* is corrupt"):
        list(store.rows())


def test_a_journal_that_is_no_database_is_our_error_and_lets_the_lock_go(tmp_path):
    (tmp_path / "journal.sqlite").write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(tmp_path)
    (tmp_path / "journal.sqlite").unlink()
    Store(tmp_path).close()


def test_a_table_that_is_gone_is_our_error_on_reading_and_on_writing(store):
    change(store, "drop table journal")
    with pytest.raises(StoreError, match="cannot be read"):
        list(store.rows())
    with pytest.raises(StoreError, match="cannot be written"):
        store.write([Row(0, "start")])


def test_a_missing_checkpoint_is_named(store):
    name = store.keep(layer(0))
    shutil.rmtree(store.path / "checkpoints" / name)
    with pytest.raises(CheckpointError, match=f"{name[:12]} is missing"):
        store.load(name)


def test_a_changed_checkpoint_does_not_match_its_hash(store):
    name = store.keep(layer(0))
    file = store.path / "checkpoints" / name / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="does not match its hash"):
        store.load(name)
    file.write_bytes(bytes(content[:-3]))
    with pytest.raises(CheckpointError, match="truncated"):
        store.load(name)


def test_another_sound_checkpoint_in_its_place_is_found(store):
    name, other = store.keep(layer(0)), store.keep(layer(1))
    folder = store.path / "checkpoints"
    shutil.rmtree(folder / name)
    shutil.copytree(folder / other, folder / name)
    with pytest.raises(CheckpointError, match=f"holds another one, with hash {other[:12]}"):
        store.load(name)


def test_equal_models_are_kept_once_and_unequal_ones_apart(store):
    assert store.keep(layer(0)) == store.keep(layer(0)) != store.keep(layer(1))
    assert len(list((store.path / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize("where", ["store", "store/below", "store/checkpoints"])
def test_a_file_in_place_of_a_folder_is_our_error(tmp_path, where):
    blocked = tmp_path / ("store/checkpoints" if where.endswith("checkpoints") else "store")
    blocked.parent.mkdir(exist_ok=True)
    blocked.write_text("in the way")
    with pytest.raises(StoreError, match="cannot be made"):
        Store(tmp_path / where if not where.endswith("checkpoints") else tmp_path / "store")
    assert blocked.read_text() == "in the way"


def test_a_folder_in_place_of_the_lock_is_our_error(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(StoreError, match="cannot be written"):
        Store(tmp_path)


def test_checkpoints_that_cannot_be_written_are_our_error(store):
    shutil.rmtree(store.path / "checkpoints")
    (store.path / "checkpoints").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        store.keep(layer(0))


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////proc/none/journal.sqlite"])
def test_a_database_that_cannot_be_opened_is_our_error_and_lets_the_lock_go(tmp_path, url):
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(tmp_path, url)
    Store(tmp_path).close()


def test_a_missing_driver_is_our_error_and_lets_the_lock_go(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pg8000", None)
    with pytest.raises(MissingExtra, match=r"homeostat\[postgres\]"):
        Store(tmp_path, "postgresql+pg8000://localhost/journal")
    Store(tmp_path).close()


def test_a_second_store_of_this_process_is_refused_with_the_pid_until_the_first_is_closed(tmp_path):
    first = Store(tmp_path)
    with pytest.raises(StoreError, match=rf"pid {os.getpid()}\)"):
        Store(tmp_path)
    first.write([Row(0, "start")])
    first.close()
    with Store(tmp_path) as second:
        assert [row.kind for row in second.rows()] == ["start"]


def test_a_store_that_another_process_holds_is_refused_with_its_pid_until_that_one_is_killed(tmp_path):
    command = [sys.executable, "-c", HELD_ELSEWHERE, str(tmp_path / "lock")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin is not None and holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StoreError, match=rf"pid {holder.pid}\)"):
            Store(tmp_path)
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    with Store(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_another_process_is_refused_with_the_pid_of_this_one(store):
    code = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    tried = subprocess.run([sys.executable, "-c", code, str(store.path / "lock")], capture_output=True, text=True)
    assert tried.returncode != 0 and "BlockingIOError" in tried.stderr
    assert (store.path / "lock").read_text() == str(os.getpid())


def test_collect_keeps_what_switch_rows_the_last_snapshot_and_the_caller_name(store):
    names = [store.keep(layer(seed)) for seed in range(7)]
    kinds = ("start", "commit", "rollback", "snapshot", "snapshot", "window")
    store.write([Row(i, kind, {}, name) for i, (kind, name) in enumerate(zip(kinds, names, strict=False))])
    (store.path / "checkpoints" / ".half.written").mkdir()
    assert store.collect([names[6]]) == 3
    left = {path.name for path in (store.path / "checkpoints").iterdir()}
    assert left == {names[i] for i in (0, 1, 2, 4, 6)}
    assert all(isinstance(store.load(name), nn.Linear) for name in left)


KEPT = {
    None: range(9),
    9: range(9),
    7: (0, *range(2, 9)),
    4: (0, 5, 6, 7, 8),
    3: (0, 6, 7, 8),
    2: (0, 7, 8),
    1: (0, 7, 8),
    0: (0, 7, 8),
}


@pytest.mark.parametrize("switches", KEPT)
def test_collect_keeps_the_newest_switches_and_always_the_start_what_is_served_and_what_was_before(store, switches):
    names = [store.keep(layer(seed)) for seed in range(10)]
    for step, name in enumerate(names[:9]):
        kind = "start" if step == 0 else "rollback" if step % 3 == 0 else "commit"
        store.write([Row(step, kind, {}, name), Row(step, "snapshot", {}, names[9])])
    kept = {names[i] for i in (*KEPT[switches], 9)}
    assert store.collect([], switches) == 10 - len(kept) and store.collect([], switches) == 0
    assert {path.name for path in (store.path / "checkpoints").iterdir()} == kept
    assert store.load(str(store.last("start", "commit", "rollback").checkpoint)) is not None


def test_a_negative_number_of_switches_to_keep_is_our_error(store):
    with pytest.raises(InputError, match="got -1"):
        store.collect([], -1)


def test_a_checkpoint_is_collected_again_after_its_removal_was_cut_short(store, monkeypatch):
    for _ in range(3):
        name = store.keep(layer(0))
        with monkeypatch.context() as patch:
            patch.setattr("homeostat.loop.store.shutil.rmtree", lambda path, **_: None)
            assert store.collect([]) >= 1
        assert not (store.path / "checkpoints" / name).exists()
    assert store.collect([]) == 3 and list((store.path / "checkpoints").iterdir()) == []


def test_a_checkpoint_half_removed_is_never_found_under_its_hash(store, monkeypatch):
    name = store.keep(layer(0))

    def killed(path, **_):
        (path / "weights.safetensors").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr("homeostat.loop.store.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        store.collect([])
    monkeypatch.undo()
    assert store.keep(layer(0)) == name
    assert torch.equal(store.load(name).weight, layer(0).weight)


@pytest.mark.parametrize("damage", ["cut", "flip", "no note", "no file", "another", "stranger"])
def test_a_damaged_checkpoint_is_written_again_when_its_model_is_kept(store, damage):
    name, folder = store.keep(layer(0)), store.path / "checkpoints"
    file = folder / name / "weights.safetensors"
    content = file.read_bytes()
    if damage in ("cut", "flip"):
        file.write_bytes(content[:-3] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    elif damage in ("no note", "no file"):
        (folder / name / ("model.json" if damage == "no note" else file.name)).unlink()
    else:
        shutil.rmtree(folder / name)
        store.keep(layer(1)) if damage == "another" else (folder / name).mkdir()
        next(folder.iterdir()).rename(folder / name)
    with pytest.raises(CheckpointError):
        store.load(name)
    assert store.keep(layer(0)) == name
    assert torch.equal(store.load(name).weight, layer(0).weight)


def test_a_sound_checkpoint_is_not_written_again(store):
    store.keep(layer(0))
    before = [(path, path.stat().st_mtime_ns, path.stat().st_ino) for path in store.path.glob("checkpoints/*/*")]
    store.keep(layer(0))
    assert [
        (path, path.stat().st_mtime_ns, path.stat().st_ino) for path in store.path.glob("checkpoints/*/*")
    ] == before


def damaged(content: bytes, how: str) -> bytes:
    half, noise = len(content) // 2 // 4096 * 4096, bytes(range(256)) * 16
    return {
        "empty": b"", "cut in half": content[:half], "cut in a page": content[:-1000], "one byte": content[:1],
        "first page": noise + content[4096:], "header": b"x" * 50 + content[50:],
        "page in the middle": content[:half] + noise + content[half + 4096 :], "last page": content[:-4096] + noise,
        "zeros": content[:half] + b"\0" * (len(content) - half),
    }[how]  # fmt: skip


@pytest.mark.parametrize(
    "how",
    [
        "missing", "empty", "cut in half", "cut in a page", "one byte", "first page", "header", "page in the middle",
        "last page", "zeros",
    ],
)  # fmt: skip
def test_a_damaged_database_is_our_error_or_does_no_harm_and_a_copy_of_it_puts_all_back(tmp_path, how):
    rows = [Row(step, "window", {"text": f"{step}" * 40}) for step in range(600)]
    with Store(tmp_path) as store:
        store.write(rows)
    file = tmp_path / "journal.sqlite"
    content, said = file.read_bytes(), ""
    assert len(content) > 20 * 4096
    file.unlink() if how == "missing" else file.write_bytes(damaged(content, how))
    try:
        with Store(tmp_path) as store:
            found = [row.content for row in store.rows()]
            assert how not in ("missing", "empty", "first page", "header", "zeros", "cut in half", "one byte")
            assert found == [row.content for row in rows]
    except StoreError as error:
        said = str(error)
    assert said or how in ("page in the middle", "last page"), "rows were lost and nothing was said"
    assert str(tmp_path) in said or not said
    for path in tmp_path.glob("journal.sqlite*"):
        path.unlink()
    file.write_bytes(content)
    with Store(tmp_path) as store:
        assert [row.content for row in store.rows()] == [row.content for row in rows]


def test_a_store_whose_name_was_lost_goes_on_with_its_own_journal(tmp_path):
    with Store(tmp_path) as store:
        store.write([Row(0, "start")])
        name = store.identity
    (tmp_path / "identity").unlink()
    with Store(tmp_path) as store:
        assert store.identity == name == (tmp_path / "identity").read_text()
        assert [row.kind for row in store.rows()] == ["start"]


@pytest.mark.parametrize("text", [b"", b"a" * 31, b"\xff" * 32, b"A" * 32])
def test_a_damaged_name_is_our_error_until_it_is_restored(tmp_path, text):
    Store(tmp_path).close()
    name = (tmp_path / "identity").read_bytes()
    (tmp_path / "identity").write_bytes(text)
    with pytest.raises(StoreError, match=r"name cannot be read|is damaged"):
        Store(tmp_path)
    (tmp_path / "identity").write_bytes(name)
    Store(tmp_path).close()


@pytest.mark.parametrize("name", ["a?b", "50%", "#1 of 2", "mit Ümlaut", "x&y=z"])
def test_a_folder_may_have_any_name(tmp_path, name):
    with Store(tmp_path / name) as store:
        store.write([Row(0, "start")])
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]
    assert (tmp_path / name / "journal.sqlite").is_file()


def test_a_store_that_was_closed_is_our_error_and_may_be_closed_again(store):
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.write([Row(0, "start")])
    with pytest.raises(StoreError, match="is closed"):
        store.last("start")
    store.close()


def test_every_commit_is_on_the_disk_before_the_call_returns(store):
    with store.journal.engine.connect() as connection:
        told = {name: connection.exec_driver_sql(f"pragma {name}").scalar() for name in ("journal_mode", "synchronous")}
    assert told == {"journal_mode": "wal", "synchronous": 2}


def test_content_is_json_that_other_tools_read(store):
    store.write([Row(4, "decision", {"verdicts": [{"gain": None}]})])
    connection = sqlite3.connect(store.path / "journal.sqlite")
    (content,) = connection.execute("select content from journal where step = 4").fetchone()
    connection.close()
    assert json.loads(content) == {"verdicts": [{"gain": None}]}


def test_store_errors_are_caught_as_ours_and_as_the_built_in(tmp_path):
    (tmp_path / "file").write_text("")
    for kind in (HomeostatError, OSError):
        with pytest.raises(kind):
            Store(tmp_path / "file")
