"""The loop's memory: a journal in a database and checkpoints in a folder.

The journal is the truth. A checkpoint is written whole, synced and renamed under its content hash before the journal
row that names it is committed; so whatever moment a process is killed at, the last row that names a checkpoint names
one that is there. SQLite in WAL mode with full synchronisation is the default; any SQLAlchemy URL works.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError
from torch import nn

from homeostat.core.errors import CheckpointError, MissingExtra, StoreError
from homeostat.core.save import content_hash, load, read_note, save

_META = sa.MetaData()
_ROWS = sa.Table(
    "journal", _META,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("checkpoint", sa.String(64)),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("content", sa.Text, nullable=False),
    sa.Index("at", "step", "kind"),
)  # fmt: skip

SWITCHES = ("start", "commit", "rollback")
"""Kinds of row that say which checkpoint is served from then on."""


class Store:
    """Journal and checkpoints of one served model.

    Args:
        path: a folder, made when absent. Checkpoints lie below it, and the journal too unless `url` is given.
        url: a SQLAlchemy database URL for the journal, such as `postgresql+pg8000://...`.

    Raises:
        StoreError: the folder or database cannot be opened or written, or another process holds it.
        MissingExtra: the driver that `url` names is not installed.

    >>> import tempfile
    >>> store = Store(tempfile.mkdtemp())
    >>> store.write([Row(0, "start", {"why": "first"})])
    >>> [row.kind for row in store.rows()]
    ['start']
    """

    def __init__(self, path: str | Path, url: str | None = None):
        self.path = Path(path)
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the store {self.path} cannot be made: {error}") from None
        self._lock = _Lock(self.path / "lock")
        try:
            self.engine = sa.create_engine(url or f"sqlite:///{self.path / 'journal.sqlite'}")
            if self.engine.dialect.name == "sqlite":
                event.listen(self.engine, "connect", _durable)
            _META.create_all(self.engine)
        except SQLAlchemyError as error:
            self._lock.release()
            raise StoreError(f"the journal of {self.path} cannot be opened: {_first_line(error)}") from None
        except ImportError as error:
            self._lock.release()
            raise MissingExtra(f"the journal's driver is absent ({error}): pip install 'homeostat[postgres]'") from None

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows in one transaction; a row that is there already is left as it is.

        Rows are the same when step, kind and content are, the time it took (`"ms"`) aside. So a resumed run that
        repeats windows adds nothing, and one that meets other windows under the same numbers loses nothing.
        """
        if not rows:
            return
        steps = [row.step for row in rows]
        columns = (_ROWS.c.step, _ROWS.c.kind, _ROWS.c.content)
        there = sa.select(*columns).where(_ROWS.c.step.between(min(steps), max(steps)))
        try:
            with self.engine.begin() as connection:
                known, new = {(step, kind, _timeless(text)) for step, kind, text in connection.execute(there)}, []
                for row in rows:
                    content = json.dumps(row.content, allow_nan=False)
                    if (key := (row.step, row.kind, _timeless(content))) not in known:
                        known.add(key)
                        named = {"step": row.step, "kind": row.kind, "checkpoint": row.checkpoint, "content": content}
                        new.append({**named, "time": time.time()})
                if new:
                    connection.execute(_ROWS.insert(), new)
        except SQLAlchemyError as error:
            raise StoreError(f"the journal of {self.path} cannot be written: {_first_line(error)}") from None

    def rows(self, *kinds: str) -> Iterator[Row]:
        """Rows in order of step and writing, of these kinds or all."""
        yield from self._read(_of(kinds).order_by(_ROWS.c.step, _ROWS.c.number))

    def last(self, *kinds: str) -> Row | None:
        """The newest row of these kinds."""
        return next(self._read(_of(kinds).order_by(_ROWS.c.step.desc(), _ROWS.c.number.desc()).limit(1)), None)

    def _read(self, query: sa.Select[Any]) -> Iterator[Row]:
        try:
            with self.engine.connect() as connection:
                found = connection.execute(query).all()
        except SQLAlchemyError as error:
            raise StoreError(f"the journal of {self.path} cannot be read: {_first_line(error)}") from None
        for row in found:
            try:
                content = json.loads(row.content)
            except ValueError:
                content = None
            if not isinstance(content, dict):
                raise StoreError(f"row {row.number} of the journal of {self.path} is corrupt; restore it from a copy")
            yield Row(row.step, row.kind, content, row.checkpoint, row.time)

    def keep(self, model: nn.Module) -> str:
        """Write a checkpoint under its content hash, unless it is there, and return the hash."""
        name = content_hash(model)
        target = self.path / "checkpoints" / name
        if not target.exists():
            try:
                save(model, target, name=name)
            except OSError as error:
                raise StoreError(f"checkpoint {name[:12]} cannot be written: {error}") from None
        return name

    def load(self, name: str, base: nn.Module | None = None) -> nn.Module:
        """Read the checkpoint of this hash and verify it.

        Raises:
            CheckpointError: it is missing or was changed.
        """
        target = self.path / "checkpoints" / name
        if not target.exists():
            raise CheckpointError(f"checkpoint {name[:12]} is missing from {self.path}; the journal names it")
        found = load(target, base, verify=True)
        if (held := read_note(target)["hash"]) != name:
            raise CheckpointError(f"checkpoint {name[:12]} of {self.path} holds another one, with hash {held[:12]}")
        return found

    def collect(self, keep: Sequence[str]) -> int:
        """Remove checkpoints that neither a switch row nor the last snapshot nor `keep` names; returns how many."""
        named = {row.checkpoint for row in self.rows(*SWITCHES)} | set(keep)
        if (snapshot := self.last("snapshot")) is not None:
            named.add(snapshot.checkpoint)
        gone = [p for p in (self.path / "checkpoints").iterdir() if p.name not in named]
        for path in gone:
            # Renamed first: a kill while files vanish must not leave half a checkpoint under a hash that may come back.
            away = path if path.name.startswith(".") else path.rename(path.with_name(f".{path.name}"))
            shutil.rmtree(away, ignore_errors=True)
        return len(gone)

    def close(self) -> None:
        """Let go of the database and the lock."""
        self.engine.dispose()
        self._lock.release()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Row:
    """One row of the journal: a step (window), what happened, and why."""

    def __init__(
        self,
        step: int,
        kind: str,
        content: Mapping[str, Any] | None = None,
        checkpoint: str | None = None,
        time: float = 0.0,
    ):
        self.step, self.kind, self.content = step, kind, dict(content or {})
        self.checkpoint, self.time = checkpoint, time

    def __repr__(self) -> str:
        named = f", {self.checkpoint[:12]}" if self.checkpoint else ""
        return f"Row({self.step}, {self.kind!r}{named}, {self.content})"


class _Lock:
    """One process at a time: an advisory lock that the system drops when the process dies."""

    def __init__(self, path: Path):
        import fcntl

        try:
            self._file = open(path, "a+")  # noqa: SIM115
        except OSError as error:
            raise StoreError(f"the store cannot be written: {error}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            owner = self._file.read().strip() or "unknown"
            self._file.close()
            raise StoreError(f"another process (pid {owner}) serves from {path.parent}; stop it first") from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def _durable(connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _of(kinds: Sequence[str]) -> sa.Select[Any]:
    query = sa.select(_ROWS)
    return query.where(_ROWS.c.kind.in_(kinds)) if kinds else query


def _timeless(content: str) -> str:
    return re.sub(r'"ms": [0-9.e+-]+', "", content)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
