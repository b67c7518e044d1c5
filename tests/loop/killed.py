"""Kills a loop at random moments, with SIGKILL, and says what a resumed one makes of what is left.

Run by `test_loop.py` as a program of its own: it forks, and a test runner has threads.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

KILLS = 5
LABELS = 8


def main(folder: Path, seed: int) -> dict[str, Any]:
    import torch

    import conftest as problem
    from homeostat.core.errors import StoreError
    from homeostat.core.run import Event, Run
    from homeostat.core.save import content_hash
    from homeostat.loop.store import SWITCHES, Store

    torch.set_num_threads(1)
    net = problem.network()
    remedies = (problem.BatchNormBlend(blend=0.0), problem.Tent(), problem.LoopTestUndoing())
    plan = problem.PLAN.replace(anchor=1.0, retry=3)
    phases = ((problem.CLEAN, 5), (problem.DARK, 12), (problem.CLEAN, 12), (problem.DARK, 9))
    stream, windows = problem.stream(phases), sum(count for _, count in phases)

    def opened(where: Path, run: Run = Run()):
        return problem.loop(where, net, remedies, plan=plan, run=run)

    def finished(where: Path) -> tuple[Any, str]:
        with opened(where) as loop:
            loop.run(stream, labels=LABELS)
            return problem.told(loop), content_hash(loop.state.served)

    began = time.perf_counter()
    whole = finished(folder / "whole")
    seconds = (time.perf_counter() - began) / windows
    chance, tries = random.Random(seed), list[dict[str, Any]]()
    for kill in range(KILLS):
        where, at = folder / str(kill), chance.randrange(2, windows - 1)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:

            def watch(event: Event, write: int = write) -> None:
                os.write(write, b"w" if event.name == "window" else b"")

            with opened(where, Run(watch=watch)) as loop:
                loop.run(stream, labels=LABELS)
            os._exit(0)
        os.close(write)
        for _ in range(at):
            os.read(read, 1)
        refused = ""
        try:
            Store(where)
        except StoreError as error:
            refused = str(error)
        time.sleep(chance.random() * seconds)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(read)
        with Store(where) as store:
            switches = list(store.rows(*SWITCHES))
            for row in switches:
                store.load(str(row.checkpoint), base=net)
        with opened(where) as loop:
            resumed, served = loop.progress.at, loop.progress.served
        tries.append({
            "signal": os.WTERMSIG(status), "refused": f"pid {child})" in refused, "killed": at, "resumed": resumed,
            "switches": len(switches), "served": served, "said": switches[-1].content.get("to", "source"),
            "same": finished(where) == whole,
        })  # fmt: skip
    return {"kinds": [row[1] for row in whole[0]], "tries": tries}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
