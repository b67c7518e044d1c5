"""The loop's report: one HTML file that explains itself to somebody who has never seen the loop.

It holds all it needs (style, pictures, charts), loads nothing, runs no script, and says the same for the same journal.
Accuracies come from labels that judge, where the trace has them; else from the labels that the loop itself saw; else
they are left out, and the report says so. However long the stream, the file stays below 5 MB: charts are thinned, long
tables and texts are cut, each with a note.
"""

from __future__ import annotations

import math
import platform
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor

from homeostat.core.errors import InputError, StoreError, UnknownName
from homeostat.core.spec import find
from homeostat.core.trace import Trace
from homeostat.loop import story, summary
from homeostat.loop.figures import (
    GROUPS,
    accuracy_figure,
    entropy_figure,
    inline_pictures,
    latency_figure,
    marks_of,
)
from homeostat.loop.plan import Plan
from homeostat.loop.store import Row
from homeostat.loop.summary import Phase, Stream

PHASES, EPISODES, SERVED = 40, 60, 6
MOVED = {
    "uncertain": "less certain", "certain": "more certain", "features": "features", "classes": "predicted classes",
    "error": "errors",
}  # fmt: skip
"""What an alarm is about, by its kind."""


def report(
    rows: Sequence[Row],
    trace: Trace,
    path: str | Path,
    *,
    title: str = "What the loop did",
    phases: Sequence[str] = (),
    examples: Sequence[tuple[str, Tensor | Any]] = (),
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
    groups = story.grouped(rows)
    switches = [row.step for row in rows if row.kind in ("commit", "rollback")]
    shown, alarms = _ends(groups), [row for row in rows if row.kind == "alarm" and not row.content.get("again")]
    shown_alarms = _ends(alarms)
    episodes = [story.tell(g, stream, next((s for s in switches if s > g[-1].step), None)) for g in shown]
    start = next((row.content for row in rows if row.kind == "start"), {})
    letters = _letters(stream)
    marks = marks_of(rows, stream)
    page = _environment().get_template("report.html.j2").render(
        title=story.clip(title, 200), stream=stream, whole=whole, phases=found[:PHASES],
        phases_left=max(0, len(found) - PHASES),
        lead=_lead(stream, whole, found, rows), tiles=_tiles(stream, whole, rows),
        accuracy=accuracy_figure(stream, found, marks, letters), entropy=entropy_figure(stream, found, marks),
        speed=latency_figure(stream, found), letters=letters, others=max(0, len(set(stream.served)) - len(letters)),
        alarms=_alarms(shown_alarms), alarms_left=len(alarms) - len(shown_alarms),
        lost=sum(int(row.content.get("lost", 0)) for row in rows if row.kind == "window"),
        shifts=story.KINDS, episodes=episodes, episodes_left=len(groups) - len(shown), endings=story.ENDING,
        pictures=pictures, pictures_left=max(0, len(examples) - GROUPS), settings=_settings(start),
        before=start.get("accuracy_before"),
        latencies=[x for x in (summary.latency("until the answers were there", stream.ms),
                               summary.latency("with watching, trials and journal", 1000 * stream.seconds)) if x],
        about={story.clip(k, 80): story.clip(v, 2000) for k, v in list(about.items())[:50]}, versions=_versions(),
        when=_when(rows), revealed=any(row.content.get("labels") for row in rows if row.kind == "window"),
        snapshots=sum(row.kind == "snapshot" for row in rows),
    )  # fmt: skip
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"the report {path} cannot be written: {error.strerror or error}; name a file") from None
    return path


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"percent": story.percent, "points": story.points, "called": story.called}
    made.globals |= {"several": story.several, "isfinite": math.isfinite}
    return made


# -- words and numbers


def _lead(stream: Stream, whole: Phase, found: Sequence[Phase], rows: Sequence[Row]) -> list[str]:
    kinds, said, again = Counter(row.kind for row in rows), [], _repeated(rows)
    windows = story.several(len(stream), "window")
    if whole.judged:
        who = "" if stream.judge == "all" else " (judged on the labels that came, a part of the inputs)"
        how = "as often" if round(whole.difference, 4) == 0 else "more often" if whole.difference > 0 else "less often"
        said.append(
            f"Over {windows}, the network that answered was right on {story.percent(whole.accuracy)} of the inputs"
            f"{who}. The network as deployed, left alone, would have been right on {story.percent(whole.frozen)}: "
            f"with the loop, answers were right {how} ({story.points(whole.difference)} points)."
        )
        worst, hurt = summary.hardest(found), summary.harmed(found)
        if worst is not None and len(found) > 1:
            said.append(
                f"The hardest phase was “{story.clip(worst.name, 80)}”: {story.percent(worst.accuracy)} right, against "
                f"{story.percent(worst.frozen)} for the network as deployed."
            )
            names = "; ".join(f"{story.clip(p.name, 80)} ({story.points(p.difference)} points)" for p in hurt[:3])
            sure = sum(p.interval is not None and p.interval.high < 0 for p in hurt)
            clear = f"in {sure:,} of them" if sure else "in none of them"
            said.append(
                f"The loop did worse than the network as deployed in {story.several(len(hurt), 'phase')}: {names}; "
                f"{clear} the whole 95% interval of the difference is below 0."
                if hurt
                else "In no phase did the loop do worse than the network as deployed."
            )
    else:
        said.append(f"The loop served {windows}. No labels judged the answers, so that their accuracy is not known.")
    verdicts = [v for row in rows if row.kind == "decision" for v in row.content.get("verdicts", ())]
    refused = sum(verdict.get("word") == "refused" for verdict in verdicts)
    repeats = f"{story.several(again, 'trial was a repetition', 'trials were repetitions')}, " if again else ""
    said.append(
        f"In all: {story.several(kinds['alarm'] - again, 'alarm')}, {story.several(kinds['commit'], 'commit')} "
        f"(something else was put in service) and {story.several(kinds['rollback'], 'rollback')} (the network as "
        f"deployed was put back). {story.several(kinds['keep'], 'trial')} ended without a change, "
        f"{repeats}and "
        f"{story.several(refused, 'candidate was', 'candidates were')} refused as not safe to serve."
    )
    if failed := sum(bool(row.content.get("failed")) for row in rows if row.kind == "window"):
        said.append(
            f"In {story.several(failed, 'window')} what was served could not answer, and the network as deployed "
            "answered instead."
        )
    said.append(f"At the end, {story.called(_last_served(stream, rows))} was in service.")
    return said


def _last_served(stream: Stream, rows: Sequence[Row]) -> str:
    switch = [row for row in rows if row.kind in ("commit", "rollback")]
    return str(switch[-1].content.get("to")) if switch else stream.served[-1]


def _tiles(stream: Stream, whole: Phase, rows: Sequence[Row]) -> list[tuple[str, str]]:
    kinds = Counter(row.kind for row in rows)
    made = []
    if whole.judged:
        made += [(story.percent(whole.accuracy), "right, as served"),
                 (story.percent(whole.frozen), "right, as deployed"),
                 (story.points(whole.difference), "points of difference")]  # fmt: skip
    made += [(f"{kinds['alarm'] - _repeated(rows):,}", "alarms"), (f"{kinds['commit']:,}", "commits"),
             (f"{kinds['rollback']:,}", "rollbacks"), (f"{kinds['keep']:,}", "trials without a change")]  # fmt: skip
    for values, scale, name in ((stream.seconds, 1.0, "seconds a window, all in all"),
                                (stream.ms, 1e-3, "seconds a window, to answer")):  # fmt: skip
        known = values[np.isfinite(values)]
        if len(known):
            return [*made, (f"{float(known.mean()) * scale:.2g}", name)]
    return made


def _repeated(rows: Sequence[Row]) -> int:
    """How many trials were repeated without a new alarm."""
    return sum(bool(row.content.get("again")) for row in rows if row.kind == "alarm")


def _alarms(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A row an alarm: its window, what moved, for how long, of what kind, and on what evidence."""
    made = list[dict[str, Any]]()
    for row in rows:
        since, found = story.since(row.content), story.gathered(row.content)
        evidence = ""
        if found is not None:
            capital, wanted, shares = found
            parts = ", ".join(f"{story.clip(name, 40)} {share:.0%}" for name, share in shares if share >= 0.01)
            evidence = f"{story.amount(capital)} of {story.amount(wanted)}: {parts}"
        kind = str(row.content.get("kind", ""))
        made.append({
            "step": row.step, "moved": MOVED.get(kind, story.clip(kind, 40)), "evidence": story.clip(evidence, 200),
            "since": "" if since is None else f"{since[0]:,} ({since[1]:,} to {since[2]:,})",
            "kinds": ("none stands out; " if row.content.get("shift") == "none" else "") + story.kinds(row.content),
        })  # fmt: skip
    return made


def _ends(made: Sequence[Any]) -> Sequence[Any]:
    """The first and the last where there are too many."""
    return made if len(made) <= EPISODES else [*made[: EPISODES // 2], *made[-EPISODES // 2 :]]


def _letters(stream: Stream) -> list[tuple[str, str, int]]:
    """Letter, name and windows of what was served; the network as deployed first, then the longest first."""
    counts = Counter(stream.served)
    order = sorted(counts, key=lambda name: (name != summary.SOURCE, -counts[name], name))
    return [(letter, name, counts[name]) for letter, name in zip(string.ascii_uppercase, order[:SERVED], strict=False)]


def _settings(start: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and meaning of the plan's settings; the meanings are those of the plan's own documentation."""
    plan, made = start.get("plan", {}).get("Plan", {}), []
    for name, value in plan.items():
        if isinstance(value, dict):
            chosen, inner = next(iter(value.items()), ("", {}))
            known = _meanings_of(chosen)
            made.append((name, chosen, _meanings(Plan).get(name, "")))
            made += [(f"{name}: {key}", _plain(v), known.get(key, "")) for key, v in inner.items()]
        else:
            made.append((name, _plain(value), _meanings(Plan).get(name, "")))
    return [(story.clip(n, 80), story.clip(v, 200), meaning) for n, v, meaning in made[:60]]


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "none"
    return "none" if value is None else str(value)


def _meanings_of(name: str) -> dict[str, str]:
    try:
        return _meanings(find(name))
    except UnknownName:  # of a library that this process does not have
        return {}


def _meanings(spec: type) -> dict[str, str]:
    found, name = dict[str, str](), ""
    for line in (spec.__doc__ or "").partition("Attributes:")[2].splitlines():
        head, colon, text = line.strip().partition(": ")
        if colon and head.isidentifier() and line.startswith(" " * 8) and line[8:9] != " ":
            name, found[head] = head, text
        elif name:
            found[name] = f"{found[name]} {line.strip()}".strip()
    return {key: text[:1].upper() + text[1:] for key, text in found.items()}


def _versions() -> dict[str, str]:
    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "from source"

    return {"homeostat": installed("homeostat"), "torch": installed("torch"), "Python": platform.python_version()}


def _when(rows: Sequence[Row]) -> str:
    times = [row.time for row in rows if row.time > 0]
    if not times:
        return ""
    first, last = (datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M") for t in (min(times), max(times)))
    return f"{first} UTC" if first == last else f"{first} to {last} UTC"
