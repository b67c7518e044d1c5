"""Promises every shift, probe and remedy keeps, as functions that anyone can call on their own.

`check_remedy(MyRemedy())` runs a method through a small network and a small world (or yours) and raises one
`CheckFailed` that lists every broken promise. The library's own methods pass the same checks.

>>> from homeostat.core.method import Chain
>>> check_remedy(Chain())
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from homeostat.core.data import Batch, Data, Tensors
from homeostat.core.errors import InputError, MissingPart, NonFiniteError
from homeostat.core.fork import fork, versions
from homeostat.core.method import Remedy, Shift
from homeostat.core.online import Online
from homeostat.core.place import device_of, placed, there
from homeostat.core.probe import Probe, read
from homeostat.core.reading import Reading
from homeostat.core.run import Run
from homeostat.core.save import content_hash, load, save
from homeostat.core.tree import Tree, leaves, length, map_tree
from homeostat.core.watched import Broken, Watch
from homeostat.core.weights import hash_tensors
from homeostat.core.world import SPLITS, World


def small_network(dtype: torch.dtype = torch.float32) -> nn.Module:
    """A convolution, BatchNorm and a linear head for `[batch, 1, 8, 8]` and three classes, with statistics that fit."""
    generator = torch.Generator().manual_seed(5)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    with torch.no_grad():
        for tensor in [*net.parameters(), *net.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.3)
        net[1].running_var.abs_().add_(0.5)  # type: ignore[union-attr,operator]
    return net.to(dtype).eval()


def small_world(dtype: torch.dtype = torch.float32, seed: int = 0) -> World:
    """Labelled source, target, calibration and held images with classes one can tell apart."""
    made = {}
    for number, name in enumerate(SPLITS):
        generator = torch.Generator().manual_seed(100 * seed + number)
        y = torch.arange(48) % 3
        x = 0.3 * torch.rand(48, 1, 8, 8, generator=generator)
        for k in range(3):
            x[y == k, :, 2 * k : 2 * k + 3] += 0.5
        made[name] = Tensors(x.to(dtype), y)
    return World(**made, parts={"first": made["source"], "second": made["target"]})


def check_remedy(
    remedy: Remedy,
    model: nn.Module | None = None,
    world: World | None = None,
    *,
    dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.bfloat16),
    exact: bool = True,
) -> None:
    """Check a remedy's promises on a small network and world, or on yours.

    The given model stays untouched bit for bit, with its flags and hooks; the result is in evaluation mode, pure in
    `forward`, serves a batch of one and a short batch (with the same outputs, unless its card says `batch_coupled`),
    survives save and load with equal outputs, is the same for the same seed, keeps the dtype and the device (the
    world's data may lie elsewhere); what is declared is what is read; NaN weights, missing parts and (online) NaN or
    empty batches are refused with our errors; an online model resets and restores exactly, and continues after save and
    load as if it had not stopped.

    Args:
        remedy: the object to check.
        model, world: to check it on; made up when absent. A model on a GPU checks the remedy there.
        dtypes: further dtypes that must work.
        exact: outputs must be equal bit for bit where promises speak of equality; otherwise within rounding.

    Raises:
        CheckFailed: lists every broken promise.
    """
    model, world, run = model or small_network(), world or small_world(), Run(seed=1)
    broken = Broken(type(remedy).__name__)
    same = _equal if exact else _close
    x = there(_first_inputs(world), model)

    hooked = model.register_forward_hook(lambda *_: None)
    before, state = versions(model), _state(model)
    training = [m.training for m in model.modules()]
    watch = Watch(world)
    with broken.case("it can be applied"):
        result = remedy(model, watch.world, run=run)
    if broken.said:
        hooked.remove()
        broken.report()
    kit = remedy.kit(model, world, run=run)
    broken.unless(versions(model) == before and _state(model) == state, "the given model is untouched bit for bit")
    broken.unless([m.training for m in model.modules()] == training, "the given model's train() flags stay")
    broken.unless(hooked.id in model._forward_hooks, "the given model's hooks stay")
    hooked.remove()
    declared = remedy.needs() | remedy.prepares()
    for text in watch.differences(declared):
        broken.unless(False, text)
    broken.unless(not any(m.training for m in result.modules()), "the result is in evaluation mode")
    broken.unless(placed(result, device_of(model)) is result, "the result lies on the model's device, and whole")

    with broken.case("it serves a batch, a batch of one and a short batch without gradients"), torch.no_grad():
        out = result(x)
        for size in (1, 3):
            part = result(map_tree(lambda t, n=size: t[:n], x))
            broken.unless(length(part) == size, f"{size} inputs give {size} outputs")
            alone = _close(part, map_tree(lambda t, n=size: t[:n], out))
            broken.unless(alone or remedy.batch_coupled(), "a sample's output does not depend on its batch")
        now = versions(result)
        broken.unless(same(out, result(x)) and versions(result) == now, "forward changes nothing")
        with torch.inference_mode():
            broken.unless(same(out, result(x)), "forward works in inference mode")
        again = remedy(model, world, kit=kit, run=run)
        broken.unless(same(out, again(x)), "the same seed gives the same result")
    with broken.case("it survives save and load"), _folder() as folder, torch.no_grad():
        name = save(result, folder / "a")
        back = load(folder / "a", base=model)
        broken.unless(same(result(x), back(x)), "outputs are the same after save and load")
        broken.unless(content_hash(back) == name, "the content hash is the same after save and load")
    for dtype in dtypes:
        with broken.case(f"it works in {dtype}"):
            typed = fork(model, own="*").to(dtype)
            made = remedy(typed, _cast(world, dtype), run=run)
            call: Any = made.observe if isinstance(made, Online) else made
            kinds = {leaf.dtype for leaf in leaves(call(_cast_tree(x, dtype))) if leaf.is_floating_point()}
            broken.unless(kinds <= {dtype}, f"outputs keep {dtype}; they are {kinds}")
    with broken.case("it refuses NaN weights"):
        spoilt = fork(model, own="*")
        with torch.no_grad():
            next(spoilt.parameters()).view(-1)[0] = float("nan")
        broken.refuses(lambda: remedy(spoilt, world, run=run), NonFiniteError, "weights with NaN are refused")
    if [need for need in declared if not need.startswith("model.") and not need.endswith("?")]:
        broken.refuses(lambda: remedy(model, World(), run=run), MissingPart, "a missing part of the world is refused")
    if isinstance(result, Online):
        _check_online(remedy, model, world, kit, broken, same)
    broken.report()


def _check_online(remedy: Remedy, model: nn.Module, world: World, kit: Any, broken: Broken, same: Any) -> None:
    run = Run(seed=1)
    data = world.target or world.source or next(iter(world.parts.values()))
    batches = [b.replace(y=None).to(device_of(model)) for b in data.batches(max(2, len(data) // 5))][:5]
    online = remedy(model, world, kit=kit, run=run)
    start, x = _state(online), batches[0].x
    with broken.case("it observes a stream, a batch of one and a short batch"):
        kept = map_tree(torch.clone, x)
        straight = [online.observe(b) for b in batches]
        broken.unless(same(kept, x), "observe leaves its inputs alone")
        online.observe(batches[0][:1])
        with torch.inference_mode():
            online.observe(batches[0][:3].map(torch.clone))
    broken.refuses(lambda: online.observe(batches[0][:0]), InputError, "an empty batch is refused")
    now = _state(online)
    spoilt = map_tree(lambda t: t * float("nan") if t.is_floating_point() else t, x)
    if not same(spoilt, x):
        broken.refuses(lambda: online.observe(spoilt), NonFiniteError, "inputs with NaN are refused")
        broken.unless(_state(online) == now, "refused inputs change nothing")
    with broken.case("it resets, restores and continues"):
        online.reset()
        broken.unless(_state(online) == start, "reset() goes back to the start exactly")
        first = [online.observe(b) for b in batches[:2]]
        saved = online.snapshot()
        with _folder() as folder:
            save(online, folder / "a")
            back: Any = load(folder / "a", base=model)
        rest = [online.observe(b) for b in batches[2:]]
        broken.unless(all(map(same, first + rest, straight)), "after reset() the stream gives the same outputs")
        broken.unless(
            all(map(same, [back.observe(b) for b in batches[2:]], rest)), "a saved and loaded model continues"
        )
        online.restore(saved)
        broken.unless(all(map(same, [online.observe(b) for b in batches[2:]], rest)), "restore() goes back exactly")


def check_probe(probe: Probe, model: nn.Module | None = None, world: World | None = None) -> None:
    """Check a probe's promises: it changes nothing, gives a sound Reading, repeats, does not depend on how data are
    batched (or ordered, if it says so), its kit survives save and load, and it declares what it reads.

    Raises:
        CheckFailed: lists every broken promise.
    """
    wants_model = bool(probe.reads & {"out", "features"})
    model, world, run = (model or small_network()) if wants_model else None, world or small_world(), Run(seed=1)
    broken, watch = Broken(type(probe).__name__), Watch(world)
    before = versions(model) if model is not None else {}
    state = _state(model) if model is not None else ""
    with broken.case("it can be measured"):
        reading = probe(model, watch.world, run=run)
    if broken.said:
        broken.report()
    broken.unless(isinstance(reading, Reading) and bool(reading.name), "it gives a Reading with a name")
    broken.unless(reading.value == reading.value, "its value is a number")
    if reading.interval is not None:
        broken.unless(reading.interval.low <= reading.interval.high, "its interval has its ends in order")
    if model is not None:
        broken.unless(versions(model) == before and _state(model) == state, "the model is untouched bit for bit")
    for text in watch.differences(probe.needs() | probe.prepares(), ignore=("held", "target")):
        broken.unless(False, text)
    with broken.case("it repeats"):
        kit = probe.kit(model, world, run=run)
        broken.unless(_near(probe(model, world, kit=kit, run=run), reading), "the same seed gives the same reading")
        kits = None if kit is None else {probe: kit}
        small = read([probe], model, world, kits=kits, batch=7, run=run)[0]
        broken.unless(_near(small, reading), "the reading does not depend on the size of batches")
        judged = world.held if world.held is not None else world.target
        if probe.permutable and judged is not None:
            mixed = judged.shuffle(torch.Generator().manual_seed(3))
            permuted = read([probe], model, world.replace(held=mixed), kits=kits, run=run)[0]
            broken.unless(_near(permuted, reading), "the reading does not depend on the order of samples")
        if kit is not None:
            with _folder() as folder:
                save(kit, folder / "kit")
                back = load(folder / "kit")
            broken.unless(_near(probe(model, world, kit=back, run=run), reading), "its kit survives save and load")
    if "y" in probe.reads:
        bare = World(**{n: d.unlabelled() for n in SPLITS if (d := getattr(world, n)) is not None}, task=world.task)
        broken.refuses(lambda: probe(model, bare, run=run), MissingPart, "data without labels are refused")
    broken.report()


def check_shift(shift: Shift, data: Data | None = None, model: nn.Module | None = None) -> None:
    """Check a shift's promises: the data given stay as they are; the result is the same for a seed, in any batches; it
    is finite; ids and labels fit; and severity 0, where there is a severity, changes nothing.

    Raises:
        CheckFailed: lists every broken promise.
    """
    given = data or small_world().source
    assert given is not None
    broken, run = Broken(type(shift).__name__), Run(seed=1)
    before = _batch_state(given.load())
    with broken.case("it can be applied"):
        shifted = shift(given, model=model, run=run)
        whole = shifted.load()
    if broken.said:
        broken.report()
    broken.unless(_batch_state(given.load()) == before, "the data given are unchanged")
    again = shift(given, model=model, run=run)
    broken.unless(_batch_state(again.load()) == _batch_state(whole), "the same seed gives the same data")
    broken.unless(again.fingerprint() == shifted.fingerprint(), "the same seed gives the same fingerprint")
    with broken.case("it does not depend on how it is read"):
        rows = list(range(0, len(shifted), 3))[::-1]
        part = shifted.fetch(torch.tensor(rows))
        broken.unless(_close(part.x, whole[rows].x), "a sample is the same in any batch and order")
        broken.unless(part.id.tolist() == whole.id[rows].tolist(), "ids follow the samples")
        late = next(shifted.batches(5, start=4))
        broken.unless(_close(late.x, whole[4:9].x), "batches from a later start are the same")
    finite = all(bool(torch.isfinite(leaf).all()) for leaf in leaves(whole.x) if leaf.is_floating_point())
    broken.unless(finite, "the result is finite")
    if (given.load().y is None) != (whole.y is None):
        broken.unless(False, "labels neither appear nor vanish")
    if "severity" in shift.fields():
        with broken.case("severity 0 can be applied"):
            none = shift.replace(severity=type(shift.fields()["severity"])(0))(given, model=model, run=run)
            broken.unless(_batch_state(none.load()) == before, "severity 0 changes nothing")
    broken.report()


def _equal(a: Tree, b: Tree) -> bool:
    return all(p.shape == q.shape and torch.equal(p, q) for p, q in zip(leaves(a), leaves(b), strict=True))


def _close(a: Tree, b: Tree) -> bool:
    pairs = zip(leaves(a), leaves(b), strict=True)
    return all(p.shape == q.shape and torch.allclose(p, q, rtol=1e-5, atol=1e-6, equal_nan=True) for p, q in pairs)


def _near(a: Reading, b: Reading) -> bool:
    return a.name == b.name and abs(a.value - b.value) <= 1e-5 * max(1.0, abs(b.value))


def _state(model: nn.Module) -> str:
    return hash_tensors({name: t.detach() for name, t in model.state_dict().items()})


def _batch_state(batch: Batch) -> str:
    named = {f"x{i}": leaf for i, leaf in enumerate(leaves(batch.x))} | {"id": batch.id}
    if batch.y is not None:
        named |= {f"y{i}": leaf for i, leaf in enumerate(leaves(batch.y))}
    return hash_tensors(named)


def _first_inputs(world: World) -> Tree:
    found = [d for n in ("target", "source", "calibration", "held") if (d := getattr(world, n)) is not None]
    return next((found or list(world.parts.values()))[0].batches(8)).x


def _cast_tree(tree: Tree, dtype: torch.dtype) -> Tree:
    return map_tree(lambda t: t.to(dtype) if t.is_floating_point() else t, tree)


def _cast(world: World, dtype: torch.dtype) -> World:
    def cast(data: Data) -> Data:
        batch = data.load()
        return Tensors(_cast_tree(batch.x, dtype), batch.y, batch.id, batch.meta)

    splits = {n: cast(d) for n in SPLITS if (d := getattr(world, n)) is not None}
    models = {n: fork(m, own="*").to(dtype) if isinstance(m, nn.Module) else m for n, m in world.models.items()}
    return world.replace(**splits, parts={n: cast(d) for n, d in world.parts.items()}, models=models)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
