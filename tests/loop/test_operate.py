"""Looking at a store without touching it, and rolling it back by hand."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from homeostat.core.errors import CheckpointError, InputError, MissingPart, StoreError, UnknownName
from homeostat.core.save import content_hash
from homeostat.loop.operate import history, in_short, rollback, serving, status
from homeostat.loop.record import check_store, record, windows_in_all
from homeostat.loop.store import Row, Store

VERDICT = {"name": "EATA", "word": "better", "why": "+9.0% on 20 labels", "gain": 0.09, "low": None, "labels": 20}
LIFE = [
    Row(0, "start", {"served": "source", "accuracy_before": 0.9}, "c0"),
    *(Row(step, "window", {"served": "source", "ms": 1.0, "entropy": 0.1}) for step in range(4)),
    Row(
        2,
        "alarm",
        {
            "kind": "uncertain",
            "text": "entropy rose",
            "effect": 0.2,
            "since": [2, 1, 3],
            "again": False,
            "shift": "covariate",
            "shift_text": "the inputs changed",
            "kinds": {"covariate": 0.9},
        },
    ),
    Row(2, "propose", {"tried": ["EATA", "source"], "left": {"LAME": "it is for label", "Fit": "it needs target.y"}}),
    Row(3, "decision", {"verdicts": [VERDICT]}),
    Row(3, "commit", {"from": "source", "to": "EATA", "why": "+9.0% on 20 labels"}, "c1"),
    Row(4, "snapshot", {"at": 4, "served": "EATA", "trials": [], "breach": {"capital": 2.5, "count": 8}}, "s1"),
]


@pytest.fixture
def lived(tmp_path: Path) -> Path:
    """A store in which something was committed."""
    with Store(tmp_path / "lived") as store:
        store.write(LIFE)
    return tmp_path / "lived"


@pytest.fixture(scope="module")
def served(problem: Any, tmp_path_factory: Any) -> Path:
    """A store of a real loop that committed something; copy it before it is changed."""
    folder = tmp_path_factory.mktemp("served") / "store"
    stream = problem.stream([(problem.CLEAN, 10), (problem.DARK, 16)])
    with problem.loop(folder, problem.net, simulate=problem.SIMULATED) as loop:
        loop.run(stream, labels=8)
        assert loop.progress.served != "source"
    return folder


@pytest.fixture
def own(served: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(served, tmp_path / "own"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---------------------------------------------------------------------------------------------------------- looking


def test_status_says_what_is_served_since_when_and_what_happened(lived):
    found = status(lived)
    assert (found.served, found.since, found.checkpoint, found.phase) == ("EATA", 4, "c1", "watch")
    assert (found.windows, found.of, found.process, found.finished) == (4, None, None, False)
    assert (found.alarms, found.commits, found.rollbacks, found.unchanged) == (1, 1, 0, 0)
    assert found.last_alarm is not None and found.last_alarm["step"] == 2 and found.last_alarm["text"] == "entropy rose"
    assert found.accuracy_before == 0.9 and found.breach["count"] == 8 and found.rows == len(LIFE)
    assert found.journal_bytes == sum(p.stat().st_size for p in lived.glob("journal.sqlite*")) > 0


def test_a_trial_is_seen_with_its_evidence_and_ends_with_the_decision(lived):
    with Store(lived) as store:
        store.write([Row(6, "alarm", {"text": "again", "again": True}), Row(6, "propose", {"tried": ["LAME"]})])
        evidence = {"capital": 3.0, "count": 5, "total": 2.0, "squares": 2.0}
        trials = [{"name": "LAME", "evidence": evidence, "signs": [], "served": [], "refused": ""}]
        store.write([Row(7, "snapshot", {"at": 7, "served": "EATA", "trials": trials, "breach": {}}, "s2")])
    found = status(lived)
    assert found.phase == "trial" and found.trial is not None and found.trial["since"] == 6
    assert found.trial["seen"] == [{"name": "LAME", "refused": "", **evidence}]
    assert found.alarms == 1, "a repeated trial is no new alarm"
    with Store(lived) as store:
        store.write([Row(9, "keep", {"served": "EATA", "why": "nothing better"})])
    assert status(lived).phase == "watch" and status(lived).unchanged == 1


def test_checkpoints_are_counted_and_half_written_ones_are_not(served):
    found = status(served)
    names = [path for path in (served / "checkpoints").iterdir() if not path.name.startswith(".")]
    assert found.checkpoints == len(names) and (served / "checkpoints" / found.checkpoint).is_dir()
    assert found.checkpoint_bytes == sum(f.stat().st_size for p in names for f in p.rglob("*") if f.is_file())


def test_the_end_of_the_stream_is_known_from_what_was_judged(lived):
    (lived / "judged.jsonl").write_text('{"step": 3, "of": 4}\n{"step": 3, "of": 4}\n{"cut sho')
    assert windows_in_all(lived) == 4 and status(lived).finished
    (lived / "judged.jsonl").write_text('{"step": 3}\nnonsense\n[]\n')
    assert windows_in_all(lived) is None


def test_looking_leaves_no_trace_in_the_folder(lived):
    before = files(lived)
    status(lived)
    history(lived)
    assert files(lived) == before


def test_a_folder_may_be_called_anything(lived):
    odd = lived.rename(lived.with_name("a b?c#d%20&e=ü"))
    assert status(odd).served == "EATA" and sorted(p.name for p in odd.parent.iterdir()) == [odd.name]


def test_looking_works_while_a_process_serves_and_sees_what_it_wrote_last(lived):
    assert serving(lived) is None
    with Store(lived) as store:
        assert status(lived).process == serving(lived) == os.getpid()
        store.write([Row(5, "rollback", {"from": "EATA", "to": "source", "why": "worse"}, "c0")])
        found = status(lived)
        assert (found.served, found.since, found.rollbacks) == ("source", 6, 1)
        with pytest.raises(StoreError, match="another process"):
            Store(lived)
    assert status(lived).process is None


def test_history_gives_rows_in_order_by_kind_and_the_last(lived):
    assert [row.kind for row in history(lived)] == ["start", "alarm", "propose", "decision", "commit"]
    assert [row.step for row in history(lived, ("window",))] == [0, 1, 2, 3]
    assert [row.step for row in history(lived, ("window",), last=2)] == [2, 3]
    assert [row.kind for row in history(lived, last=2)] == ["decision", "commit"]
    with pytest.raises(UnknownName, match=r"no row is of kind 'comit'. Did you mean 'commit'"):
        history(lived, ("comit",))
    with pytest.raises(InputError, match="at least one row"):
        history(lived, last=0)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (LIFE[0], "begun; the network as deployed was right on 90.0% of the data from before"),
        (LIFE[5], "entropy rose; for about 2 windows (1 to 3); diagnosis: covariate"),
        (Row(1, "alarm", {"text": "entropy rose", "again": True, "since": [2, 1, 3]}),
         "the last one's cause is still there: entropy rose"),
        (LIFE[6], "tries EATA, the network as deployed; left out: LAME (it is for label); Fit (it needs target.y)"),
        (Row(1, "propose", {"tried": [], "left": {}}), "tries nothing"),
        (LIFE[7], "EATA: better"),
        (LIFE[8], "EATA in place of the network as deployed: +9.0% on 20 labels"),
        (Row(1, "keep", {"served": "source", "why": "x" * 200}),
         "nothing changed, the network as deployed goes on: " + "x" * 99 + "…"),
        (LIFE[9], "everything written, to go on at window 4"),
        (Row(1, "window", {"served": "EATA", "entropy": 0.1, "labels": 5, "right": 4}),
         "answered by EATA, entropy 0.1; labels 5, right 4"),
        (Row(1, "window", {"served": "EATA", "entropy": 0.1, "lost": 3, "failed": "it failed: no memory"}),
         "answered by the network as deployed, because EATA could not: it failed: no memory, entropy 0.1; "
         "labels lost 3"),
        (Row(1, "diagnosis", {"text": "covariate shift"}), "covariate shift"),
        (Row(1, "news", {"a": 1}), '{"a": 1}'),
    ],
)  # fmt: skip
def test_a_row_in_short(row, said):
    assert in_short(row) == said


def test_an_old_rows_missing_numbers_do_not_break_its_line():
    for kind in ("start", "alarm", "propose", "decision", "commit", "rollback", "keep", "snapshot", "window"):
        assert isinstance(in_short(Row(0, kind, {})), str)


# ------------------------------------------------------------------------------------------------- what is no store


@pytest.mark.parametrize("ask", [status, history, rollback])
def test_what_is_no_store_is_said_in_words(ask: Callable[[Path], Any], tmp_path, lived):
    with pytest.raises(StoreError, match=r"there is no store at .*: no such folder"):
        ask(tmp_path / "none")
    with pytest.raises(StoreError, match="is not a store: a folder with a journal and checkpoints is wanted"):
        ask(tmp_path)
    (lived / "journal.sqlite").unlink()
    with pytest.raises(StoreError, match=r"holds no journal.sqlite"):
        ask(lived)
    assert not (tmp_path / "none").exists() and not (lived / "journal.sqlite").exists()


def test_a_corrupt_row_and_a_journal_that_is_no_database_are_named(lived):
    connection = sqlite3.connect(lived / "journal.sqlite")
    with connection:
        connection.execute("update journal set content = '{' where kind = 'alarm'")
    connection.close()
    with pytest.raises(StoreError, match=r"row \d+ of the journal of .* is corrupt"):
        history(lived)
    for file in lived.glob("journal.sqlite*"):
        file.unlink()
    (lived / "journal.sqlite").write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreError, match="cannot be read"):
        status(lived)


def test_a_store_that_served_nothing_yet_is_new(tmp_path):
    Store(tmp_path / "new").close()
    found = status(tmp_path / "new")
    assert (found.phase, found.served, found.windows, found.last_alarm) == ("new", "", 0, None)
    with pytest.raises(StoreError, match="nothing to roll back"):
        rollback(tmp_path / "new")


def test_a_journal_in_another_database_is_found_by_the_deployment(lived, monkeypatch):
    elsewhere = lived.parent / "elsewhere.sqlite"
    (lived / "journal.sqlite").rename(elsewhere)
    (lived / "deployment.yaml").write_text("Deployment:\n  journal: $FED_JOURNAL\n")
    with pytest.raises(MissingPart, match="FED_JOURNAL, which is not set"):
        status(lived)
    monkeypatch.setenv("FED_JOURNAL", f"sqlite:///{elsewhere}")
    assert check_store(lived) == lived and status(lived).served == "EATA" and status(lived).journal_bytes is None
    with record(lived) as journal:
        assert journal.counts()["window"] == 4


# --------------------------------------------------------------------------------------------------------- rollback


def test_rolled_back_the_network_as_deployed_is_served_and_the_journal_says_why(own, problem):
    before = status(own)
    row = rollback(own, why="complaints")
    assert row.content["from"] == before.served and row.content["to"] == "source"
    assert row.content["why"] == "complaints" and row.content["by"] == "hand"
    found = status(own)
    assert (found.served, found.since, found.rollbacks) == ("source", before.windows, before.rollbacks + 1)
    last = history(own, ("rollback",), last=1)[0]
    assert last.content == row.content and last.checkpoint == row.checkpoint
    batch = problem.stream([(problem.DARK, 1)], seed=8).load()
    with problem.loop(own, problem.net, simulate=problem.SIMULATED) as loop:
        assert loop.progress.served == "source" and loop.progress.at == before.windows
        assert content_hash(loop.state.served) == content_hash(loop.frozen)
        with torch.no_grad():
            assert torch.equal(loop.step(batch), problem.net(batch.x))


def test_rolled_back_to_a_switch_what_it_put_in_service_is_served_as_it_was_then(own, problem):
    commit = history(own, ("commit",), last=1)[0]
    rollback(own)
    row = rollback(own, to=commit.step)
    assert row.checkpoint == commit.checkpoint and row.content["to"] == commit.content["to"]
    with problem.loop(own, problem.net, simulate=problem.SIMULATED) as loop:
        assert loop.progress.served == commit.content["to"]
        assert content_hash(loop.state.served) == commit.checkpoint
    assert rollback(own, to=0).content["to"] == "source"


def test_every_rollback_by_hand_counts_however_often_it_is_done_and_undone(own, problem):
    """Rows that equal earlier ones are not written twice; a resumed loop must not go on from an older snapshot."""
    step = history(own, ("commit",), last=1)[0].step
    for _ in range(3):
        assert rollback(own).content["to"] == "source" == status(own).served
        with problem.loop(own, problem.net, simulate=problem.SIMULATED) as loop:
            assert loop.progress.served == "source"
        name = rollback(own, to=step).content["to"]
        with problem.loop(own, problem.net, simulate=problem.SIMULATED) as loop:
            assert loop.progress.served == name == status(own).served
    assert len(history(own, ("rollback",))) == 6


def test_a_trial_in_progress_is_dropped(problem, tmp_path):
    folder = tmp_path / "trial"
    stream = problem.stream([(problem.CLEAN, 10), (problem.DARK, 14), (problem.Light(1.3, 0.3), 10)])
    with problem.loop(folder, problem.net, simulate=problem.SIMULATED) as loop:
        for batch in stream.batches(problem.WINDOW):
            loop.step(batch.replace(y=None))
            if loop.progress.phase == "trial" and loop.progress.served != "source":
                break
        loop.snapshot()
        assert loop.progress.phase == "trial" and loop.progress.served != "source", "choose a stream that leads here"
    assert status(folder).phase == "trial"
    rollback(folder)
    assert status(folder).phase == "watch"
    with problem.loop(folder, problem.net, simulate=problem.SIMULATED) as loop:
        assert (loop.progress.phase, loop.progress.trials, loop.progress.served) == ("watch", [], "source")
        assert not list(loop.state.shadows.children())


def test_what_cannot_be_rolled_back_is_refused_and_nothing_changes(own, problem):
    before = history(own, ("commit", "rollback", "snapshot"))
    with pytest.raises(InputError, match=r"nothing was put in service at window 9999; that happened at 0 \(source\), "):
        rollback(own, to=9999)
    commit = history(own, ("commit",), last=1)[0]
    kept = own / "checkpoints" / str(commit.checkpoint)
    away = kept.rename(own / "away")
    with pytest.raises(CheckpointError, match=rf"window {commit.step} is not kept any more; kept are 0 \(source\)"):
        rollback(own, to=commit.step)
    away.rename(kept)
    with Store(own), pytest.raises(StoreError, match=rf"pid {os.getpid()}\)"):
        rollback(own)
    assert [repr(row) for row in history(own, ("commit", "rollback", "snapshot"))] == [repr(row) for row in before]
    rollback(own)
    with pytest.raises(InputError, match="served already; there is nothing to roll back"):
        rollback(own)


def test_a_rollback_is_written_whole_or_not_at_all(own, monkeypatch):
    before = status(own)

    def full(self: Store, rows: Any) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(Store, "write", full)
    with pytest.raises(StoreError, match="full"):
        rollback(own)
    monkeypatch.undo()
    after = status(own)
    assert (after.served, after.since, after.rollbacks) == (before.served, before.since, before.rollbacks)
    assert json.loads(json.dumps(after.breach)) == before.breach
