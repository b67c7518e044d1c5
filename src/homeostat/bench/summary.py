"""From the results of a grid to what may be said of them: tables, choices from sweeps, and what stands in the way.

    summary = summarize(Results("runs/bench/tta-small/results.sqlite").read(), tune=("tuning",))
    summary.tables[0].rows[0].difference

See `scoring` for what the cases of the statistics are, and `selection` for sweeps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from homeostat.bench import caveats, selection
from homeostat.bench.cases import Place, measured, newest, phase_texts, scores_of
from homeostat.bench.results import Measured, Result
from homeostat.bench.scoring import Entry, Kind, Table, score_table
from homeostat.bench.selection import Chosen, Sensitivity
from homeostat.core.errors import InputError, UnknownName, nearest


@dataclass(frozen=True)
class Summary:
    """What may be said of a grid's results.

    Attributes:
        suite, reference, probe: the suite's name, whom others are held against, and the probe that counts first.
        margin: largest difference of a case that is a tie.
        tables: over everything first, then for each setting and protocol; each for all probes, the first one first.
        chosen, sensitivity: what was chosen from sweeps, and what their hyper-parameters do.
        tune: streams that were for tuning, and are in no table.
        notes: what stands in the way, in sentences.
        cells, missing: results that count, and cells that others have and some lack.
        failed: cells that failed.
        seeds: of all cells.
        versions: by package, all that were met.
        phases: what the world does in each phase.
        results: what the tables are made of: entrants outside sweeps, and what was chosen from sweeps.
    """

    suite: str
    reference: str
    probe: str
    margin: float
    tables: tuple[Table, ...]
    chosen: tuple[Chosen, ...]
    sensitivity: tuple[Sensitivity, ...]
    tune: tuple[str, ...]
    notes: tuple[str, ...]
    cells: int
    missing: int
    failed: tuple[Result, ...]
    seeds: tuple[int, ...]
    versions: Mapping[str, tuple[str, ...]]
    phases: Mapping[Place, str]
    results: tuple[Result, ...]

    def of(self, probe: str) -> list[Table]:
        """The tables of one probe."""
        return [table for table in self.tables if table.probe == probe]

    @property
    def probes(self) -> list[str]:
        """Names of all probes, the one that counts first."""
        return list(dict.fromkeys(table.probe for table in self.tables))


def summarize(
    results: Iterable[Result],
    *,
    reference: str = "Source",
    probe: str | None = None,
    tune: Sequence[str] = (),
    unlabelled: str = "entropy",
    margin: float = 0.005,
) -> Summary:
    """What may be said of the results of a grid.

    Args:
        results: of one suite. Of several for one cell the last counts.
        reference: entrant that the others are held against; empty for none.
        probe: the reading that counts first; that of the first cell's first probe if none.
        tune: streams that are for tuning: sweeps are tuned on them, and no table holds them.
        unlabelled: probe that needs no labels, by which members of sweeps are chosen.
        margin: largest difference of a case that is a tie, in the unit of the probe.

    Raises:
        InputError: no results, results of several suites, or only of streams that are for tuning.
        UnknownName: no such entrant, probe or stream.

    >>> cells = [
    ...     Result(f"{name}{seed}", "small", "net", "fog", "online", name, seed, phases=("fog",),
    ...            readings={"accuracy": Measured((mean + 0.01 * seed,), "higher", "fraction")})
    ...     for name, mean in (("Source", 0.5), ("Tent", 0.7)) for seed in range(5)
    ... ]
    >>> best = summarize(cells).tables[0].rows[0]
    >>> best.entrant, round(best.difference, 3), (best.wins, best.ties, best.losses)
    ('Tent', 0.2, (5, 0, 0))
    """
    given = list(results)
    if not given:
        raise InputError("there are no results to summarize; run the grid first")
    if len(suites := sorted({r.suite for r in given})) > 1:
        raise InputError(f"results are of {len(suites)} suites, {', '.join(suites)}; summarize one at a time")
    every = newest(given)
    _known("reference", reference, [r.entrant for r in every if not r.sweep], "entrant")
    for stream in tune:
        _known("tune", stream, [r.stream for r in every], "stream")
    readings = measured([r for r in every if r.status == "ok"])
    if probe is not None and readings:
        _known("probe", probe, list(readings), "probe")
    if every and all(r.stream in tune for r in every):
        raise InputError("all streams are for tuning, and none is left to compare on; name fewer in tune")
    main = probe or next(iter(readings), "")
    readings = {name: readings[name] for name in (main, *readings) if name in readings}
    members: dict[str, list[Result]] = {}
    for r in every:
        if r.sweep:
            members.setdefault(r.sweep, []).append(r)
    chosen = [one for mine in members.values() for one in _choices(mine, tune, main, unlabelled, readings)]
    kept = [r for r in every if not r.sweep and r.stream not in tune]
    taken = {r.entrant for r in kept} & {one.name for one in chosen}
    if taken:
        raise InputError(f"entrant {min(taken)!r} is named as a choice from a sweep is; give it another name")
    kept += [r for one in chosen for r in one.results]
    tables = _tables(kept, readings, reference, margin, chosen)
    found = [
        one for mine in members.values()
        if (one := selection.sensitivity(mine, [c for c in chosen if c.sweep == mine[0].sweep], tune, main,
                                         readings[main])) is not None
    ] if readings else []  # fmt: skip
    if tables:
        means = {row.entrant: row.mean for row in tables[0].rows if row.mean is not None}
        plain = [row.entrant for row in tables[0].rows if row.kind == "entrant"]
        found = selection.with_ranks(found, means, plain, tables[0].better)
    lacking = caveats.missing(every, tune)
    return Summary(
        given[0].suite, reference, main, margin, tuple(tables), tuple(chosen), tuple(found), tuple(tune),
        tuple(caveats.sentences(given, every, lacking, chosen, tune, unlabelled, readings)), len(every),
        sum(lacking.values()), tuple(r for r in every if r.status == "failed"), tuple(sorted({r.seed for r in every})),
        caveats.versions(every), phase_texts(every), tuple(kept),
    )  # fmt: skip


def _known(argument: str, name: str, known: Sequence[str], what: str) -> None:
    if name and name not in known:
        every = list(dict.fromkeys(known))
        shown = ", ".join(map(repr, every[:8])) + (", ..." if len(every) > 8 else "")
        raise UnknownName(
            f"{argument}: no {what} of these results is {name!r}.{nearest(name, every)} There are {shown}"
        )


def _choices(
    members: Sequence[Result], tune: Collection[str], main: str, blind: str, readings: Mapping[str, Measured]
) -> list[Chosen]:
    if main not in readings:
        return []
    rest = [r for r in members if r.stream not in tune]
    made = [selection.tuned(members, tune, main, readings[main])] if tune else []
    if blind in readings and blind != main:
        made.append(selection.unlabelled(rest, blind, readings[blind]))
    return [one for one in (*made, selection.oracle(rest, main, readings[main])) if one.results] if rest else []


def _entries(results: Sequence[Result], chosen: Sequence[Chosen]) -> dict[str, Entry]:
    """Kind, trials and cost of everybody; samples a second over all samples, seconds to prepare over cells."""
    kinds: dict[str, tuple[Kind, int]] = {one.name: (one.how, one.trials) for one in chosen}  # type: ignore[misc]
    cells: dict[str, list[Result]] = {}
    for r in results:
        cells.setdefault(r.entrant, []).append(r)
    made = dict[str, Entry]()
    for name, mine in cells.items():
        kind, trials = kinds.get(name, ("entrant", 1))
        done = [r for r in mine if r.status == "ok"]
        seconds = sum(r.seconds for r in done)
        speed = sum(r.samples for r in done) / seconds if seconds > 0 else None
        prepare = float(np.mean([r.prepare_seconds for r in done])) if done else None
        made[name] = Entry(kind, trials, speed, prepare)
    return made


def _tables(
    results: Sequence[Result], readings: Mapping[str, Measured], reference: str, margin: float,
    chosen: Sequence[Chosen],
) -> list[Table]:  # fmt: skip
    parts: dict[tuple[str, str], list[Result]] = {}
    for r in results:
        parts.setdefault((r.setting, r.protocol), []).append(r)
    every = [("", "", results)] if len(parts) > 1 else []
    every += [(setting, protocol, mine) for (setting, protocol), mine in parts.items()]
    made = list[Table]()
    for setting, protocol, mine in every:
        entries = _entries(mine, chosen)
        for probe, what in readings.items():
            scores = scores_of(mine, probe)
            if any(scores.values()):
                made.append(score_table(scores, what, probe, reference=reference, margin=margin, entries=entries,
                                        setting=setting, protocol=protocol))  # fmt: skip
    return made
