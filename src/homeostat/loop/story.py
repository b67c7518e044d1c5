"""What happened, in sentences: the journal's rows as episodes that begin with an alarm and end with a decision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from homeostat.loop.store import Row
from homeostat.loop.summary import SOURCE, Stream

TOLD = ("alarm", "propose", "decision", "commit", "rollback", "keep")
LONGEST = 600
"""Letters of a journal text that are shown; a remedy's error message may be a page."""

MEANING = {
    "uncertain": "The network as deployed has become unsure of what it sees: the inputs are probably unlike those "
    "before. That alone does not say that answers got worse; the trial below asks whether something else does better.",
    "certain": "The network as deployed has become surer than it was. Either the inputs are easier again, or it is "
    "confidently wrong; entropy alone cannot tell which.",
    "error": "This is seen on labels: answers of the network as deployed became wrong more often than before.",
}

ENDING = {"commit": "change of what is served", "rollback": "back to safety", "keep": "nothing changed", "": "open"}


@dataclass(frozen=True)
class Tried:
    """A candidate's row in an episode's table."""

    name: str
    outcome: str
    why: str
    taken: bool = False


@dataclass
class Episode:
    """From an alarm to what was done about it, or a rollback on its own.

    Attributes:
        step: its first window.
        ending: `"commit"`, `"rollback"`, `"keep"`, or empty where the journal ends before a decision.
        heading: a few words.
        before: sentences up to the trial.
        tried: the candidates and what became of them.
        after: sentences on what was done.
        checkpoint: hash of what is served from then on.
    """

    step: int
    ending: str = ""
    heading: str = ""
    before: list[str] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    checkpoint: str = ""


def called(name: Any) -> str:
    """A model's name for a reader."""
    return "the network as deployed" if name == SOURCE else clip(name, 120)


def clip(text: Any, most: int = LONGEST) -> str:
    """The text, cut where it is too long to be read here."""
    text = str(text)
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def points(fraction: float) -> str:
    """A difference of two accuracies in percentage points, with its sign; a digit more where one would hide it.

    >>> points(0.173), points(-0.0003), points(0.0)
    ('+17.3', '−0.03', '0.0')
    """
    value = 100 * fraction
    text = next((said for said in (f"{value:+.1f}", f"{value:+.2f}") if float(said)), "0.0")
    return text.replace("-", "−")


def percent(fraction: float) -> str:
    """A share as a percentage, or a dash where it is not known."""
    return f"{100 * fraction:.1f}%" if math.isfinite(fraction) else "–"


def several(count: int, word: str, many: str = "") -> str:
    """A number with its noun.

    >>> several(1, "alarm"), several(2, "alarm"), several(0, "trial")
    ('1 alarm', '2 alarms', '0 trials')
    """
    return f"{count:,} {word if count == 1 else many or word + 's'}"


def grouped(rows: Sequence[Row]) -> list[list[Row]]:
    """The journal's events, an episode a group."""
    groups: list[list[Row]] = []
    for row in rows:
        if row.kind not in TOLD:
            continue
        closed = not groups or groups[-1][-1].kind in ("commit", "rollback", "keep")
        if closed or row.kind == "alarm":
            groups.append([])
        groups[-1].append(row)
    return groups


def tell(group: Sequence[Row], stream: Stream, until: int | None) -> Episode:
    """An episode in words.

    Args:
        group: its rows.
        stream: the windows, for what a change turned out to be worth.
        until: the window of the next change of what is served, where there is one.
    """
    made = Episode(group[0].step)
    served, decided = SOURCE, {row.kind: row for row in group}
    for row in group:
        said = row.content
        if row.kind == "alarm":
            _alarm(made, row)
        elif row.kind == "propose":
            made.before.append(_proposed(list(said.get("tried", ())), list(said.get("left", ()))))
        elif row.kind == "decision":
            switch = decided.get("commit") or decided.get("rollback")
            kept = decided["keep"].content if "keep" in decided else {}
            served = switch.content.get("from", "") if switch else kept.get("served", "")
            winner = switch.content.get("to") if switch else None
            made.tried = [_tried(verdict, winner, served) for verdict in said.get("verdicts", ())]
        elif row.kind in ("commit", "rollback"):
            made.ending, made.checkpoint = row.kind, (row.checkpoint or "")[:12]
            made.after += _switched(row, stream, until)
        elif row.kind == "keep":
            made.ending = row.kind
            why = "" if made.tried else f" {_sentence(said.get('why', ''))}"
            made.after.append(f"Nothing was changed: {called(said.get('served', SOURCE))} went on answering.{why}")
    if not made.ending:
        made.after.append("The journal ends before a decision.")
    made.heading = made.heading or {"rollback": "Rollback", "commit": "Change"}.get(made.ending, "Decision")
    return made


def _alarm(made: Episode, row: Row) -> None:
    said = row.content
    again = bool(said.get("again"))
    made.heading = "The cause of the last alarm was still there" if again else "Alarm"
    text = _sentence(said.get("text", ""), capital=False)
    if again:
        made.before.append(
            f"An earlier trial had changed nothing, so at window {row.step:,} another was begun. The alarm was: {text}"
        )
        return
    told = [f"At window {row.step:,} the monitor raised an alarm: {text}"]
    if said.get("since"):
        told.append(f"Its evidence began to gather at window {max(0, row.step - int(said['since']) + 1):,}.")
    made.before.append(" ".join([*told, MEANING.get(str(said.get("kind")), "")]).strip())


def _proposed(tried: Sequence[str], left: Sequence[str]) -> str:
    told = []
    if tried:
        names = clip(", ".join(called(name) for name in tried))
        runs = several(len(tried), "candidate")
        told.append(f"{runs} ran in shadow, on the same windows but without answering: {names}.")
    if left:
        told.append(
            f"Not tried: {clip(', '.join(called(name) for name in left))}; what it needs was not there (labels, for "
            "instance), or others came before it."
        )
    return " ".join(told) or "No candidate fits."


def _sentence(text: Any, capital: bool = True) -> str:
    text = clip(text).strip()
    if not text:
        return ""
    return (text[:1].upper() + text[1:] if capital else text) + ("" if text[-1] in ".!?…" else ".")


def _tried(verdict: dict[str, Any], winner: str | None, served: str) -> Tried:
    name, word = str(verdict.get("name", "")), str(verdict.get("word", ""))
    if name == winner:
        outcome = "taken"
    elif word == "better":
        outcome = "left: good enough, but another promised more"
    elif word == "refused":
        outcome = "refused: not safe to serve"
    elif name == served:
        outcome = "left: started afresh, it is not shown to beat itself as served"
    else:
        outcome = "left: not shown to be better"
    return Tried(called(name), outcome, _sentence(verdict.get("why", "")), name == winner)


def _switched(row: Row, stream: Stream, until: int | None) -> list[str]:
    said, place = row.content, f"From window {row.step + 1:,} on"
    new, old = called(said.get("to")), called(said.get("from"))
    why = _sentence(said.get("why", ""), capital=False)
    if row.kind == "rollback":
        told = [f"Rollback. {place}, {new} answers again in place of {old}. The reason: {why}"]
    else:
        told = [f"Commit. {place}, {new} answers in place of {old}. The reason: {why}"]
    here = (stream.steps > row.step) & (stream.steps <= (until if until is not None else stream.steps[-1]))
    here &= np.isfinite(stream.accuracy) & np.isfinite(stream.frozen)
    if row.kind == "commit" and here.any():
        ours, theirs = float(stream.accuracy[here].mean()), float(stream.frozen[here].mean())
        told.append(
            f"In hindsight: over the {several(int(here.sum()), 'window')} it answered, it was right on {percent(ours)} "
            f"of the inputs, the network as deployed on {percent(theirs)} ({points(ours - theirs)} points)."
        )
    return told
