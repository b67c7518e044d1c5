r"""How fast the nineteen corruptions are, beside the `imagecorruptions` package.

    python benchmarks/corruptions.py                                # ours alone
    python benchmarks/corruptions.py --peer-python PEER/bin/python  # and the peer, from an environment of its own

The peer needs old packages, so it is never imported here. Make an environment for it with

    python3 -m venv PEER
    PEER/bin/pip install imagecorruptions opencv-python-headless \
        "numpy<2" "scipy<1.12" "scikit-image<0.23" "setuptools<81"

Each side runs in a process of its own, on the same images and with the same number of threads. Ours takes whole batches
of floating-point images in [0, 1] and gives such back; the peer takes one 8-bit image after another, as it must. In
every round each side works for a given time, one after the other, the order changing from round to round. The ratio is
the median over rounds of ours / peer in images per second. Memory is what a process grew by at its peak. On a busy
machine give `--threads 1`: two threads that wait for each other measure the neighbours.

The peer has ImageNet's constants only. At 32 pixels both are timed with these, and ours with CIFAR's as well.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BATCH = {32: 250, 224: 8}
FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur"),
    "weather": ("snow", "frost", "fog", "brightness", "spatter"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression", "saturate"),
}


def pictures(side: int) -> np.ndarray:
    """8-bit images with structure at every scale, the same in both processes."""
    rng = np.random.default_rng(side)
    total = np.zeros((BATCH[side], side, side, 3))
    for cell in (1, 4, 8, 16, 32):
        coarse = rng.normal(size=(BATCH[side], side // cell, side // cell, 3))
        total += np.kron(coarse, np.ones((1, cell, cell, 1)))
    return np.clip(128 + 30 * total, 0, 255).astype(np.uint8)


def ours(threads: int) -> Callable[[dict[str, Any]], Callable[[], int]]:
    """Prepare a call that corrupts one batch and says how many images that were."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
    import torch

    from homeostat.core.random import Draw
    from homeostat.shift.corruption import corrupt

    torch.set_num_threads(threads)
    batches = {side: torch.tensor(pictures(side)).movedim(-1, 1).float().div(255).contiguous() for side in BATCH}

    def prepare(order: dict[str, Any]) -> Callable[[], int]:
        x = batches[order["side"]]
        ids = torch.arange(len(x))

        def call() -> int:
            return len(corrupt(x, order["name"], order["severity"], Draw(0, ids), order["preset"]))

        return call

    return prepare


def peer(threads: int) -> Callable[[dict[str, Any]], Callable[[], int]]:
    """The same for `imagecorruptions`, one image a call."""
    warnings.simplefilter("ignore")
    import cv2  # pyright: ignore[reportMissingImports]
    import imagecorruptions  # pyright: ignore[reportMissingImports]
    from imagecorruptions import corruptions  # pyright: ignore[reportMissingImports]

    smooth = corruptions.gaussian

    def gaussian(image: np.ndarray, *args: Any, multichannel: bool = False, **options: Any) -> np.ndarray:
        return smooth(image, *args, **({"channel_axis": -1} if multichannel else {}), **options)

    # The argument was renamed in scikit-image 0.19 and the type left NumPy in 2.0.
    corruptions.gaussian, corruptions.np.float_ = gaussian, np.float64
    cv2.setNumThreads(threads)
    batches = {side: pictures(side) for side in BATCH}
    turn = iter(range(1 << 60))

    def prepare(order: dict[str, Any]) -> Callable[[], int]:
        images = batches[order["side"]]

        def call() -> int:
            image = images[next(turn) % len(images)]
            imagecorruptions.corrupt(image, order["severity"], order["name"])
            return 1

        return call

    return prepare


def memory(field: str) -> float:
    """`VmRSS` or `VmHWM` (the highest since the last reset) of this process in MiB, or nan where Linux does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
    except (OSError, StopIteration):
        return float("nan")


def work(kind: str, threads: int) -> None:
    """Answer orders, one JSON object a line, until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # the peer prints
    prepare = {"ours": ours, "peer": peer}[kind](threads)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        call = prepare(order)
        if order["warm"]:
            call()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # give back what earlier orders left, so that this one's peak is its own
            Path("/proc/self/clear_refs").write_text("5")
        before, images, start = memory("VmRSS"), 0, time.perf_counter()
        while time.perf_counter() - start < order["seconds"]:
            images += call()
        rate = images / (time.perf_counter() - start)
        print(json.dumps({"rate": rate, "peak": memory("VmHWM") - before}), file=answers, flush=True)


class Worker:
    """One side, in a process of its own."""

    def __init__(self, python: str, kind: str, threads: int):
        command = [python, __file__, "--worker", kind, "--threads", str(threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
        # A file and not a pipe: the peer prints, and nobody reads while it works.
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, text=True
        )
        assert self.process.stdout
        if not self.process.stdout.readline():
            self.process.wait()
            self.said.seek(0)
            last = (self.said.read().strip().splitlines() or ["no reason given"])[-1]
            raise RuntimeError(f"{python} cannot run {kind}: {last}")

    def __call__(self, **order: Any) -> dict[str, float]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def compare(own: Worker, other: Worker | None, options: argparse.Namespace, name: str, side: int, preset: str) -> str:
    """Time one corruption; a line of the table."""
    rates: dict[str, list[float]] = {"own": [], "other": []}
    peaks = {"own": 0.0, "other": 0.0}
    sides = [("own", own)] + ([("other", other)] if other else [])
    for number in range(options.rounds):
        for key, worker in sides if number % 2 == 0 else sides[::-1]:
            answer = worker(
                name=name,
                side=side,
                preset=preset,
                severity=options.severity,
                seconds=options.seconds,
                warm=number == 0,
            )
            rates[key].append(answer["rate"])
            peaks[key] = max(peaks[key], answer["peak"])
    rate = statistics.median(rates["own"])
    line = f"{name:<18} {rate:>9,.0f} {10_000 / rate:>8.2f} {peaks['own']:>8.1f}"
    if other:
        ratios = [a / b for a, b in zip(rates["own"], rates["other"], strict=True)]
        line += f" {statistics.median(rates['other']):>9,.0f} {peaks['other']:>8.1f} {statistics.median(ratios):>8.2f}x"
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description="images per second of the 19 corruptions, ours and the peer's")
    parser.add_argument("--peer-python", help="interpreter of an environment that has imagecorruptions")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.2, help="how long each side works in a round, at least")
    parser.add_argument("--severity", type=int, default=3)
    parser.add_argument("--names", nargs="*", help="which corruptions; all when absent")
    parser.add_argument("--worker", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.threads)
        return
    own, other = Worker(sys.executable, "ours", options.threads), None
    if options.peer_python:
        try:
            other = Worker(options.peer_python, "peer", options.threads)
        except (OSError, RuntimeError) as error:
            print(f"The peer does not start, so ours is timed alone: {error}")
    else:
        print("No peer: ours is timed alone. Give --peer-python to compare with imagecorruptions.")
    print(f"severity {options.severity}, {options.threads} threads, {options.rounds} rounds of {options.seconds} s")
    for side, preset, against in ((32, "cifar", None), (32, "imagenet", other), (224, "imagenet", other)):
        if other is None and (side, preset) == (32, "imagenet"):
            continue
        print(f"\n{side}x{side}x3, {preset} constants, ours in batches of {BATCH[side]}")
        head = f"{'corruption':<18} {'images/s':>9} {'10k, s':>8} {'MiB':>8}"
        print(head + (f" {'peer/s':>9} {'MiB':>8} {'ratio':>9}" if against else ""))
        for family in FAMILIES.values():
            for name in family:
                if not options.names or name in options.names:
                    print(compare(own, against, options, name, side, preset), flush=True)


if __name__ == "__main__":
    main()
