"""Readings and traces as tables: rows of plain values, pandas frames, and the small HTML that notebooks show.

pandas is an extra; nothing here imports it before a frame is asked for. The HTML takes the notebook's own colors, so
that it is as readable on dark as on light, and escapes every text.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from homeostat.core.errors import MissingExtra

if TYPE_CHECKING:
    import pandas

    from homeostat.core.reading import Reading
    from homeostat.core.trace import Trace

ROWS = 20
"""Rows of a trace that a notebook shows: the first and the last."""


def row_of(reading: Reading) -> dict[str, Any]:
    """A reading as one flat row; the interval's ends are NaN where there is none."""
    around, found = reading.interval, reading.finding
    return {
        "name": reading.name, "value": reading.value,
        "low": around.low if around else math.nan, "high": around.high if around else math.nan,
        "unit": reading.unit, "better": reading.better,
        "kind": found.kind if found else "", "detected": found.detected if found else None,
        "text": found.text if found else "",
    }  # fmt: skip


def frame_of_readings(readings: Iterable[Reading]) -> pandas.DataFrame:
    """A row a reading."""
    return need_pandas().DataFrame([row_of(reading) for reading in readings])


def frame_of_arrays(reading: Reading) -> pandas.DataFrame:
    """A column for each one-dimensional array of a reading, a row for each class, bin or feature."""
    pd = need_pandas()
    flat = {name: array.detach().cpu().numpy() for name, array in reading.arrays.items() if array.ndim == 1}
    return pd.DataFrame({name: pd.Series(values) for name, values in flat.items()})


def frame_of_trace(trace: Trace) -> pandas.DataFrame:
    """A row for each reading of each entry."""
    columns = ("step", "subject", "where", "name", "value", "low", "high", "unit", "note")
    made = [
        {"step": entry.step, "subject": entry.subject, "where": entry.where, **row_of(reading), "note": entry.note}
        for entry in trace
        for reading in entry.readings
    ]
    return need_pandas().DataFrame(made, columns=list(columns))


def html_of_readings(readings: Sequence[Reading]) -> str:
    """The readings as a table, with what they point at."""
    arrow = {"higher": "higher is better", "lower": "lower is better", "none": ""}
    rows = []
    for reading in readings:
        around = reading.interval
        interval = f"{number(around.low)} to {number(around.high)} ({around.level:.0%})" if around else ""
        said = [reading.finding.text or reading.finding.kind] if reading.finding else []
        said += [f"arrays: {', '.join(reading.arrays)}"] if reading.arrays else []
        row = (reading.name, number(reading.value), interval, reading.unit, arrow[reading.better], "; ".join(said))
        rows.append(row)
    return _table(("reading", "value", "interval", "unit", "", ""), rows)


def html_of_trace(trace: Trace) -> str:
    """The first and the last rows of a trace, and how many lie between."""
    rows = [
        (str(e.step), e.subject, e.where, r.name, number(r.value), r.unit, e.note) for e in trace for r in e.readings
    ]
    left = len(rows) - ROWS
    caption = f"{len(trace):,} entries, {len(rows):,} readings" + (f"; {left:,} left out in the middle" * (left > 0))
    shown = rows if left <= 0 else [*rows[: ROWS // 2], ("…",) + ("",) * 6, *rows[-ROWS // 2 :]]
    return _table(("step", "subject", "where", "reading", "value", "unit", "note"), shown, caption)


def number(value: float) -> str:
    """A number as a person reads it.

    >>> number(0.123456), number(12345.0), number(float("nan"))
    ('0.1235', '12,345', '–')
    """
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "−∞"
    return f"{float(f'{value:.4g}'):,.10g}" if 1e-4 <= abs(value) < 1e4 or value == 0 else _far(value)


def _far(value: float) -> str:
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.3g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    line = "border-bottom:1px solid rgba(128,128,128,.35);padding:3px 12px 3px 0;text-align:left;vertical-align:top"
    names = "".join(f'<th scope="col" style="{line};font-weight:600">{html.escape(head[i])}</th>' for i in used)
    cells = ["".join(f'<td style="{line}">{html.escape(_short(row[i]))}</td>' for i in used) for row in rows]
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    above = f'<caption style="text-align:left;opacity:.75">{html.escape(caption)}</caption>' if caption else ""
    style = "border-collapse:collapse;color:inherit;background:transparent;font-variant-numeric:tabular-nums"
    return f'<table style="{style}">{above}<thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>'


def _short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def need_pandas() -> ModuleType:
    """pandas, or an error that names the extra."""
    try:
        import pandas
    except ImportError:
        raise MissingExtra("tables as data frames need pandas: pip install 'homeostat[report]'") from None
    return pandas
