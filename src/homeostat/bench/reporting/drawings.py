"""Pictures of a table: differences with their intervals, and ranks with what cannot be told apart.

Both are lists of entrants from top to bottom, so that long names and many entrants stay legible. Where there is little
room a name stands above its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from homeostat.bench.reporting import wording
from homeostat.bench.scoring import Row, Table
from homeostat.loop.reporting.charts import LETTER, stroke, ticks, written

WIDE, NARROW = 1010, 340
MOST = 40
"""Rows of a picture."""


@dataclass(frozen=True)
class Picture:
    """A picture for a desk and one for a hand."""

    wide: Markup
    narrow: Markup
    left: int = 0


@dataclass
class _Sheet:
    """Where rows and values lie."""

    width: int
    rows: int
    low: float
    high: float
    top: float = 34.0
    right: float = 16.0

    @property
    def beside(self) -> bool:
        return self.width > 600

    @property
    def start(self) -> float:
        return 270.0 if self.beside else 12.0

    @property
    def each(self) -> int:
        return 26 if self.beside else 42

    @property
    def floor(self) -> float:
        return self.top + self.rows * self.each + 4

    def x(self, value: float | int) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.width - self.right - self.start)

    def y(self, row: int) -> float:
        return self.top + row * self.each + (13 if self.beside else 28)

    def name(self, row: int, text: str) -> Markup:
        if self.beside:
            return written(self.start - 16, self.y(row) + 4, _cut(text, self.start - 24), "entrant", "end")
        return written(2, self.y(row) - 13, _cut(text, self.width - 8), "entrant", "start")

    def axis(self, said: Sequence[tuple[float, str]], title: str) -> list[Markup]:
        made = [written(self.start if self.beside else 2, 13, title, "axis-name", "start")]
        for value, text in said:
            x = self.x(value)
            made.append(stroke("grid", x, self.top - 4, x, self.floor))
            made.append(written(x, self.floor + 16, text, "tick", "middle"))
        return made


def differences(table: Table) -> Picture | None:
    """Difference of each entrant to the reference with its interval, and its worst phase; none without differences."""
    rows = [row for row in table.rows if row.difference is not None]
    if not rows:
        return None
    shown = _some(rows)
    sides = [_differences(table, shown, width) for width in (WIDE, NARROW)]
    return Picture(*sides, left=len(rows) - len(shown))


def _differences(table: Table, rows: Sequence[Row], width: int) -> Markup:
    low, high = _range(rows)
    sheet = _Sheet(width, len(rows), low, high)
    marks = [(t, wording.change(t, table.unit)) for t in ticks(sheet.low, sheet.high, 9 if sheet.beside else 5)]
    if table.unit == "fraction":
        marks = [(t, text.removesuffix(".0")) for t, text in marks]
    made = sheet.axis(marks, _measure(table))
    made.append(stroke("zero", sheet.x(0), sheet.top - 8, sheet.x(0), sheet.floor))
    for number, row in enumerate(rows):
        y, at = sheet.y(number), sheet.x(row.difference or 0.0)
        side = _side(row)
        made.append(sheet.name(number, row.entrant))
        if row.interval:
            ends = [min(max(end, low), high) for end in (row.interval.low, row.interval.high)]
            made.append(stroke(f"interval {side}", sheet.x(ends[0]), y, sheet.x(ends[1]), y))
        said = f"{row.entrant}: {wording.counted(row.difference, table.unit)}"
        said += f", 95% interval {wording.between(row.interval, table.unit)}" if row.interval else ""
        beyond = [value for value in (row.difference or 0.0, row.harm.mean if row.harm else 0.0) if value < low]
        if beyond:
            text = " and ".join(wording.change(value, table.unit) for value in beyond)
            arrow = Markup('<path class="beyond" d="M0 0L9 -5V5Z" transform="translate({:.1f} {:.1f})"/>')
            made += [arrow.format(sheet.x(low), y), written(sheet.x(low) + 14, y + 4, text, "tick", "start")]
        if row.harm and row.harm.mean >= low:
            worst = Markup('<path class="worst" d="M0 -5L5 0L0 5L-5 0Z" transform="translate({:.1f} {:.1f})">').format(
                sheet.x(row.harm.mean), y
            )
            made.append(worst + Markup("<title>{}</title></path>").format(
                f"{row.entrant}, worst phase: {wording.counted(row.harm.mean, table.unit)}"))  # fmt: skip
        if (row.difference or 0.0) < low:
            continue
        dot = Markup('<circle class="estimate {}" cx="{:.1f}" cy="{:.1f}" r="5">').format(side, at, y)
        made.append(dot + Markup("<title>{}</title></circle>").format(said))
    label = (
        f"Difference of {len(rows)} entrants to {table.reference}, with 95% intervals; the numbers are in the table."
    )
    return _whole(sheet, made, label)


def _range(rows: Sequence[Row]) -> tuple[float, float]:
    """Ends of the axis. Who loses very much would leave the others no room, and becomes an arrow at the edge."""
    means = [row.difference or 0.0 for row in rows]
    ends = [0.0, *means, *(end for row in rows if row.interval for end in (row.interval.low, row.interval.high))]
    ends += [row.harm.mean for row in rows if row.harm]
    low, high = min(ends), max(ends)
    usual = 4 * float(np.median(np.abs(means)))
    if 0 < 2 * usual < -low and 4 * sum(end < -usual for end in ends) < len(ends):
        low = min(end for end in ends if end >= -usual)
        return low - 0.25 * (high - low), high + 0.04 * (high - low)
    pad = 0.04 * (high - low) or 0.01
    return low - pad, high + pad


def _measure(table: Table) -> str:
    unit = wording.measure(table.unit)
    lower = "lower by, " if table.better == "lower" else ""
    return f"{table.probe}: difference to {_cut(table.reference, 200)}, {lower}{unit}".rstrip(", ")


def _side(row: Row) -> str:
    if row.kind == "oracle":
        return "bound"
    if row.interval is None or 0.0 in row.interval:
        return "unclear"
    return "better" if row.interval.low > 0 else "worse"


def ranks(table: Table) -> Picture | None:
    """Mean ranks with the critical difference; entrants that share a bar at the side cannot be told apart."""
    if table.ranking is None:
        return None
    order = list(table.ranking.ranks)
    sides = [_ranks(table, order[:MOST], width) for width in (WIDE, NARROW)]
    return Picture(*sides, left=max(0, len(order) - MOST))


def _ranks(table: Table, order: Sequence[str], width: int) -> Markup:
    assert table.ranking is not None
    known, critical = table.ranking.ranks, table.ranking.critical
    spans = [[order.index(name) for name in group if name in order] for group in table.ranking.alike]
    bars = _columns([(span[0], span[-1]) for span in spans if len(span) > 1])
    gutter = 12.0 * (1 + max((column for *_, column in bars), default=0))
    last = max(known[name] for name in order)
    sheet = _Sheet(width, len(order), 1.0 - 0.03 * (last - 1), max(last, 1.5) + 0.03 * (last - 1), 64.0, gutter + 18)
    marks = [(t, f"{t:g}") for t in ticks(1.0, sheet.high, 8 if sheet.beside else 5)]
    made = sheet.axis(marks, "mean rank, 1 is best")
    room = sheet.x(sheet.low + critical) if critical < sheet.high - sheet.low else None
    end = room or width - sheet.right
    made.append(stroke("critical", sheet.start, 34, end, 34))
    made += [stroke("critical", x, 29, x, 39) for x in ((sheet.start, end) if room else (sheet.start,))]
    more = "" if room else ", wider than this picture"
    made.append(written(sheet.start, 52, f"critical difference {critical:.2f}{more}", "tick", "start"))
    for number, name in enumerate(order):
        y, x = sheet.y(number), sheet.x(known[name])
        made += [sheet.name(number, name), stroke("lead", sheet.start, y, x, y)]
        dot = Markup('<circle class="rank" cx="{:.1f}" cy="{:.1f}" r="5"><title>{}</title></circle>')
        made.append(dot.format(x, y, f"{name}: mean rank {known[name]:.2f}"))
    for first, final, column in bars:
        x = width - gutter + 12.0 * column + 4
        made.append(stroke("alike", x, sheet.y(first) - 7, x, sheet.y(final) + 7))
    label = f"Mean ranks of {len(order)} entrants over {wording.blocks(table)}: " + ", ".join(
        f"{name} {known[name]:.2f}" for name in order[:10]
    )
    return _whole(sheet, made, f"{label}. Those that differ by less than {critical:.2f} cannot be told apart.")


def _columns(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """First row, last row and column of each bar, so that no two bars touch.

    >>> _columns([(0, 2), (1, 4), (3, 5)])
    [(0, 2, 0), (1, 4, 1), (3, 5, 0)]
    """
    ends, made = list[int](), list[tuple[int, int, int]]()
    for first, final in spans:
        column = next((i for i, end in enumerate(ends) if end < first), len(ends))
        ends[column : column + 1] = [final]
        made.append((first, final, column))
    return made


def _some(rows: Sequence[Row]) -> list[Row]:
    """All, or the best and the worst where there are too many."""
    half = MOST // 2
    return list(rows) if len(rows) <= MOST else [*rows[:half], *rows[-half:]]


def _cut(text: str, room: float | int) -> str:
    most = int(room / (1.13 * LETTER))
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _whole(sheet: _Sheet, parts: Sequence[Markup], label: str) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}" class="chart">')
    return head.format(sheet.width, sheet.floor + 24, label) + Markup("").join(parts) + Markup("</svg>")
