"""Checkpoints written while they are made: tensors in any order, each at its final place, and all or nothing.

All names, shapes and dtypes are known before the first number is, so the headers of all files are written first, the
room is taken on the disk, and blocks go where they belong; nothing waits in memory for a file to be full. Until all is
there it lies in a folder beside the one that is wanted, which then takes its name in one step: whoever looks finds the
old checkpoint or the new one. What is finished is noted in that folder, so that a merge that was killed goes on. After
a restart of the machine it begins anew, as what was noted may then not be on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from homeostat.core.errors import InputError, StoreError
from homeostat.core.mapped import DTYPES, INDEX, Mapped
from homeostat.core.save import make_synced, sync_folder, write_synced
from homeostat.merge.engine import Sink
from homeostat.merge.publishing import bring, check_free, staging_of

SHARD = 5_000_000_000
"""Bytes of a file, where nothing else is asked for: what the hub's tools write."""

PROGRESS = "progress.jsonl"
BOOT = Path("/proc/sys/kernel/random/boot_id")
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Slot:
    """A tensor that is to be written.

    Attributes:
        name, dtype, shape: of it.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


class CheckpointSink(Sink):
    """A folder of safetensors files with an index, or one file, on its way to a path.

    Args:
        out: where it shall be: a folder, or one file where the name ends in `.safetensors`.
        slots: what it holds, in the order in which it lies there.
        key: of all that the content follows from; an unfinished one with the same key is gone on with.
        shard: bytes from which another file is begun.
        file: name of a file that holds all.
        overwrite: replace what is there, if it is a checkpoint, too.
        resume: go on with an unfinished one.
        sync: wait until all is on the disk before it is given its name.

    Attributes:
        done: names that an earlier run finished, each with the note that came with it.
        notes: notes of all that is finished, by name.
        begun: whether there is such a run.

    Raises:
        InputError: something is at `out`, or another process is writing there. StoreError: the disk is full, or cannot
            be written.
    """

    def __init__(
        self,
        out: str | Path,
        slots: Sequence[Slot],
        *,
        key: str = "",
        shard: int = SHARD,
        file: str = "model.safetensors",
        overwrite: bool = False,
        resume: bool = True,
        sync: bool = True,
    ):
        self.out, self.sync = Path(out).absolute(), sync
        self.single = self.out.suffix == ".safetensors"
        check_free(self.out, overwrite)
        self.staging = staging_of(self.out)
        self.done: dict[str, Any] = {}
        self.notes: dict[str, Any] = {}
        self._files = _files(slots, shard, self.out.name if self.single else file, self.single)
        self._size = sum(slot.size for slot in slots)
        self._open: dict[str, int] = {}
        self._place: dict[str, tuple[int, int, int]] = {}
        self._boot = BOOT.read_text().strip() if BOOT.exists() else ""
        self._log = -1
        try:
            make_synced(self.out.parent)
            self.staging.mkdir(exist_ok=True)
            self._log = os.open(self.staging / PROGRESS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            self._lock()
            self.done = self._finished(key) if resume else {}
            self.begun = bool(self.done)
            self.notes = {name: note for name, note in self.done.items() if note}
            if not self.begun:
                self._begin(key)
            for name, held in self._files.items():
                self._prepare(name, held)
        except OSError as error:
            said = self._failed(error)
            # What was finished before fits, so this is a new one that has no room.
            self.discard() if isinstance(said, StoreError) else self.close()
            raise said from None

    def write(self, name: str, start: int, values: Tensor) -> None:
        handle, place, itemsize = self._place[name]
        if not values.numel():
            return
        left = memoryview(values.contiguous().view(torch.uint8).numpy())  # type: ignore[arg-type]
        place += start * itemsize
        try:
            while left:
                wrote = os.pwrite(handle, left, place)
                left, place = left[wrote:], place + wrote
        except OSError as error:
            raise self._failed(error) from None

    def finish(self, name: str, note: Mapping[str, Any] | None = None) -> None:
        if note:
            self.notes[name] = note
        try:
            if not self._boot:  # no way to tell a restart of the machine: wait for the disk
                os.fsync(self._place[name][0])
            os.write(self._log, f"{json.dumps([name, note])}\n".encode())
        except OSError as error:
            raise self._failed(error) from None

    def publish(self, small: Mapping[str, bytes | Path] | None = None, **said: Any) -> None:
        """Give the checkpoint its name; all tensors are written.

        Args:
            small: other files of it, by name: their content, or where to copy it from.
            said: metadata of the index beside `total_size`.
        """
        try:
            for handle in self._open.values():
                if self.sync:
                    os.fsync(handle)
            for name, content in {} if self.single else {**(small or {}), **self._index(said)}.items():
                made = content if isinstance(content, bytes) else content.read_bytes()
                if self.sync:
                    write_synced(self.staging / name, made)
                else:
                    (self.staging / name).write_bytes(made)
            (self.staging / PROGRESS).unlink()
            if self.sync:
                sync_folder(self.staging)
            bring(self.staging / self.out.name if self.single else self.staging, self.out)
            if self.sync:
                sync_folder(self.out.parent)
        except OSError as error:
            raise self._failed(error) from None
        finally:
            self.close()
        if self.single:
            shutil.rmtree(self.staging, ignore_errors=True)

    def made(self) -> dict[str, Tensor]:
        """The tensors as they lie there before they are published."""
        return {name: t for file in self._files for name, t in Mapped(self.staging / file).items()}

    def close(self) -> None:
        """Let go of the files; what is finished is kept for a later run."""
        for handle in (*self._open.values(), getattr(self, "_log", -1)):
            with contextlib.suppress(OSError):
                os.close(handle)
        self._open, self._log = {}, -1

    def discard(self) -> None:
        """Let go of everything; nothing is left behind."""
        self.close()
        shutil.rmtree(self.staging, ignore_errors=True)

    def _lock(self) -> None:
        with contextlib.suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(self._log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _Busy(f"another process is merging into {self.out}; wait for it, or stop it") from None

    def _finished(self, key: str) -> dict[str, Any]:
        """What an earlier run of the same key wrote; a line that a kill cut off is dropped."""
        content = (self.staging / PROGRESS).read_bytes()
        lines = content[: content.rfind(b"\n") + 1].splitlines()
        if not lines or lines[0] != _first(key, self._boot):
            return {}
        if any(_size(self.staging / name) != _length(held) for name, held in self._files.items()):
            return {}
        os.ftruncate(self._log, content.rfind(b"\n") + 1)
        return dict(json.loads(line) for line in lines[1:])

    def _begin(self, key: str) -> None:
        for left in self.staging.iterdir():
            if left.is_dir():
                shutil.rmtree(left)
            elif left.name != PROGRESS:
                left.unlink()
        os.ftruncate(self._log, 0)
        os.write(self._log, _first(key, self._boot) + b"\n")

    def _prepare(self, name: str, held: list[Slot]) -> None:
        header, places = _header(held)
        self._open[name] = handle = os.open(self.staging / name, os.O_RDWR | os.O_CREAT, 0o666)
        if not self.begun:
            _take_room(handle, _length(held))
            os.pwrite(handle, header, 0)
        self._place |= {slot.name: (handle, places[slot.name], slot.dtype.itemsize) for slot in held}

    def _index(self, said: dict[str, Any]) -> dict[str, bytes]:
        if len(self._files) == 1:
            return {}
        where = {slot.name: name for name, held in self._files.items() for slot in held}
        content = {"metadata": {**said, "total_size": self._size}, "weight_map": dict(sorted(where.items()))}
        return {INDEX: (json.dumps(content, indent=2) + "\n").encode()}

    def _failed(self, error: OSError) -> Exception:
        if isinstance(error, _Busy):
            return InputError(str(error))
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(self.out.parent).free
            return StoreError(
                f"{self.out} needs {self._size / 1e9:,.2f} GB and its disk has {free / 1e9:,.2f} GB left; make room, "
                "or give a place on another one"
            )
        return StoreError(f"{self.out} cannot be written: {error.strerror or error}")


def _first(key: str, boot: str) -> bytes:
    return json.dumps([key, boot]).encode()


class _Busy(OSError):
    """Another process has the folder."""


def _files(slots: Sequence[Slot], shard: int, file: str, single: bool) -> dict[str, list[Slot]]:
    """Which tensors go to which file."""
    held: list[list[Slot]] = [[]]
    room = shard
    for slot in slots:
        if held[-1] and slot.size > room and not single:
            held.append([])
            room = shard
        held[-1].append(slot)
        room -= slot.size
    stem = file.removesuffix(".safetensors")
    if len(held) == 1:
        return {file: held[0]}
    return {f"{stem}-{i:05d}-of-{len(held):05d}.safetensors": part for i, part in enumerate(held, 1)}


def _header(held: Sequence[Slot]) -> tuple[bytes, dict[str, int]]:
    """A file's header with its length, and where in the file each tensor begins."""
    offset, entries, places = 0, dict[str, Any](), dict[str, int]()
    # The widest first, so that all lie where a reader in C wants them.
    for slot in sorted(held, key=lambda slot: -slot.dtype.itemsize):
        entries[slot.name] = {
            "dtype": NAMES[slot.dtype], "shape": list(slot.shape), "data_offsets": [offset, offset + slot.size]
        }  # fmt: skip
        places[slot.name] = offset
        offset += slot.size
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, {name: 8 + len(text) + at for name, at in places.items()}


def _length(held: Sequence[Slot]) -> int:
    return len(_header(held)[0]) + sum(slot.size for slot in held)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _take_room(handle: int, size: int) -> None:
    """Make a file as long as it will be, so that a full disk is found now."""
    os.ftruncate(handle, 0)
    try:
        os.posix_fallocate(handle, 0, size)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(handle, size)
