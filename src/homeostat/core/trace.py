"""A history of readings, and choices made from it.

The bench, a continual run and the loop's journal all give a `Trace`; a measure of a history is a function
`Trace -> Reading`; and a `Choose` looks at the trace and at options and says which to take next. A chooser keeps no
state of its own: replaying the trace is its state, so it survives a kill as the trace does.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from homeostat.core import plotting, tables
from homeostat.core.errors import InputError
from homeostat.core.reading import Reading
from homeostat.core.run import Run
from homeostat.core.spec import Spec

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Entry:
    """One step of a history.

    Attributes:
        step: when (window, task, round); does not decrease along a trace.
        subject: what was measured (a model, a remedy, the index of an option as text).
        where: on what it was measured (a domain, task or phase).
        readings: what the probes saw.
        note: why, in words.
    """

    step: int
    subject: str
    where: str = ""
    readings: tuple[Reading, ...] = ()
    note: str = ""

    def __getitem__(self, name: str) -> Reading:
        for reading in self.readings:
            if reading.name == name:
                return reading
        raise InputError(f"step {self.step} has no reading {name!r}; it has {[r.name for r in self.readings]}")


@dataclass(frozen=True)
class Trace:
    """A history: entries in order of step."""

    entries: tuple[Entry, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def add(self, *entries: Entry) -> Trace:
        """A longer trace; steps may not go back."""
        last = self.entries[-1].step if self.entries else None
        for entry in entries:
            if last is not None and entry.step < last:
                raise InputError(f"step {entry.step} comes after step {last}; a trace goes forward")
            last = entry.step
        return Trace(self.entries + entries)

    def rows(self) -> list[dict[str, Any]]:
        """One flat row per reading, for tables and data frames."""
        return [
            {"step": e.step, "subject": e.subject, "where": e.where, "name": r.name, "value": r.value, "note": e.note}
            for e in self.entries
            for r in e.readings
        ]

    def plot(
        self, backend: plotting.Backend | Any = "matplotlib", *, names: Sequence[str] = (), subjects: Sequence[str] = ()
    ) -> Any:
        """A figure with a panel for each reading's name and in it a line for each subject, over steps.

        Args:
            backend: `"matplotlib"` gives a `matplotlib.figure.Figure`, `"plotly"` a `plotly.graph_objects.Figure`.
            names: of readings; all by default, a dozen at most.
            subjects: whose; all by default, a dozen at most.

        Raises:
            MissingExtra: the library is not installed.
            InputError: it is another one, a name is not in the trace, or there is too much for one figure.
        """
        return plotting.plot_trace(self, backend, names, subjects)

    def to_pandas(self) -> pandas.DataFrame:
        """A row for each reading: step, subject, where, name, value, interval, unit and note.

        Raises:
            MissingExtra: pandas is not installed.
        """
        return tables.frame_of_trace(self)

    def _repr_html_(self) -> str:
        return tables.html_of_trace(self)


class Choose(Spec, abstract=True):
    """Picks among options from a history: `choose(trace, options) -> index`."""

    def __call__(self, trace: Trace, options: Sequence[Any], *, run: Run = Run()) -> int:
        """Index of the option to take next.

        Raises:
            InputError: there are no options, or the trace does not fit them.
        """
        if not options:
            raise InputError(f"{type(self).__name__}: there are no options to choose from")
        index = self.choose(trace, options, run)
        if not 0 <= index < len(options):
            raise InputError(f"{type(self).__name__} chose option {index} of {len(options)}")
        return index

    @abstractmethod
    def choose(self, trace: Trace, options: Sequence[Any], run: Run) -> int: ...
