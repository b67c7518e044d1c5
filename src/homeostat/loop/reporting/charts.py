"""Charts as inline SVG, drawn by hand: lines over windows, shaded phases, lanes of marks and bars.

Nothing is loaded and nothing runs: a chart is text with CSS classes, so that the page around it decides on colours.
Every text is escaped. However long the stream, a chart stays small: lines are thinned to a few hundred points and marks
that would lie on each other become one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from markupsafe import Markup, escape

LETTER = 6.9
"""Width in pixels that a letter of 12 px may take; a little more than the mean, so that no label is cut off."""

Shape = Literal["bar", "triangle", "circle", "diamond", "square"]

SHAPES = {
    "triangle": "M0 -5.5L5.5 4.5H-5.5Z",
    "circle": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0Z",
    "diamond": "M0 -6L6 0L0 6L-6 0Z",
    "square": "M-4 -4H4V4H-4Z",
}


@dataclass(frozen=True)
class Line:
    """A line: one value a window, NaN where there is none (a gap), and the CSS class that says how it looks."""

    values: np.ndarray
    style: str
    median: bool = False


@dataclass(frozen=True)
class Span:
    """Windows `first` to `last`, both included, counted from 0.

    `short` is what is written where `text` does not fit; beside a mark, whose `text` is said when it is pointed at, it
    is written where there is room.
    """

    first: int
    last: int
    text: str
    short: str = ""


@dataclass(frozen=True)
class Lane:
    """A row below the plot: bars from the first to the last window of each span, or a shape at its first window."""

    name: str
    style: str
    spans: Sequence[Span]
    shape: Shape = "bar"


@dataclass(frozen=True)
class Chart:
    """Lines over windows.

    Attributes:
        label: what somebody who does not see the picture is told.
        axis: what the vertical axis shows, with its unit.
        steps: `[windows]` the windows' numbers, for the horizontal axis.
        lines: what is drawn; they share the axis.
        phases: shaded in turn, named at the top.
        lanes: rows below the plot.
        percent: values are shares, shown as percentages.
        log: the axis is logarithmic; values must be positive.
        height: of the plot itself.
        across: what a step is.
        ends: of the vertical axis, for charts that share it; what is drawn decides if none.
    """

    label: str
    axis: str
    steps: np.ndarray
    lines: Sequence[Line]
    phases: Sequence[Span] = ()
    lanes: Sequence[Lane] = ()
    percent: bool = False
    log: bool = False
    height: int = 220
    across: str = "window"
    ends: tuple[float, float] | None = None

    def svg(self, width: int) -> Markup:
        """The picture, `width` pixels wide (it scales with its place)."""
        return Markup("").join(_Drawing(self, width).parts())


def windows_a_point(count: int, width: int) -> int:
    """How many windows one point of a line stands for in a chart of this width."""
    return max(1, math.ceil(count / max(1, width // 2.5)))


def thin(values: np.ndarray, size: int, median: bool = False) -> np.ndarray:
    """Mean (or median) of every `size` values, NaN left out; NaN where all are.

    >>> thin(np.array([1.0, 3.0, np.nan, 5.0, 7.0]), 2).tolist()
    [2.0, 5.0, 7.0]
    """
    if size == 1:
        return values
    padded = np.full(-(-len(values) // size) * size, np.nan)
    padded[: len(values)] = values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return (np.nanmedian if median else np.nanmean)(padded.reshape(-1, size), axis=1)


def ticks(low: float | int, high: float | int, most: int) -> list[float]:
    """At most `most` round numbers from `low` to `high`.

    >>> ticks(0.0, 79.0, 6)
    [0.0, 20.0, 40.0, 60.0]
    """
    if not high > low:
        return [float(low)]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(
        s for s in (power, 2 * power, 5 * power, 10 * power, 20 * power)
        if math.floor(high / s + 1e-9) - math.ceil(low / s - 1e-9) < most
    )  # fmt: skip
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def fitted(span: Span, room: float) -> str:
    """The longest of a span's names that fits into `room` pixels: whole, cut (where enough is left), short, or none."""
    if len(span.text) * LETTER <= room:
        return span.text
    letters = int(room / LETTER) - 1
    if letters >= len(span.short) + 10:
        return span.text[:letters].rstrip() + "…"
    return span.short if len(span.short) * LETTER <= room else ""


class _Drawing:
    """A chart being drawn at one width."""

    def __init__(self, chart: Chart, width: int):
        self.chart, self.width, self.count = chart, width, max(1, len(chart.steps))
        self.left, self.right, self.top = 58.0, width - 10.0, 40.0
        self.bottom = self.top + chart.height
        self.lane_top = self.bottom + 10
        self.floor = self.lane_top + 20 * len(chart.lanes) if chart.lanes else self.bottom
        size = windows_a_point(self.count, int(self.right - self.left))
        self.size, self.thinned = size, [thin(line.values, size, line.median) for line in chart.lines]
        self.low, self.high = self._range()

    def x(self, position: float | int) -> float:
        return self.left + position / self.count * (self.right - self.left)

    def y(self, value: float | int) -> float:
        if self.chart.log:
            value = math.log10(value)
        return self.bottom - (value - self.low) / (self.high - self.low) * self.chart.height

    def _range(self) -> tuple[float, float]:
        if self.chart.ends is not None:
            return self.chart.ends
        known = np.concatenate([*self.thinned, []])
        known = known[np.isfinite(known) & ((known > 0) | (not self.chart.log))]
        if not len(known):
            return 0.0, 1.0
        low, high = float(known.min()), float(known.max())
        if self.chart.log:
            low, high = math.floor(math.log10(low)), math.ceil(math.log10(high))
            return float(low), float(max(high, low + 1))
        if self.chart.percent:
            # Whole tens, and never less than twenty points, so that noise does not look like a landslide.
            low, high = math.floor(low * 10 - 0.2) / 10, math.ceil(high * 10 + 0.2) / 10
            middle = (low + high) / 2
            low, high = max(0.0, min(low, middle - 0.1)), min(1.0, max(high, middle + 0.1))
            return round(low, 3), round(high, 3)
        pad = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        return (0.0 if 0 <= low < 0.5 * high else low - pad), high + pad

    def parts(self) -> list[Markup]:
        tall = self.floor + 40
        head = Markup('<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}" class="chart">').format(
            self.width, tall, self.chart.label
        )
        return [head, *self._phases(), *self._axes(), *self._guides(), *self._lines(),
                *self._lanes(), Markup("</svg>")]  # fmt: skip

    def _phases(self) -> list[Markup]:
        spans, made = self.chart.phases, list[Markup]()
        if len(spans) > (self.right - self.left) / 4:
            return made
        for number, span in enumerate(spans):
            x, end = self.x(span.first), self.x(span.last + 1)
            made.append(
                Markup('<rect class="phase{}" x="{:.1f}" y="{:.0f}" width="{:.1f}" height="{:.0f}"/>').format(
                    number % 2, x, self.top - 22, end - x, self.floor - self.top + 22
                )
            )
            if name := fitted(span, end - x - 8):
                made.append(written(x + 5, self.top - 7, name, "phase-name", "start"))
        return made

    def _axes(self) -> list[Markup]:
        made = [written(4, 12, self.chart.axis, "axis-name", "start")]
        most = 5 if self.chart.height < 200 else 7
        for tick in ticks(self.low, self.high, most) if self.chart.height else ():
            value = 10.0**tick if self.chart.log else tick
            if self.chart.log and tick != int(tick):
                continue
            name = f"{100 * value:.0f}%" if self.chart.percent else f"{value:,.10g}"
            made.append(stroke("grid", self.left, self.y(value), self.right, self.y(value)))
            made.append(written(self.left - 7, self.y(value) + 4, name, "tick", "end"))
        made.append(stroke("axis", self.left, self.floor, self.right, self.floor))
        for tick in ticks(0, self.count - 1, max(2, int((self.right - self.left) / 60))):
            if tick != int(tick):
                continue
            x = self.x(tick + 0.5)
            made.append(stroke("axis", x, self.floor, x, self.floor + 5))
            made.append(written(x, self.floor + 18, f"{int(self.chart.steps[int(tick)]):,}", "tick", "middle"))
        made.append(written((self.left + self.right) / 2, self.floor + 35, self.chart.across, "axis-name", "middle"))
        return made

    def _guides(self) -> list[Markup]:
        marks = [(lane.style, span) for lane in self.chart.lanes if lane.shape != "bar" for span in lane.spans]
        if len(marks) > (self.right - self.left) / 12:
            return []
        xs = [(style, self.x(span.first + 0.5)) for style, span in marks]
        return [stroke(f"guide {style}", x, self.top, x, self.floor) for style, x in xs]

    def _lines(self) -> list[Markup]:
        made = []
        for line, values in zip(self.chart.lines, self.thinned, strict=True):
            there = np.isfinite(values) & ((values > 0) | (not self.chart.log))
            breaks = np.flatnonzero(np.diff(there.astype(int))) + 1
            for piece in np.split(np.arange(len(values)), breaks):
                if not len(piece) or not there[piece[0]]:
                    continue
                spots = [(self.x(min((i + 0.5) * self.size, self.count)), self.y(float(values[i]))) for i in piece]
                path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
                if len(spots) == 1:
                    dot = Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="4"/>')
                    made.append(dot.format(line.style, *spots[0]))
                else:
                    made.append(Markup('<polyline class="line {}" points="{}"/>').format(line.style, path))
        return made

    def _lanes(self) -> list[Markup]:
        made = []
        for number, lane in enumerate(self.chart.lanes):
            y = self.lane_top + 20 * number + 8
            made.append(written(self.left - 7, y + 4, lane.name, "lane-name", "end"))
            groups = self._merged(lane)
            starts = [self.x(group[0].first + 0.5) for group in groups]
            for group, edge in zip(groups, [*starts[1:], self.right], strict=False):
                first, last = group[0], group[-1]
                said = first.text if len(group) == 1 else f"{len(group)} times, from {first.text} to {last.text}"
                if lane.shape == "bar":
                    x, end = self.x(first.first), self.x(last.last + 1)
                    body = Markup('<rect class="bar {}" x="{:.1f}" y="{:.0f}" width="{:.1f}" height="12">').format(
                        lane.style, x, y - 6, max(end - x, 1.0)
                    )
                    made.append(body + Markup("<title>{}</title></rect>").format(said))
                else:
                    body = Markup('<path class="mark {}" d="{}" transform="translate({:.1f} {:.0f})">').format(
                        lane.style, SHAPES[lane.shape], self.x(first.first + 0.5), y
                    )
                    made.append(body + Markup("<title>{}</title></path>").format(said))
                    start = self.x(first.first + 0.5) + 9
                    short = first.short if len({span.short for span in group}) == 1 else ""
                    if short and len(short) * LETTER <= edge - start - 4:
                        made.append(written(start, y + 4, short, "mark-name", "start"))
        return made

    def _merged(self, lane: Lane) -> list[list[Span]]:
        near = 0.7 if lane.shape == "bar" else 9.0
        groups: list[list[Span]] = []
        for span in lane.spans:
            before = groups[-1] if groups else None
            edge = None if before is None else before[-1].last + 1 if lane.shape == "bar" else before[0].first
            if before is not None and edge is not None and self.x(span.first) - self.x(edge) < near:
                before.append(span)
            else:
                groups.append([span])
        return groups


def written(x: float | int, y: float | int, text: str, style: str, anchor: str) -> Markup:
    """Text at a place; `anchor` says which end of it lies there."""
    made = Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">').format(style, x, y, anchor)
    return made + escape(text) + Markup("</text>")


def stroke(style: str, x1: float | int, y1: float | int, x2: float | int, y2: float | int) -> Markup:
    """A straight line."""
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(style, x1, y1, x2, y2)
