"""Whole streams through our methods and through the best collection of them, on the same images and the same network.

    python benchmarks/adapt_streams.py                        # ours alone
    python benchmarks/adapt_streams.py --reference FOLDER     # beside the collection's

FOLDER is a clone of `mariodoebler/test-time-adaptation` from GitHub. Run this in an environment of its own that holds
homeostat and what the collection imports:

    python -m venv PEER && PEER/bin/pip install -e . yacs iopath && PEER/bin/pip install --no-deps torchvision

A torchvision that does not fit the installed torch will do: only its transforms, which are Python, are used. Model zoo
and data loading of the collection are stood in for; its methods, losses, views and configuration are its own, as its
files for CIFAR-10-C set them, but for 8 views of CoTTA in place of 32 and 10,000 warm-up samples of RMT in place of
50,000, on both sides.

The stream is 15 corruptions of severity 5, each of the same 2,000 CIFAR-10 test images, one after another without a
reset, in batches of 200, through the published ResNet-20. What a method may see from before (EATA's Fisher information,
RMT's prototypes, warm-up and replay) are 2,000 other test images. Both sides answer a batch one right after the other,
the order changing from batch to batch. Printed are the errors; of what share of samples both give the same class; a 95
% interval of the difference of errors, paired by sample; images a second; and the median over batches of theirs / ours
in seconds (above 1 we are faster).
"""

from __future__ import annotations

import argparse
import copy
import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from adapt_reference import declare_operators, stand_in

from homeostat.adapt import EATA, LAME, RMT, ROID, BatchNormBlend, CoTTA, Source, Tent
from homeostat.core.data import Data
from homeostat.core.fork import fork
from homeostat.core.method import Remedy
from homeostat.core.online import Online
from homeostat.core.run import Run
from homeostat.core.taps import head
from homeostat.core.world import World
from homeostat.data import cifar10
from homeostat.nn import cifar_resnet
from homeostat.shift import Corrupt
from homeostat.shift.corruption import COMMON

Call = Callable[[Tensor], Any]
BEFORE = 2000
WARM_UP = 10_000
VIEWS = 8

METHODS: dict[str, tuple[Remedy, str, str]] = {
    "source": (Source(), "source", "Source"),
    "BN": (BatchNormBlend(blend=0.0), "norm", "BNTest"),
    "Tent": (Tent(), "tent", "Tent"),
    "EATA": (EATA(fisher_batch=200), "eata", "EATA"),
    "LAME": (LAME(), "lame", "LAME"),
    "ROID": (ROID(), "roid", "ROID"),
    "RMT": (RMT(warmup=WARM_UP), "rmt", "RMT"),
    "CoTTA": (CoTTA(views=VIEWS), "cotta", "CoTTA"),
}
"""By name in the table: ours, and module and class of theirs."""
FILES = {"source": "source", "BN": "norm_test"}
"""Their configuration file where it is not called as the method."""


def ours(remedy: Remedy, net: nn.Module, before: Data) -> Call:
    made = remedy(net, World(source=before), run=Run(seed=0))

    def call(x: Tensor) -> Any:
        if isinstance(made, Online):
            return made.observe(x)
        with torch.no_grad():
            return made(x)

    return call


class Encoder(nn.Module):
    """What goes into a network's last linear layer."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.last = net, net.get_submodule(head(net))

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        handle = self.last.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        self.net(x)
        handle.remove()
        return kept[0]


def prepare_theirs(folder: Path, before: Data) -> None:
    """Make the collection's modules importable without its model zoo and its data sets."""
    declare_operators()
    sys.path.insert(0, str(folder / "classification"))
    whole = before.load()
    samples = torch.utils.data.TensorDataset(whole.x, whole.labels)  # type: ignore[arg-type]

    def loader(batch_size: int, **_: Any) -> tuple[Any, Any]:
        draws = torch.Generator().manual_seed(0)
        return samples, torch.utils.data.DataLoader(samples, batch_size, shuffle=True, generator=draws)

    contents: dict[str, dict[str, Any]] = {
        "methods": {"__path__": [str(folder / "classification/methods")]},
        "models": {"__path__": []},
        "models.model": {
            "ResNetDomainNet126": type("ResNetDomainNet126", (), {}),
            "split_up_model": lambda net, *_: (Encoder(net), net.get_submodule(head(net))),
        },
        "datasets": {"__path__": []},
        "datasets.data_loading": {"get_source_loader": loader},
    }
    sys.modules.update({name: stand_in(name, **content) for name, content in contents.items()})


def theirs(folder: Path, name: str, net: nn.Module, place: Path) -> Call:
    _, module, cls = METHODS[name]
    # Its configuration is one global object, changed by whoever reads it last.
    sys.modules.pop("conf", None)
    from conf import cfg  # type: ignore[import-not-found]

    config = folder / "classification/cfgs/cifar10_c" / f"{FILES.get(name, name.lower())}.yaml"
    cfg.merge_from_file(str(config))
    cfg.CKPT_DIR, cfg.TEST.N_AUGMENTATIONS = str(place / name), VIEWS
    cfg.RMT.NUM_SAMPLES_WARM_UP = WARM_UP
    torch.manual_seed(0)
    own = copy.deepcopy(net)
    own.model_preprocess = None  # type: ignore[assignment]
    found = importlib.import_module(f"methods.{module}")
    made = getattr(found, cls)(cfg=cfg, model=own, num_classes=10)

    def call(x: Tensor) -> Tensor:
        return made(x).detach()

    return call


def compare(name: str, sides: list[Call], stream: list[tuple[Tensor, Tensor]]) -> None:
    seconds: list[list[float]] = [[] for _ in sides]
    wrong: list[list[Tensor]] = [[] for _ in sides]
    same = []
    for step, (x, y) in enumerate(stream):
        said: list[Any] = [None] * len(sides)
        for side in range(len(sides)) if step % 2 else reversed(range(len(sides))):
            began = time.perf_counter()
            said[side] = sides[side](x.clone()).argmax(1)
            seconds[side].append(time.perf_counter() - began)
            wrong[side].append(said[side] != y)
        same.append(said[0] == said[-1])
    errors = [torch.cat(w).double() for w in wrong]
    rates = [sum(len(y) for _, y in stream) / sum(s) for s in seconds]
    line = f"{name:8} error {100 * float(errors[0].mean()):6.2f}   {rates[0]:7.0f} images/s"
    if len(sides) > 1:
        apart = errors[0] - errors[1]
        # Rows are corruptions, columns images: what the same image does under several corruptions hangs together.
        each = apart.view(len(COMMON), -1).mean(0)
        half = 1.96 * float(each.std()) / len(each) ** 0.5
        agree = 100 * float(torch.cat(same).double().mean())
        ratio = statistics.median(b / a for a, b in zip(*seconds, strict=True))
        line += (
            f"   theirs {100 * float(errors[1].mean()):6.2f}   {rates[1]:7.0f} images/s   same class {agree:5.1f} %"
            f"   ours - theirs {100 * float(apart.mean()):+.2f} +- {100 * half:.2f} points   ratio {ratio:.2f}"
        )
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="clone of mariodoebler/test-time-adaptation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=2000, help="of each corruption")
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    net = fork(cifar_resnet(20), own="*")
    data = cifar10("test")
    before, test = data[:BEFORE], data[BEFORE : BEFORE + options.images]
    stream = [
        (batch.x, batch.labels)
        for name in COMMON
        for batch in Corrupt(name, 5)(test, run=Run(seed=0)).batches(options.batch)
    ]
    if options.reference is not None:
        prepare_theirs(options.reference, before)
    with tempfile.TemporaryDirectory() as place:
        for name in options.methods:
            sides = [ours(METHODS[name][0], net, before)]
            if options.reference is not None:
                sides.append(theirs(options.reference, name, net, Path(place)))
            compare(name, sides, stream)


if __name__ == "__main__":
    main()
