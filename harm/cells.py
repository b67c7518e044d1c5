"""Results of the grid, put together by network, stream and seed: a column for each rival, and what the loops did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from homeostat.bench import Result
from homeostat.core.errors import InputError


def as_cells(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Cells of the table.

    Raises:
        InputError: a cell failed; the first error is told.
    """
    made: dict[tuple[str, str, int], dict[str, Any]] = {}
    frozen = {_where(r): r.windows for r in results if r.entrant == "Source"}
    for r in results:
        if r.status == "failed":
            raise InputError(f"{r.entrant} on {r.setting}, {r.stream}, seed {r.seed} failed: {r.error.splitlines()[0]}")
        cell = made.setdefault(
            _where(r),
            {
                "network": r.setting, "stream": r.stream, "seed": r.seed, "columns": {}, "loops": {}, "seconds": 0.0
            },
        )  # fmt: skip
        name = _column(r)
        cell["columns"][name] = list(r.readings["accuracy"].values)
        cell["seconds"] += r.prepare_seconds + r.seconds
        if r.entrant == "Looped":
            windows = [(*pair, _served(r, i)) for i, pair in enumerate(zip(r.windows, frozen[_where(r)], strict=True))]
            cell["loops"][name] = {**r.about, "windows": windows}
    for cell in made.values():
        # The suites come one after the other, so that a loop stands before the refit.
        cell["columns"] = dict(sorted(cell["columns"].items(), key=lambda column: _place(column[0])))
    return list(made.values())


def _where(r: Result) -> tuple[str, str, int]:
    return r.setting, r.stream, r.seed


def _column(r: Result) -> str:
    if r.entrant == "Looped":
        return "loop, 16 labels" if "labels" in r.protocol else "loop, no labels"
    return {"Source": "frozen", "Refitted": "refit"}.get(r.entrant.partition("(")[0], r.entrant)


def _place(column: str) -> int:
    return 0 if column == "frozen" else 3 if column.startswith("loop") else 2 if column == "refit" else 1


def _served(r: Result, window: int) -> str:
    """What answered a window: the network as deployed, or what was switched to last before it."""
    past = [switch["to"] for switch in r.about["switches"] if switch["at"] < window]
    return past[-1] if past else "source"
