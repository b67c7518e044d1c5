"""The journal: rows in a database, which several stores may share.

Each row carries a checksum, so that a changed one is found when it is read. Rows are read in pages. With PostgreSQL an
advisory lock is held by the one connection that reads and writes: who cannot write any more has lost the lock too.
"""

from __future__ import annotations

import heapq
import json
import os
import re
import socket
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from homeostat.core.errors import MissingExtra, StoreError

PAGE = 1000
"""Rows that are read at once."""

_META = sa.MetaData()
_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_STORES = sa.Table(
    "journal_store", _META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(32), nullable=False, unique=True),
    sa.Column("opened", sa.Integer, nullable=False),
)  # fmt: skip
_ROWS = sa.Table(
    "journal", _META,
    sa.Column("number", _NUMBER, primary_key=True),
    sa.Column("store", sa.Integer, sa.ForeignKey(_STORES.c.id), nullable=False),
    sa.Column("step", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("checkpoint", sa.String(64)),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("content", sa.Text, nullable=False),
    sa.Column("checksum", sa.BigInteger, nullable=False),
    sa.Index("journal_by_step", "store", "step"),
    sa.Index("journal_by_kind", "store", "kind", "step"),
)  # fmt: skip
_MAKING = 0x686F6D656F737461
"""Held in PostgreSQL while tables are made: two that begin at once would make them twice."""

SWITCHES = ("start", "commit", "rollback")
"""Kinds of row that say which checkpoint is served from then on."""


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


class Journal:
    """Rows of one store in a database.

    Args:
        url: a SQLAlchemy database URL.
        store: the store's name, 32 hexadecimal digits.
        path: the store's folder, for messages.
        begun: the folder has a name, so the database must know it.
        own: no other store uses this database; one whose folder has no name takes the name that is found there.

    Raises:
        StoreError: the database cannot be opened, does not know the store, or another process serves it.
        MissingExtra: the driver that `url` names is not installed.
    """

    _closed = False

    def __init__(self, url: str | sa.URL, store: str, path: object, *, begun: bool, own: bool):
        self.store, self.path = store, path
        try:
            # One connection: with PostgreSQL it holds the lock, so that what is written is written under the lock.
            self.engine = sa.create_engine(url, poolclass=sa.QueuePool, pool_size=1, max_overflow=0)
        except SQLAlchemyError as error:
            raise StoreError(f"the journal of {path} cannot be opened: {_first_line(error)}") from None
        except ImportError as error:
            raise MissingExtra(f"the journal's driver is absent ({error}): pip install 'homeostat[postgres]'") from None
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _durable)
        if self.engine.dialect.name == "postgresql":
            event.listen(self.engine, "connect", self._hold)
        close = self.engine.dialect.do_close
        self.engine.dialect.do_close = lambda dbapi_connection: _quietly(close, dbapi_connection)
        try:
            with self._talk("opened") as connection:
                if self.engine.dialect.name == "postgresql":
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MAKING)))
                _META.create_all(connection)
                self._number = self._settle(connection, begun, own)
        except BaseException:
            self.close()
            raise

    def _settle(self, connection: sa.Connection, begun: bool, own: bool) -> int:
        connection.execute(sa.select(_ROWS).limit(1))  # a table of another make fails here and not in the first window
        known = {name: number for number, name in connection.execute(sa.select(_STORES.c.id, _STORES.c.name).limit(2))}
        if own and not begun and len(known) == 1:
            self.store = next(iter(known))  # the file with the name was lost, or not written before a kill
        found = connection.execute(sa.select(_STORES.c.id).where(_STORES.c.name == self.store)).scalar()
        if found is not None:
            # Rows of a process that was killed may be seen and not be on the disk; this write takes them there, before
            # anything is said to be written because it is there already.
            connection.execute(_STORES.update().where(_STORES.c.id == found).values(opened=_STORES.c.opened + 1))
            return found
        if begun:
            raise StoreError(
                f"the journal of {self.path} is not in this database, which does not know store {self.store}; "
                "give the database it was begun with, or restore that"
            )
        made = connection.execute(_STORES.insert().values(name=self.store, opened=1)).inserted_primary_key
        assert made is not None
        return int(made[0])

    def close(self) -> None:
        """Let go of the database."""
        self._closed = True
        self.engine.dispose()

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows in one transaction; see `Store.write`."""
        if not rows:
            return
        steps = [row.step for row in rows]
        there = sa.select(_ROWS.c.step, _ROWS.c.kind, _ROWS.c.checkpoint, _ROWS.c.content).where(
            _ROWS.c.store == self._number, _ROWS.c.step.between(min(steps), max(steps))
        )
        with self._talk("written") as connection:
            known, new = {(*names, _timeless(text)) for *names, text in connection.execute(there)}, []
            for row in rows:
                content = json.dumps(row.content, allow_nan=False)
                if (key := (row.step, row.kind, row.checkpoint, _timeless(content))) not in known:
                    known.add(key)
                    named = {"step": row.step, "kind": row.kind, "checkpoint": row.checkpoint, "content": content}
                    new.append({**named, "store": self._number, "time": time.time(), "checksum": _checksum(**named)})
            if new:
                connection.execute(_ROWS.insert(), new)

    def rows(self, *kinds: str) -> Iterator[Row]:
        """Rows in order of step and writing, of these kinds or all; read in pages."""
        streams = [self._stream(kind) for kind in dict.fromkeys(kinds)] if kinds else [self._stream(None)]
        for _, row in heapq.merge(*streams, key=lambda found: found[0]):
            yield row

    def newest(self, count: int, *kinds: str) -> list[Row]:
        """The last rows of these kinds or of all, newest first."""
        order = (_ROWS.c.step.desc(), _ROWS.c.number.desc())
        found = [
            # A query for each kind: an index then gives the last ones, however long the journal is.
            self._read(self._of(kind).order_by(*order).limit(count))
            for kind in (dict.fromkeys(kinds) if kinds else (None,))
        ]
        return [row for _, row in islice(heapq.merge(*found, key=lambda found: found[0], reverse=True), count)]

    def _of(self, kind: str | None) -> sa.Select[Any]:
        query = sa.select(_ROWS).where(_ROWS.c.store == self._number)
        return query if kind is None else query.where(_ROWS.c.kind == kind)

    def _stream(self, kind: str | None) -> Iterator[tuple[tuple[int, int], Row]]:
        query = self._of(kind).order_by(_ROWS.c.step, _ROWS.c.number).limit(PAGE)
        page = self._read(query)
        while page:
            yield from page
            (step, number), _ = page[-1]
            after = (_ROWS.c.step >= step, sa.or_(_ROWS.c.step > step, _ROWS.c.number > number))
            page = self._read(query.where(*after)) if len(page) == PAGE else []

    def _read(self, query: sa.Select[Any]) -> list[tuple[tuple[int, int], Row]]:
        with self._talk("read") as connection:
            found = connection.execute(query).all()
        return [((row.step, row.number), self._checked(row)) for row in found]

    def _checked(self, row: Any) -> Row:
        if row.checksum != _checksum(row.step, row.kind, row.checkpoint, row.content):
            raise StoreError(f"row {row.number} of the journal of {self.path} is corrupt; restore it from a copy")
        return Row(row.step, row.kind, json.loads(row.content), row.checkpoint, row.time)

    @contextmanager
    def _talk(self, doing: str) -> Iterator[sa.Connection]:
        """A transaction; a connection that was lost fails once, and the next one is new."""
        if self._closed:
            raise StoreError(f"the store {self.path} is closed; open it again")
        try:
            with self.engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StoreError(f"the journal of {self.path} cannot be {doing}: {_first_line(error)}") from None

    def _hold(self, connection: Any, record: Any) -> None:
        """Take the store's lock in PostgreSQL, for as long as this connection lasts."""
        key = int.from_bytes(bytes.fromhex(self.store)[:8], "big", signed=True)
        cursor = connection.cursor()
        try:
            cursor.execute(f"SET application_name = 'homeostat pid {os.getpid()} on {_host()}'")
            # A holder that was just killed lets go when the server notices.
            for wait in (0.05, 0.1, 0.2, 0.4, 0.8, None):
                cursor.execute(f"SELECT pg_try_advisory_lock({key})")
                if (held := cursor.fetchone()[0]) or wait is None:
                    break
                time.sleep(wait)
            if not held:
                cursor.execute(
                    "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.granted "
                    f"AND l.locktype = 'advisory' AND ((l.classid::bigint << 32) | l.objid::bigint) = {key}"
                )
                owner = next(iter(cursor.fetchall()), ["unknown"])[0]
                raise StoreError(f"another process ({owner}) serves from the journal of {self.path}; stop it first")
            connection.commit()
        finally:
            cursor.close()


def _durable(connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _quietly(close: Callable[[Any], None], connection: Any) -> None:
    """Close a connection; of one that was lost SQLAlchemy would log that it cannot be, at length."""
    with suppress(Exception):
        close(connection)


def _checksum(step: Any, kind: Any, checkpoint: Any, content: Any) -> int:
    return zlib.crc32(f"{step}\n{kind}\n{checkpoint}\n{content}".encode())


def _timeless(content: str) -> str:
    return re.sub(r'"ms": [0-9.e+-]+', "", content)


def _host() -> str:
    return re.sub(r"[^\w.-]", "", socket.gethostname())[:30]


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
