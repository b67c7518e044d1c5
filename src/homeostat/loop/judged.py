"""What labels said of each window, kept beside the journal.

The loop does not see the labels that judge a recorded stream, so they are not in its journal. They are kept in the
store's `judged.jsonl`, a line a window, for the report and for hindsight. A window that is served again after a kill
has two lines, of which the later counts. The file may be deleted: nothing but accuracy is lost with it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from homeostat.core.reading import Better, Reading
from homeostat.core.run import Event
from homeostat.core.trace import Entry, Trace
from homeostat.loop.record import JUDGED

_UNITS: dict[str, tuple[str, Better]] = {
    "accuracy": ("fraction", "higher"), "frozen": ("fraction", "higher"), "seconds": ("s", "lower"),
    "memory": ("MiB", "lower"),
}  # fmt: skip
TRIED = "on trial: "
"""Begins the names of readings of candidates in shadow; what follows is the candidate's name."""


def _told(name: str) -> bool:
    return name in _UNITS or name.startswith(TRIED)


class Judged:
    """Accuracies of a store's windows. Call it with events: it is a `Run.watch`.

    Args:
        folder: the store's.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / JUDGED
        self._places = dict[int, str]()
        self._total: int | None = None
        self._broken = False

    def __call__(self, event: Event) -> None:
        """Note a served window; other events are passed over."""
        if event.name == "window" and event.step > 0:
            said = {name: value for name, value in event.values.items() if name in ("served", "where") or _told(name)}
            self._total = event.total
            self._write([{"step": event.step - 1, "of": event.total, **said}])

    def add(self, trace: Trace) -> None:
        """Note the windows of a trace that events did not tell of, or told of without their phase."""
        said = []
        for entry in trace:
            if self._places.get(entry.step) != entry.where:
                values = {reading.name: reading.value for reading in entry.readings if _told(reading.name)}
                told = {"served": entry.subject, "where": entry.where, **values}
                said.append({"step": entry.step, "of": self._total, **told})
        self._write(said)

    def _write(self, said: list[dict[str, Any]]) -> None:
        if self._broken or not said:
            return
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                if file.tell() and not _whole(self.path):
                    file.write("\n")
                file.writelines(json.dumps(line) + "\n" for line in said)
        except OSError:
            # A note for people must not stop what serves; the store itself says what is wrong with the disk.
            self._broken = True
        self._places.update({line["step"]: line.get("where", "") for line in said})

    def trace(self) -> Trace:
        """The windows in order; lines that a kill cut short are passed over."""
        found = dict[int, dict[str, Any]]()
        for line in self._lines():
            found[line["step"]] = line
        entries = []
        for step, line in sorted(found.items()):
            readings = [
                Reading(name, float(value), unit=unit, better=better)
                for name, value in line.items()
                for unit, better in [_UNITS.get(name, ("fraction", "higher"))]
                if _told(name) and isinstance(value, (int, float)) and math.isfinite(value)
            ]
            entries.append(Entry(step, str(line.get("served", "")), str(line.get("where", "")), tuple(readings)))
        return Trace(tuple(entries))

    def means(self) -> tuple[float | None, float | None]:
        """Shares of right answers as served and as deployed, over the windows that labels judge; None without any."""
        pairs = []
        for entry in self.trace():
            seen = {reading.name: reading.value for reading in entry.readings}
            if "accuracy" in seen and "frozen" in seen:
                pairs.append((seen["accuracy"], seen["frozen"]))
        if not pairs:
            return None, None
        ours, theirs = zip(*pairs, strict=True)
        return sum(ours) / len(pairs), sum(theirs) / len(pairs)

    def _lines(self) -> Iterator[dict[str, Any]]:
        try:
            file = open(self.path, encoding="utf-8", errors="replace")  # noqa: SIM115
        except OSError:
            return
        with file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:
                    continue
                if isinstance(line, dict) and type(line.get("step")) is int:
                    yield line


def _whole(path: Path) -> bool:
    """Whether the file's last line has its end."""
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
