"""Measures the promise to do no harm: every stream of `streams.yaml`, every network, several seeds.

    python harm/run.py                                  # everything, then docs/harm.md (make harm)
    python harm/run.py --networks fashion-bn --seeds 1  # a part, printed; with fewer seeds or streams there is no page

A cell is a network, a stream and a seed. Its columns are the accuracy, phase by phase, of the frozen network, of each
remedy always on, of a refit on the labels of the last windows, and of what the loop serves, without labels and with 16
a window. Cells that are done are kept in runs/harm and not run again until the library, the streams or these files
change, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

FOLDER = ROOT / "runs" / "harm"
LABELS = 16


def main() -> None:
    from harm.networks import PROBLEMS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--streams", nargs="+", help="names of streams; default all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    began = time.perf_counter()
    # The slowest first, so that no worker is left alone with them at the end.
    groups = [(network, seed) for network in reversed(list(PROBLEMS)) for seed in range(chosen.seeds)]
    groups = [group for group in groups if group[0] in chosen.networks]
    cells: list[dict[str, Any]] = []
    with ProcessPoolExecutor(chosen.workers, get_context("spawn")) as pool:
        jobs = {pool.submit(group, network, seed, chosen.streams): (network, seed) for network, seed in groups}
        for number, job in enumerate(as_completed(jobs), start=1):
            cells += job.result()
            print(f"{number} of {len(jobs)}: {jobs[job]}, {time.perf_counter() - began:.0f} s", flush=True)
    from harm.page import page, summary

    print(summary(cells))
    if chosen.streams is None and chosen.seeds >= 5:
        (ROOT / "docs" / "harm.md").write_text(page(cells))
        print("docs/harm.md written")


def group(network: str, seed: int, wanted: list[str] | None) -> list[dict[str, Any]]:
    """All streams of a network for a seed, in a process of its own."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import yaml

    import homeostat.robust  # noqa: F401  (registers BatchPoisoning)
    from harm.networks import PROBLEMS
    from homeostat.core.method import Shift
    from homeostat.core.spec import from_config

    torch.set_num_threads(1)
    problem = PROBLEMS[network](FOLDER / "networks")
    streams = yaml.safe_load((ROOT / "harm" / "streams.yaml").read_text())[problem.kind]
    cells = []
    for name, phases in streams.items():
        if wanted is not None and name not in wanted:
            continue
        if name == "poisoned batches" and not _has_batchnorm(problem.net):
            continue
        path = FOLDER / "cells" / f"{_code()}-{network}-{name.replace(' ', '-')}-{seed}.json"
        if not path.exists():
            shifts = [from_config(phase, Shift) for phase in phases]
            cell = measured(problem, shifts, seed, FOLDER / "scratch" / _code() / network)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".tmp").write_text(json.dumps({"network": network, "stream": name, "seed": seed, **cell}))
            path.with_suffix(".tmp").rename(path)
        cells.append(json.loads(path.read_text()))
    return cells


def measured(problem: Any, shifts: list[Any], seed: int, scratch: Path) -> dict[str, Any]:
    """One cell."""
    import tempfile

    from harm.columns import always_on, looped, refitted

    began = time.process_time()
    stream = problem.stream(shifts, seed)
    cache = scratch / str(seed)
    columns: dict[str, list[float]] = {"frozen": always_on(None, problem, stream, seed, cache)}
    for remedy in problem.remedies[:-1]:
        columns[type(remedy).__name__] = always_on(remedy, problem, stream, seed, cache)
    columns["refit"] = refitted(problem, stream, seed, LABELS)
    loops = {}
    for labels in (0, LABELS):
        with tempfile.TemporaryDirectory() as folder:
            name = f"loop, {labels} labels" if labels else "loop, no labels"
            columns[name], loops[name] = looped(problem, stream, seed, labels, Path(folder), cache)
    return {"columns": columns, "loops": loops, "seconds": round(time.process_time() - began, 1)}


def _has_batchnorm(net: Any) -> bool:
    from homeostat.nn.norms import BATCHNORMS

    return any(isinstance(module, BATCHNORMS) for module in net.modules())


def _code() -> str:
    """A hash of everything that a cell depends on."""
    sha = hashlib.sha256()
    for path in sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "harm").glob("[!p]*.*")]):
        if "__pycache__" not in path.parts:
            sha.update(path.read_bytes())
    return sha.hexdigest()[:12]


if __name__ == "__main__":
    main()
