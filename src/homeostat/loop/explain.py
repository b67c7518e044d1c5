"""Why a window went as it did: everything that led to it, in sentences, from the journal alone.

The sentences are those of the report (see `story`), with what came before and after put around them, so that they can
be read without it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from homeostat.core.errors import InputError
from homeostat.loop.journal import Row
from homeostat.loop.judged import Judged
from homeostat.loop.record import record
from homeostat.loop.reporting import story, wording
from homeostat.loop.reporting.summary import SOURCE, Stream

NAMES = {"alarm": "alarm", "propose": "trial begun", "commit": "commit", "rollback": "rollback", "keep": "no change"}


@dataclass(frozen=True)
class Told:
    """What led to a window, and what followed; JSON-ready by `dataclasses.asdict`.

    Attributes:
        step: the window.
        heading: what happened there, in a few words.
        before: sentences up to the trial: what answered, the alarm, its evidence, the diagnosis, what was tried.
        tried: each candidate: `name`, `outcome` and `why`, with the numbers.
        after: sentences on what was done and what followed.
        rows: the journal's rows that this rests on.
    """

    step: int
    heading: str
    before: list[str]
    tried: list[dict[str, str]] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


def why(store: str | Path, step: int) -> Told:
    """Everything that led to what happened at a window.

    Args:
        store: the store's folder.
        step: the window; of an alarm, of a decision, within a trial, or any other.

    Raises:
        StoreError: there is no store, or its journal is damaged. InputError: no such window was written.
    """
    with record(store) as journal:
        rows = list(journal.rows())
    stream = Stream.of(rows, Judged(store).trace())
    groups = story.grouped(rows)
    if not len(stream):
        raise InputError(f"{store} has served no window that it wrote down")
    if not stream.steps[0] <= step <= stream.steps[-1]:
        raise InputError(
            f"there is no window {step}: the journal has windows {stream.steps[0]:,} to {stream.steps[-1]:,}. "
            f"{_happened(groups)}"
        )
    found = [group for group in groups if group[0].step <= step <= group[-1].step]
    if not found:
        return _quiet(step, rows, stream, groups)
    group = found[-1]
    switches = [row for row in rows if row.kind in ("commit", "rollback")]
    later = next((row for row in switches if row.step > group[-1].step), None)
    told = story.tell(group, stream, None if later is None else later.step)
    here = [NAMES[row.kind] for row in group if row.step == step and row.kind in NAMES]
    heading = ", ".join(dict.fromkeys(here)) or f"inside the trial that began with the alarm at window {group[0].step}"
    after = list(told.after)
    if told.ending in ("commit", "rollback"):
        after += [_worth(stream, group[-1].step, later)] if not any("hindsight" in said for said in after) else []
    after.append(_next(groups, group))
    others = [f"At the same window, before that: {_short(other)}." for other in found[:-1]]
    return Told(
        step, f"Window {step:,}: {heading}.", [_answering(rows, group[0]), *_failed(rows, step), *others, *told.before],
        [{"name": t.name, "outcome": t.outcome, "why": t.why} for t in told.tried],
        [said for said in after if said], [_plain(row) for row in group],
    )  # fmt: skip


def _quiet(step: int, rows: Sequence[Row], stream: Stream, groups: Sequence[Sequence[Row]]) -> Told:
    """A window at which nothing was decided."""
    window = next((row for row in reversed(rows) if row.kind == "window" and row.step == step), None)
    place = bisect_left(stream.steps.tolist(), step)
    before = [_answering(rows, window, answers=True)]
    if math.isfinite(entropy := float(stream.entropy[place])):
        before.append(f"Entropy of the network as deployed: {entropy:.3f} (0 is sure of every answer, 1 of none).")
    ours, theirs = float(stream.accuracy[place]), float(stream.frozen[place])
    if math.isfinite(ours) and math.isfinite(theirs):
        who = "labels" if stream.judge == "all" else "the labels that came"
        before.append(
            f"By {who}, {wording.percent(ours)} of the answers were right; the network as deployed alone: "
            f"{wording.percent(theirs)}."
        )
    if window is not None and (lost := int(window.content.get("lost", 0))):
        before.append(f"{wording.several(lost, 'label')} came too late: what was answered then is not kept any more.")
    before.append("No alarm was raised, no candidate was on trial and nothing was changed.")
    near = bisect_right([group[0].step for group in groups], step)
    after = []
    if near:
        last = groups[near - 1]
        after.append(f"Last before it: {_short(last)}.")
    if near < len(groups):
        after.append(f"Next after it: {_short(groups[near])}.")
    if not groups:
        after.append("Nothing has happened in this store at any window.")
    return Told(step, f"Window {step:,}: nothing happened.", before, [], after, [_plain(window)] if window else [])


def _answering(rows: Sequence[Row], first: Row | None, answers: bool = False) -> str:
    """Which model answered when a row was written, and since when."""
    place = next((i for i, row in enumerate(rows) if row is first), len(rows))
    switches = [row for row in rows[:place] if row.kind in ("commit", "rollback")]
    word = "answered" if answers else "was answering"
    if not switches:
        return f"{_capital(wording.called(SOURCE))} {word}, as from the beginning."
    last = switches[-1]
    return (
        f"{_capital(wording.called(last.content.get('to')))} {word}, put in service by the {last.kind} at window "
        f"{last.step:,}."
    )


def _failed(rows: Sequence[Row], step: int) -> list[str]:
    """That what was served could not answer at a window, where it was so."""
    window = next((row for row in rows if row.kind == "window" and row.step == step), None)
    if window is None:
        return []
    who = _capital(wording.called(window.content.get("served")))
    if hedged := window.content.get("hedged"):
        told = [f"The network as deployed answered window {step:,} in place of {who}, because {hedged}."]
        if vouched := window.content.get("vouched"):
            some = "this window" if vouched == 1 else f"the last {vouched} windows"
            told.append(f"Labels of {some} show that {wording.called(window.content.get('served'))} helps in them.")
        return told
    if not window.content.get("failed"):
        return []
    return [f"{who} could not answer at window {step:,}; the network as deployed answered instead."]


def _worth(stream: Stream, step: int, later: Row | None) -> str:
    """In hindsight, what a switch came to until the next one."""
    until = later.step if later is not None else int(stream.steps[-1])
    here = (stream.steps > step) & (stream.steps <= until) & np.isfinite(stream.accuracy) & np.isfinite(stream.frozen)
    if not here.any():
        return "What it was worth is not known: no label has judged a window since."
    ours, theirs = float(stream.accuracy[here].mean()), float(stream.frozen[here].mean())
    return (
        f"In hindsight: over the {wording.several(int(here.sum()), 'window')} that followed, {wording.percent(ours)} "
        f"of the answers were right; of the network as deployed it would have been {wording.percent(theirs)} "
        f"({wording.points(ours - theirs)} points)."
    )


def _next(groups: Sequence[Sequence[Row]], group: Sequence[Row]) -> str:
    """What happened next."""
    later = [other for other in groups if other[0].step > group[-1].step]
    return f"What came next: {_short(later[0])}." if later else "Nothing has happened since."


def _short(group: Sequence[Row]) -> str:
    first, last = group[0], group[-1]
    text = f"{NAMES.get(first.kind, first.kind)} at window {first.step:,}"
    if last is first or last.kind == "propose":
        return text
    end = {"commit": f"which led to the commit of {wording.called(last.content.get('to'))}",
           "rollback": "which led to a rollback"}.get(last.kind, "which changed nothing")  # fmt: skip
    return f"{text}, {end} at window {last.step:,}"


def _happened(groups: Sequence[Sequence[Row]]) -> str:
    if not groups:
        return "Nothing has happened at any of them."
    steps: dict[int, list[str]] = {}
    for group in groups:
        for row in group:
            if row.kind in NAMES and row.kind != "propose":
                steps.setdefault(row.step, []).append(NAMES[row.kind])
    said = [f"{step} ({', '.join(dict.fromkeys(kinds))})" for step, kinds in sorted(steps.items())]
    cut = f"the last {12} of {len(said)}: " if len(said) > 12 else ""
    return f"Something happened at {cut}{', '.join(said[-12:])}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _plain(row: Row) -> dict[str, Any]:
    return {"step": row.step, "kind": row.kind, "checkpoint": row.checkpoint, "time": row.time, "content": row.content}
