"""What the report gives as CSV: the tables, and all readings. Packed to keep the page small, which unpacks them."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from homeostat.bench.results import Result
from homeostat.bench.summary import Summary

MOST = 2_500_000
"""Letters that a packed file may take in the page."""
COLUMNS = (
    "setting", "protocol", "probe", "unit", "better", "entrant", "kind", "trials", "mean", "difference", "low", "high",
    "p", "p_holm", "wins", "ties", "losses", "worst", "harm_mean", "harm_bound", "harm_stream", "harm_phase", "rank",
    "samples_a_second", "prepare_seconds",
)  # fmt: skip


def tables_csv(summary: Summary) -> str:
    """All tables, a line for each entrant."""
    lines = list[Sequence[Any]]()
    for t in summary.tables:
        for r in t.rows:
            low, high = (r.interval.low, r.interval.high) if r.interval else (None, None)
            at = r.harm.place if r.harm else None
            lines.append((
                t.setting, t.protocol, t.probe, t.unit, t.better, r.entrant, r.kind, r.trials, r.mean, r.difference,
                low, high, r.p, r.p_holm, r.wins, r.ties, r.losses, r.worst, r.harm and r.harm.mean,
                r.harm and r.harm.bound, at and at.stream, at and summary.phases.get(at, at.phase + 1), r.rank, r.speed,
                r.prepare,
            ))  # fmt: skip
    return _csv(COLUMNS, lines)


def readings_csv(results: Sequence[Result], whole: bool = True) -> str:
    """Every cell: a line for each phase, or one for each cell where it is not to be whole."""
    probes = list(dict.fromkeys(name for r in results for name in r.readings))
    about = ("suite", "setting", "protocol", "stream", "entrant", "sweep", "seed", "status")
    cost = ("prepare_seconds", "seconds", "samples")

    def lines() -> Iterable[Sequence[Any]]:
        for r in results:
            said = [getattr(r, name) for name in about]
            costs = [getattr(r, name) for name in cost]
            if not whole:
                means = [_mean(r.readings[name].values) if name in r.readings else None for name in probes]
                yield [*said, *costs, *means]
                continue
            for phase in range(max([1, *(len(found.values) for found in r.readings.values())])):
                text = r.phases[phase] if phase < len(r.phases) else ""
                values = [
                    found.values[phase] if (found := r.readings.get(name)) and phase < len(found.values) else None
                    for name in probes
                ]
                yield [*said, phase, text, *costs, *values]

    return _csv((*about, *(("phase", "what") if whole else ()), *cost, *probes), lines())


def packed(text: str) -> str:
    """As gzip in base 64."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def files(summary: Summary, results: Sequence[Result]) -> tuple[dict[str, str], bool]:
    """Packed files by name, and whether readings are means over phases because all of them would be too much."""
    readings = packed(readings_csv(results))
    short = len(readings) > MOST
    if short:
        readings = packed(readings_csv(results, whole=False))
    return {"tables.csv": packed(tables_csv(summary)), "readings.csv": readings}, short


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else None


def _csv(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_cell(value) for value in line] for line in lines)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return f"{value:.6g}" if math.isfinite(value) else ""
