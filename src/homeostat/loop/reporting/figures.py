"""The report's charts with their captions and keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from homeostat.loop.reporting import summary, wording
from homeostat.loop.reporting.charts import Chart, Lane, Line, Shape, Span, windows_a_point
from homeostat.loop.reporting.summary import Phase, Stream
from homeostat.loop.store import Row

WIDE, NARROW = 1010, 340


@dataclass(frozen=True)
class Figure:
    """A chart with what is written around it; `key` names its lines: CSS class and words."""

    chart: Chart
    caption: str
    key: Sequence[tuple[str, str]] = ()

    @property
    def wide(self) -> Markup:
        """For a desk."""
        return self.chart.svg(WIDE)

    @property
    def narrow(self) -> Markup:
        """For a hand."""
        return self.chart.svg(NARROW)

    @property
    def thinned(self) -> int:
        """How many windows a point of a line stands for."""
        return windows_a_point(len(self.chart.steps), WIDE)


def marks_of(rows: Sequence[Row], stream: Stream) -> list[Lane]:
    """Alarms and trials that were repeated, with the kind of shift that was diagnosed; commits and rollbacks."""
    again = {id(row) for row in rows if row.content.get("again")}

    def lane(name: str, kind: str, shape: Shape) -> Lane:
        spans = list[Span]()
        for row in (row for row in rows if row.kind == kind and (name == "retry") == (id(row) in again)):
            at, shift = stream.position(row.step), wording.clip(row.content.get("shift") or "", 40)
            spans.append(Span(at, at, f"{name} at window {row.step:,}" + (f": {shift}" if shift else ""), shift))
        return Lane(name, kind, spans, shape)

    lanes = [lane("alarm", "alarm", "triangle"), lane("retry", "alarm", "square"), lane("commit", "commit", "circle"),
             lane("rollback", "rollback", "diamond")]  # fmt: skip
    return [made for made in lanes if made.spans or made.name != "retry"]


def accuracy_figure(
    stream: Stream, found: Sequence[Phase], marks: Sequence[Lane], letters: Sequence[tuple[str, str, int]]
) -> Figure:
    runs, lanes, known = summary.stretches(stream.served), list(marks), {name: letter for letter, name, _ in letters}
    for letter in [*known.values(), "other"]:
        mine = [s for s in runs if known.get(s.name, "other") == letter]
        spans = [Span(s.first, s.last, f"{wording.called(s.name)}: windows {stream.steps[s.first]:,} to "
                      f"{stream.steps[s.last]:,}") for s in mine]  # fmt: skip
        if spans:
            lanes.append(Lane(letter, "as-deployed" if mine[0].name == summary.SOURCE else "as-changed", spans))
    judged = bool(stream.judge)
    lines = [Line(stream.best, "best"), Line(stream.accuracy, "served"), Line(stream.frozen, "frozen")]
    label = "Alarms, commits and rollbacks over windows; accuracy is not known."
    if judged:
        means = [wording.percent(_mean(line.values)) for line in lines]
        label = (
            f"Share of right answers over windows: of what was served ({means[1]} on average), of the network as "
            f"deployed ({means[2]}) and of the best in hindsight ({means[0]})."
        )
    many = {"retry": "retries"}
    counted = ", ".join(wording.several(len(lane.spans), lane.name, many.get(lane.name, "")) for lane in marks)
    axis = "right answers" if stream.judge != "revealed" else "right answers, on the labels that came"
    chart = Chart(f"{label} Marked: {counted}.", axis if judged else "", stream.steps, lines if judged else [],
                  summary.shading(found), lanes, percent=True, height=230 if judged else 0)  # fmt: skip
    caption = "Alarms with their diagnosis, commits and rollbacks, and what was answering, by its letter."
    if judged:
        caption = f"Top: how often the answers were right, window by window. Below: {caption[0].lower()}{caption[1:]}"
    key = [("served", "as served"), ("frozen", "as deployed, left alone"), ("best", "best in hindsight")]
    key = key if judged else []
    return Figure(chart, caption, key)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan


def entropy_figure(stream: Stream, found: Sequence[Phase], marks: Sequence[Lane]) -> Figure | None:
    if not np.isfinite(stream.entropy).any():
        return None
    label = "Uncertainty of the network as deployed over windows, from 0 (sure) to 1 (no idea), with the same marks."
    chart = Chart(label, "uncertainty (0 sure, 1 no idea)", stream.steps, [Line(stream.entropy, "evidence")],
                  summary.shading(found), marks, height=190)  # fmt: skip
    caption = "One of the numbers the monitor looks at; it needs no labels for it. Beside an alarm is its diagnosis."
    return Figure(chart, caption, [("evidence", "uncertainty of the network as deployed")])


def latency_figure(stream: Stream, found: Sequence[Phase]) -> Figure | None:
    lines, key = [], []
    for values, style, name in ((stream.ms, "served", "until the answers were there"),
                                (1000 * stream.seconds, "frozen", "with watching, trials and journal")):  # fmt: skip
        if (values > 0).any():
            lines.append(Line(values, style, median=True))
            key.append((style, name))
    if not lines:
        return None
    label = "Milliseconds a window took, on a scale where each step up is ten times as long."
    chart = Chart(label, "milliseconds (each step is ten times the last)", stream.steps, lines,
                  summary.shading(found), log=True, height=190)  # fmt: skip
    return Figure(chart, "Time a window took. Windows in which candidates run beside what is served take longer.", key)
