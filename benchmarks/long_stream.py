"""The loop over a million samples of a cheap stream: time, memory and disk must not grow with its length.

    python benchmarks/long_stream.py                      # 10,000 windows of 100
    python benchmarks/long_stream.py --windows 1000

A small perceptron with batch normalization classifies 16 numbers a sample. Windows are drawn as they are asked for, so
that nothing but the loop could grow. In every period their scale and place shift for a while, which statistics of the
batch undo, and later each window holds one class alone, where they mislead; 10 labels a window come. So there are
alarms, trials, commits and rollbacks. A plain forward pass of the same network over the same windows is what the loop's
time is set against. Windows on which a trial ran are told apart, since candidates cost what they cost.

Printed: windows with what happened in them; the loop's milliseconds a window beside the plain network's, in each tenth
of the stream, so that a slowing shows; resident memory after the first tenth and at the end; bytes of the journal a
window; checkpoints and their bytes. It fails when the journal takes more than 1,000 bytes a window, when memory grew by
more than 20 MB after the first tenth, or when the last tenth's quiet windows took more than 1.5 times those of the
second (the first holds the calibration).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))


from homeostat.adapt import BatchNormBlend, Tent
from homeostat.core.data import UNKNOWN, Batch
from homeostat.core.memory import resident
from homeostat.core.world import World
from homeostat.fit import Fit, Recipe
from homeostat.loop import Loop, Plan, status
from homeostat.nn import MLP, Adam

INPUTS, CLASSES = 16, 4
BYTES, GROWTH, SLOWING = 1000, 20.0, 1.5


class Stream:
    """Windows by number: a period is 3/10 as before, 3/10 shifted, 2/10 as before, 2/10 of one class a window."""

    def __init__(self, window: int, period: int, labels: int):
        self.window, self.period, self.labels = window, period, labels
        draws = torch.Generator().manual_seed(0)
        self.centers = 1.2 * torch.randn(CLASSES, INPUTS, generator=draws)
        self.scale = 0.2 + 0.6 * torch.rand(INPUTS, generator=draws)
        self.place = 1.5 * torch.randn(INPUTS, generator=draws)

    def samples(self, count: int, seed: int, kind: str = "") -> tuple[Tensor, Tensor]:
        draws = torch.Generator().manual_seed(seed)
        y = torch.randint(CLASSES, (count,), generator=draws)
        if kind == "one class":
            y = y[:1].expand(count).clone()
        x = self.centers[y] + torch.randn(count, INPUTS, generator=draws)
        return (x * self.scale + self.place if kind == "shifted" else x), y

    def window_at(self, step: int) -> tuple[Batch, Tensor]:
        """A window, and all its labels."""
        place = 10 * (step % self.period) // self.period
        kind = "shifted" if 3 <= place < 6 else "one class" if place >= 8 else ""
        x, y = self.samples(self.window, 1000 + step, kind)
        shown = torch.where(torch.arange(self.window) < self.labels, y, UNKNOWN)
        return Batch(x, shown, step * self.window + torch.arange(self.window)), y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=10_000)
    parser.add_argument("--window", type=int, default=100, help="samples a window")
    parser.add_argument("--period", type=int, default=1000, help="windows from one shift to the next")
    parser.add_argument("--labels", type=int, default=10, help="labels that come with a window")
    parser.add_argument("--folder", type=Path, help="where the store is left; by default it is removed")
    options = parser.parse_args()
    if options.windows < 20:
        sys.exit("at least 20 windows are needed: two in each tenth")
    if resident() is None:
        sys.exit("this reads /proc/self/status, which only Linux has")
    torch.set_num_threads(1)
    stream = Stream(options.window, options.period, options.labels)
    recipe = Recipe(epochs=5, batch=100, optimizer=Adam(lr=0.01))
    layout = MLP(inputs=INPUTS, classes=CLASSES, hidden=(32,), norm="batch")
    net: nn.Module = Fit(recipe=recipe)(layout, World(source=stream.samples(4000, 1)))
    before = stream.samples(1000, 2)
    tenth = options.windows // 10
    plain, served, whole, trials = list[float](), list[float](), list[float](), list[bool]()
    right = frozen_right = 0
    marks = list[float]()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "store"
        remedies, plan = [BatchNormBlend(blend=0.0), Tent()], Plan(window=options.window)
        with Loop(net, World(source=before, calibration=before), remedies, folder, plan=plan) as loop:
            for step in range(options.windows):
                batch, truth = stream.window_at(step)
                began = time.perf_counter()
                with torch.no_grad():
                    left_alone = net(batch.x)
                passed = time.perf_counter()
                out = loop.predict(batch)
                answered = time.perf_counter()
                in_trial = loop.progress.phase == "trial"
                loop.learn()
                ended = time.perf_counter()
                plain.append(passed - began)
                served.append(answered - passed)
                whole.append(ended - passed)
                trials.append(in_trial or loop.progress.phase == "trial")
                right += int(out.argmax(-1).eq(truth).sum())
                frozen_right += int(left_alone.argmax(-1).eq(truth).sum())
                if (step + 1) % tenth == 0:
                    marks.append((resident() or 0) / 1e6)
        found = status(folder)
        cache = sum(file.stat().st_size for file in (folder / "cache").rglob("*") if file.is_file())
    each = (found.journal_bytes or 0) / options.windows
    total = options.windows * options.window
    print(f"{options.windows:,} windows of {options.window}: {total:,} samples, {options.labels} labels in each window")
    print(
        f"{found.alarms} alarms, {found.commits} commits, {found.rollbacks} rollbacks, {found.unchanged} trials that "
        f"changed nothing, {sum(trials):,} windows with a trial"
    )
    print(f"right as served {right / total:.1%}, as deployed {frozen_right / total:.1%}")
    print(f"{'tenth':>5}  {'plain, ms':>9}  {'predict':>8}  {'quiet step':>10}  {'mean step':>9}  {'memory, MB':>10}")
    quiet = list[float]()
    for number in range(10):
        here = slice(number * tenth, (number + 1) * tenth)
        calm = [seconds for seconds, trial in zip(whole[here], trials[here], strict=True) if not trial]
        quiet.append(1000 * statistics.median(calm or whole[here]))
        alone, first = 1000 * statistics.median(plain[here]), 1000 * statistics.median(served[here])
        mean = 1000 * statistics.fmean(whole[here])
        print(f"{number + 1:>5}  {alone:9.3f}  {first:8.3f}  {quiet[-1]:10.3f}  {mean:9.3f}  {marks[number]:10.1f}")
    extra = 1000 * (statistics.fmean(whole) - statistics.fmean(plain))
    print(f"the loop adds {extra:.3f} ms a window on average, {extra * options.windows / 1000:.1f} s in all")
    growth = marks[-1] - marks[0]
    print(f"memory grew by {growth:.1f} MB after the first tenth (limit {GROWTH:.0f})")
    print(
        f"journal {found.journal_bytes or 0:,} bytes, {each:.0f} a window (limit {BYTES}), {found.rows:,} rows; "
        f"{found.checkpoints} checkpoints {found.checkpoint_bytes:,} bytes, cache {cache:,}"
    )
    wrong = []
    if each > BYTES:
        wrong.append("the journal is too large")
    if growth > GROWTH:
        wrong.append("memory grows")
    if quiet[-1] > SLOWING * quiet[1]:
        wrong.append("windows get slower")
    if not found.commits:
        wrong.append("nothing was committed, so that this says little")
    if wrong:
        sys.exit("; ".join(wrong))


if __name__ == "__main__":
    main()
