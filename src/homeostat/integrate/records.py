"""What a store or a trace kept, given to an experiment tracker afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from homeostat.core.errors import DtypeError, InputError
from homeostat.core.trace import Trace
from homeostat.integrate.tracker import Tracker
from homeostat.loop.journal import Row
from homeostat.loop.judged import Judged
from homeostat.loop.operate import history, in_short
from homeostat.loop.record import DEPLOYMENT, check_store
from homeostat.loop.serving import write_report

_TOLD = ("alarm", "commit", "rollback", "keep")


def export(record: Trace | str | Path | Any, tracker: Tracker) -> None:
    """Give a tracker what a store or a trace kept; it stays open.

    Of a store: its plan as settings; per window `entropy`, `ms`, how many labels came and the shares of right answers
    among them, and accuracies where labels judged; alarms, commits, rollbacks and trials without a change as counts and
    in words, all at the times when they happened; the report, and the deployment's file. The store is only read.

    Of a trace: its readings by step, with their intervals. Where a step has several entries, a reading is called
    `subject/name`, or `where/subject/name` where subjects come again.

    Args:
        record: a store's folder, or a `Trace`.
        tracker: an `MLflow`, a `Trackio`, or another `Tracker`.

    Raises:
        StoreError: there is no store. TrackerError: the tool does not take it.
        InputError: the trace is empty. DtypeError: it is neither.
    """
    if isinstance(record, Trace):
        _trace(record, tracker)
    elif isinstance(record, (str, Path)):
        _store(check_store(record), tracker)
    else:
        raise DtypeError(f"a {type(record).__name__} is neither a store's folder nor a Trace")
    tracker.flush()


def _trace(trace: Trace, tracker: Tracker) -> None:
    if not len(trace):
        raise InputError("the trace is empty; there is nothing to export")
    steps = [entry.step for entry in trace]
    subjects = [(entry.step, entry.subject) for entry in trace]
    single, named = len(set(steps)) == len(steps), len(set(subjects)) == len(subjects)
    for entry in trace:
        prefix = "" if single else f"{entry.subject}/" if named else f"{entry.where}/{entry.subject}/"
        tracker.log(entry.step, {f"{prefix}{reading.name}": reading for reading in entry.readings})


def _store(folder: Path, tracker: Tracker) -> None:
    rows = history(folder, ("start", "window", *_TOLD))
    start = next((row for row in rows if row.kind == "start"), None)
    if start is not None:
        before = {"accuracy_before": start.content.get("accuracy_before"), "network": start.checkpoint}
        tracker.settings({"store": str(folder), **before, **start.content.get("plan", {})})
    judged = {entry.step: {r.name: r.value for r in entry.readings} for entry in Judged(folder).trace()}
    for row in rows:
        if row.kind == "window":
            tracker.log(row.step, _window(row) | judged.get(row.step, {}), row.time)
        elif row.kind in _TOLD:
            tracker.note(row.step, row.kind, in_short(row), row.time)
    _files(folder, rows, tracker)


def _window(row: Row) -> dict[str, Any]:
    said = row.content
    found = {key: said[key] for key in ("entropy", "ms", "labels") if key in said}
    if said.get("labels"):
        found["revealed_accuracy"] = said["right"] / said["labels"]
        found["revealed_frozen"] = said["frozen_right"] / said["labels"]
    return found


def _files(folder: Path, rows: Sequence[Row], tracker: Tracker) -> None:
    if any(row.kind == "window" for row in rows):
        with tempfile.TemporaryDirectory() as made:
            tracker.file(write_report(folder, Path(made) / "report.html"))
    if (folder / DEPLOYMENT).is_file():
        tracker.file(folder / DEPLOYMENT)
