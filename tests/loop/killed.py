"""Kills a loop at random moments, with SIGKILL, again and again in one life, and says what is left each time.

Run by `test_crash.py` as a program of its own: it forks, and a test runner has threads. Between two kills it looks at
the store from outside; when the run has come to its end it is compared with one that was left alone.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

from homeostat.core.errors import StoreError
from homeostat.loop.store import Store

if __name__ == "__main__":  # as a program this folder is where modules are found
    from scenario import Scenario


def main(folder: Path, kills: int, seed: int, url: str | None = None) -> dict[str, Any]:
    scenario, chance = Scenario(folder / "whole", url), random.Random(seed)
    scenario.finished(folder / "again")
    began = time.perf_counter()
    scenario.finished(folder / "once")
    seconds = time.perf_counter() - began
    told: dict[str, Any] = {"kills": 0, "refused": 0, "lives": 0, "stops": [], "faults": {}}
    while told["kills"] < kills:
        store, heard = folder / f"life {told['lives']}", list[str]()
        while True:
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                scenario.serve(store, lambda text, write=write: _tell(write, text))
                os._exit(0)
            os.close(write)
            # Most kills fall early into what the child does, so that a life has many of them.
            content = _listen(read, chance.random() ** 2 * seconds)
            refused = _refused(store, url) if content and chance.random() < 0.5 else ""
            os.kill(child, signal.SIGKILL)
            content += _listen(read)
            os.close(read)
            heard += content.decode().splitlines()
            _, status = os.waitpid(child, 0)
            ended = os.WIFEXITED(status)
            told["refused"] += f"pid {child})" in refused
            told["kills"] += not ended
            told["stops"].append(sum("serves" in line for line in heard))
            if wrong := scenario.faults(store, heard, finish=ended or told["kills"] >= kills):
                told["faults"][f"life {told['lives']}, kill {told['kills']}"] = wrong
            if ended or told["kills"] >= kills:
                break
        told["lives"] += 1
    return told


def _tell(to: int, text: str) -> None:
    os.write(to, text.encode() + b"\n")


def _listen(read: int, seconds: float | None = None) -> bytes:
    """What comes within so many seconds, or before the other end closes."""
    content, end = b"", None if seconds is None else time.perf_counter() + seconds
    while True:
        left = None if end is None else max(0.0, end - time.perf_counter())
        if not select.select([read], [], [], left)[0] or not (more := os.read(read, 65536)):
            return content
        content += more


def _refused(store: Path, url: str | None) -> str:
    try:
        Store(store, url).close()
    except StoreError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])))
