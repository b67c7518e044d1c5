"""What the cells of a grid gave, kept in one SQLite file to which rows are only ever added.

A cell is a network, a stream, an entrant, a protocol and a seed. Each time it is computed there is a new row in `cells`
and, where it did not fail, one in `readings` for each probe and phase; the last row of a key counts. A row is written
in one transaction when its cell is done, so that a kill loses at most the cells that were being computed.

Read it with pandas, or with anything that reads SQLite:

    frame = Results("runs/bench/tta-small/results.sqlite").to_pandas()
    pandas.read_sql("select * from latest join readings using (row)", "sqlite:///runs/bench/tta-small/results.sqlite")
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from homeostat.core.errors import StoreError
from homeostat.core.tables import need_pandas

if TYPE_CHECKING:
    import pandas

FORMAT = 1
_TABLES = """
create table if not exists cells (
    row integer primary key, key text not null, status text not null, suite text not null, setting text not null,
    stream text not null, protocol text not null, entrant text not null, sweep text not null, seed integer not null,
    phases text not null, windows text not null, prepare_seconds real not null, seconds real not null,
    samples integer not null, error text not null, about text not null, at text not null
);
create index if not exists by_key on cells (key);
create table if not exists readings (
    row integer not null references cells (row), probe text not null, better text not null, unit text not null,
    phase integer not null, value real
);
create index if not exists by_row on readings (row);
create view if not exists latest as select * from cells where row in (select max(row) from cells group by key);
"""
_COLUMNS = (
    "key", "status", "suite", "setting", "stream", "protocol", "entrant", "sweep", "seed", "phases", "windows",
    "prepare_seconds", "seconds", "samples", "error", "about", "at",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One probe's values in a cell.

    Attributes:
        values: one for each phase; NaN where there is none.
        better, unit: as of a `Reading`.
    """

    values: tuple[float, ...]
    better: Literal["higher", "lower", "none"] = "none"
    unit: str = ""

    @property
    def mean(self) -> float:
        """Mean over phases, each counting the same."""
        return sum(self.values) / len(self.values)


@dataclass(frozen=True)
class Result:
    """One cell, computed.

    Attributes:
        key: hash of everything that it depends on.
        suite, setting, stream, protocol, entrant: names; two cells that agree in these and the seed are one cell.
        seed: of the samples drawn and of all else that is random.
        sweep: name of the sweep that the entrant is a member of, or empty.
        phases: what the world does in each part of the stream, in words.
        readings: by the probe's name.
        windows: accuracy batch by batch, in order.
        prepare_seconds: to prepare and to apply the remedy, before the first sample.
        seconds: to answer all samples.
        samples: answered.
        status: `"ok"` or `"failed"`.
        error: of a failed cell, in a line, and below it where it came from.
        about: versions, hashes and what an entrant said of itself (the loop's decisions), for people.
        at: when it was done, UTC.
    """

    key: str
    suite: str
    setting: str
    stream: str
    protocol: str
    entrant: str
    seed: int
    sweep: str = ""
    phases: tuple[str, ...] = ()
    readings: Mapping[str, Measured] = field(default_factory=dict)
    windows: tuple[float, ...] = ()
    prepare_seconds: float = 0.0
    seconds: float = 0.0
    samples: int = 0
    status: Literal["ok", "failed"] = "ok"
    error: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    at: str = ""


class Results:
    """The results of one run of a suite; see the module's docstring.

    Args:
        path: the file; made when the first result is added.

    Raises:
        StoreError: it is no such file, or was written by another version.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.exists():
            with self._open() as link:
                version = link.execute("pragma user_version").fetchone()[0]
            if version != FORMAT:
                raise StoreError(f"{self.path} holds no results that this version reads (format {version})")

    def add(self, result: Result) -> None:
        """Write one cell; what was written before stays."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        row = vars(result) | {
            "phases": json.dumps(result.phases),
            "windows": json.dumps([round(value, 6) for value in result.windows]),
            "about": json.dumps(dict(result.about), sort_keys=True),
        }
        with self._open() as link, link:
            link.executescript(_TABLES)
            link.execute(f"pragma user_version = {FORMAT}")
            link.execute("begin immediate")
            marks = ", ".join("?" * len(_COLUMNS))
            made = link.execute(
                f"insert into cells ({', '.join(_COLUMNS)}) values ({marks})", [row[name] for name in _COLUMNS]
            )
            link.executemany(
                "insert into readings values (?, ?, ?, ?, ?, ?)",
                [
                    (made.lastrowid, name, found.better, found.unit, phase, value if math.isfinite(value) else None)
                    for name, found in result.readings.items()
                    for phase, value in enumerate(found.values)
                ],
            )

    def __iter__(self) -> Iterator[Result]:
        return iter(self.read())

    def read(self, keys: Sequence[str] | None = None) -> list[Result]:
        """The last result of every cell, in the order in which they were written.

        Args:
            keys: only these cells, in this order; those that are not there are left out.
        """
        if not self.path.exists():
            return []
        with self._open() as link:
            link.row_factory = sqlite3.Row
            cells = link.execute("select * from latest order by row").fetchall()
            values: dict[int, dict[str, list[Any]]] = {}
            for line in link.execute("select * from readings order by row, rowid"):
                values.setdefault(line["row"], {}).setdefault(line["probe"], []).append(line)
        made = [_result(cell, values.get(cell["row"], {})) for cell in cells]
        if keys is None:
            return made
        known = {result.key: result for result in made}
        return [known[key] for key in keys if key in known]

    def to_pandas(self) -> pandas.DataFrame:
        """A row for each probe and phase of each cell that did not fail.

        Raises:
            MissingExtra: pandas is not installed.
        """
        pd = need_pandas()
        rows = [
            {
                "setting": r.setting, "stream": r.stream, "protocol": r.protocol, "entrant": r.entrant,
                "sweep": r.sweep, "seed": r.seed, "phase": phase, "what": what, "probe": name, "value": value,
                "seconds": r.seconds, "samples": r.samples,
            }
            for r in self.read() if r.status == "ok"
            for name, found in r.readings.items()
            for phase, (what, value) in enumerate(zip(r.phases, found.values, strict=True))
        ]  # fmt: skip
        return pd.DataFrame(rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as link:
                yield link
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{self.path} cannot be used as a file of results: {error}") from None


def _result(cell: sqlite3.Row, values: Mapping[str, Sequence[Any]]) -> Result:
    row = {name: cell[name] for name in _COLUMNS}
    row["phases"], row["windows"] = tuple(json.loads(row["phases"])), tuple(json.loads(row["windows"]))
    row["about"] = json.loads(row["about"])
    readings = {
        name: Measured(
            tuple(math.nan if line["value"] is None else line["value"] for line in lines),
            lines[0]["better"], lines[0]["unit"],
        )
        for name, lines in values.items()
    }  # fmt: skip
    return Result(readings=readings, **row)
