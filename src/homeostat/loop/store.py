"""The loop's memory: a journal in a database and checkpoints in a folder.

The journal is the truth. A checkpoint is written whole, synced and renamed under its content hash before the journal
row that names it is committed; so whatever moment a process is killed at or the power fails, the last row that names a
checkpoint names one that is there. SQLite in WAL mode with full synchronization is the default; any SQLAlchemy URL
works.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import sqlalchemy as sa
import torch
from torch import nn

from homeostat.core.errors import CheckpointError, InputError, StoreError
from homeostat.core.save import content_hash, holds, load, make_synced, read_note, save, sync_folder, write_synced
from homeostat.loop.journal import SWITCHES as SWITCHES, Journal, Row
from homeostat.loop.lock import Lock


class Store:
    """Journal and checkpoints of one served model.

    Args:
        path: a folder, made when absent. Checkpoints lie below it, and the journal too unless `url` is given.
        url: a SQLAlchemy database URL for the journal, such as `postgresql+pg8000://...`. Stores may share a database.

    Attributes:
        identity: the store's name, kept in its folder and in the database.

    Raises:
        StoreError: the folder or database cannot be opened or written, another process holds it, or the database is
            not the one that this folder was begun with.
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
            make_synced(self.path)
            make_synced(self.path / "checkpoints")
        except OSError as error:
            raise StoreError(f"the store {self.path} cannot be made: {error.strerror or error}") from None
        self._lock = Lock(self.path / "lock")
        try:
            named = _identity(self.path / "identity")
            where = sa.URL.create("sqlite", database=str(self.path / "journal.sqlite")) if url is None else url
            name = named or uuid.uuid4().hex
            self.journal = Journal(where, name, self.path, begun=named is not None, own=url is None)
        except BaseException:
            self._lock.release()
            raise
        self.identity = self.journal.store
        try:
            # The database knows the name before the folder does: a folder with a name belongs to rows that exist.
            if named is None:
                write_synced(self.path / ".identity", self.identity.encode())
                (self.path / ".identity").rename(self.path / "identity")
            sync_folder(self.path)
        except OSError as error:
            self.close()
            raise StoreError(f"the store {self.path} cannot be written: {error}") from None

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows in one transaction; a row that is there already is left as it is.

        Rows are the same when step, kind, checkpoint and content are, the time it took (`"ms"`) aside. So a resumed
        run that repeats windows adds nothing, and one that meets other windows under the same numbers loses nothing.
        After an error the same call may be made again: whether or not the rows had got there, they are there once.
        """
        self.journal.write(rows)

    def rows(self, *kinds: str) -> Iterator[Row]:
        """Rows in order of step and writing, of these kinds or all; read in pages."""
        return self.journal.rows(*kinds)

    def last(self, *kinds: str) -> Row | None:
        """The newest row of these kinds."""
        return next(iter(self.journal.newest(1, *kinds)), None)

    def keep(self, model: nn.Module) -> str:
        """Write a checkpoint under its content hash, unless it is there and whole, and return the hash."""
        name = content_hash(model)
        target = self.path / "checkpoints" / name
        try:
            if target.exists() and not holds(target, model):
                _renamed(target)
            if target.exists():
                sync_folder(target.parent)  # a process that was killed may have renamed it and not synced
            else:
                save(model, target, name=name)
        except OSError as error:
            raise StoreError(f"checkpoint {name[:12]} cannot be written: {error}") from None
        return name

    def load(self, name: str, base: nn.Module | None = None, device: torch.device | None = None) -> nn.Module:
        """Read the checkpoint of this hash and verify it; see `core.save.load`.

        Raises:
            CheckpointError: it is missing or was changed.
        """
        target = self.path / "checkpoints" / name
        if not target.exists():
            raise CheckpointError(f"checkpoint {name[:12]} is missing from {self.path}; the journal names it")
        found = load(target, base, device=device, verify=True)
        if (held := read_note(target)["hash"]) != name:
            raise CheckpointError(f"checkpoint {name[:12]} of {self.path} holds another one, with hash {held[:12]}")
        return found

    def collect(self, keep: Sequence[str], switches: int | None = None) -> int:
        """Remove checkpoints that nothing needs; returns how many.

        Args:
            keep: names to keep besides.
            switches: of how many of the newest switches the checkpoints stay; all by default. Those of the start, of
                what is served, of what was served before it and of the last snapshot stay in any case.
        """
        if switches is not None and switches < 0:
            raise InputError(f"the checkpoints of 0 or more switches are kept; got {switches}")
        rows = [*self.journal.newest(1, "start"), *self.journal.newest(1, "snapshot")]
        if switches is None:
            rows += self.rows(*SWITCHES)
        else:
            rows += self.journal.newest(max(switches, 2), *SWITCHES)
        named, folder = {row.checkpoint for row in rows} | set(keep), self.path / "checkpoints"
        try:
            gone = [path for path in folder.iterdir() if path.name not in named]
            # Renamed, and that synced, before any file goes: what a kill or a power loss leaves is a whole checkpoint
            # or none, for the same hash may come back.
            away = [path if path.name.startswith(".") else _renamed(path) for path in gone]
            sync_folder(folder)
        except OSError as error:
            raise StoreError(f"old checkpoints of {self.path} cannot be removed: {error}") from None
        for path in away:
            shutil.rmtree(path, ignore_errors=True)
        return len(gone)

    def close(self) -> None:
        """Let go of the database and the lock."""
        self.journal.close()
        self._lock.release()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _identity(file: Path) -> str | None:
    try:
        found = file.read_text().strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"the store's name cannot be read from {file}: {error}") from None
    if not re.fullmatch("[0-9a-f]{32}", found):
        raise StoreError(f"{file} is damaged: 32 hexadecimal digits are wanted; restore it from a copy")
    return found


def _renamed(path: Path) -> Path:
    return path.rename(path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}"))
