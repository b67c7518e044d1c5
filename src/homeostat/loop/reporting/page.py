"""The loop's report: one HTML file that explains itself to somebody who has never seen the loop.

It holds all it needs (style, pictures, charts), loads nothing, runs no script, and says the same for the same journal.
Accuracies come from labels that judge, where the trace has them; else from the labels that the loop itself saw; else
they are left out, and the report says so. However long the stream, the file stays below 5 MB: charts are thinned, long
tables come in pages, and very long ones and long texts are cut, each with a note.
"""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor

from homeostat.core.errors import InputError, StoreError
from homeostat.core.trace import Trace
from homeostat.loop.reporting import costs, headline, settings, story, summary, wording
from homeostat.loop.reporting.figures import accuracy_figure, entropy_figure, latency_figure, marks_of
from homeostat.loop.reporting.pictures import GROUPS, Words, inline_pictures, shown_samples
from homeostat.loop.reporting.summary import Stream
from homeostat.loop.samples import Pair
from homeostat.loop.store import Row

MOST, SERVED = 400, 6
"""Most rows of a table or events, and most networks with a letter of their own."""
ROWS, EVENTS = 20, 5
"""Rows of a table, and events, on a page."""
MOVED = {
    "uncertain": "less certain", "certain": "more certain", "features": "features", "classes": "predicted classes",
    "error": "errors",
}  # fmt: skip
"""What an alarm is about, by its kind."""


@dataclass(frozen=True)
class Pages:
    """Rows or events in pages.

    Attributes:
        pages: each a list.
        names: of the pages, for who hears them.
        left: how many are left out, between the first and the last half.
    """

    pages: list[list[Any]]
    names: list[str]
    left: int = 0

    @classmethod
    def of(cls, every: Sequence[Any], size: int, name: str = "") -> Pages:
        """All of them, or the first and the last where there are too many; `name` is the attribute a page is named by.

        >>> made = Pages.of(range(45), 20)
        >>> [len(page) for page in made.pages], made.names
        ([20, 20, 5], ['1 to 20', '21 to 40', '41 to 45'])
        """
        half = MOST // 2
        kept = list(every) if len(every) <= MOST else [*every[:half], *every[-half:]]
        pages = [kept[i : i + size] for i in range(0, len(kept), size)]
        firsts = [1 + i * size for i in range(len(pages))]
        names = [f"{first:,} to {first + len(page) - 1:,}" for first, page in zip(firsts, pages, strict=True)]
        if name:
            at = [(getattr(page[0], name), getattr(page[-1], name)) for page in pages]
            names = [f"window {a:,}" if a == b else f"windows {a:,} to {b:,}" for a, b in at]
        return cls(pages, names, len(every) - len(kept))

    def __len__(self) -> int:
        return sum(map(len, self.pages))

    def __iter__(self) -> Iterator[Any]:
        return (row for page in self.pages for row in page)


def report(
    rows: Sequence[Row],
    trace: Trace,
    path: str | Path,
    *,
    title: str = "What the loop did",
    phases: Sequence[str] = (),
    examples: Sequence[tuple[str, Tensor | Any]] = (),
    samples: Mapping[int, Pair] = {},
    words: Words | None = None,
    about: Mapping[str, str] = {},
) -> Path:
    """Write the report.

    Args:
        rows: the journal, `list(store.rows())`.
        trace: of `Loop.run`; an empty one will do.
        path: of the file; its folder is made when absent.
        title: of the report.
        phases: names of phases 0, 1, 2, ... as the stream's `meta["phase"]` numbers them.
        examples: name and inputs `[n, 1 or 3, height, width]` in 0..1, grey or in colour; the first dozen are shown.
        samples: inputs around each alarm, `Samples(store.path).read()`.
        words: where inputs are tokens, gives their text, such as a tokenizer's `decode`.
        about: what else a reader should know, such as the data and the network; name and text.

    Returns:
        The path.

    Raises:
        InputError: there is no window at all, or examples that are not pictures in 0..1. DtypeError: examples that are
        not tensors of numbers. StoreError: the file cannot be written.

    >>> import tempfile
    >>> rows = [Row(0, "window", {"served": "source", "ms": 4.0, "entropy": 0.2})]
    >>> path = report(rows, Trace(), Path(tempfile.mkdtemp()) / "report.html", title="One window")
    >>> "<h1>One window</h1>" in path.read_text(encoding="utf-8")
    True
    """
    stream = Stream.of(rows, trace)
    if not len(stream):
        raise InputError("neither the journal nor the trace holds a window; run the loop first, then report")
    pictures = inline_pictures(examples)
    whole = summary.measure(stream, "the whole stream", [summary.Stretch(0, len(stream) - 1, "")])
    found = summary.phases(stream, phases)
    switches = [row.step for row in rows if row.kind in ("commit", "rollback")]
    groups = Pages.of([_Group(group) for group in story.grouped(rows)], EVENTS, "step")
    alarms = [row for row in rows if row.kind == "alarm" and not row.content.get("again")]
    told = [
        [story.tell(g.rows, stream, next((s for s in switches if s > g.rows[-1].step), None)) for g in page]
        for page in groups.pages
    ]
    shown = {episode.alarm for page in told for episode in page}
    start = next((row.content for row in rows if row.kind == "start"), {})
    letters = _letters(stream)
    marks = marks_of(rows, stream)
    shown_alarms = Pages.of(alarms, ROWS, "step")
    lists = {
        "phases": Pages.of(found, ROWS), "episodes": Pages(told, groups.names, groups.left),
        "alarms": Pages([_alarms(page) for page in shown_alarms.pages], shown_alarms.names, shown_alarms.left),
        "anchored": Pages.of(costs.anchored(rows, stream), ROWS, "step"),
    }  # fmt: skip
    page = _environment().get_template("page.html.j2").render(
        **lists, most_pages=max(len(pages.pages) for pages in lists.values()),
        title=wording.clip(title, 200), stream=stream, whole=whole,
        lead=headline.lead(stream, whole, found, rows), tiles=headline.tiles(stream, whole, rows),
        accuracy=accuracy_figure(stream, found, marks, letters), entropy=entropy_figure(stream, found, marks),
        speed=latency_figure(stream, found), letters=letters, others=max(0, len(set(stream.served)) - len(letters)),
        lost=sum(int(row.content.get("lost", 0)) for row in rows if row.kind == "window"),
        shifts=story.KINDS, endings=story.ENDING, outcomes=story.OUTCOMES,
        samples=shown_samples({step: pair for step, pair in samples.items() if step in shown}, words),
        pictures=pictures, pictures_left=max(0, len(examples) - GROUPS), settings=settings.settings(start),
        before=start.get("accuracy_before"), limit=start.get("plan", {}).get("Plan", {}).get("anchor"),
        latencies=[x for x in (summary.latency("until the answers were there", stream.ms),
                               summary.latency("with watching, trials and journal", 1000 * stream.seconds)) if x],
        passes=costs.passes(rows, stream), memory=_peak(stream.memory),
        about={wording.clip(k, 80): wording.clip(v, 2000) for k, v in list(about.items())[:50]},
        versions=settings.versions(), when=settings.when(rows),
        revealed=any(row.content.get("labels") for row in rows if row.kind == "window"),
        snapshots=sum(row.kind == "snapshot" for row in rows),
    )  # fmt: skip
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"the report {path} cannot be written: {error.strerror or error}; name a file") from None
    return path


@dataclass(frozen=True)
class _Group:
    """The rows of an event."""

    rows: Sequence[Row]

    @property
    def step(self) -> int:
        return self.rows[0].step


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {name: getattr(wording, name) for name in ("percent", "points", "called", "typeset", "brief")}
    made.globals |= {"several": wording.several, "isfinite": math.isfinite}
    return made


def _alarms(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A row an alarm: its window, what moved, for how long, of what kind, and on what evidence."""
    made = list[dict[str, Any]]()
    for row in rows:
        since, found = story.since(row.content), story.gathered(row.content)
        evidence = ""
        if found is not None:
            capital, wanted, shares = found
            parts = ", ".join(f"{wording.clip(name, 40)} {share:.0%}" for name, share in shares if share >= 0.01)
            evidence = f"{wording.amount(capital)} (enough: {wording.amount(wanted)}): {parts}"
        kind = str(row.content.get("kind", ""))
        made.append({
            "step": row.step, "moved": MOVED.get(kind, wording.clip(kind, 40)), "evidence": wording.clip(evidence, 200),
            "since": "" if since is None else f"{since[0]:,} ({since[1]:,} to {since[2]:,})",
            "kinds": ("none stands out; " if row.content.get("shift") == "none" else "") + story.kinds(row.content),
        })  # fmt: skip
    return made


def _letters(stream: Stream) -> list[tuple[str, str, int]]:
    """Letter, name and windows of what was served; the network as deployed first, then the longest first."""
    counts = Counter(stream.served)
    order = sorted(counts, key=lambda name: (name != summary.SOURCE, -counts[name], name))
    return [(letter, name, counts[name]) for letter, name in zip(string.ascii_uppercase, order[:SERVED], strict=False)]


def _peak(memory: np.ndarray) -> float | None:
    known = memory[np.isfinite(memory)]
    return float(known.max()) if len(known) else None
