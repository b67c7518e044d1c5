"""What every tracker does: events, readings, stores and traces in, metrics by step out, and nothing held up."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from homeostat.core.errors import DtypeError, InputError, MissingExtra, StoreError, TrackerError
from homeostat.core.reading import Interval, Reading
from homeostat.core.run import Event, Run
from homeostat.core.trace import Entry, Trace
from homeostat.integrate import MLflow, Tracker, Trackio, export
from homeostat.loop import Store, history
from homeostat.loop.store import Row


class Kept(Tracker):
    """Keeps what it is given."""

    def __init__(self, most: int = 10_000):
        super().__init__(most)
        self.metrics: list[tuple[int, dict[str, float], float]] = []
        self.notes: list[tuple[int, str, str]] = []
        self.made: dict = {}
        self.files: dict[str, str] = {}
        self.flushed = self.ended = 0
        self.broken: Exception | None = None
        self.open = threading.Event()
        self.open.set()

    def _metrics(self, step, values, at):
        assert self.open.wait(20)
        if self.broken is not None:
            raise self.broken
        self.metrics.append((step, values, at))

    def _note(self, step, kind, text, at):
        self.notes.append((step, kind, text))

    def _settings(self, values):
        self.made.update(values)

    def _file(self, path):
        self.files[path.name] = path.read_text()

    def _flush(self):
        self.flushed += 1

    def _end(self):
        self.ended += 1

    def series(self, name: str) -> dict[int, float]:
        """A metric by step."""
        return {step: values[name] for step, values, _ in self.metrics if name in values}


def test_events_become_metrics_and_notes_in_order():
    tracker = Kept()
    with tracker:
        tracker(Event("window", 1, values={"served": "source", "where": "", "seconds": 0.5, "accuracy": 0.75}))
        tracker(Event("alarm", 1, values={"text": "entropy rose", "shift": "covariate"}))
        tracker(Event("commit", 3, values={"served": "EATA", "why": "better"}))
        tracker(Event("train", 7, 10, {"loss": torch.tensor(0.5), "epoch": 2, "done": True, "bad": float("nan")}))
    steps = [(step, values) for step, values, _ in tracker.metrics]
    assert steps == [
        (0, {"seconds": 0.5, "accuracy": 0.75}), (1, {"events/alarm": 1.0}), (3, {"events/commit": 1.0}),
        (7, {"train/loss": 0.5, "train/epoch": 2.0}),
    ]  # fmt: skip
    assert tracker.notes == [(1, "alarm", "entropy rose"), (3, "commit", "EATA: better")]
    assert tracker.ended == 1 and tracker.flushed >= 1 and tracker.close()


def test_a_slow_tool_holds_nothing_up_and_the_oldest_are_dropped_and_counted():
    tracker = Kept(most=3)
    tracker.open.clear()
    began = time.perf_counter()
    for step in range(1, 9):
        tracker(Event("window", step, values={"accuracy": 0.5}))
    assert time.perf_counter() - began < 2
    tracker.open.set()
    assert tracker.close() is False
    assert tracker.dropped + len(tracker.metrics) == 8 and tracker.dropped >= 4
    assert [step for step, _, _ in tracker.metrics][-3:] == [5, 6, 7]
    tracker(Event("window", 9, values={"accuracy": 0.5}))
    assert len(tracker.metrics) < 8, "nothing is taken after close"


def test_a_tool_that_breaks_is_counted_live_and_raises_when_asked():
    tracker = Kept()
    tracker.broken = ConnectionError("no route to host\nmore")
    tracker(Event("window", 1, values={"accuracy": 0.5}))
    with pytest.raises(TrackerError, match=r"Kept cannot go on: no route to host$"):
        tracker.log(0, {"accuracy": 0.5})
    assert tracker.close() is False and tracker.failed == 1 and "no route" in tracker.failure


def test_a_loop_that_is_followed_ends_as_one_that_is_not(tmp_path, loops, corrected):
    tracker = Kept()
    with tracker, loops.opened(tmp_path / "store", run=Run(watch=tracker)) as loop:
        trace = loop.run(loops.stream(), labels=50)
    told = [(row.step, row.kind) for row in history(tmp_path / "store")]
    assert told == [(row.step, row.kind) for row in history(corrected)]
    assert tracker.series("accuracy") == {entry.step: entry["accuracy"].value for entry in trace}
    commits = [step for step, kind in told if kind == "commit"]
    assert list(tracker.series("events/commit")) == commits and len(commits) >= 1
    assert tracker.failed == 0


def test_a_store_is_exported_whole_and_left_as_it_was(corrected):
    def content(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    before, tracker = content(corrected), Kept()
    export(corrected, tracker)
    assert content(corrected) == before
    windows = history(corrected, ("window",))
    assert tracker.series("entropy") == {row.step: row.content["entropy"] for row in windows}
    assert len(tracker.series("accuracy")) == len(tracker.series("frozen")) == 20
    assert tracker.series("revealed_accuracy") == pytest.approx(tracker.series("accuracy")), "all labels came"
    commit = history(corrected, ("commit",))[0]
    at = next(at for step, values, at in tracker.metrics if "events/commit" in values)
    assert at == commit.time and (commit.step, "commit") in [note[:2] for note in tracker.notes]
    assert tracker.made["Plan.window"] == 50 and 0 < tracker.made["accuracy_before"] < 1
    assert "<html" in tracker.files["report.html"] and tracker.flushed == 1 and tracker.ended == 0


def test_a_store_in_which_nothing_was_served_has_its_settings_alone(tmp_path):
    with Store(tmp_path / "new") as store:
        store.write(
            [Row(0, "start", {"served": "source", "accuracy_before": 0.5, "plan": {"Plan": {"window": 9}}}, "c")]
        )
    tracker = Kept()
    export(str(tmp_path / "new"), tracker)
    assert tracker.metrics == [] and tracker.files == {} and tracker.made["Plan.window"] == 9


def test_traces_are_exported_with_intervals_and_names_that_do_not_collide():
    def entry(step: int, subject: str, where: str, value: float) -> Entry:
        return Entry(step, subject, where, (Reading("accuracy", value, Interval(value - 0.1, value + 0.1)),))

    single, named, placed = Kept(), Kept(), Kept()
    export(Trace((entry(0, "A", "", 0.5), entry(1, "B", "", 0.6))), single)
    assert single.series("accuracy") == {0: 0.5, 1: 0.6} and single.series("accuracy_low") == {0: 0.4, 1: 0.5}
    export(Trace((entry(0, "A", "x", 0.5), entry(0, "B", "x", 0.6))), named)
    assert named.series("A/accuracy") == {0: 0.5} and named.series("B/accuracy_high") == {0: 0.7}
    export(Trace((entry(0, "A", "x", 0.5), entry(0, "A", "y", 0.6))), placed)
    assert placed.series("y/A/accuracy") == {0: 0.6}


def test_what_cannot_be_exported_is_refused(tmp_path):
    with pytest.raises(InputError, match="trace is empty"):
        export(Trace(), Kept())
    with pytest.raises(DtypeError, match="a int is neither"):
        export(3, Kept())
    with pytest.raises(StoreError, match="no store at"):
        export(tmp_path / "nowhere", Kept())
    with pytest.raises(InputError, match="there is no file"):
        Kept().file(tmp_path / "report.html")
    with pytest.raises(InputError, match="most = 0"):
        Kept(most=0)


@pytest.mark.parametrize(("kind", "name"), [(MLflow, "mlflow"), (Trackio, "trackio")])
def test_without_the_tool_the_extra_is_named(monkeypatch, kind, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'homeostat\[{name}\]'"):
        kind()
