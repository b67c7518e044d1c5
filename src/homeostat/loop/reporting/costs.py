"""What the loop cost (forward passes, memory) and what its changes cost on data from before, from the journal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from homeostat.core.errors import UnknownName
from homeostat.core.spec import find
from homeostat.loop.reporting.summary import SOURCE, Stream
from homeostat.loop.store import Row


@dataclass(frozen=True)
class Passes:
    """Forward passes a sample, by the cards of the methods; the network alone takes one.

    Attributes:
        mean: over all windows.
        watching: mean over the windows without a candidate on trial; NaN without any.
        trial: mean over the windows with candidates on trial; NaN without any.
        windows: how many had candidates on trial.
    """

    mean: float
    watching: float
    trial: float
    windows: int


def trials(rows: Sequence[Row], last: int) -> list[tuple[int, int, list[str]]]:
    """First and last window in which candidates ran in shadow, and their names; an open trial runs to window `last`."""
    found, begun = list[tuple[int, int, list[str]]](), None
    for row in rows:
        if row.kind == "propose":
            begun = (row.step + 1, [str(name) for name in row.content.get("tried", ())])
        elif row.kind in ("commit", "rollback", "keep") and begun is not None:
            # A trial that was over before it began has no window.
            if row.step >= begun[0]:
                found.append((begun[0], row.step, begun[1]))
            begun = None
    if begun is not None and begun[0] <= last:
        found.append((begun[0], last, begun[1]))
    return found


def passes(rows: Sequence[Row], stream: Stream) -> Passes | None:
    """The passes that serving, watching and trials took; None where the cost of something that ran is not known.

    The network as deployed runs in every window: it answers, or it watches. Rehearsals, replays of the last windows and
    one-off preparation are not in it.
    """
    cards = dict[str, float]({SOURCE: 0.0})
    for row in rows:
        if row.kind == "propose" and isinstance(said := row.content.get("passes"), Mapping):
            cards |= {str(name): float(cost) for name, cost in said.items() if name != SOURCE}
    of = np.ones(len(stream))
    busy = np.zeros(len(stream), dtype=bool)
    spans = trials(rows, int(stream.steps[-1]))
    for name in {*stream.served, *(name for _, _, names in spans for name in names)} - cards.keys():
        cost = _by_its_card(name)
        if cost is None:
            return None
        cards[name] = cost
    of += np.array([cards[name] for name in stream.served])
    for first, last, names in spans:
        here = (stream.steps >= first) & (stream.steps <= last)
        busy |= here
        # The network as deployed runs anyway.
        of[here] += sum(cards[name] for name in names)
    mean = [float(of[which].mean()) if which.any() else math.nan for which in (~busy, busy)]
    return Passes(float(of.mean()), *mean, windows=int(busy.sum()))


def _by_its_card(name: str) -> float | None:
    try:
        card = getattr(find(name.partition("(")[0]), "card", None)
    except UnknownName:  # of a library that this process does not have
        return None
    return None if card is None else float(card.passes)


@dataclass(frozen=True)
class Anchored:
    """What a candidate that was better now would lose on data from before: the anchor.

    Attributes:
        step: window of the decision.
        name: of the candidate.
        lost: accuracy lost against the network as deployed, a fraction.
        outcome: `"taken"`, `"refused"` or `"not taken"`.
        windows: for how many windows it then answered.
    """

    step: int
    name: str
    lost: float
    outcome: str
    windows: int


def anchored(rows: Sequence[Row], stream: Stream) -> list[Anchored]:
    """Every candidate whose loss on data from before was measured; those are the ones that were better otherwise."""
    switches = [row for row in rows if row.kind in ("commit", "rollback")]
    made = list[Anchored]()
    for row in rows:
        for verdict in row.content.get("verdicts", ()) if row.kind == "decision" else ():
            lost, name = verdict.get("lost"), str(verdict.get("name", ""))
            if not isinstance(lost, (int, float)) or name == SOURCE:
                continue
            taken = next((s for s in switches if s.step == row.step and s.content.get("to") == name), None)
            until = next((s.step for s in switches if s.step > row.step), int(stream.steps[-1]))
            windows = int(((stream.steps > row.step) & (stream.steps <= until)).sum()) if taken else 0
            outcome = "taken" if taken else "refused" if verdict.get("word") == "refused" else "not taken"
            made.append(Anchored(row.step, name, float(lost), outcome, windows))
    return made
