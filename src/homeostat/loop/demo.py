"""The demonstration: a network is trained, its stream shifts under it, and the loop keeps it working."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from homeostat.adapt import EATA, LAME, BatchNormBlend
from homeostat.core.data import Data
from homeostat.core.errors import MissingPart, StoreError
from homeostat.core.method import Remedy, Shift
from homeostat.core.place import check_device, placed
from homeostat.core.run import Run
from homeostat.core.trace import Trace
from homeostat.core.world import World
from homeostat.data import digits, fashion_mnist
from homeostat.fit import Cosine, Fit, Recipe, Supervised
from homeostat.loop.judged import Judged
from homeostat.loop.loop import Loop
from homeostat.loop.plan import Plan
from homeostat.loop.reporting.page import report
from homeostat.loop.samples import Samples
from homeostat.nn.normalized import Normalized
from homeostat.nn.optimizers import SGD
from homeostat.nn.resnet import ResNet
from homeostat.shift import Clean, CorrelatedOrder, Corrupt, LabelShift, Phases

STREAM: tuple[tuple[str, Shift], ...] = (
    ("as in training", Clean()),
    ("sensor noise", Corrupt("gaussian_noise", 3, "imagenet")),
    ("fog", Corrupt("fog", 3, "imagenet")),
    ("low contrast", Corrupt("contrast", 4, "imagenet")),
    ("as in training again", Clean()),
)
"""The phases of the demonstration's stream."""

SIMULATED: tuple[Shift, ...] = (
    *(Corrupt(name, severity, "imagenet") for name in ("impulse_noise", "defocus_blur") for severity in (3, 5)),
    *(Corrupt(name, severity, "imagenet") for name in ("frost", "spatter", "pixelate") for severity in (3, 5)),
    LabelShift(concentration=0.5), CorrelatedOrder(0.1),
)  # fmt: skip
"""Shifts on which candidates are calibrated; none of them is in the stream. They were chosen so that there is something
to see: where only mild shifts are rehearsed, bounds on the gain in strong ones are too wide for a commit."""

CANDIDATES: tuple[Remedy, ...] = (
    EATA(),
    BatchNormBlend(),
    LAME(),
    Fit(objective=Supervised(on="target"), recipe=Recipe(epochs=5, batch=32, optimizer=SGD(lr=0.01))),
)
"""What the loop may try; the last, a refit on the recent window, is used only where labels come."""


@dataclass(frozen=True)
class Shown:
    """What the demonstration leaves: where the report and the store are, and the trace."""

    report: Path
    store: Path
    trace: Trace
    data: str


def demo(folder: Path | str, *, labels: int = 0, plan: Plan = Plan(), run: Run = Run()) -> Shown:
    """Train (or take from the cache), run the loop over the shifting stream, write the report.

    Args:
        folder: holds the cache of trained networks and a numbered folder per run; made when absent.
        labels: labels a window that the loop is shown.
        plan: how the loop works.
        run: seed, watcher, and `device` for the networks.
    """
    check_device(run.device)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be made: {error.strerror}; give another one with --folder") from None
    run = run.replace(scratch=folder / "cache")
    name, train, test, net = _problem()
    before, after = test[: len(test) // 5], test[len(test) // 5 :]
    recipe = Recipe(
        epochs=3, batch=64, optimizer=SGD(lr=0.1, weight_decay=5e-4, nesterov=True), schedule=Cosine(warmup=50)
    )
    net = Fit(recipe=recipe)(placed(net, run.device), World(source=train), run=run)
    stream = Phases(tuple(shift for _, shift in STREAM))(after, run=run)
    store = folder / _next(folder)
    with Loop(
        net, World(calibration=before, source=before), CANDIDATES, store, simulate=SIMULATED, plan=plan, run=run
    ) as loop:
        trace = loop.run(stream, labels=labels)
        Judged(store).add(trace)
        about = {
            "Data": name, "Network": "ResNet-8, BatchNorm, trained for 3 epochs on data as in the first phase",
            "Labels shown to the loop": f"{labels} of {plan.window} a window" if labels else "none",
        }  # fmt: skip
        path = report(
            list(loop.store.rows()), trace, store / "report.html", title="A network kept within its limits",
            phases=[phase for phase, _ in STREAM], examples=_examples(stream), samples=Samples(store).read(),
            about=about,
        )  # fmt: skip
    return Shown(path, store, trace, name)


def _problem() -> tuple[str, Data, Data, nn.Module]:
    """Name, training data, test data and an untrained network: Fashion-MNIST where it is, else digits."""
    try:
        train, test = fashion_mnist("train")[:20000], fashion_mnist("test")
        name, statistics = "Fashion-MNIST: 20,000 training and 10,000 test images", (0.286, 0.353)
    except MissingPart as error:
        every = digits().shuffle(torch.Generator().manual_seed(0))
        # Too few for a stream of the usual length, so test images come several times.
        train, test = every[:1000], every[1000:][torch.arange(6000) % (len(every) - 1000)]
        name, statistics = f"scikit-learn's digits, because Fashion-MNIST is not at hand ({error})", (0.305, 0.376)
    net = ResNet(depth=8, in_channels=1, width=8)
    return name, train, test, Normalized(net, (statistics[0],), (statistics[1],))


def _examples(stream: Data) -> Sequence[tuple[str, torch.Tensor]]:
    each = len(stream) // len(STREAM)
    shown = [stream.fetch(torch.arange(i * each + 200, i * each + 212)).x for i in range(len(STREAM))]
    return [(phase, x) for (phase, _), x in zip(STREAM, shown, strict=True) if isinstance(x, torch.Tensor)]


def _next(folder: Path) -> str:
    taken = [int(path.name[4:]) for path in folder.glob("run-*") if path.name[4:].isdigit()]
    return f"run-{max(taken, default=0) + 1:03d}"
