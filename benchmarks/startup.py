"""How long the command line and the import take before anything happens.

    python benchmarks/startup.py
    python benchmarks/startup.py --times 20

Each start is a process of its own. The bare interpreter is started in turn with the others, so that what homeostat adds
can be told from what Python takes on this machine. Medians, with the least and the most, in wall time, and the median
CPU time, which neighbours on the same cores disturb less. Below, the modules that take most time to import, by
`-X importtime` (each without what it imports in turn), and what they belong to.

`homeostat --help` must take less than half a second.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

LIMIT = 0.5
SOURCE = str(Path(__file__).parents[1] / "src")
SCRIPT = Path(sys.executable).with_name("homeostat")
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import homeostat": ["-c", "import homeostat"],
    "homeostat --help": [*([str(SCRIPT)] if SCRIPT.is_file() else ["-m", "homeostat"]), "--help"],
    "import torch": ["-c", "import torch"],
    "homeostat.adapt.EATA": ["-c", "import homeostat as hs; hs.adapt.EATA"],
}


def start(arguments: list[str]) -> tuple[float, float, str]:
    """Wall and CPU seconds of one start, and what it said on standard error."""
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    before, began = os.times(), time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True)
    wall, after = time.perf_counter() - began, os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return wall, cpu, done.stderr


def imported(arguments: list[str]) -> dict[str, float]:
    """Milliseconds each module took to import, without its own imports."""
    rows = [
        line.removeprefix("import time:").split("|") for line in start(["-X", "importtime", *arguments])[2].splitlines()
    ]
    return {row[2].strip(): int(row[0]) / 1000 for row in rows if len(row) == 3 and row[0].strip().isdigit()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10)
    options = parser.parse_args()
    walls: dict[str, list[float]] = {name: [] for name in COMMANDS}
    cpus: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(options.times + 1):
        for name, arguments in COMMANDS.items():
            wall, cpu, _ = start(arguments)
            if turn:  # the first reads the files from the disk
                walls[name].append(wall)
                cpus[name].append(cpu)
    print(f"{'':22} {'median, s':>10} {'least':>7} {'most':>7} {'CPU, s':>8}")
    for name in COMMANDS:
        low, high = min(walls[name]), max(walls[name])
        middle, cpu = statistics.median(walls[name]), statistics.median(cpus[name])
        print(f"{name:22} {middle:10.3f} {low:7.3f} {high:7.3f} {cpu:8.3f}")
    for name in ("homeostat --help", "import homeostat"):
        modules = imported(COMMANDS[name])
        packages: dict[str, float] = defaultdict(float)
        for module, spent in modules.items():
            packages[module.partition(".")[0]] += spent
        heaviest = sorted(packages.items(), key=lambda item: -item[1])[:6]
        told = ", ".join(f"{package} {spent:.0f} ms" for package, spent in heaviest)
        print(f"{name}: {len(modules)} modules, {sum(modules.values()):.0f} ms; {told}")
        slowest = sorted(modules.items(), key=lambda item: -item[1])[:5]
        print("    slowest: " + ", ".join(f"{module} {spent:.0f} ms" for module, spent in slowest))
        if "torch" in modules:
            sys.exit(f"{name} imports torch")
    if (taken := statistics.median(walls["homeostat --help"])) > LIMIT:
        sys.exit(f"homeostat --help takes {taken:.2f} s; {LIMIT} s is the limit")


if __name__ == "__main__":
    main()
