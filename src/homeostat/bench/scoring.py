"""One table: what a probe read of every entrant, held against a reference, with what may be said of it.

- The cases of a difference are phases of streams with their seeds, and whole seeds are drawn together: phases and
  streams of one seed share samples and, where a method carries state, the method's state. The interval therefore speaks
  of other seeds on these same streams, not of other streams.
- The cases of the ranking are streams, each the mean over its phases, seeds and protocols; the same stream under
  another setting, which is another network, is another case. Friedman's test takes its cases to be independent data
  sets. Seeds of a stream are draws from the same data, its phases share the state that is carried through it, and
  protocols are ways to go through it; counted as cases they would make the critical difference far too small. With few
  streams little can be told apart, and the notes say so. (Streams that are made from the same data are not quite
  independent either: take the critical difference as the least that is wanted.)
- Differences are counted so that more is better: for a probe of which lower is better, 0.1 means lower by 0.1.
- Harm is the lowest of the harm bounds of all phases. As the lowest of many it is on the safe side.
- Holm's correction is over the entrants of one table. What is chosen with labels that no user has (an oracle) is not
  among those corrected for, not tested and not ranked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from homeostat.bench.cases import Case, Comparable, Place, Scores, comparable
from homeostat.bench.comparisons import Compared, Ranking, against, difference, harm_bound, ranked
from homeostat.bench.results import Measured
from homeostat.core.reading import Better, Interval

Kind = Literal["entrant", "tuned", "unlabelled", "oracle"]


@dataclass(frozen=True)
class Harm:
    """Where an entrant may do most harm.

    Attributes:
        place: the phase whose bound is lowest.
        mean: difference there, mean over seeds.
        bound: with 95 % confidence the mean loss there is no larger; None with one seed, when the place is that of
            the lowest mean.
    """

    place: Place
    mean: float
    bound: float | None


@dataclass(frozen=True)
class Row:
    """One entrant in a table.

    Attributes:
        entrant: its name.
        kind: an entrant of the grid, or how one was chosen from a sweep.
        trials: how many settings of its hyper-parameters were run to get it.
        mean: over phases, streams and seeds; None where it was not compared.
        difference: to the reference, counted so that more is better; None for the reference itself.
        interval: of the difference, over seeds; None with one seed.
        p, p_holm: of Wilcoxon's test over seeds, and corrected; None where nothing was tested.
        wins, ties, losses: cases.
        worst, worst_at: smallest difference of a case, and which case.
        harm: of the worst phase.
        rank: mean rank over streams, 1 the best; None where it was not ranked.
        gains: difference by place of the table, mean over seeds.
        speed: samples answered in a second.
        prepare: seconds before the first sample, mean over cells.
        notes: what the numbers do not carry.
    """

    entrant: str
    kind: Kind = "entrant"
    trials: int = 1
    mean: float | None = None
    difference: float | None = None
    interval: Interval | None = None
    p: float | None = None
    p_holm: float | None = None
    wins: int = 0
    ties: int = 0
    losses: int = 0
    worst: float | None = None
    worst_at: Case | None = None
    harm: Harm | None = None
    rank: float | None = None
    gains: tuple[float, ...] = ()
    speed: float | None = None
    prepare: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """What one probe read of all entrants, for one setting and protocol or over all.

    Attributes:
        setting, protocol: of the cells; empty where it is over all of them.
        probe, better, unit: what was read.
        reference: whom the others are held against; empty where there is nobody.
        rows: the best first; those that could not be compared last.
        places: phases that count.
        cases, possible: how many count, and how many anybody has a value in.
        seeds, streams: how many count.
        ranked: cases of the ranking: streams, once for each setting.
        ranking: of those that are compared and that a user can have; None where nothing can be ranked.
        notes: what the table does not carry.
    """

    setting: str
    protocol: str
    probe: str
    better: Better
    unit: str
    reference: str
    rows: tuple[Row, ...]
    places: tuple[Place, ...]
    cases: int
    possible: int
    seeds: int
    streams: int
    ranked: int
    ranking: Ranking | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """What is known of an entrant beside its scores; see `Row`."""

    kind: Kind = "entrant"
    trials: int = 1
    speed: float | None = None
    prepare: float | None = None


@dataclass(frozen=True)
class _Grid:
    """Scores of those compared as an array `[entrants, cases]`, counted so that more is better."""

    found: Comparable
    values: np.ndarray
    what: Measured
    reference: str
    margin: float
    entries: Mapping[str, Entry]

    @property
    def sign(self) -> float:
        return -1.0 if self.what.better == "lower" else 1.0

    def of(self, name: str) -> np.ndarray:
        return self.values[self.found.names.index(name)]

    def kept(self, oracle: bool) -> list[str]:
        """Those compared that are chosen by labels that no user has, or all others."""
        return [name for name in self.found.names if (self.entries[name].kind == "oracle") == oracle]


def score_table(
    scores: Scores,
    what: Measured,
    probe: str,
    *,
    reference: str,
    margin: float,
    entries: Mapping[str, Entry],
    setting: str = "",
    protocol: str = "",
) -> Table:
    """Hold everybody against the reference, and rank them; see the module's docstring.

    Args:
        scores: of all entrants, by case.
        what: a reading of the probe, for its unit and direction.
        probe, setting, protocol: what the table is of.
        reference: name; where it cannot be compared there are no differences.
        margin: largest difference of a case that is a tie.
        entries: kind, trials and cost by name.
    """
    found = comparable(scores)
    values = np.array([[scores[name][case] for case in found.cases] for name in found.names])
    values = values.reshape(len(found.names), len(found.cases)) * (-1.0 if what.better == "lower" else 1.0)
    grid = _Grid(found, values, what, reference if reference in found.names else "", margin, entries)
    places, seeds = tuple(dict.fromkeys(case.place for case in found.cases)), {case.seed for case in found.cases}
    compared = _compared(grid) if len(seeds) > 1 else {}
    ranking, why = _ranking(grid)
    rows = [_row(grid, name, compared.get(name), places, ranking) for name in found.names]
    if what.better != "none":
        rows.sort(key=lambda row: -grid.sign * (row.mean or 0.0))
    rows += [
        Row(name, entry.kind, entry.trials, speed=entry.speed, prepare=entry.prepare)
        for name, entry in entries.items() if name in found.dropped
    ]  # fmt: skip
    notes = [*_notes(found, reference, grid.reference, len(seeds)), *why]
    notes += dict.fromkeys(f"{note[:1].upper()}{note[1:]}." for one in compared.values() for note in one.notes)
    return Table(
        setting, protocol, probe, what.better, what.unit, grid.reference, tuple(rows), places, len(found.cases),
        found.possible, len(seeds), len({place.stream for place in places}),
        len({(place.setting, place.stream) for place in places}), ranking, tuple(notes),
    )  # fmt: skip


def _compared(grid: _Grid) -> dict[str, Compared]:
    if not grid.reference:
        return {}
    seeds = [case.seed for case in grid.found.cases]
    family = {name: grid.of(name) for name in grid.kept(oracle=False)}
    made = against(family, grid.reference, seeds, margin=grid.margin) if len(family) > 1 else []
    theirs = grid.of(grid.reference)
    made += [difference(grid.of(n), theirs, seeds, margin=grid.margin, name=n) for n in grid.kept(oracle=True)]
    return {one.name: one for one in made}


def _ranking(grid: _Grid) -> tuple[Ranking | None, list[str]]:
    """The ranking over streams, or why there is none."""
    names, streams = grid.kept(oracle=False), [(case.setting, case.stream) for case in grid.found.cases]
    order = {stream: number for number, stream in enumerate(dict.fromkeys(streams))}
    if grid.what.better == "none" or len(names) < 3:
        return None, []
    if len(order) < 2:
        return None, ["No ranking: its cases are streams, and there is one."]
    belongs = np.array([order[stream] for stream in streams])
    sizes = np.bincount(belongs)
    made = ranked({name: np.bincount(belongs, grid.of(name)) / sizes for name in names})
    return made, [f"Ranking: {note.replace(' cases', ' streams', 1)}." for note in made.notes]


def _row(grid: _Grid, name: str, one: Compared | None, places: tuple[Place, ...], ranking: Ranking | None) -> Row:
    entry, mine = grid.entries[name], grid.of(name)
    row = Row(
        name, entry.kind, entry.trials, float(grid.sign * mine.mean()), speed=entry.speed, prepare=entry.prepare,
        rank=ranking.ranks.get(name) if ranking else None,
    )  # fmt: skip
    if name == grid.reference or not grid.reference:
        return row
    gaps = mine - grid.of(grid.reference)
    worst, wins, losses = int(gaps.argmin()), int((gaps > grid.margin).sum()), int((gaps < -grid.margin).sum())
    by_place: dict[Place, list[float]] = {place: [] for place in places}
    for case, gap in zip(grid.found.cases, gaps, strict=True):
        by_place[case.place].append(float(gap))
    return replace(
        row, difference=float(gaps.mean()), gains=tuple(float(np.mean(seeds)) for seeds in by_place.values()),
        wins=wins, ties=len(gaps) - wins - losses, losses=losses, worst=float(gaps[worst]),
        worst_at=grid.found.cases[worst], harm=None if grid.what.better == "none" else _harm(by_place),
        interval=one and one.interval, p=one and one.p, p_holm=one and one.p_holm, notes=one.notes if one else (),
    )  # fmt: skip


def _harm(by_place: Mapping[Place, list[float]]) -> Harm:
    bounds = {place: harm_bound(seeds) for place, seeds in by_place.items() if len(seeds) > 1}
    means = {place: float(np.mean(seeds)) for place, seeds in by_place.items()}
    if bounds and min(bounds.values()) < 0:
        place = min(bounds, key=lambda place: (bounds[place], means[place]))
    else:
        place = min(means, key=means.__getitem__)
    return Harm(place, means[place], bounds.get(place))


def _notes(found: Comparable, reference: str, there: str, seeds: int) -> list[str]:
    notes = []
    if found.short:
        most = sorted(found.short.items(), key=lambda item: -item[1])
        said = ", ".join(f"{name} lacks {count:,}" for name, count in most[:5])
        more = f" and {len(most) - 5:,} more lack some" if len(most) > 5 else ""
        notes.append(
            f"Compared on {len(found.cases):,} of {found.possible:,} cases, those in which everybody here has a value: "
            f"{said}{more}."
        )
    for name, count in list(found.dropped.items())[:5]:
        notes.append(f"{name} has a value in {count:,} of {found.possible:,} cases, and is not compared.")
    if len(found.dropped) > 5:
        notes.append(f"{len(found.dropped) - 5:,} more have a value in too few cases, and are not compared.")
    if reference and not there:
        notes.append(f"{reference}, the reference, cannot be compared here: there are no differences.")
    if found.cases and seeds < 2:
        notes.append("There is one seed: no interval, no test and no bound; a difference may be chance.")
    return notes
