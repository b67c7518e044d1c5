"""What the loop costs while nothing happens: served windows beside a plain forward pass.

    python benchmarks/loop_overhead.py                 # 400 windows of 100
    python benchmarks/loop_overhead.py --labels 10     # ten labels come with each window
    python benchmarks/loop_overhead.py --width 8       # a cheaper network: the loop weighs more
    python benchmarks/loop_overhead.py --profile       # and where the loop's own time goes

A ResNet-8 of width 16 serves Fashion-MNIST-shaped images, drawn anew for each window from what the monitor was
calibrated on, so that no alarm goes off; if one does, the run is void and fails. Each window is predicted by the plain
network under `torch.no_grad()` and by the loop, one after the other, the order changing from window to window, both
with the same number of threads. Three things of the loop are timed:

- served: `Loop.predict`, what the caller waits for;
- step: `Loop.step`, that is `predict` and then `learn`, in one window;
- run: the same with journal and snapshots shared out: the loop's and the plain network's seconds are each summed over a
  block of windows that ends with a snapshot (every `Plan.snapshot` windows) before the ratio is taken.

A ratio is the median over windows (or blocks) of loop / plain, in wall and in CPU time; waiting for the disk is in the
first alone. It is followed by the middle half of the ratios, then p95 and median of the seconds in ms. Peak memory is
that of two processes that do the same windows, one of them with the loop: of the whole process, and of the windows
alone. The first holds what the loop does before it serves (a pass over the data from before, the candidates' kits).

The network is untrained; its weights change neither the arithmetic nor the loop's work.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from homeostat.adapt import EATA
from homeostat.core.data import UNKNOWN, Batch
from homeostat.core.world import World
from homeostat.loop import Loop, Plan
from homeostat.nn import Normalized, ResNet

LIMIT = 1.15
Seconds = tuple[float, float]  # wall, CPU


def images(count: int, draws: torch.Generator) -> Tensor:
    return torch.rand(count, 1, 28, 28, generator=draws) * torch.rand(count, 1, 1, 1, generator=draws)


def network(width: int) -> nn.Module:
    return Normalized(ResNet(depth=8, in_channels=1, width=width), (0.286,), (0.353,)).eval()


def stream(options: argparse.Namespace, warm: int) -> Iterator[Batch]:
    """Windows; the first `warm` and then those that count."""
    draws = torch.Generator().manual_seed(1)
    for step in range(warm + options.windows):
        y = torch.full((options.window,), UNKNOWN)
        y[: options.labels] = torch.randint(10, (options.labels,), generator=draws)
        ids = step * options.window + torch.arange(options.window)
        yield Batch(images(options.window, draws), y if options.labels else None, ids)


def begin(net: nn.Module, folder: str, options: argparse.Namespace) -> Loop:
    draws = torch.Generator().manual_seed(0)
    before = (images(1000, draws), torch.randint(10, (1000,), generator=draws))
    return Loop(net, World(source=before, calibration=before), [EATA()], folder, plan=Plan(window=options.window))


def now() -> Seconds:
    return time.perf_counter(), time.process_time()


def plainly(net: nn.Module, batch: Batch) -> Seconds:
    began = now()
    with torch.no_grad():
        net(batch.x)
    ended = now()
    return ended[0] - began[0], ended[1] - began[1]


def looped(loop: Loop, batch: Batch) -> tuple[Seconds, Seconds]:
    """Seconds of `predict` and of the whole step."""
    began = now()
    loop.predict(batch)
    served = now()
    loop.learn()
    ended = now()
    return (served[0] - began[0], served[1] - began[1]), (ended[0] - began[0], ended[1] - began[1])


def line(name: str, ours: list[Seconds], plain: list[Seconds], each: int = 1) -> float:
    """Print a row of the table; the median ratio in wall time. `each` windows are in one number."""
    told, first = f"{name:<8}", 0.0
    for clock in (0, 1):
        ratios = [a[clock] / b[clock] for a, b in zip(ours, plain, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        told += f"  {middle:6.3f} ({low:5.3f}-{high:5.3f})"
        first = first or middle
    wall = sorted(1000 * a[0] / each for a in ours)
    print(f"{told}  {wall[int(0.95 * len(wall))]:8.2f}  {statistics.median(wall):8.2f}")
    return first


def blocks(seconds: list[Seconds], size: int) -> list[Seconds]:
    """Sums over blocks that end with a snapshot."""
    whole = range(0, len(seconds) // size * size, size)
    return [(sum(w for w, _ in seconds[i : i + size]), sum(c for _, c in seconds[i : i + size])) for i in whole]


def peak(side: str, options: argparse.Namespace) -> str:
    """Peak memory of a process that does the same windows, with or without the loop: in all, and while it serves."""
    order = [sys.executable, __file__, "--peak", side]
    for name in ("windows", "window", "width", "labels", "threads"):
        order += [f"--{name}", str(getattr(options, name))]
    whole, serving = subprocess.run(order, capture_output=True, text=True, check=True).stdout.split()
    return f"{max(float(whole), float(serving)):.0f} MiB ({float(serving):.0f} while serving)"


def highest() -> float:
    """Peak memory of this process in MiB since the last call."""
    lines = Path("/proc/self/status").read_text().splitlines()
    Path("/proc/self/clear_refs").write_text("5")
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=400)
    parser.add_argument("--window", type=int, default=100, help="images a window")
    parser.add_argument("--width", type=int, default=16, help="channels of the network's first stage")
    parser.add_argument("--labels", type=int, default=0, help="labels that come with a window")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="also print where the loop's own time goes")
    parser.add_argument("--peak", choices=("plain", "loop"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    net, every = network(options.width), Plan().snapshot
    if options.windows < 2 * every:
        sys.exit(f"at least {2 * every} windows are needed: a snapshot is taken every {every}")
    if options.peak == "plain":
        print(highest())
        for batch in stream(options, every):
            plainly(net, batch)
        print(highest())
        return
    plain, served, whole = list[Seconds](), list[Seconds](), list[Seconds]()
    with tempfile.TemporaryDirectory() as folder, begin(net, folder, options) as loop:
        if options.peak == "loop":
            print(highest())
            for batch in stream(options, every):
                looped(loop, batch)
            print(highest())
            return
        profile = cProfile.Profile()
        for step, batch in enumerate(stream(options, every)):
            for side in ("plain", "loop") if step % 2 else ("loop", "plain"):
                if side == "plain":
                    plain.append(plainly(net, batch))
                else:
                    one, both = looped(loop, batch)
                    served.append(one)
                    whole.append(both)
        alarms = sum(row.kind == "alarm" for row in loop.history())
        if options.profile:
            for batch in stream(options, 0):
                profile.runcall(loop.step, batch)
    plain, served, whole = plain[every:], served[every:], whole[every:]
    print(
        f"width {options.width}, {options.windows} windows of {options.window}, {options.labels} labels in each, "
        f"{options.threads} thread(s), alarms: {alarms}"
    )
    print(f"{'':8}  {'wall, loop / plain':^20}  {'CPU, loop / plain':^20}  {'p95, ms':>8}  {'median':>8}")
    line("plain", plain, plain)
    ratios = {"served": line("served", served, plain), "step": line("step", whole, plain)}
    ratios["run"] = line("run", blocks(whole, every), blocks(plain, every), every)
    if Path("/proc/self/status").exists():
        print(f"peak memory: plain {peak('plain', options)}, with the loop {peak('loop', options)}")
    if options.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
    if alarms:
        sys.exit("an alarm went off: these are not the numbers of a quiet loop")
    if over := [f"{name} {value:.3f}" for name, value in ratios.items() if value > LIMIT]:
        sys.exit(f"above {LIMIT}: {', '.join(over)}")


if __name__ == "__main__":
    main()
