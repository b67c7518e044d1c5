"""EATA, CoTTA and LAME beside their authors' code, on the same input.

    python benchmarks/adapt_reference.py                          # ours alone, against a plain forward pass
    python benchmarks/adapt_reference.py --reference FOLDER       # and the authors' functions

FOLDER holds clones of `mr-eggplant/EATA`, `qinenergy/cotta` and `fiveai/LAME` from GitHub, under these last names. They
are read at run time and never installed: what they import and we lack (torchvision) is left out, and `.cuda()` does
nothing. CoTTA's authors make views with torchvision; here both sides are given our views, made before the clock starts
for both, so that CoTTA's ratio compares everything but the making of views, whose time is printed beside it. With
`--own-views` each side makes its own inside the clock; that takes an environment with a torchvision, of which only the
transforms are used, so that it need not fit the installed torch (see the head of `adapt_streams.py`).

Both sides get the same batches one after the other, the order changing from round to round; the ratio is the median
over rounds of theirs / ours in seconds (above 1 we are faster). The largest difference of their outputs is printed
beside it, in float64 over the first steps and then in float32. `backward="subset"` is meant to differ. Memory of LAME
is the peak of a process that does nothing else.

The network is the published CIFAR ResNet-20 and the images are CIFAR-10's with noise, where `HOMEOSTAT_DATA` has them;
else an untrained network and random images, whose timings mean the same.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import math
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from homeostat.adapt import EATA, CoTTA, CoTTAOnline, lame
from homeostat.core import memory
from homeostat.core.errors import MissingPart
from homeostat.core.fork import fork
from homeostat.core.world import World
from homeostat.data import cifar10
from homeostat.nn import cifar_resnet

Call = Callable[[Tensor], Tensor]
CLOCK = time.perf_counter


def network(dtype: torch.dtype) -> nn.Module:
    """The ResNet-20 that takes images in 0..1."""
    try:
        net = cifar_resnet(20)
    except MissingPart:
        net = cifar_resnet(20, pretrained=False).eval()
    return fork(net, own="*").to(dtype)


def noisy_images(count: int) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    try:
        x: Any = cifar10("test")[:count].load().x
    except MissingPart:
        x = torch.rand(count, 3, 32, 32, generator=draws)
    return (x + 0.1 * torch.randn(x.shape, generator=draws)).clamp(0, 1)


def module(path: Path, name: str, **stand_ins: types.ModuleType) -> Any:
    """A Python file as a module, with modules that it imports and we lack."""
    sys.modules.update(stand_ins)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        sys.exit(f"{path} is not there; see the head of this file")
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


def stand_in(name: str, **content: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__dict__.update(content)
    return made


def authors_lame(folder: Path) -> Any:
    class Register:
        def register(self) -> Callable[[type], type]:
            return lambda cls: cls

    parts = {
        "authors": stand_in("authors", __path__=[]),
        "authors.non_adaptive": stand_in("authors.non_adaptive", NonAdaptiveMethod=object),
        "authors.build": stand_in("authors.build", ADAPTER_REGISTRY=Register()),
    }
    return module(folder / "LAME/src/adaptation/lame.py", "authors.lame", **parts)


def eata_pair(folder: Path | None, dtype: torch.dtype, fisher: Tensor, backward: Any = "masked") -> tuple[Call, Call]:
    """Ours, and theirs or a plain forward pass."""
    net, world = network(dtype), World(source=fisher.to(dtype))
    remedy = EATA(backward=backward)
    kit: Any = remedy.kit(net, world)
    ours = remedy(net, world, kit=kit)
    if folder is None:
        return ours.observe, plain(net)
    code = module(folder / "EATA/eata.py", "authors_eata")
    own = code.configure_model(copy.deepcopy(net))
    parameters, _ = code.collect_params(own)
    start = {name: p.detach().clone() for name, p in own.named_parameters()}
    fishers = {name: [kit[name], start[name]] for name in kit}
    adam = torch.optim.Adam(parameters, 1e-3)
    theirs = code.EATA(own, adam, fishers, 1.0, e_margin=0.4 * math.log(10), d_margin=0.4)
    return ours.observe, theirs


class FedCoTTA(CoTTAOnline, register=False):
    """Ours, with views that were made before."""

    stock: Iterator[Tensor]

    def views_of(self, x: Any, step: int) -> Iterator[Tensor]:
        for _ in range(self.views):
            yield next(self.stock)


def whole_cotta_pair(folder: Path, views: int, sure: bool) -> tuple[Call, Call]:
    """Ours and theirs, each with views of its own making."""
    sys.path.insert(0, str(folder / "cotta/cifar"))
    code = module(folder / "cotta/cifar/cotta.py", "authors_whole_cotta")
    transforms = code.transforms
    # They were written for a torchvision that had other names for two arguments.
    code.transforms = stand_in("their_transforms", **vars(transforms))
    code.transforms.RandomAffine = lambda resample, fillcolor, **options: transforms.RandomAffine(
        interpolation=transforms.InterpolationMode.BILINEAR, **options
    )
    net = network(torch.float32)
    return CoTTA(views=views, threshold=0.0 if sure else 1.1)(net).observe, authors_cotta(code, net, views, sure)


def authors_cotta(code: Any, net: nn.Module, views: int, sure: bool) -> Any:
    """The authors' method over a copy of the network, with so many views, on the CPU."""
    code.range = lambda count: range(views if count == 32 else count)
    # They move what they draw to a GPU; here it stays.
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign,assignment]
    own = code.configure_model(copy.deepcopy(net))
    adam = torch.optim.Adam(own.parameters(), 1e-3)
    return code.CoTTA(own, adam, mt_alpha=0.999, rst_m=0.01, ap=0.0 if sure else 1.1)


def declare_operators() -> None:
    """Name the two operators without which a torchvision that does not fit the installed torch is not imported."""
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")


def cotta_pair(folder: Path | None, dtype: torch.dtype, views: int, sure: bool) -> tuple[Call, Call, Callable]:
    """Ours, theirs or a plain forward pass, and what must be called with the views before each step."""
    net = network(dtype)
    made = CoTTA(views=views, threshold=0.0 if sure else 1.1)(net)
    ours = FedCoTTA(made.model, made.optimizer, threshold=made.threshold, views=views)
    if folder is None:
        return ours.observe, plain(net), lambda given, step: setattr(ours, "stock", iter(given[1:]))
    torchvision = stand_in(name="torchvision", transforms=stand_in(name="torchvision.transforms"))
    parts = {"torchvision": torchvision, "torchvision.transforms": torchvision.transforms}
    code = module(folder / "cotta/cifar/cotta.py", "authors_cotta", **parts, my_transforms=stand_in("my_transforms"))
    code.get_tta_transforms = lambda: None
    masks: list[Tensor] = []
    code.torch = _Proxy(lambda shape: masks.pop(0))
    theirs = authors_cotta(code, net, views, sure)

    def feed(given: list[Tensor], step: int) -> None:
        ours.stock, turn = iter(given[1:]), iter(given[1:])
        theirs.transform = lambda x: next(turn)
        chosen = ours.masks(step)
        # A number below the rate restores an element there.
        masks[:] = [torch.where(chosen[name], 0.0, 1.0) for name, _ in theirs.model.named_parameters()]

    return ours.observe, theirs, feed


class _Proxy:
    """`torch` with a `rand` of our choosing."""

    def __init__(self, rand: Callable[..., Tensor]):
        self.rand = rand

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def plain(net: nn.Module) -> Call:
    def call(x: Tensor) -> Tensor:
        with torch.no_grad():
            return net(x)

    return call


def compare(title: str, sides: tuple[Call, Call], batches: list[Tensor], feed: Callable | None, peer: bool) -> None:
    """Time two sides on the same batches, in turn, and print the median of the ratios."""
    seconds: list[list[float]] = [[], []]
    apart = 0.0
    for step, x in enumerate(batches):
        if feed is not None:
            feed(x, step)
        outputs: list[Any] = [None, None]
        for side in (0, 1) if step % 2 else (1, 0):
            began = CLOCK()
            outputs[side] = sides[side](x[0] if isinstance(x, list) else x).detach()
            seconds[side].append(CLOCK() - began)
        apart = max(apart, float((outputs[0] - outputs[1]).abs().max()))
    ratios = [b / a for a, b in zip(*seconds, strict=True)][1:]
    ours, theirs = (statistics.median(s[1:]) for s in seconds)
    other = "authors'" if peer else "forward"
    line = f"{title:34} ours {ours:8.4f} s   {other} {theirs:8.4f} s   ratio {statistics.median(ratios):6.3f}"
    print(line + (f"   max difference {apart:.1e}" if peer else ""), flush=True)


def lame_inputs(rows: int, classes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    y = torch.arange(rows) % classes
    features = torch.randn(classes, 64, generator=draws)[y] + torch.randn(rows, 64, generator=draws)
    p = (2 * nn.functional.one_hot(y, classes) + torch.randn(rows, classes, generator=draws)).softmax(1)
    return p.to(dtype), features.to(dtype)


def lame_call(folder: Path | None, affinity: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The probabilities, by ours (no folder) or theirs."""
    if folder is None:
        return lambda p, features: lame(p, features, affinity).exp()  # type: ignore[arg-type]
    code = authors_lame(folder)
    name = {"rbf": "rbf_affinity", "knn": "kNN_affinity", "linear": "linear_affinity"}[affinity]
    kernel = getattr(code, name)(sigma=1.0, knn=5)

    def call(p: Tensor, features: Tensor) -> Tensor:
        unit = nn.functional.normalize(features, p=2, dim=-1)
        return code.laplacian_optimization(-torch.log(p + 1e-10), kernel(unit).to(p.dtype))

    return call


def peak(side: str, rows: int, classes: int, affinity: str, reference: Path | None, threads: int) -> float:
    """Peak memory in MiB of a process that runs LAME once; `side` "none" only makes the inputs."""
    order = [sys.executable, __file__, "--peak", side, str(rows), str(classes), affinity, "--threads", str(threads)]
    order += ["--reference", str(reference)] if reference else []
    done = subprocess.run(order, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def run_lame(reference: Path | None, rows: list[int], classes: int, rounds: int, threads: int) -> None:
    for affinity in ("rbf", "knn", "linear"):
        for count in rows:
            p, features = lame_inputs(count, classes)
            ours = lame_call(None, affinity)
            other = lame_call(reference, affinity) if reference else (lambda p, features: (features @ features.T) @ p)
            seconds: list[list[float]] = [[], []]
            apart = 0.0
            for step in range(rounds):
                outputs: list[Any] = [None, None]
                for side in (0, 1) if step % 2 else (1, 0):
                    began = CLOCK()
                    outputs[side] = (ours, other)[side](p, features)
                    seconds[side].append(CLOCK() - began)
                apart = float((outputs[0] - outputs[1]).abs().max())
            ratio = statistics.median(b / a for a, b in zip(*seconds, strict=True))
            line = f"LAME {affinity:6} N={count:<5} K={classes:<5} ours {statistics.median(seconds[0]):8.4f} s"
            if reference:
                line += f"   authors' {statistics.median(seconds[1]):8.4f} s   ratio {ratio:6.2f}   apart {apart:.1e}"
            else:
                line += f"   one product W Z {statistics.median(seconds[1]):8.4f} s"
            print(line, flush=True)
    for count in rows:
        none, mine = (peak(side, count, classes, "rbf", None, threads) for side in ("none", "ours"))
        line = f"LAME rbf N={count:<5} peak memory: inputs alone {none:.0f} MiB, ours {mine:.0f}"
        if reference:
            theirs = peak("theirs", count, classes, "rbf", reference, threads)
            line += f", authors' {theirs:.0f}; of theirs we need {mine / theirs:.3f}"
            line += f" ({(mine - none) / max(1e-9, theirs - none):.3f} of what the call adds)"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="folder with clones of EATA, cotta and LAME")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a busy machine")
    parser.add_argument("--rounds", type=int, default=8, help="timed steps a row")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 200], help="of EATA; CoTTA takes the last")
    parser.add_argument("--views", type=int, default=32, help="CoTTA's views")
    parser.add_argument("--own-views", action="store_true", help="only CoTTA, each side making its own views")
    parser.add_argument("--rows", type=int, nargs="+", default=[200, 1000, 4000], help="of LAME")
    parser.add_argument("--classes", type=int, default=10, help="of LAME")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.clock == "cpu":
        globals()["CLOCK"] = time.process_time
    reference: Path | None = options.reference
    if options.peak:
        side, rows, classes, affinity = options.peak
        p, features = lame_inputs(int(rows), int(classes))
        if side != "none":
            lame_call(reference if side == "theirs" else None, affinity)(p, features)
        # Not `ru_maxrss`, which a process inherits from the one that started it.
        print((memory.peak() or float("nan")) / 2**20)
        return
    if reference is None:
        print("no --reference: ours alone, beside a plain forward pass; ratio = forward / ours")
    images = noisy_images(max(options.batch) * (options.rounds + 1))
    if options.own_views:
        if reference is None:
            parser.error("--own-views compares with the authors' code; give --reference, too")
        declare_operators()
        work = list(images[: options.batch[-1] * (min(options.rounds, 3) + 1)].split(options.batch[-1]))
        for sure in (False, True):
            title = f"CoTTA, own {options.views} views, {'anchor sure' if sure else 'unsure'}"
            compare(title, whole_cotta_pair(reference, options.views, sure), work, None, True)
        return
    fisher = images[:256]
    for dtype in (torch.float64, torch.float32):
        if dtype is torch.float64 and reference is None:
            continue
        few = images[: 6 * 40].to(dtype).split(40)
        kind = str(dtype).removeprefix("torch.")
        if dtype is torch.float64:
            compare(f"EATA  {kind} batch 40", eata_pair(reference, dtype, fisher), list(few), None, True)
            ours, theirs, feed = cotta_pair(reference, dtype, 3, False)
            compare(f"CoTTA {kind} batch 40, 3 views", (ours, theirs), stocks(few, 3), feed, True)
            continue
        for batch in options.batch:
            for backward in ("masked", "subset"):
                sides = eata_pair(reference, dtype, fisher, backward)
                work = list(images[: batch * (options.rounds + 1)].split(batch))
                compare(f"EATA {backward} batch {batch}", sides, work, None, reference is not None)
        batch = options.batch[-1]
        work = images[: batch * (min(options.rounds, 3) + 1)].split(batch)
        began = CLOCK()
        made = stocks(work, options.views)
        each = (CLOCK() - began) / len(work) / options.views
        print(f"making one of CoTTA's views of {batch} images: {each:.4f} s")
        for sure in (False, True):
            ours, theirs, feed = cotta_pair(reference, dtype, options.views, sure)
            title = f"CoTTA batch {batch}, {'anchor sure' if sure else f'{options.views} views'}"
            compare(title, (ours, theirs), made, feed, reference is not None)
    run_lame(reference, options.rows, options.classes, options.rounds, options.threads)


def stocks(batches: Any, views: int) -> list[Any]:
    """Each batch with its views."""
    augment = CoTTA().augment
    draws = torch.Generator().manual_seed(1)
    return [[x, *(augment(x, draws) for _ in range(views))] for x in batches]


if __name__ == "__main__":
    main()
