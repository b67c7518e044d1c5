"""What a grid costs besides its cells, and how much two workers save.

    python benchmarks/grid.py                    # both
    python benchmarks/grid.py --times 5 --ray

A cell answers a stream; around it samples are drawn and shifted, probes read, a row written, and in a pool the cell is
handed over and back. *Overhead* is what a cell takes in a grid beyond the same network answering the same samples,
already drawn, in a plain loop: milliseconds a cell, and as a share, for streams of growing length. *Speed-up* is the
time of a grid in this process over that in two processes (and on Ray), networks trained beforehand, in turn; the median
of the ratios of neighbours. Pools start anew each time, so that a short grid shows what starting them costs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from homeostat.adapt import CoTTA, Source, Tent
from homeostat.bench import Continual, Setting, Stream, Suite, bench
from homeostat.bench.grid import cells
from homeostat.bench.streams import drawn
from homeostat.core.run import Run
from homeostat.data import FashionMNIST
from homeostat.fit import Recipe
from homeostat.loop import Network
from homeostat.shift import Clean, Corrupt

NET = Network(
    {"ResNet": {"depth": 8, "in_channels": 1, "width": 8}}, data=FashionMNIST("train", stop=2000),
    recipe=Recipe(epochs=1, batch=50),
)  # fmt: skip
SETTING = Setting("fashion", NET, FashionMNIST(stop=500), FashionMNIST(start=500))


def suite(each: int, entrants: tuple[object, ...], seeds: int) -> Suite:
    stream = Stream("noise", (Clean(), Corrupt("gaussian_noise", 3)), each=each)
    return Suite(
        "timing", settings=(SETTING,), streams=(stream,), entrants=entrants, protocols=(Continual(),), seeds=seeds,
    )  # fmt: skip


def timed(made: Suite, cache: Path, on: str) -> float:
    """Seconds of a grid of which nothing is there but the network."""
    (cache / "results.sqlite").unlink(missing_ok=True)
    began = time.perf_counter()
    done = bench(made, cache, on=on, count=2)
    assert not done.failed, [result.error for result in done.results]
    return time.perf_counter() - began


def overhead(folder: Path, times: int) -> None:
    print(f"{'samples a cell':>15} {'plain, ms':>10} {'in a grid, ms':>14} {'overhead, ms':>13} {'share':>7}")
    net = NET.build(Run(scratch=folder / "cache"))
    pool = FashionMNIST(start=500).read()
    for each in (50, 200, 1000, 4000):
        seeds = 10 if each < 1000 else 4
        plain, whole = list[float](), list[float]()
        for _ in range(times):
            made = suite(each, (Source(),), seeds)
            began = time.perf_counter()
            cells(made)  # what naming them costs is there once, whatever their number
            naming = time.perf_counter() - began
            whole.append((timed(made, folder, "here") - naming) / seeds)
            streams = [
                drawn(pool, (Clean(), Corrupt("gaussian_noise", 3)), each, net, Run(seed=s)) for s in range(seeds)
            ]
            began = time.perf_counter()
            with torch.no_grad():
                for stream in streams:
                    for part in stream:
                        for batch in part.batches(100):
                            net(batch.x)
            plain.append((time.perf_counter() - began) / seeds)
        a, b = 1000 * statistics.median(plain), 1000 * statistics.median(whole)
        print(f"{2 * each:15,} {a:10.1f} {b:14.1f} {b - a:13.1f} {(b - a) / b:7.0%}")


def speed_up(folder: Path, times: int, ray: bool) -> None:
    kinds = ("processes", "ray") if ray else ("processes",)
    print(f"{'cells':>7} {'here, s':>9} " + " ".join(f"{kind + ', s':>13} {'ratio':>6}" for kind in kinds))
    for seeds in (2, 8):
        made = suite(1000, (Source(), Tent(), CoTTA(views=4)), seeds)
        walls: dict[str, list[float]] = {kind: [] for kind in ("here", *kinds)}
        for _ in range(times):
            for kind in walls:
                walls[kind].append(timed(made, folder, kind))
        line = f"{3 * seeds:7} {statistics.median(walls['here']):9.1f} "
        for kind in kinds:
            ratios = [a / b for a, b in zip(walls["here"], walls[kind], strict=True)]
            line += f"{statistics.median(walls[kind]):13.1f} {statistics.median(ratios):6.2f} "
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench(suite(50, (Source(),), 1), folder)  # trains the network
        overhead(folder, options.times)
        speed_up(folder, options.times, options.ray)


if __name__ == "__main__":
    main()
