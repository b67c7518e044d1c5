"""Results as scores by case, and the cases in which several entrants can be compared.

A case is a phase of a stream, under a setting, a protocol and a seed. Entrants are compared only in cases in which each
of them has a value: a mean over other cases than another's says nothing. What is left out for it is counted, and said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from homeostat.bench.results import Measured, Result


class Place(NamedTuple):
    """A phase of a stream."""

    setting: str
    protocol: str
    stream: str
    phase: int


class Case(NamedTuple):
    """A phase of a stream and a seed."""

    setting: str
    protocol: str
    stream: str
    phase: int
    seed: int

    @property
    def place(self) -> Place:
        return Place(*self[:4])


Scores = dict[str, dict[Case, float]]
"""Finite values by entrant and case."""


@dataclass(frozen=True)
class Comparable:
    """Who can be compared, and where.

    Attributes:
        names: entrants that are compared.
        cases: those in which all of them have a value, in order.
        possible: cases in which anybody has one.
        short: how many cases each compared entrant lacks, where it lacks some.
        dropped: how many cases each entrant has that has too few to be compared.
    """

    names: tuple[str, ...]
    cases: tuple[Case, ...]
    possible: int
    short: Mapping[str, int]
    dropped: Mapping[str, int]


def newest(results: Iterable[Result]) -> list[Result]:
    """The last result of each cell; those of one cell have different keys where code or data changed between them."""
    kept: dict[tuple[object, ...], Result] = {}
    for result in results:
        cell = (*run_of(result), result.entrant, result.sweep)
        kept.pop(cell, None)
        kept[cell] = result
    return list(kept.values())


def run_of(result: Result) -> tuple[str, str, str, int]:
    """Setting, protocol, stream and seed: what all entrants are run on alike."""
    return result.setting, result.protocol, result.stream, result.seed


def scores_of(results: Iterable[Result], probe: str) -> Scores:
    """Values of a probe; cells that failed and values that are not finite are absent, entrants never."""
    made: Scores = {}
    for result in results:
        mine = made.setdefault(result.entrant, {})
        found = result.readings.get(probe) if result.status == "ok" else None
        for phase, value in enumerate(found.values if found else ()):
            if math.isfinite(value):
                mine[Case(result.setting, result.protocol, result.stream, phase, result.seed)] = float(value)
    return made


def comparable(scores: Scores) -> Comparable:
    """Who can be compared where. An entrant with less than half of all cases would take too many from the others, and
    is left out itself; then those with the fewest, until there is a case that all have.

    >>> a, b = (Case("net", "online", "fog", 0, seed) for seed in (0, 1))
    >>> found = comparable({"Source": {a: 0.5, b: 0.6}, "Tent": {a: 0.7}, "LAME": {}})
    >>> found.names, len(found.cases), found.short, found.dropped
    (('Source', 'Tent'), 1, {'Tent': 1}, {'LAME': 0})
    """
    possible = {case for mine in scores.values() for case in mine}
    names = [name for name, mine in scores.items() if mine and 2 * len(mine) >= len(possible)]
    cases: set[Case] = set()
    while names:
        cases = set.intersection(*(set(scores[name]) for name in names))
        if cases:
            break
        names.remove(min(names, key=lambda name: len(scores[name])))
    short = {name: len(possible) - len(scores[name]) for name in names if len(scores[name]) < len(possible)}
    dropped = {name: len(mine) for name, mine in scores.items() if name not in names}
    return Comparable(tuple(names), tuple(_in_order(cases, scores)), len(possible), short, dropped)


def _in_order(cases: set[Case], scores: Scores) -> list[Case]:
    """In the order in which they are met, so that phases and streams stand as they were run."""
    met = dict.fromkeys(case for mine in scores.values() for case in mine if case in cases)
    streams = list(dict.fromkeys(case[:3] for case in met))
    where = {stream: position for position, stream in enumerate(streams)}
    return sorted(met, key=lambda case: (where[case[:3]], case.phase, case.seed))


def measured(results: Sequence[Result]) -> dict[str, Measured]:
    """The first that was measured of each probe, for its unit and direction; probes in the order of the first cell."""
    made: dict[str, Measured] = {}
    for result in results:
        for name, found in result.readings.items():
            made.setdefault(name, found)
    return made


def phase_texts(results: Iterable[Result]) -> dict[Place, str]:
    """What the world does in each phase, in words."""
    made: dict[Place, str] = {}
    for result in results:
        for phase, text in enumerate(result.phases):
            made.setdefault(Place(result.setting, result.protocol, result.stream, phase), text)
    return made
