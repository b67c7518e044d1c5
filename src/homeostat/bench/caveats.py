"""What speaks against believing a grid: cells that failed or are missing, versions that differ, unequal search."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from homeostat.bench.cases import run_of
from homeostat.bench.results import Measured, Result
from homeostat.bench.selection import Chosen

SHOWN = 5
"""Names in a sentence."""


def sentences(
    given: Sequence[Result],
    every: Sequence[Result],
    lacking: Mapping[str, int],
    chosen: Sequence[Chosen],
    tune: Collection[str],
    blind: str,
    readings: Mapping[str, Measured],
) -> list[str]:
    """In sentences, the gravest first.

    Args:
        given, every: all results, and the last of each cell.
        lacking: cells that each entrant lacks.
        chosen: what was chosen from sweeps.
        tune: streams that are for tuning.
        blind: probe by which members are chosen without labels.
        readings: one of each probe.
    """
    notes = list[str]()
    if failed := Counter(r.entrant for r in every if r.status == "failed"):
        notes.append(f"{failed.total():,} of {_cells(len(every))} failed: {_counted(failed)}.")
    if lacking:
        notes.append(f"{_cells(sum(lacking.values()))} that others have {_is(lacking)} missing: {_counted(lacking)}.")
    for name in readings:
        empty = Counter(
            r.entrant for r in every
            if r.status == "ok" and not (name in r.readings and all(map(math.isfinite, r.readings[name].values)))
        )  # fmt: skip
        if empty:
            notes.append(
                f"{name} has no value in some phase of {_cells(empty.total())} that did not fail ({_counted(empty)}); "
                "such phases are left out for all that are compared."
            )
    for package, found in versions(every).items():
        if len(found) > 1:
            notes.append(f"Cells were computed with different versions of {package}: {', '.join(found[:SHOWN])}.")
    if old := len(given) - len(every):
        notes.append(
            f"{old:,} older results of cells that were computed again, after code or data had changed, do not count."
        )
    if tune:
        notes.append(f"What is for tuning is in no table: {_listed(tune)}.")
    return notes + _of_sweeps(chosen, {r.sweep for r in every if r.sweep}, tune, blind, readings)


def _of_sweeps(
    chosen: Sequence[Chosen],
    sweeps: Collection[str],
    tune: Collection[str],
    blind: str,
    readings: Mapping[str, Measured],
) -> list[str]:
    if not sweeps:
        return []
    notes, trials = list[str](), {one.sweep: one.trials for one in chosen}
    if not tune:
        notes.append(
            "No streams are for tuning, so that nothing says how well the hyper-parameters of sweeps carry over."
        )
    if readings and blind not in readings:
        notes.append(f"No cell read {blind!r}, so that no member of a sweep is chosen without labels.")
    if len(set(trials.values())) > 1:
        notes.append(
            f"Sweeps differ in their number of trials ({_counted(trials)}): the best of more trials looks better by "
            "chance alone."
        )
    elif trials and max(trials.values()) > 1:
        notes.append(
            f"What was chosen from a sweep had {max(trials.values()):,} trials, an entrant of its own has had one."
        )
    return notes


def missing(every: Iterable[Result], tune: Collection[str]) -> dict[str, int]:
    """How many runs each entrant lacks that others have. Those that are for tuning are only missed in sweeps."""
    runs, have = dict[tuple[str, str, str, int], bool](), dict[tuple[str, str], set[tuple[str, str, str, int]]]()
    for r in every:
        runs[run_of(r)] = r.stream in tune
        have.setdefault((r.entrant, r.sweep), set()).add(run_of(r))
    made = dict[str, int]()
    for (entrant, sweep), mine in have.items():
        wanted = {run for run, tuning in runs.items() if sweep or not tuning}
        if lacks := len(wanted - mine):
            made[entrant] = made.get(entrant, 0) + lacks
    return made


def versions(every: Iterable[Result]) -> dict[str, tuple[str, ...]]:
    """By package, all that the cells say they were computed with (`about["versions"]`), in the order they are met."""
    made: dict[str, dict[str, None]] = {}
    for r in every:
        said = r.about.get("versions", {})
        for package, number in said.items() if isinstance(said, Mapping) else ():
            made.setdefault(str(package), {})[str(number)] = None
    return {package: tuple(found) for package, found in made.items()}


def _cells(count: int) -> str:
    return f"{count:,} cell{'s' * (count != 1)}"


def _is(counts: Mapping[str, int]) -> str:
    return "is" if sum(counts.values()) == 1 else "are"


def _counted(counts: Mapping[str, int]) -> str:
    """
    >>> _counted({"a": 1, "b": 3})
    'b 3, a 1'
    """
    most = sorted(counts.items(), key=lambda item: -item[1])
    more = [f"{len(most) - SHOWN:,} others {sum(n for _, n in most[SHOWN:]):,}"] if len(most) > SHOWN else []
    return ", ".join([f"{name} {count:,}" for name, count in most[:SHOWN]] + more)


def _listed(names: Collection[str]) -> str:
    every = list(names)
    return ", ".join(every[:SHOWN]) + (f" and {len(every) - SHOWN:,} more" if len(every) > SHOWN else "")
