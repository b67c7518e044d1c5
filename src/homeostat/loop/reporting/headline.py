"""The first thing a reader sees: what the run came to, in sentences and in a few large numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from homeostat.loop.reporting import summary, wording
from homeostat.loop.reporting.summary import Phase, Stream
from homeostat.loop.store import Row


def lead(stream: Stream, whole: Phase, found: Sequence[Phase], rows: Sequence[Row]) -> list[str]:
    """What the run came to, a paragraph a sentence or two; the first is the one to remember."""
    kinds, said, again = Counter(row.kind for row in rows), [], _repeated(rows)
    windows = wording.several(len(stream), "window")
    if whole.judged:
        who = "" if stream.judge == "all" else " (judged on the labels that came, a part of the inputs)"
        how = "as often" if round(whole.difference, 4) == 0 else "more often" if whole.difference > 0 else "less often"
        said.append(
            f"Over {windows}, the network that answered was right on {wording.percent(whole.accuracy)} of the inputs"
            f"{who}. The network as deployed, left alone, would have been right on {wording.percent(whole.frozen)}: "
            f"with the loop, answers were right {how} ({wording.points(whole.difference)} points)."
        )
        short = whole.best - whole.accuracy
        said.append(
            f"The best choice in hindsight, among the networks that ran, would have been right on "
            f"{wording.percent(whole.best)}"
            + (f", {wording.points(short).lstrip('+')} points more." if round(short, 4) > 0 else ": what was served.")
        )
        worst, hurt = summary.hardest(found), summary.harmed(found)
        if worst is not None and len(found) > 1:
            said.append(
                f"The hardest phase was “{wording.clip(worst.name, 80)}”: {wording.percent(worst.accuracy)} right, "
                f"against {wording.percent(worst.frozen)} for the network as deployed."
            )
            names = "; ".join(f"{wording.clip(p.name, 80)} ({wording.points(p.difference)} points)" for p in hurt[:3])
            sure = sum(p.interval is not None and p.interval.high < 0 for p in hurt)
            some = f"in {sure:,} of them" if len(hurt) > 1 else "there"
            clear = f"{some} by more than chance" if sure else "which may be chance"
            said.append(
                f"The loop did worse than the network as deployed in {wording.several(len(hurt), 'phase')}: {names}; "
                f"{clear} (the 95% interval of the difference {'is all below' if sure else 'contains'} 0)."
                if hurt
                else "In no phase did the loop do worse than the network as deployed."
            )
    else:
        said.append(f"The loop served {windows}. No labels judged the answers, so that their accuracy is not known.")
    verdicts = [v for row in rows if row.kind == "decision" for v in row.content.get("verdicts", ())]
    refused = sum(verdict.get("word") == "refused" for verdict in verdicts)
    repeats = f"{wording.several(again, 'trial was a repetition', 'trials were repetitions')}, " if again else ""
    said.append(
        f"In all: {wording.several(kinds['alarm'] - again, 'alarm')}, {wording.several(kinds['commit'], 'commit')} "
        f"(something else was put in service) and {wording.several(kinds['rollback'], 'rollback')} (the network as "
        f"deployed was put back). {wording.several(kinds['keep'], 'trial')} ended without a change, "
        f"{repeats}and "
        f"{wording.several(refused, 'candidate was', 'candidates were') if refused else 'no candidate was'} refused as "
        "not safe to serve."
    )
    if failed := sum(bool(row.content.get("failed")) for row in rows if row.kind == "window"):
        said.append(
            f"In {wording.several(failed, 'window')} what was served could not answer, and the network as deployed "
            "answered instead."
        )
    if hedged := sum(bool(row.content.get("hedged")) for row in rows if row.kind == "window"):
        said.append(
            f"In {wording.several(hedged, 'window')} a look before the answer gave reason to doubt what is served, and "
            "the network as deployed answered instead."
        )
    said.append(f"At the end, {wording.called(_last_served(stream, rows))} was in service.")
    return said


def _last_served(stream: Stream, rows: Sequence[Row]) -> str:
    switch = [row for row in rows if row.kind in ("commit", "rollback")]
    return str(switch[-1].content.get("to")) if switch else stream.served[-1]


def tiles(stream: Stream, whole: Phase, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Large numbers, each with what it is."""
    kinds = Counter(row.kind for row in rows)
    made = []
    if whole.judged:
        made += [(wording.percent(whole.accuracy), "right, as served"),
                 (wording.percent(whole.frozen), "right, as deployed"),
                 (wording.points(whole.difference), "points of difference"),
                 (wording.percent(whole.best), "right, best in hindsight")]  # fmt: skip
    made += [(f"{kinds['alarm'] - _repeated(rows):,}", "alarms"), (f"{kinds['commit']:,}", "commits"),
             (f"{kinds['rollback']:,}", "rollbacks")]  # fmt: skip
    for values, scale, name in ((stream.seconds, 1.0, "seconds a window, all in all"),
                                (stream.ms, 1e-3, "seconds a window, to answer")):  # fmt: skip
        known = values[np.isfinite(values)]
        if len(known):
            return [*made, (f"{float(known.mean()) * scale:.2g}", name)]
    return made


def _repeated(rows: Sequence[Row]) -> int:
    """How many trials were repeated without a new alarm."""
    return sum(bool(row.content.get("again")) for row in rows if row.kind == "alarm")
