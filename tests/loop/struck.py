"""Strikes a loop at every operation on its store's files: kills it, fills its disk, cuts its power.

Run by `test_crash.py` as a program of its own, with `disk.c` preloaded: it forks, and a test runner has threads.
Prints what went wrong, and counts of what was tried, as JSON.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from homeostat.core.errors import StoreError

if __name__ == "__main__":  # as a program this folder is where modules are found
    from disk import COUNT, FAIL, HALF, KILL, NOTE, REMOVE, SYNC, WRITE, Disk, Done, Shim, lay, read_trace
    from scenario import Scenario

    SHIM = Shim()


class Struck:
    """Runs the scenario in children, struck or not."""

    def __init__(self, folder: Path):
        # The folders above the store belong to the disk too: whether the store is found there is to be tested.
        self.folder, self.disk, self.store = folder, folder / "disk", folder / "disk" / "of" / "a" / "store"
        self.disk.mkdir(parents=True)
        self.scenario = Scenario(folder / "whole")

    def child(self, work: Callable[[], None], mode: int, at: int = 0, error: int = 0, fresh: bool = True) -> int:
        """Do `work` in a child that is armed; returns how it ended. What it did is in `self.trace()`."""
        if fresh:
            shutil.rmtree(self.disk)
            self.disk.mkdir()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if fresh else 0)
        trace = os.open(self.folder / "trace", flags, 0o600)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                SHIM.arm(self.disk, mode, at, error, trace)
                work()
                status = 0
            except BaseException as problem:
                (self.folder / "said").write_text(repr(problem))
            finally:
                os._exit(status)
        os.close(trace)
        return os.waitpid(child, 0)[1]

    def trace(self) -> list[Done]:
        return read_trace(self.folder / "trace")

    def serve(self) -> None:
        self.scenario.serve(self.store, SHIM.note)

    def faults(self, **more: Any) -> list[str]:
        return self.scenario.faults(self.store, notes(self.trace()), **more)


def notes(trace: list[Done]) -> list[str]:
    return [done.path for done in trace if done.kind == NOTE]


def kill(struck: Struck, stride: int) -> dict[str, Any]:
    """SIGKILL before an operation, and in the middle of it where it is a write, for every `stride`-th of each kind.

    With a stride of 1 every run is resumed to its end, with larger ones every other.
    """
    assert struck.child(struck.serve, COUNT) == 0
    operations = [done for done in struck.trace() if done.kind != NOTE]
    tried, faults = 0, dict[str, list[str]]()
    places = [[at for at, done in enumerate(operations, 1) if done.kind == kind] for kind in range(NOTE)]
    for at in sorted(at for places_of_kind in places for at in places_of_kind[::stride]):
        for mode in (KILL, HALF) if operations[at - 1].kind == WRITE else (KILL,):
            status = struck.child(struck.serve, mode, at)
            if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
                faults[f"{mode} at {at}"] = [f"it was not killed: {status}"]
            elif wrong := struck.faults(finish=stride == 1 or tried % 2 == 0):
                faults[f"{mode} at {at}: {operations[at - 1]}"] = wrong
            tried += 1
    kinds = sorted({operation.kind for operation in operations})
    return {"operations": len(operations), "kinds": kinds, "tried": tried, "faults": faults}


def full(struck: Struck, stride: int) -> dict[str, Any]:
    """The disk is full, then read-only, from every `stride`-th operation on until the loop has said so."""
    assert struck.child(struck.serve, COUNT) == 0
    count, tried, errors, faults = sum(done.kind != NOTE for done in struck.trace()), 0, 0, dict[str, list[str]]()
    for at in range(1 + random.Random(8).randrange(stride), count + 1, stride):
        for code in (errno.ENOSPC, errno.EROFS):
            for goes_on in (True, False):

                def work(goes_on: bool = goes_on) -> None:
                    try:
                        struck.scenario.serve(struck.store, SHIM.note, go_on)
                    except StoreError as error:
                        SHIM.note(json.dumps({"error": str(error)}))

                def go_on(error: Exception, goes_on: bool = goes_on) -> bool:
                    if not isinstance(error, StoreError):
                        raise error
                    SHIM.note(json.dumps({"error": str(error)}))
                    if goes_on:
                        SHIM.relent()
                    return goes_on

                status = struck.child(work, FAIL, at, code)
                name = f"{errno.errorcode[code]} at {at}, {'goes on' if goes_on else 'resumed'}"
                if status:
                    faults[name] = [(struck.folder / "said").read_text()]
                elif wrong := struck.faults(whole=not goes_on):
                    faults[name] = wrong
                errors += any("error" in text for text in notes(struck.trace()))
                tried += 1
    return {"operations": count, "tried": tried, "errors": errors, "faults": faults}


def power(struck: Struck, stride: int) -> dict[str, Any]:
    """The power fails after every operation; before that the process may have been killed once, and resumed."""
    assert struck.child(struck.serve, COUNT) == 0
    trace = struck.trace()
    told: dict[str, Any] = {"states": 0, "faults": {}, "complete": complete(struck, trace)}
    operations = [done for done in trace if done.kind != NOTE]
    told["operations"] = len(operations)
    cut(struck, trace, told, stride)
    # Killed when something was done and not yet synced: what the next process finds may still be lost.
    kills = [at for at, done in enumerate(operations, 1) if done.kind == SYNC]
    for at in sorted({*kills[:: max(1, stride // 8)], *kills[-8:]}):
        assert struck.child(struck.serve, KILL, at)
        before = len(struck.trace())
        if struck.child(struck.serve, COUNT, fresh=False):
            told["faults"][f"resumed after a kill at {at}"] = [(struck.folder / "said").read_text()]
        cut(struck, struck.trace(), told, 0, before)
    told["kills"] = len(kills)
    return told


def complete(struck: Struck, trace: list[Done]) -> bool:
    """Whether what was written down gives the files that are there: nothing bypassed the shim."""
    disk = Disk(struck.disk)
    for done in trace:
        disk.do(done)
    there = {str(path.relative_to(struck.disk)): path.read_bytes() for path in struck.disk.rglob("*") if path.is_file()}
    return {path: content for path, content in disk.seen().items() if not path.endswith("/")} == there


def cut(struck: Struck, trace: list[Done], told: dict[str, Any], stride: int, first: int = 0) -> None:
    """Power losses after operation `first` and later ones.

    Nothing loose is left, wherever that makes a difference; and after every `stride`-th operation, and when something
    was removed, random parts of what is loose are. With a stride of 0 only what was acknowledged is looked at.
    """
    disk, seen, heard = Disk(struck.disk), set[int](), list[str]()
    for i, done in enumerate(trace):
        if done.kind == NOTE:
            heard.append(done.path)
        disk.do(done)
        if i < first or (not stride and (done.kind != NOTE or '"row"' not in done.path)):
            continue
        draws = (12 if stride == 1 else 2) if stride and (i % stride == 0 or done.kind == REMOVE) else 0
        for draw in range(1 + draws):
            left = disk.left(random.Random(1000 * i + draw) if draw else None)
            key = hash((tuple(left.items()), len(heard) if stride else 0))
            if key in seen:
                continue
            seen.add(key)
            lay(left, struck.disk)
            told["states"] += 1
            finish = told["states"] % 4 == 0
            if wrong := struck.scenario.faults(struck.store, heard, finish=finish):
                told["faults"][f"after {i}: {done}, draw {draw}, from {first}"] = wrong


if __name__ == "__main__":
    struck = {"kill": kill, "full": full, "power": power}[sys.argv[1]]
    print(json.dumps(struck(Struck(Path(sys.argv[2])), int(sys.argv[3]))))
