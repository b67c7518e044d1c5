"""How a grid's tables and report write numbers, places and names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from homeostat.bench.cases import Case, Place
from homeostat.bench.scoring import Row, Table
from homeostat.core.reading import Interval
from homeostat.loop.reporting.wording import clip, points, several, typeset

NONE = "–"
PLACE, NAME = 70, 44
"""Letters of a stream or phase, and of an entrant in a sentence."""


def value(number: float | None, unit: str) -> str:
    """A mean.

    >>> value(0.7123, "fraction"), value(1.23456, "nats"), value(None, "nats")
    ('71.2%', '1.235', '–')
    """
    if number is None or not math.isfinite(number):
        return NONE
    return f"{100 * number:.1f}%" if unit == "fraction" else typeset(f"{number:,.4g}")


def change(number: float | None, unit: str) -> str:
    """A difference with its sign; of fractions in percentage points.

    >>> change(0.0713, "fraction"), change(-0.0123, "nats"), change(0.0, "nats")
    ('+7.1', '−0.0123', '0')
    """
    if number is None or not math.isfinite(number):
        return NONE
    return points(number) if unit == "fraction" else (typeset(f"{number:+.3g}") if number else "0")


def between(interval: Interval | None, unit: str) -> str:
    """An interval of a difference.

    >>> between(Interval(0.01, 0.02), "fraction")
    '+1.0 to +2.0'
    """
    return "" if interval is None else f"{change(interval.low, unit)} to {change(interval.high, unit)}"


def chance(p: float | None) -> str:
    """A p-value.

    >>> chance(0.00004), chance(0.0312), chance(None)
    ('<0.001', '0.031', '–')
    """
    if p is None:
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.2g}"


def measure(unit: str) -> str:
    """What differences of a unit are counted in.

    >>> measure("fraction"), measure("nats"), measure("")
    ('points', 'nats', '')
    """
    return "points" if unit == "fraction" else unit


def counted(number: float | None, unit: str) -> str:
    """A difference with what it is counted in.

    >>> counted(-0.021, "fraction")
    '−2.1 points'
    """
    return f"{change(number, unit)} {measure(unit)}".strip()


def scope(table: Table) -> str:
    """What a table is over."""
    return f"{table.setting}, {table.protocol}" if table.protocol else "Everything together"


def blocks(table: Table) -> str:
    """What a ranking counts."""
    return (
        several(table.ranked, "stream")
        if table.ranked == table.streams
        else (f"{table.ranked:,} streams (under another setting one counts again)")
    )


def where(place: Place | Case, table: Table, phases: Mapping[Place, str]) -> str:
    """A place in words, no longer than this table needs."""
    at = place.place if isinstance(place, Case) else place
    text = phases.get(at) or f"phase {at.phase + 1}"
    said = [text, at.stream] if text != at.stream else [text]
    if not table.protocol:
        others = [(at.setting, {p.setting for p in table.places}), (at.protocol, {p.protocol for p in table.places})]
        said += [name for name, met in others if len(met) > 1]
    if isinstance(place, Case):
        said.append(f"seed {place.seed}")
    return ", ".join(clip(part, PLACE) for part in said)


def named(name: str) -> str:
    """A name in a sentence, in quotes where it holds a comma.

    >>> named("EATA"), named("EATA, oracle")
    ('EATA', '“EATA, oracle”')
    """
    short = clip(name, NAME)
    return f"“{short}”" if "," in short else short


def names(rows: Sequence[Row], unit: str = "", most: int = 4) -> str:
    """Entrants in a sentence, with their differences.

    >>> names([Row("EATA", difference=0.1), Row("Tent", difference=0.05)], "fraction")
    'EATA (+10.0) and Tent (+5.0)'
    """
    return listed([f"{named(row.entrant)} ({change(row.difference, unit)})" for row in rows], most)


def listed(said: Sequence[str], most: int = 4) -> str:
    """Names in a sentence.

    >>> listed("abc"), listed("abcdef")
    ('a, b and c', 'a, b, c, d and 2 more')
    """
    shown = [*said[:most], *([f"{len(said) - most:,} more"] if len(said) > most else [])]
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)
