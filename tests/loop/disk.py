"""What `disk.c` does, from Python: arm it, read what it wrote down, and say what a power loss may leave of that."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

OPEN, WRITE, SYNC, RENAME, REMOVE, MAKE, RESIZE, NOTE = range(8)
NAMES = ("open", "write", "sync", "rename", "remove", "make", "resize", "note")
COUNT, KILL, HALF, FAIL = range(4)
SECTOR = 512


def compiled(folder: Path) -> Path | None:
    """The shim as a library, or `None` where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not os.path.isdir("/proc/self/fd"):
        return None
    made = folder / "disk.so"
    source = Path(__file__).with_name("disk.c")
    subprocess.run([compiler, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", made, source], check=True)
    return made


class Shim:
    """The preloaded library of this process."""

    def __init__(self):
        self._library = ctypes.CDLL(None)

    def arm(self, folder: Path, mode: int, at: int = 0, error: int = 0, trace: int = -1) -> None:
        self._library.disk_arm(str(folder.resolve()).encode(), mode, ctypes.c_long(at), error, trace)

    def relent(self) -> None:
        self._library.disk_relent()

    def note(self, text: str) -> None:
        self._library.disk_note(text.encode())


class Done(NamedTuple):
    """One operation on the disk, or a note that the process made."""

    kind: int
    offset: int
    path: str
    other: str
    data: bytes

    def __str__(self) -> str:
        return f"{NAMES[self.kind]} {Path(self.path).name} {self.offset} {len(self.data)}"


def read_trace(file: Path) -> list[Done]:
    content, at, found = file.read_bytes(), 0, list[Done]()
    while at + 40 <= len(content):
        kind, offset, *sizes = struct.unpack_from("5q", content, at)
        at += 40
        parts = []
        for size in sizes:
            parts.append(content[at : at + size])
            at += size
        found.append(Done(kind, offset, parts[0].decode(), parts[1].decode(), parts[2]))
    return found


@dataclass
class File:
    """What is seen, what a power loss leaves for sure, and the writes in between."""

    seen: bytes = b""
    sure: bytes = b""
    loose: list[tuple[int, bytes | None]] = field(default_factory=list)

    def change(self, offset: int, data: bytes | None) -> None:
        self.seen = _put(self.seen, offset, data)
        self.loose.append((offset, data))

    def sync(self) -> None:
        self.sure, self.loose = self.seen, []


@dataclass
class Folder:
    """The same for the entries of a folder; each change sets some names together, as a rename does."""

    seen: dict[str, File | Folder] = field(default_factory=dict)
    sure: dict[str, File | Folder] = field(default_factory=dict)
    loose: list[dict[str, File | Folder | None]] = field(default_factory=list)

    def change(self, names: dict[str, File | Folder | None]) -> None:
        self.seen = _set(self.seen, names)
        self.loose.append(names)

    def sync(self) -> None:
        self.sure, self.loose = dict(self.seen), []


def _put(content: bytes, offset: int, data: bytes | None) -> bytes:
    """`data` at `offset`, with zeros between; `None` sets the length."""
    if data is None:
        return content[:offset].ljust(offset, b"\0")
    return content[:offset].ljust(offset, b"\0") + data + content[offset + len(data) :]


def _set(entries: dict[str, File | Folder], names: dict[str, File | Folder | None]) -> dict[str, File | Folder]:
    kept = {name: entry for name, entry in entries.items() if name not in names}
    return kept | {name: entry for name, entry in names.items() if entry is not None}


class Disk:
    """A disk that keeps what was synced, and of all else whatever it likes.

    What a file's sync keeps is its content; its name is kept by the sync of its folder. Loose changes may be lost one
    by one, and a write sector by sector.
    """

    def __init__(self, root: Path):
        self.top = Folder()
        self.root = str(root.resolve())

    def _find(self, path: str) -> tuple[Folder, str]:
        """The folder that holds the entry, and its name there."""
        folder, parts = self.top, Path(path).relative_to(self.root).parts
        for part in parts[:-1]:
            folder = folder.seen[part]
            assert isinstance(folder, Folder)
        return folder, parts[-1]

    def do(self, done: Done) -> None:
        """One more operation was done."""
        if done.kind == SYNC and done.path == self.root:
            self.top.sync()
        elif done.kind != NOTE and not done.path.endswith(" (deleted)"):
            self._change(done)

    def _change(self, done: Done) -> None:
        folder, name = self._find(done.path)
        entry = folder.seen.get(name)
        if done.kind == OPEN and entry is None:
            folder.change({name: File()})
        elif done.kind == OPEN and done.offset == 0:
            entry.change(0, None)
        elif done.kind in (WRITE, RESIZE):
            entry.change(done.offset, done.data if done.kind == WRITE else None)
        elif done.kind == SYNC:
            entry.sync()
        elif done.kind == MAKE:
            folder.change({name: Folder()})
        elif done.kind == REMOVE:
            folder.change({name: None})
        elif done.kind == RENAME:
            target, other = self._find(done.other)
            assert target is folder, "a rename from one folder to another is not modelled"
            folder.change({name: None, other: entry})

    def seen(self) -> dict[str, bytes]:
        """What a process reads: path below the root and content."""
        return dict(_walk(self.top, lambda entry: entry.seen))

    def left(self, chance: random.Random | None, keep: float = 0.5) -> dict[str, bytes]:
        """What is there after a power loss: of loose changes a random share, or nothing without `chance`."""
        drawn: dict[int, dict[str, File | Folder] | bytes] = {}

        def kept(entry: File | Folder) -> dict[str, File | Folder] | bytes:
            if id(entry) not in drawn:
                drawn[id(entry)] = _left(entry, chance, keep)
            return drawn[id(entry)]

        return dict(_walk(self.top, kept))


def _left(entry: File | Folder, chance: random.Random | None, keep: float) -> dict[str, File | Folder] | bytes:
    left = entry.sure
    if chance is None:
        return left
    for change in entry.loose:
        if isinstance(entry, Folder):
            left = _set(left, change) if chance.random() < keep else left
            continue
        offset, data = change
        pieces = [(offset, None)] if data is None else [
            (offset + low, data[low : low + SECTOR]) for low in range(0, len(data), SECTOR)
        ]  # fmt: skip
        whole = chance.random()  # as often whole or gone as torn
        for piece in pieces:
            if (whole if whole < 0.25 or whole > 0.75 else chance.random()) < keep:
                left = _put(left, *piece)
    return left


def _walk(folder: Folder, entries, path: str = "") -> Iterator[tuple[str, bytes]]:
    """Files as path and content; an empty folder is a path that ends in a slash."""
    for name, entry in sorted(entries(folder).items()):
        if isinstance(entry, File):
            yield path + name, entries(entry)
        else:
            below = list(_walk(entry, entries, f"{path}{name}/"))
            yield from below or [(f"{path}{name}/", b"")]


def lay(files: dict[str, bytes], root: Path) -> None:
    """Write such files below `root`, and nothing else."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for path, content in files.items():
        target = root / path
        if path.endswith("/"):
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
