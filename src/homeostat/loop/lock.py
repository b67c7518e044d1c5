"""One process at a time: an advisory lock on a file that the system drops when the process dies."""

from __future__ import annotations

import os
import time
from pathlib import Path

from homeostat.core.errors import StoreError


class Lock:
    """Holds `path` until `release`; the file says the holder's process number.

    Raises:
        StoreError: another process holds it, or the file cannot be written.
    """

    def __init__(self, path: Path):
        import fcntl

        try:
            self._file = open(path, "a+")  # noqa: SIM115
        except OSError as error:
            raise StoreError(f"the store {path.parent} cannot be written: {error}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = self._owner()
            self._file.close()
            raise StoreError(f"another process (pid {owner}) serves from {path.parent}; stop it first") from None
        try:
            os.ftruncate(self._file.fileno(), 0)
            os.write(self._file.fileno(), str(os.getpid()).encode())
        except OSError as error:
            self._file.close()
            raise StoreError(f"the store {path.parent} cannot be written: {error}") from None

    def _owner(self) -> str:
        # Between taking the lock and writing its number a process needs a moment.
        for _ in range(20):
            self._file.seek(0)
            if owner := self._file.read().strip():
                return owner
            time.sleep(0.01)
        return "unknown"

    def release(self) -> None:
        """Let go; may be called again."""
        self._file.close()
