"""Experiment trackers: what the loop, training and probes say, as metrics by step.

A tracker is one run in a tool such as MLflow or trackio. It can follow while things happen, as a `Run.watch`, or be
given what a store kept (`export`). Followed live, an event is handed to a thread of the tracker's own and the loop goes
on at once: a tool that is slow, unreachable or broken costs the loop nothing. When more wait than may, the oldest is
dropped and counted; the journal is the record. What is called directly (`log`, `note`, `file`) raises.

| event | in the tool |
|---|---|
| `window` | metrics `accuracy`, `frozen` (where labels judge) and `seconds`, at the window's number |
| `alarm`, `commit`, `rollback`, `keep`, `failure` | a metric such as `events/commit`, 1 at its window, and a note |
| any other with numbers, as `train` | metrics `train/loss` and so on, at its step |

>>> class Printed(Tracker):
...     def _metrics(self, step, values, at):
...         print(step, values)
>>> with Printed() as tracker:
...     tracker(Event("window", 3, values={"served": "source", "accuracy": 0.5}))
2 {'accuracy': 0.5}
"""

from __future__ import annotations

import math
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from homeostat.core.background import Background
from homeostat.core.errors import HomeostatError, InputError, TrackerError
from homeostat.core.reading import Reading
from homeostat.core.run import Event

NOTED = ("alarm", "commit", "rollback", "keep", "failure")
"""Events that are marked and put into words."""


class Tracker(Background):
    """Base of trackers: one run in a tool. A subclass gives `_metrics` and what more the tool can take.

    Args:
        most: events that may wait.

    Attributes:
        failed, dropped: how many events the tool refused, and how many were never given to it.
        failure: what it said last.
    """

    def __init__(self, most: int = 10_000):
        super().__init__("homeostat-tracker", "event", most)
        self.failed, self.failure = 0, ""
        self._tool = threading.RLock()

    # -- what a tool takes

    @abstractmethod
    def _metrics(self, step: int, values: dict[str, float], at: float) -> None: ...

    # What a tool has no place for is left out, so these do nothing.

    def _note(self, step: int, kind: str, text: str, at: float) -> None:
        """Keep an event in words."""

    def _settings(self, values: dict[str, Any]) -> None:
        """Keep what a run was made with."""

    def _file(self, path: Path) -> None:
        """Keep a file."""

    def _flush(self) -> None:
        """Send what was gathered."""

    def _end(self) -> None:
        """End the run."""

    # -- called by users and by `export`

    def log(self, step: int, values: Mapping[str, Any], at: float | None = None) -> None:
        """Numbers and readings at a step; a reading's interval goes with it, and what is not finite is left out.

        Args:
            step: window, optimizer's step, task.
            values: by name.
            at: when, in seconds since 1970; default now.

        Raises:
            TrackerError: the tool does not take them.
        """
        with self._asked():
            made = numbers(values)
            if made:
                self._metrics(step, made, time.time() if at is None else at)

    def note(self, step: int, kind: str, text: str, at: float | None = None) -> None:
        """Something that happened: marked at its step, and kept in words where the tool has a place for them."""
        with self._asked():
            when = time.time() if at is None else at
            self._metrics(step, {f"events/{kind}": 1.0}, when)
            self._note(step, kind, text, when)

    def settings(self, values: Mapping[str, Any]) -> None:
        """What a run was made with; mappings and lists in it become dotted names."""
        with self._asked():
            self._settings(dict(flat(values)))

    def file(self, path: str | Path) -> None:
        """Keep a file, such as a report.

        Raises:
            InputError: there is no such file. TrackerError: the tool does not take it.
        """
        if not Path(path).is_file():
            raise InputError(f"there is no file {path}")
        with self._asked():
            self._file(Path(path))

    def flush(self) -> None:
        """Send what was gathered."""
        with self._asked():
            self._flush()

    # -- called with events

    def __call__(self, event: Event) -> None:
        """Take an event for the tracker's thread. Never blocks, never raises; after `close` nothing is taken."""
        self._hand((event, time.time()))

    def close(self, timeout: float = 30.0) -> bool:
        """Give what waits to the tool, at most so many seconds, and end the run; whether all was given.

        Raises:
            TrackerError: the tool does not end the run.
        """
        with self._change:
            if self._closed:
                return not self.dropped
            done = self._drain(timeout)
        if done:
            with self._asked():
                self._flush()
                self._end()
        return done and not self.failed and not self.dropped

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _take(self, item: tuple[Event, float], last: bool) -> None:
        try:
            self._tell(*item)
            if last:
                self.flush()
        except Exception as error:  # whatever the tool does wrong, the next event is still to be given
            self.failed += 1
            self.failure = str(error)

    def _tell(self, event: Event, at: float) -> None:
        if event.name in NOTED:
            said = event.values
            text = str(said.get("text") or said.get("why") or event.name)
            self.note(event.step, event.name, f"{said['served']}: {text}" if said.get("served") else text, at)
        elif event.name == "window":
            # The event counts windows that are done; the journal numbers them from 0.
            self.log(max(0, event.step - 1), event.values, at)
        else:
            self.log(event.step, {f"{event.name}/{key}": value for key, value in event.values.items()}, at)

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Inside, this thread alone talks to the tool, and what that raises becomes our error."""
        with self._tool:
            try:
                yield
            except HomeostatError:
                raise
            except Exception as error:  # whatever the tool raises
                said = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise TrackerError(f"{type(self).__name__} cannot go on: {said}") from error


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """What of some values are finite numbers; readings by their value and the ends of their interval.

    >>> numbers({"loss": 2, "served": "source", "ok": True, "ece": Reading("ece", 0.5)})
    {'loss': 2.0, 'ece': 0.5}
    """
    found = dict[str, float]()
    for name, value in values.items():
        if isinstance(value, Reading):
            found[name] = float(value.value)
            if value.interval is not None:
                found |= {f"{name}_low": float(value.interval.low), f"{name}_high": float(value.interval.high)}
        elif (isinstance(value, (int, float)) and not isinstance(value, bool)) or _single(value):
            found[name] = float(value)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _single(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0 and not value.is_complex()


def flat(values: Any, name: str = "") -> list[tuple[str, Any]]:
    """Values by dotted names.

    >>> flat({"Plan": {"window": 50, "limits": [1, 2]}})
    [('Plan.window', 50), ('Plan.limits.0', 1), ('Plan.limits.1', 2)]
    """
    if isinstance(values, Mapping):
        pairs = [(str(key), value) for key, value in values.items()]
    elif isinstance(values, (list, tuple)):
        pairs = [(str(number), value) for number, value in enumerate(values)]
    else:
        return [(name, values)]
    return [item for key, value in pairs for item in flat(value, f"{name}.{key}" if name else key)]
