"""What a journal and a trace come to, in numbers: window by window, phase by phase, and over the whole stream."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch

from homeostat.core.reading import Interval
from homeostat.core.trace import Trace
from homeostat.loop.judged import TRIED
from homeostat.loop.reporting import hindsight
from homeostat.loop.reporting.charts import Span
from homeostat.loop.store import Row
from homeostat.probe.intervals import student

SOURCE = "source"
"""What the journal calls the network as deployed."""


@dataclass(frozen=True)
class Stretch:
    """Windows (positions `first` to `last`, both included) that share a phase or a served model."""

    first: int
    last: int
    name: str


@dataclass(frozen=True)
class Stream:
    """One value a window, NaN where it is not known.

    Attributes:
        steps: the windows' numbers.
        served: name of what gave the answers.
        where: phase, as the trace names it.
        accuracy, frozen: shares of right answers, of what was served and of the network as deployed.
        ms: milliseconds until the answers were there.
        seconds: everything: answers, watching, trials and journal.
        entropy: how uncertain the network as deployed was.
        memory: most MiB that the process had held by then.
        tried: accuracy of each candidate in the windows in which it was on trial.
        judge: which labels the accuracies come from: `"all"`, `"revealed"` (those the loop itself saw) or `""`.
    """

    steps: np.ndarray
    served: list[str]
    where: list[str]
    accuracy: np.ndarray
    frozen: np.ndarray
    ms: np.ndarray
    seconds: np.ndarray
    entropy: np.ndarray
    judge: str
    memory: np.ndarray = field(default_factory=lambda: np.empty(0))
    tried: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[Row], trace: Trace) -> Stream:
        """Join the journal's windows and the trace's by their numbers; the journal knows best what was served."""
        windows = {row.step: row.content for row in rows if row.kind == "window"}
        entries = {entry.step: entry for entry in trace}
        steps = sorted(windows.keys() | entries.keys())
        seen = {step: {r.name: r.value for r in entry.readings} for step, entry in entries.items()}
        judge = "all" if any("accuracy" in readings for readings in seen.values()) else ""
        if not judge and any(said.get("labels") for said in windows.values()):
            judge = "revealed"

        said = [windows.get(step, {}) for step in steps]
        read = [seen.get(step, {}) for step in steps]

        names = sorted({name for readings in seen.values() for name in readings if name.startswith(TRIED)})

        def taken(name: str) -> np.ndarray:
            return np.array([r.get(name, math.nan) for r in read])

        def known(name: str, share: str) -> np.ndarray:
            if judge == "revealed":
                return np.array([s[share] / s["labels"] if s.get("labels") else math.nan for s in said])
            return taken(name)

        def noted(name: str) -> np.ndarray:
            return np.array([float(s.get(name, math.nan)) for s in said])

        return cls(
            np.array(steps, dtype=np.int64),
            [str(s["served"]) if "served" in s else entries[step].subject if step in entries else ""
             for step, s in zip(steps, said, strict=True)],
            [entries[step].where if step in entries else "" for step in steps],
            known("accuracy", "right"), known("frozen", "frozen_right"), noted("ms"),
            taken("seconds"), noted("entropy"), judge, taken("memory"),
            {name.removeprefix(TRIED): taken(name) for name in names},
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.steps)

    def position(self, step: int) -> int:
        """Where a window stands in the arrays; the nearest one when it is not there."""
        return min(bisect_left(self._order, step), len(self._order) - 1)

    @cached_property
    def best(self) -> np.ndarray:
        """Accuracy of the best in hindsight; see `hindsight`."""
        return hindsight.best(self.served, self.where, self.accuracy, self.frozen, self.tried)

    @cached_property
    def _order(self) -> list[int]:
        return self.steps.tolist()


@dataclass(frozen=True)
class Phase:
    """A phase, or the whole stream: what was served against the network as deployed.

    Attributes:
        number: 1 for the first.
        name: for a reader.
        stretches: where it is.
        windows: how many there are.
        accuracy, frozen, best: means over the windows whose accuracy is known.
        difference: mean difference, a fraction, and its 95 % interval over windows where there are at least two.
        served: what was served and for how many windows, the longest first.
    """

    number: int
    name: str
    stretches: list[Stretch]
    windows: int
    accuracy: float
    frozen: float
    best: float
    difference: float
    interval: Interval | None
    served: list[tuple[str, int]]

    @property
    def judged(self) -> bool:
        """Whether its accuracy is known."""
        return math.isfinite(self.difference)


def stretches(names: Sequence[str]) -> list[Stretch]:
    """Runs of equal names.

    >>> [(s.first, s.last, s.name) for s in stretches(["a", "a", "b"])]
    [(0, 1, 'a'), (2, 2, 'b')]
    """
    if not names:
        return []
    starts = [0, *(i for i in range(1, len(names)) if names[i] != names[i - 1]), len(names)]
    return [Stretch(a, b - 1, names[a]) for a, b in pairwise(starts)]


def measure(stream: Stream, name: str, where: Sequence[Stretch], number: int = 0) -> Phase:
    """The phase that consists of these stretches."""
    at = np.concatenate([np.arange(s.first, s.last + 1) for s in where])
    ours, theirs, most = stream.accuracy[at], stream.frozen[at], stream.best[at]
    both = np.isfinite(ours) & np.isfinite(theirs)
    ours, theirs, most = ours[both], theirs[both], most[both]
    gaps = torch.from_numpy(ours - theirs)
    interval = student(gaps, low=-1.0, high=1.0) if len(gaps) > 1 else None
    right, alone, top = (float(v.mean()) if len(v) else math.nan for v in (ours, theirs, most))
    served = Counter(stream.served[i] for i in at).most_common()
    return Phase(number, name, list(where), len(at), right, alone, top, right - alone, interval, served)


def phases(stream: Stream, names: Sequence[str]) -> list[Phase]:
    """The phases in order of their first window; one that comes back is one phase with several stretches."""
    found: dict[str, list[Stretch]] = {}
    for stretch in stretches(stream.where):
        found.setdefault(stretch.name, []).append(stretch)
    return [
        measure(stream, _name(where, names), runs, number)
        for number, (where, runs) in enumerate(found.items(), start=1)
    ]  # fmt: skip


def _name(where: str, names: Sequence[str]) -> str:
    if where.isdecimal() and int(where) < len(names):
        return names[int(where)]
    return f"phase {where}" if where else "no phase named"


def shading(found: Sequence[Phase]) -> list[Span]:
    """The phases as a chart shades them; a lone phase is not shaded."""
    if len(found) < 2:
        return []
    runs = sorted(((s, phase) for phase in found for s in phase.stretches), key=lambda pair: pair[0].first)
    return [Span(s.first, s.last, f"{phase.number} {phase.name}", str(phase.number)) for s, phase in runs]


def hardest(found: Sequence[Phase]) -> Phase | None:
    """The phase in which what was served was right least often."""
    return min((p for p in found if p.judged), key=lambda p: p.accuracy, default=None)


def harmed(found: Sequence[Phase]) -> list[Phase]:
    """Phases in which what was served was right less often than the network as deployed, the worst first."""
    return sorted((p for p in found if p.judged and p.difference < 0), key=lambda p: p.difference)


@dataclass(frozen=True)
class Latency:
    """How long windows took, in milliseconds."""

    name: str
    median: float
    high: float
    longest: float


def latency(name: str, ms: np.ndarray) -> Latency | None:
    """Median, 95th percentile and longest; None where nothing was timed."""
    known = ms[np.isfinite(ms)]
    if not len(known):
        return None
    return Latency(name, float(np.median(known)), float(np.quantile(known, 0.95)), float(known.max()))
