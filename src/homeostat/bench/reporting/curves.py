"""Small multiples: accuracy batch by batch, a chart for each stream, averaged over seeds.

A few entrants have a colour and a dash of their own, the same in all charts: the reference, the best, and who does most
harm. All others are thin grey lines behind them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from homeostat.bench.cases import Place
from homeostat.bench.reporting import wording
from homeostat.bench.results import Result
from homeostat.bench.summary import Summary
from homeostat.loop.reporting.charts import Chart, Line, Span
from homeostat.loop.reporting.wording import clip

WIDTH, HEIGHT = 340, 130
COLOURS, GREY, CHARTS = 6, 10, 36
"""Most lines in colour, most in grey, and most charts."""


@dataclass(frozen=True)
class Curve:
    """The chart of a stream: the setting and protocol it belongs to, what it is of, and the picture."""

    setting: str
    protocol: str
    stream: str
    svg: Markup


@dataclass(frozen=True)
class Curves:
    """All charts, the CSS class and name of each line in colour, and what is left out."""

    charts: Sequence[Curve] = ()
    key: Sequence[tuple[str, str]] = ()
    grey: bool = False
    left: int = 0


def small_multiples(summary: Summary) -> Curves:
    """Charts of all streams that have batches to show."""
    streams: dict[tuple[str, str, str], dict[str, list[Result]]] = {}
    for r in summary.results:
        if r.status == "ok" and len(r.windows) > 1:
            streams.setdefault((r.setting, r.protocol, r.stream), {}).setdefault(r.entrant, []).append(r)
    bright = {name: f"e{number}" for number, name in enumerate(_bright(summary))}
    lowest = min((float(np.nanmin(_mean(c))) for mine in streams.values() for c in mine.values()), default=0.0)
    ends = (max(0.0, math.floor(10 * lowest) / 10) if lowest < 0.9 else 0.8, 1.0)
    made = list[Curve]()
    for (setting, protocol, stream), mine in list(streams.items())[:CHARTS]:
        means = {name: _mean(cells) for name, cells in mine.items()}
        grey = [name for name in means if name not in bright][:GREY]
        lines = [Line(means[name], "other") for name in grey]
        lines += [Line(means[name], style) for name, style in bright.items() if name in means]
        count = max(map(len, means.values()))
        lines = [Line(_padded(line.values, count), line.style) for line in lines]
        first = next(iter(mine.values()))[0]
        said = ", ".join(
            f"{clip(name, 40)} {wording.value(float(np.nanmean(means[name])), 'fraction')}"
            for name in bright
            if name in means
        )
        chart = Chart(
            f"Accuracy batch by batch on {stream} ({setting}, {protocol}), means over seeds. On average: {said}.",
            "right answers", np.arange(count), lines, _spans(first, count, summary.phases), percent=True,
            height=HEIGHT, across="batch", ends=ends,
        )  # fmt: skip
        made.append(Curve(setting, protocol, stream, chart.svg(WIDTH)))
    grey = any(name not in bright for mine in streams.values() for name in mine)
    return Curves(made, [(style, name) for name, style in bright.items()], grey, max(0, len(streams) - CHARTS))


def _bright(summary: Summary) -> list[str]:
    """Who has a colour: the reference, the best three, who does most harm, then those that follow."""
    if not summary.tables:
        return []
    rows = [row for row in summary.tables[0].rows if row.mean is not None]
    order = [row.entrant for row in rows if row.entrant == summary.tables[0].reference]
    order += [row.entrant for row in rows if row.kind != "oracle"][:3]
    harmed = [row for row in rows if row.harm is not None and row.harm.mean < 0]
    order += [row.entrant for row in sorted(harmed, key=lambda row: row.harm.mean if row.harm else 0.0)[:1]]
    order += [row.entrant for row in rows]
    return list(dict.fromkeys(order))[:COLOURS]


def _mean(cells: Sequence[Result]) -> np.ndarray:
    """Mean over seeds; where one ends early over those that go on."""
    count = max(len(cell.windows) for cell in cells)
    table = np.stack([_padded(np.array(cell.windows, float), count) for cell in cells])
    known = np.isfinite(table)
    return np.where(known.any(0), np.where(known, table, 0.0).sum(0) / np.maximum(1, known.sum(0)), np.nan)


def _padded(values: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([values, np.full(count - len(values), np.nan)])


def _spans(cell: Result, count: int, phases: Mapping[Place, str]) -> list[Span]:
    """Where each phase lies: as the cell says (`about["phase_windows"]`), or of equal length where that comes out even;
    else nothing is marked."""
    sizes = cell.about.get("phase_windows")
    if not (isinstance(sizes, (list, tuple)) and all(isinstance(size, int) for size in sizes)):
        sizes = [count // len(cell.phases)] * len(cell.phases) if cell.phases else []
    if len(sizes) != len(cell.phases) or sum(sizes) != count or len(sizes) < 2:
        return []
    ends = np.cumsum(sizes)
    texts = [phases[Place(cell.setting, cell.protocol, cell.stream, i)] for i in range(len(sizes))]
    return [
        Span(int(end - size), int(end) - 1, text, str(number + 1))
        for number, (size, end, text) in enumerate(zip(sizes, ends, texts, strict=True)) if size
    ]  # fmt: skip
