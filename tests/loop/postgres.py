"""A PostgreSQL of our own for the time of some tests: made in a folder, on a local socket, thrown away."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path


def programs() -> Path | None:
    """The folder of `initdb`, which Debian keeps out of the path."""
    found = [Path(path) for path in [shutil.which("initdb")] if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].resolve().parent if found else None


def hindrance() -> str:
    """Why no PostgreSQL can be started here, or an empty string."""
    if programs() is None:
        return "PostgreSQL is not installed (apt-get install postgresql)"
    try:
        import pg8000  # noqa: F401
    except ImportError:
        return "pg8000 is not installed (pip install 'homeostat[postgres]')"
    if os.geteuid() == 0:
        import pwd

        if "postgres" not in {user.pw_name for user in pwd.getpwall()} or shutil.which("runuser") is None:
            return "PostgreSQL does not run as root, and there is no user postgres or no runuser"
    return ""


class Postgres:
    """Makes and starts a cluster; `stop` and `start` as often as wanted, `remove` at the end."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="homeostat-pg-"))
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres")
        self._do("initdb", "-D", self._data, "-A", "trust", "-U", "homeostat", "-E", "UTF8", "--no-sync", "--no-locale")
        self.start()

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def _do(self, program: str, *arguments: str) -> None:
        folder = programs()
        assert folder is not None
        command: Sequence[str] = [str(folder / program), *arguments]
        if os.geteuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        done = subprocess.run(
            command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=60,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stdout[-1500:]}")

    def start(self) -> None:
        # Not synced to be quick: what PostgreSQL does in a power loss is its own matter.
        # Shared memory in its own folder, where nobody who tidies /dev/shm takes it away.
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.folder}' -c fsync=off"
        options += " -c dynamic_shared_memory_type=mmap"
        self._do("pg_ctl", "-D", self._data, "-l", str(self.folder / "log"), "-w", "-o", options, "start")

    def stop(self) -> None:
        """At once, as a server that is lost."""
        self._do("pg_ctl", "-D", self._data, "-w", "-m", "immediate", "stop")

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+pg8000://homeostat@/{database}?unix_sock={self.folder}/.s.PGSQL.5432"
