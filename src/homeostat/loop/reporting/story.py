"""What happened, in sentences: the journal's rows as episodes that begin with an alarm and end with a decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from homeostat.loop.reporting.summary import SOURCE, Stream
from homeostat.loop.reporting.wording import amount, called, clip, percent, points, several
from homeostat.loop.store import Row

TOLD = ("alarm", "propose", "decision", "commit", "rollback", "keep")

MEANING = {
    "uncertain": "That alone does not say that answers got worse.",
    "certain": "Either the inputs are easier again, or the network is confidently wrong; certainty alone cannot tell.",
    "features": "Features are what the last layer gets to see; the network may be as sure of its answers as ever.",
    "classes": "Either these classes really come more or less often, or the network mistakes others for them.",
    "error": "This is seen on labels: answers of the network as deployed are wrong more often than before.",
}
"""What an alarm means, by its kind."""

KINDS = {
    "none": "nothing that stands out",
    "covariate": "other inputs",
    "label": "another class balance",
    "correlated": "classes in runs",
    "subgroup": "other samples of the same classes",
    "concept": "another rule for the labels",
    "novel-class": "samples of no known class",
}
"""The kinds of shift in plain words."""

NOT_TRIED = "left out"
UNDECIDED = {
    "rollback": "the trial ended before a verdict",
    "commit": "the trial ended before a verdict",
    "keep": "refused before the trial began",
    "": "on trial, no verdict yet",
}
"""What a candidate without a verdict came to, by what ended its trial."""

OUTCOMES = {
    "taken": "put in service", "refused": "refused: it would lose too much",
    "not taken": "not taken: another promised more",
}  # fmt: skip
"""What became of a candidate whose loss on data from before was measured."""
ENDING = {"commit": "change of what is served", "rollback": "back to safety", "keep": "nothing changed", "": "open"}


@dataclass(frozen=True)
class Tried:
    """A candidate's row in an episode's table.

    Attributes:
        name, outcome, why: of the candidate.
        taken: whether it was put in service.
        right: how often it was right in the windows of its trial, in words, where labels judge; else empty.
    """

    name: str
    outcome: str
    why: str
    taken: bool = False
    right: str = ""


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
        signals: the share of each signal in the alarm's evidence, the largest first.
        alarm: window of its alarm, where that is a new one.
        served: how often what answered was right in the windows of the trial, in words, where labels judge.
    """

    step: int
    ending: str = ""
    heading: str = ""
    before: list[str] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    checkpoint: str = ""
    signals: list[tuple[str, float]] = field(default_factory=list)
    alarm: int | None = None
    served: str = ""


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
    by_kind = {row.kind: row for row in group}
    switch = by_kind.get("commit") or by_kind.get("rollback")
    for row in group:
        said = row.content
        if row.kind == "alarm":
            _alarm(made, row)
        elif row.kind == "propose":
            names, left = list(said.get("tried", ())), left_out(said)
            made.before.append(_proposed(names, len(left)))
            ended = next((kind for kind in UNDECIDED if kind in by_kind), "")
            made.tried = [Tried(called(name), UNDECIDED[ended], "") for name in names]
            made.tried += [Tried(called(name), NOT_TRIED, _sentence(reason)) for name, reason in left.items()]
        elif row.kind == "decision":
            kept = by_kind["keep"].content if "keep" in by_kind else {}
            served = switch.content.get("from", "") if switch else kept.get("served", "")
            winner = switch.content.get("to") if switch else None
            verdicts = [_tried(verdict, winner, served) for verdict in said.get("verdicts", ())]
            made.tried = verdicts + [tried for tried in made.tried if tried.outcome == NOT_TRIED]
        elif row.kind in ("commit", "rollback"):
            made.ending, made.checkpoint = row.kind, (row.checkpoint or "")[:12]
            made.after += _switched(row, stream, until)
        elif row.kind == "keep":
            made.ending = row.kind
            why = "" if "decision" in by_kind else f" {_sentence(said.get('why', ''))}"
            made.after.append(f"Nothing was changed: {called(said.get('served', SOURCE))} went on answering.{why}")
    if not made.ending:
        made.after.append("The journal ends before a decision.")
    if "propose" in by_kind:
        last = group[-1].step if made.ending else int(stream.steps[-1])
        _judge_trial(made, stream, by_kind["propose"].step + 1, last)
    made.heading = made.heading or {"rollback": "Rollback", "commit": "Change"}.get(made.ending, "Decision")
    return made


def left_out(said: Mapping[str, Any]) -> dict[str, str]:
    """Remedies that were not tried, and why."""
    found = said.get("left")
    return {str(name): str(why) for name, why in found.items()} if isinstance(found, Mapping) else {}


def since(said: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """For how many windows it had been so when an alarm was raised: estimate, and the ends of the 95 % interval."""
    found = said.get("since")
    if said.get("again") or not isinstance(found, (list, tuple)) or len(found) != 3:
        return None
    return int(found[0]), int(found[1]), int(found[2])


def kinds(said: Mapping[str, Any]) -> str:
    """The likeliest kinds of shift that an alarm's row names, with their probabilities, or nothing."""
    likely = said.get("kinds")
    if not isinstance(likely, Mapping):
        return ""
    return ", ".join(f"{clip(kind, 40)} {100 * float(p):.3g}%" for kind, p in likely.items() if p)


def gathered(said: Mapping[str, Any]) -> tuple[float, float, list[tuple[str, float]]] | None:
    """An alarm's evidence: all of it, what was wanted, and each signal's share, the largest first."""
    found = said.get("evidence")
    if said.get("again") or not isinstance(found, Mapping) or "all" not in found:
        return None
    parts = {str(k): float(v["capital"]) / float(v["threshold"]) for k, v in found.items() if k != "all"}
    whole = sum(parts.values())
    if not whole:
        return None
    shares = sorted(((name, part / whole) for name, part in parts.items()), key=lambda pair: -pair[1])
    return float(found["all"]["capital"]), float(found["all"]["threshold"]), shares


def _alarm(made: Episode, row: Row) -> None:
    said = row.content
    again = bool(said.get("again"))
    made.heading = "The cause of the last alarm was still there" if again else "Alarm"
    text = _sentence(said.get("text", ""), capital=False)
    if again:
        told = [f"An earlier trial had changed nothing, so at window {row.step:,} another was begun.",
                f"The alarm was: {text}"]  # fmt: skip
    else:
        told = [f"At window {row.step:,} the monitor raised an alarm: {text}", _onset(row), _evidence(said)]
        told.append(MEANING.get(str(said.get("kind")), ""))
        made.alarm, found = row.step, gathered(said)
        made.signals = [] if found is None else [(clip(name, 40), share) for name, share in found[2]]
    made.before.append(" ".join(part for part in told if part))
    if said.get("shift_text"):
        likely = kinds(said)
        made.before.append(f"Diagnosis: {_sentence(said['shift_text'], capital=False)}"
                           + (f" Likeliest kinds of shift: {likely}." if likely else ""))  # fmt: skip


def _onset(row: Row) -> str:
    found = since(row.content)
    if found is None:
        return ""
    windows, low, high = found
    began = max(0, row.step - windows + 1)
    return (
        f"It had been so for about {several(windows, 'window')}, since window {began:,} (95% interval: {low:,} to "
        f"{high:,})."
    )


def _evidence(said: Mapping[str, Any]) -> str:
    found = gathered(said)
    if found is None:
        return ""
    capital, wanted, shares = found
    named = [f"{share:.0%} from {clip(name, 40)}" for name, share in shares if share >= 0.01]
    return f"Its evidence was {amount(capital)}, where {amount(wanted)} is enough: {clip(', '.join(named))}."


def _judge_trial(made: Episode, stream: Stream, first: int, last: int) -> None:
    """How often the candidates and what answered were right in the windows of the trial."""
    here = (stream.steps >= first) & (stream.steps <= last) & np.isfinite(stream.accuracy)
    if not stream.tried or not here.any():
        return
    known = {called(name): values[here] for name, values in stream.tried.items()}
    for number, tried in enumerate(made.tried):
        values = known.get(tried.name, np.empty(0))
        if (right := values[np.isfinite(values)]).size and tried.outcome != NOT_TRIED:
            made.tried[number] = replace(tried, right=percent(float(right.mean())))
    made.served = f"{percent(float(stream.accuracy[here].mean()))} over {several(int(here.sum()), 'window')}"


def _proposed(tried: Sequence[str], left: int) -> str:
    told = []
    if tried:
        names = clip(", ".join(called(name) for name in tried))
        runs = several(len(tried), "candidate")
        told.append(f"{runs} ran in shadow, on the same windows but without answering: {names}.")
    if left:
        out = several(left, "more was", "more were") if tried else "No candidate fits: " + several(left, "was", "were")
        told.append(f"{out} left out.")
    return " ".join(told) or "There was no candidate."


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
        outcome = "not taken: good enough, but another promised more"
    elif word == "refused":
        outcome = "refused: not safe to serve"
    elif name == served:
        outcome = "not taken: started afresh, it is not shown to beat itself as served"
    else:
        outcome = "not taken: not shown to be better"
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
