"""Reading a store from outside the process that serves from it: no lock is taken and nothing is written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
import yaml
from sqlalchemy.exc import SQLAlchemyError

from homeostat.core.errors import MissingExtra, StoreError
from homeostat.loop.environment import from_environment
from homeostat.loop.journal import _ROWS, _STORES, Journal, Row

DEPLOYMENT = "deployment.yaml"
"""Where a store keeps the deployment it was begun with, if there was one."""
JUDGED = "judged.jsonl"
"""Where it keeps what labels said of each window, if they judge."""


class Record(Journal):
    """A store's journal, for reading alone: `rows`, `newest` and counts.

    Args:
        path: the store's folder.

    Raises:
        StoreError: there is no store, or its journal cannot be opened.
        MissingPart: the journal's address is in an environment variable that is not set.
    """

    def __init__(self, path: str | Path):
        self.path, self._closed = check_store(path), False
        url = journal_url(self.path) or _quiet(self.path / "journal.sqlite")
        try:
            self.engine = sa.create_engine(url, poolclass=sa.NullPool)
        except SQLAlchemyError as error:
            raise StoreError(f"the journal of {self.path} cannot be opened: {str(error).splitlines()[0]}") from None
        except ImportError as error:
            raise MissingExtra(f"the journal's driver is absent ({error}): pip install 'homeostat[postgres]'") from None
        query = sa.select(_STORES.c.id, _STORES.c.name)
        if (self.path / "identity").is_file():
            query = query.where(_STORES.c.name == (self.path / "identity").read_text().strip())
        with self._talk("read") as connection:
            found = connection.execute(query).first()
        if found is None:
            raise StoreError(f"the journal of {self.path} does not know this store; was the folder begun elsewhere?")
        self._number, self.store = found

    def counts(self) -> dict[str, int]:
        """How many rows there are of each kind."""
        query = sa.select(_ROWS.c.kind, sa.func.count()).where(_ROWS.c.store == self._number).group_by(_ROWS.c.kind)
        with self._talk("read") as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def last(self, *kinds: str) -> Row | None:
        """The newest row of these kinds."""
        return next(iter(self.newest(1, *kinds)), None)


def check_store(path: str | Path) -> Path:
    """The folder, or our error where it is no store."""
    path = Path(path)
    if not path.exists():
        raise StoreError(f"there is no store at {path}: no such folder")
    if not path.is_dir() or not (path / "checkpoints").is_dir():
        raise StoreError(f"{path} is not a store: a folder with a journal and checkpoints is wanted")
    if journal_url(path) is None and not (path / "journal.sqlite").is_file():
        raise StoreError(f"{path} holds no journal.sqlite; restore it from a copy, or begin anew elsewhere")
    return path


def journal_url(path: str | Path) -> str | None:
    """The database that the store's deployment names for its journal, or None where it lies in the folder."""
    try:
        config = yaml.safe_load((Path(path) / DEPLOYMENT).read_text())
        url = config["Deployment"].get("journal") or ""
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return None
    return from_environment(str(url), "the journal") or None


def serving(path: str | Path) -> int | None:
    """The process that serves from a store, 0 where one does and its number is not known, or None."""
    lock = Path(path) / "lock"
    try:
        inode, said = lock.stat().st_ino, lock.read_text().strip()
        held = [line.split() for line in Path("/proc/locks").read_text().splitlines() if " FLOCK " in line]
    except OSError:
        return None
    if not any(words[5].rpartition(":")[2] == str(inode) for words in held if len(words) > 5):
        return None
    return int(said) if said.isdecimal() else 0


@contextmanager
def record(path: str | Path) -> Iterator[Record]:
    """A store's journal, closed afterwards."""
    journal = Record(path)
    try:
        yield journal
    finally:
        journal.close()


def windows_in_all(folder: str | Path) -> int | None:
    """How many windows the stream has that a store follows, where it is known; reads the end of the file alone."""
    try:
        with open(Path(folder) / JUDGED, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().splitlines()
    except OSError:
        return None
    for text in reversed(lines):
        try:
            found = json.loads(text)["of"]
        except (ValueError, KeyError, TypeError):
            continue
        if type(found) is int:
            return found
    return None


def _quiet(file: Path) -> sa.URL:
    """What reads a SQLite file and leaves no file beside it, which might be in the way of who serves."""
    query = {"mode": "ro", "uri": "true"}
    # Without a write-ahead log nobody writes; then nothing needs to be shared with a writer.
    if not file.with_name(f"{file.name}-wal").exists():
        query["immutable"] = "1"
    return sa.URL.create("sqlite", database=f"file:{quote(str(file.absolute()))}", query=query)
