r"""How late a shift is seen, against how often there is a false alarm: every label-free probe, and the loop's monitor.

    python benchmarks/detection.py                              # tables
    python benchmarks/detection.py --picture docs/images/detection.svg

Two networks: a ResNet-8 on Fashion-MNIST, trained as for the demonstration but without its last class, and an MLP on
scikit-learn's digits. Where Fashion-MNIST is absent the digits alone are used. A reference of 1,000 (digits: 300)
labelled test images is what everything is prepared on; windows of 100 are drawn from the others.

A probe gives one value a window and an alarm when that value is above a threshold (values that may move both ways: its
distance from the clean windows' median). The threshold is swept over the values of clean windows, which nobody has at
deployment in this number; a probe forgets earlier windows, so that its mean delay is one over the chance of an alarm in
a shifted window. The monitor is run as it is: 10 clean windows, then the shift, until the capital passes `run_length`,
for a sweep of run lengths. Its false alarms are counted on the same clean windows.

A delay of 1 is the first window. A shift is not seen by a probe that alarms in fewer than one shifted window in 20, or
in fewer than twice as many as of clean ones; nor by the monitor, if more than half of 12 streams end, after 50 windows,
without an alarm.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from homeostat.core.data import Data, Tensors
from homeostat.core.errors import MissingPart
from homeostat.core.method import Shift
from homeostat.core.online import Bag
from homeostat.core.probe import Outputs, Probe, measure, outputs
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.data import digits, fashion_mnist
from homeostat.fit import Cosine, Fit, Recipe
from homeostat.loop.monitor import Monitor
from homeostat.nn import MLP, Normalized, ResNet, cache_folder
from homeostat.nn.optimizers import SGD, Adam
from homeostat.probe import (
    ATC,
    BBSE,
    KS,
    MMD,
    AverageConfidence,
    ClassBalance,
    ClassifierTwoSample,
    Confidence,
    DifferenceOfConfidences,
    Entropy,
    SaerensEM,
)
from homeostat.shift import Clean, CorrelatedOrder, Corrupt

WINDOW, LONGEST = 100, 50
Curves = dict[str, dict[str, list[tuple[float, float]]]]
BOTH_WAYS: dict[str, Probe] = {
    "Entropy": Entropy(), "Confidence": Confidence(), "AverageConfidence": AverageConfidence(), "ATC": ATC(),
    "DifferenceOfConfidences": DifferenceOfConfidences(),
}  # fmt: skip
UPWARDS: dict[str, Probe] = {
    "ClassBalance": ClassBalance(against="source"), "BBSE": BBSE(), "SaerensEM": SaerensEM(), "MMD": MMD(),
    "KS": KS(), "KS of outputs": KS(on="outputs"), "ClassifierTwoSample": ClassifierTwoSample(),
}  # fmt: skip
RUNS = (10, 20, 50, 100, 200, 500, 1000, 5000)
RATES = (2, 5, 10, 20, 50, 100)
SHOWN = ("Entropy", "ClassBalance", "MMD", "KS", "ClassifierTwoSample", "Monitor")


class Problem:
    """A network, its reference, and pools of outputs from which windows are drawn."""

    def __init__(self, name: str, net: torch.nn.Module, reference: Data, rest: Data, shifts: dict[str, Shift]):
        self.name, self.net, self.world = name, net, World(source=reference, calibration=reference)
        self.reference = outputs(net, reference, {"out", "features"})
        self.pools, self.y = dict[str, Outputs](), dict[str, np.ndarray]()
        for title, shift in {"clean": Clean(), **shifts}.items():
            data = shift(rest, run=Run(seed=1))
            self.pools[title] = outputs(net, data.unlabelled(), {"out", "features"})
            self.y[title] = data.all_labels().numpy()

    def windows(self, title: str, count: int, seed: int, known: int) -> list[Outputs]:
        """Windows of a stream. Without a shift of order samples are drawn at random."""
        draws, made = np.random.default_rng(seed), list[Outputs]()
        source = title if title in self.pools else "clean"
        pool, y = self.pools[source], self.y[source]
        share = np.where(y < known, 1.0, 0.0)
        if title == "new class, 20 %":
            share = np.where(y < known, 0.8 / (y < known).sum(), 0.2 / max(1, (y >= known).sum()))
        if title == "label shift, strong":
            share = np.where(y == 1, 4.0, share) * (y < known)
        if title == "label shift, weak":
            share = np.where(y == 1, 2.0, share) * (y < known)
        if title == "correlated order":
            inside = np.flatnonzero(y < known)
            length = len(inside)
            while len(made) < count:
                start = int(draws.integers(length))
                rows = inside[(start + np.arange(WINDOW * min(count, 40))) % length]
                made += [pool[torch.from_numpy(part)] for part in rows.reshape(-1, WINDOW)]
            return made[:count]
        share = share / share.sum()
        return [pool[torch.from_numpy(draws.choice(len(y), WINDOW, p=share))] for _ in range(count)]


def problems(folder: Path) -> list[tuple[Problem, int, list[str]]]:
    """Each problem, how many of its classes are known, and its shifts; networks are cached in a folder."""
    made = []
    run, order = Run(seed=0, scratch=folder), CorrelatedOrder(0.1, slots=60)
    try:
        train, test = fashion_mnist("train")[:20000], fashion_mnist("test")
    except MissingPart as error:
        print(f"digits only: {error}")
    else:
        names = {
            "noise, weak": Corrupt("gaussian_noise", 1, "cifar"),
            "noise, strong": Corrupt("gaussian_noise", 3, "imagenet"),
            "blur, weak": Corrupt("gaussian_blur", 1, "cifar"),
            "bright, strong": Corrupt("brightness", 1, "cifar"),
            "contrast, strong": Corrupt("contrast", 4, "imagenet"),
            "correlated order": order,
        }
        recipe = Recipe(
            epochs=3, batch=64, optimizer=SGD(lr=0.1, weight_decay=5e-4, nesterov=True), schedule=Cosine(warmup=50)
        )
        known = train[torch.nonzero(train.all_labels() < 9).flatten()]
        net = Normalized(ResNet(depth=8, in_channels=1, width=8, classes=9), (0.286,), (0.353,))
        net = Fit(recipe=recipe)(net, World(source=known), run=run)
        reference, rest = _split(test, 1000, 9)
        shown = [*names, "label shift, weak", "label shift, strong", "new class, 20 %"]
        made.append((Problem("Fashion-MNIST, ResNet-8", net, reference, rest, names), 9, shown))
    every = digits().shuffle(torch.Generator().manual_seed(0))
    net = Normalized(MLP(inputs=64, classes=9, hidden=(64, 32)), (0.305,), (0.376,))
    recipe = Recipe(epochs=40, batch=32, optimizer=Adam(lr=0.003))
    known = every[:700]
    net = Fit(recipe=recipe)(net, World(source=known[torch.nonzero(known.all_labels() < 9).flatten()]), run=run)
    reference, rest = _split(every[700:], 300, 9)
    noisy: dict[str, Shift] = {"noise, weak": _Noise(0.15), "noise, strong": _Noise(0.35)}
    noisy["correlated order"] = CorrelatedOrder(0.1, slots=20)
    problem = Problem("digits, MLP", net, reference, rest, noisy)
    made.append((problem, 9, [*noisy, "label shift, strong", "new class, 20 %"]))
    return made


@dataclass(frozen=True)
class _Noise(Shift, register=False):
    """Normal noise on images in 0..1."""

    size: float = 0.1

    def apply(self, data: Data, model: torch.nn.Module | None, run: Run) -> Data:
        batch = data.load()
        assert isinstance(batch.x, Tensor)
        noise = torch.randn(batch.x.shape, generator=run.rng("noise"))
        return Tensors((batch.x + self.size * noise).clamp(0, 1), batch.y)


def _split(data: Data, size: int, known: int) -> tuple[Data, Data]:
    """So many samples of known classes, and all others."""
    inside = torch.nonzero(data.all_labels() < known).flatten()[:size]
    others = torch.ones(len(data), dtype=torch.bool)
    others[inside] = False
    return data[inside], data[torch.nonzero(others).flatten()]


def probed(problem: Problem, windows: Sequence[Outputs], kits: dict[Probe, torch.nn.Module]) -> dict[str, np.ndarray]:
    """Every probe's value in every window."""
    probes = {**BOTH_WAYS, **UPWARDS}
    rows = [
        [reading.value for reading in measure(list(probes.values()), window, problem.net, problem.world, kits=kits)]
        for window in windows
    ]
    return dict(zip(probes, np.array(rows).T, strict=True))


def delay_of(clean: np.ndarray, shifted: np.ndarray, both: bool, per_thousand: float) -> float:
    """Mean delay of a probe at this many false alarms per 1,000 windows; infinite where the shift is not seen."""
    if both:
        middle = np.median(clean)
        clean, shifted = np.abs(clean - middle), np.abs(shifted - middle)
    threshold = np.quantile(clean, 1 - per_thousand / 1000, method="higher")
    caught = float((shifted > threshold).mean())
    return 1 / caught if caught >= max(0.05, 2 * per_thousand / 1000) else math.inf


def watched(problem: Problem, streams: Sequence[Sequence[Outputs]], quiet: Sequence[Outputs], **settings) -> np.ndarray:
    """`[streams, windows]` capital after the shift, infinite once it has passed the largest run length."""
    monitor, start = Monitor(run_length=max(RUNS), **settings), Bag()
    bare = Outputs(problem.reference.out, None, problem.reference.id, features=problem.reference.features)
    monitor.begin(bare, start)
    for window in quiet:
        monitor.look(window, None, start)
    rows = np.zeros((len(streams), LONGEST))
    for row, stream in zip(rows, streams, strict=True):
        state = Bag({name: start[name].clone() for name in start})
        for t, window in enumerate(stream):
            if monitor.look(window, None, state) is not None:
                row[t:] = np.inf
                break
            row[t] = monitor.evidence(state)["all"]["capital"]
    return rows


def alarms(problem: Problem, windows: Sequence[Outputs], run_length: int, **settings) -> int:
    monitor, state = Monitor(run_length=run_length, **settings), Bag()
    bare = Outputs(problem.reference.out, None, problem.reference.id, features=problem.reference.features)
    monitor.begin(bare, state)
    return sum(monitor.look(window, None, state) is not None for window in windows)


def judge(problem: Problem, known: int, shifts: Sequence[str], count: int) -> Curves:
    """By shift and detector: `(false alarms per 1,000 windows, mean delay)`."""
    every = [(probe, probe.kit(problem.net, problem.world)) for probe in (BOTH_WAYS | UPWARDS).values()]
    kits = {probe: kit for probe, kit in every if kit is not None}
    clean_windows = problem.windows("clean", count, 0, known)
    clean = probed(problem, clean_windows, kits)
    monitors: dict[str, dict[str, int]] = {"Monitor": {}, "Monitor, block=10": {"block": 10}}
    print(f"\n{problem.name}: false alarms in {count} clean windows, by run_length")
    for name, how in monitors.items():
        print(f"  {name:<20}", "  ".join(f"{c}: {alarms(problem, clean_windows, c, **how)}" for c in RUNS))
    curves: Curves = {}
    for title in shifts:
        shifted = probed(problem, problem.windows(title, 100, 1, known), kits)
        curves[title] = {
            name: [(rate, delay_of(clean[name], shifted[name], name in BOTH_WAYS, rate)) for rate in RATES]
            for name in clean
        }
        streams = [problem.windows(title, LONGEST, 10 + i, known) for i in range(12)]
        for name, how in monitors.items():
            capital = watched(problem, streams, clean_windows[:10], **how)
            late = {c: np.where((capital >= c).any(1), (capital >= c).argmax(1) + 1, LONGEST) for c in RUNS}
            seen = {c: float((capital >= c).any(1).mean()) > 0.5 for c in RUNS}
            curves[title][name] = [(1000 / c, float(late[c].mean()) if seen[c] else math.inf) for c in RUNS]
    return curves


def table(name: str, curves: Curves, per_thousand: float = 2.0) -> None:
    shifts = list(curves)
    print(f"\n{name}: mean delay at {per_thousand:g} false alarms per 1,000 windows (monitor: at most that many)\n")
    print("| detector | " + " | ".join(shifts) + " |\n|---|" + "---|" * len(shifts))
    for detector in next(iter(curves.values())):
        cells = [dict(curves[shift][detector]).get(per_thousand, math.nan) for shift in shifts]
        print(f"| {detector} | " + " | ".join("not seen" if math.isinf(c) else f"{c:.1f}" for c in cells) + " |")


def picture(curves: Curves) -> str:
    """Small multiples, a panel for each shift: delay over false alarms, both logarithmic. A line ends where unseen."""
    wide, tall, columns = 250, 190, 3
    colours = dict(zip(SHOWN, ("#b45309", "#7c3aed", "#2563eb", "#0891b2", "#64748b", "#dc2626"), strict=True))
    rows = math.ceil(len(curves) / columns)
    size = f"{columns * wide} {rows * tall + 40}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif" font-size="11">',
        "<title>Detection delay against false alarms, by shift</title>",
        f'<rect width="{columns * wide}" height="{rows * tall + 40}" fill="#fff"/>',
    ]

    def place(panel: int, rate: float, delay: float) -> tuple[float, float]:
        left, top = panel % columns * wide + 34, panel // columns * tall + 24
        across = (math.log10(rate) - math.log10(0.2)) / (2 - math.log10(0.2))
        return left + across * (wide - 48), top + (1 - math.log10(delay) / math.log10(LONGEST)) * (tall - 64)

    for panel, (title, detectors) in enumerate(curves.items()):
        (x0, y0), (x1, y1) = place(panel, 0.2, 1), place(panel, 100, LONGEST)
        parts.append(f'<text x="{x0:.0f}" y="{y1 - 8:.0f}" font-weight="bold">{title}</text>')
        for delay in (1, 3, 10, 30):
            y = place(panel, 1, delay)[1]
            parts.append(f'<path d="M{x0:.0f} {y:.1f}H{x1:.0f}" stroke="#ddd"/>')
            parts.append(f'<text x="{x0 - 5:.0f}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{delay}</text>')
        for rate in (0.2, 2, 20, 100):
            x = place(panel, rate, 1)[0]
            parts.append(f'<text x="{x:.1f}" y="{y0 + 15:.0f}" text-anchor="middle" fill="#555">{rate:g}</text>')
        for name in SHOWN:
            spots = [place(panel, rate, delay) for rate, delay in sorted(detectors[name]) if delay < LONGEST]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots if x <= x1 + 1)
            width = 2.4 if name == "Monitor" else 1.3
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colours[name]}" stroke-width="{width}"/>')
    x, y = 34.0, rows * tall + 24
    for name, colour in colours.items():
        parts.append(f'<path d="M{x} {y - 4}h16" stroke="{colour}" stroke-width="2.4"/>')
        parts.append(f'<text x="{x + 20}" y="{y}">{name}</text>')
        x += 44 + 6 * len(name)
    words = "windows until the alarm (vertical) against false alarms per 1,000 windows (horizontal)"
    parts.append(f'<text x="34" y="{rows * tall + 4}" fill="#555">{words}</text></svg>')
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=500, help="clean windows")
    parser.add_argument("--folder", type=Path, default=cache_folder() / "detection", help="cache of trained networks")
    parser.add_argument("--picture", type=Path, help="where to write the curves of the first problem, as SVG")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    for number, (problem, known, shifts) in enumerate(problems(options.folder)):
        curves = judge(problem, known, shifts, options.windows)
        for rate in (2.0, 20.0):
            table(problem.name, curves, rate)
        if options.picture is not None and number == 0:
            options.picture.parent.mkdir(parents=True, exist_ok=True)
            options.picture.write_text(picture(curves) + "\n")
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
