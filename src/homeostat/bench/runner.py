"""Runs a suite: computes the cells that are missing, keeps what is there.

done = bench("tta-small", on="processes", count=2)
done.path, done.computed, done.failed
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homeostat.bench.computing import packed
from homeostat.bench.grid import Cell, cells
from homeostat.bench.results import Result, Results
from homeostat.bench.suite import Suite, open_suite
from homeostat.bench.workers import Workers, check_workers, workers
from homeostat.core.run import Event, ignore

FILE = "results.sqlite"


@dataclass(frozen=True)
class Benched:
    """What a run of a suite left.

    Attributes:
        suite: as it was run.
        results: of all its cells that are done, in the order of the grid.
        path: the file that holds them.
        computed, kept, failed: cells computed now, found done, and failed (now or before).
        missing: cells that were not reached, because the run was interrupted.
    """

    suite: Suite
    results: tuple[Result, ...]
    path: Path
    computed: int
    kept: int
    failed: int
    missing: int = 0


def bench(
    suite: Suite | str | Path | Any,
    folder: str | Path | None = None,
    *,
    on: str = "here",
    count: int = 2,
    address: str = "",
    seeds: int | None = None,
    retry: bool = False,
    watch: Callable[[Event], None] = ignore,
) -> Benched:
    """Compute the cells of a suite that are missing, and give the results of all.

    Args:
        suite: a `Suite`, the name of one that ships, or a YAML file.
        folder: for results and caches; default `runs/bench/<name>`. What is there and still holds is kept.
        on: `"here"` (this process), `"processes"`, or `"ray"`; results are the same.
        count: cells at a time, where they are not computed here.
        address: of a Ray cluster; empty starts Ray on this machine. Its workers need the library and the data, and
            without a folder that they share each trains the networks for itself.
        seeds: how many, in place of the suite's.
        retry: compute cells that failed before once more.
        watch: called with events `"cell"`; `values` has the cell's `name`, whether it `failed`, and `fraction`, the
            part of the work that is done, by what cells took so far.

    Raises:
        MissingPart: there is no such suite, or its data are not there. SpecError: it cannot be read.
        InputError: there are no such workers.
        StoreError: the file of results cannot be used. KeyboardInterrupt: cells that are done are kept.
    """
    check_workers(on, count, address)
    made = open_suite(suite)
    home = Path("runs/bench") / made.name if folder is None else Path(folder)
    wanted = cells(made, seeds)
    results = Results(home / FILE)
    before = {result.key: result.status for result in results.read()}
    todo = [cell for cell in wanted if cell.key not in before or (retry and before[cell.key] == "failed")]
    todo = list({cell.key: cell for cell in todo}.values())
    if todo:
        at = workers(on, min(count, len(todo)), address)
        try:
            _all(todo, at, results, (home / "cache").absolute() if not address else None, watch)
        finally:
            at.close()
    # Names are of this suite, whatever the cell was called when it was computed.
    known = {result.key: result for result in results.read()}
    named = tuple(_called(known[cell.key], cell) for cell in wanted if cell.key in known)
    return Benched(
        made, named, results.path, len(todo), len({cell.key for cell in wanted}) - len(todo),
        sum(result.status == "failed" for result in named), len(wanted) - len(named),
    )  # fmt: skip


def _called(result: Result, cell: Cell) -> Result:
    names = {"suite": cell.suite, "setting": cell.setting.name, "stream": cell.stream.name}
    return Result(**{**vars(result), **names, "entrant": cell.name, "sweep": cell.sweep})


def _all(
    todo: Sequence[Cell], at: Workers, results: Results, cache: Path | None, watch: Callable[[Event], None]
) -> None:
    """Compute cells, the dearest first, and write each as it is done."""
    queue, by_key = sorted(todo, key=lambda cell: -cell.cost), {cell.key: cell for cell in todo}
    opening, opened, busy = set[Any](), set[Any](), 0
    total, work = len(todo), _Work(todo)
    while queue or busy:
        while busy < at.count and (cell := _free(queue, opening)) is not None:
            queue.remove(cell)
            opening |= _shared(cell) - opened
            at.submit(packed(cell, cache))
            busy += 1
        job, result = at.next()
        busy -= 1
        cell = by_key[job["key"]]
        opened |= _shared(cell)
        opening -= _shared(cell)
        results.add(result)
        work.done(cell, result)
        watch(
            Event(
                "cell", total - len(queue) - busy, total,
                {"name": _name(cell), "failed": result.status == "failed", "fraction": work.fraction()},
            )
        )  # fmt: skip


def _free(queue: Sequence[Cell], opening: set[Any]) -> Cell | None:
    """The dearest cell that needs nothing that another is just making: a network, or what a remedy prepares."""
    return next((cell for cell in queue if not _shared(cell) & opening), None)


def _shared(cell: Cell) -> set[Any]:
    """What a cell may find in the cache, because another made it."""
    network = (cell.setting.name, cell.network_seed)
    return {network, (cell.setting.name, cell.seed, cell.name)}


def _name(cell: Cell) -> str:
    return f"{cell.name} on {cell.setting.name}, {cell.stream.name}, {cell.protocol.called()}, seed {cell.seed}"


class _Work:
    """How much of the work is done: cells that are left are taken to last as long as those of the same entrant did."""

    def __init__(self, todo: Sequence[Cell]):
        self._left, self._spent, self._seconds = (defaultdict[str, float](float) for _ in range(3))
        for cell in todo:
            self._left[cell.name] += cell.cost

    def done(self, cell: Cell, result: Result) -> None:
        self._left[cell.name] -= cell.cost
        self._spent[cell.name] += cell.cost
        # Where a cell is short, what is around it counts: samples are drawn, probes read, a row is written.
        self._seconds[cell.name] += result.prepare_seconds + result.seconds + 0.05

    def fraction(self) -> float:
        overall = sum(self._seconds.values()) / max(sum(self._spent.values()), 1e-9)
        left = 0.0
        for name, cost in self._left.items():
            known = self._seconds[name] / self._spent[name] if self._spent[name] else overall
            left += max(cost, 0.0) * known
        return sum(self._seconds.values()) / max(sum(self._seconds.values()) + left, 1e-9)
