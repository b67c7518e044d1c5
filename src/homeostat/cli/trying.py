"""Commands that compute: `probe`, `apply`, `shift`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from homeostat.cli.fields import Registered, in_short
from homeostat.cli.printing import AsJson, Device, Force, Progress, Seed, lines, near, print_json, several, size, table

_DATA = (
    "An .npz file, a folder of class folders, a folder that save_to_disk wrote, a YAML file (FILE:before names a "
    "field), or a reader such as 'Digits(stop=900)'."
)
_MODEL = "A checkpoint's folder, a store, a YAML file with a Network or Deployment, or a Network as text."
AModel = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL, show_default=False)]
SomeData = Annotated[str, typer.Argument(metavar="DATA", help=_DATA, show_default=False)]
Before = Annotated[str | None, typer.Option(metavar="DATA", help="Labelled data from before.", show_default=False)]


def probe(
    model: AModel,
    data: SomeData,
    before: Before = None,
    probes: Annotated[list[str] | None, typer.Option(
        "--probe", metavar="SPEC", help="Such as 'MMD(window=200)'; may be given again.",
        show_default="all that fit", autocompletion=lambda incomplete: _names("Probe", incomplete))] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples a forward pass.")] = 256,
    seed: Seed = 0,
    device: Device = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Read a network on data: accuracy, confidence, calibration, shift from what came before.

    Without --probe, all probes that fit what is there; the others are named with what they lack.
    """
    from homeostat.core.probe import Probe
    from homeostat.core.run import Run
    from homeostat.core.spectext import parse_spec
    from homeostat.core.world import World
    from homeostat.loop.sources import open_data
    from homeostat.probe.surveying import survey

    wanted = [parse_spec(text, Probe) for text in probes] if probes else None
    with Progress("reading") as progress:
        run = Run(seed=seed, device=device, watch=progress)
        found, past = open_data(data), None if before is None else open_data(before, "before", "--before")
        world = World(source=past, calibration=past, target=found, held=found)
        net = _network(model, run, wanted)
        _check_parts(wanted or (), world)
        seen = survey(net, world, wanted, batch=batch, run=run)
    if as_json:
        rows = [{"probe": type(one).__name__, **reading.as_dict()} for one, reading in seen.readings.items()]
        print_json({"samples": len(found), "readings": rows, "left": dict(seen.left)})
        return
    rows = [
        {
            "probe": in_short(one), "value": _number(reading), "95%": _interval(reading), "of": reading.unit,
            "finding": reading.finding.text if reading.finding else "",
        }
        for one, reading in seen.readings.items()
    ]  # fmt: skip
    rows += [
        {"probe": n, "value": "", "95%": "", "of": "", "finding": f"left out: {why}"} for n, why in seen.left.items()
    ]
    table(rows, ("probe", "value", "95%", "of", "finding"), whole=("value", "95%"))


def apply(
    made: Any,
    model: AModel,
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint that is written.", show_default=False)],
    before: Before = None,
    target: Annotated[str | None, typer.Option(
        metavar="DATA", help="Data from now; labels, where there are any, judge.", show_default=False)] = None,
    others: Annotated[list[str] | None, typer.Option(
        "--with", metavar="MODEL", help="Another network, for merges; may be given again.", show_default=False)] = None,
    observe: Annotated[bool, typer.Option(
        help="Let a result that adapts while it serves observe the target once.")] = True,
    window: Annotated[int, typer.Option(min=1, help="Samples that it observes at a time.")] = 100,
    seed: Seed = 0,
    device: Device = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Apply a remedy to a network and save the result."""
    from homeostat.core.applied import applied
    from homeostat.core.run import Run
    from homeostat.core.save import save
    from homeostat.core.world import World
    from homeostat.loop.sources import open_data, open_model

    name = type(made).__name__
    _free(out, force)
    with Progress(f"applying {name}") as progress:
        run = Run(seed=seed, device=device, watch=progress)
        past = None if before is None else open_data(before, "before", "--before")
        now = None if target is None else open_data(target, "stream", "--target")
        donors = {f"other {number}": open_model(text, run=run) for number, text in enumerate(others or (), 1)}
        world = World(source=past, calibration=past, target=now, models=donors)
        _check_parts([made], world)
        result = applied(made, _network(model, run), world, observe=observe, window=window, run=run)
        hashed = save(result.model, out)
    if as_json:
        print_json({
            "remedy": made.to_config(), "out": str(out), "hash": hashed, "changed": result.changed,
            "added": result.added, "moved": result.moved, "removed": result.removed, "numbers": result.numbers,
            "of": result.of, "state": result.state, "online": result.online, "samples": result.samples,
            "before": result.before, "after": result.after,
        })  # fmt: skip
        return
    said = [("remedy", in_short(made)), ("changed", _changed(result))]
    for word, names in (("tensors", result.changed), ("new", result.added), ("gone", result.removed)):
        said += [(word, _few(names))] * bool(names)
    if result.online:
        saw = f"; it has observed {several(result.samples, 'sample')}" if result.samples and observe else ""
        said.append(
            ("adapts", f"while it serves{saw}, and keeps {several(result.state, 'number')} besides its weights")
        )
    if result.before is not None and result.after is not None:
        said.append(("right", f"{result.before:.1%} before, {result.after:.1%} after, of the target's known labels"))
    elif now is not None:
        said.append(("right", "not known: the target has no labels, or the outputs are no classes"))
    said.append(("saved", near(out)))
    if result.online:
        how = f"there it is a remedy, {in_short(made)}, and the model is the plain network"
        said.append(("note", f"a deployment's model does not adapt by itself: {how}"))
    lines(said)


def shift(
    made: Any,
    data: SomeData,
    out: Annotated[Path, typer.Option(help="The .npz file that is written.", show_default=False)],
    model: Annotated[str | None, typer.Option(
        metavar="MODEL", help="For shifts that look at a network, such as attacks.", show_default=False)] = None,
    seed: Seed = 0,
    device: Device = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Apply a shift to data and write the result."""
    from homeostat.core.run import Run
    from homeostat.data.archives import write_npz
    from homeostat.loop.sources import open_data

    _free(out, force)
    with Progress(f"applying {type(made).__name__}") as progress:
        run = Run(seed=seed, device=device, watch=progress)
        net = None if model is None else _network(model, run)
        shifted = made(open_data(data), model=net, run=run)
        write_npz(shifted, out, run=run)
    first: Any = shifted.fetch(_first())
    shape, labels = tuple(first.x.shape[1:]), first.y is not None
    if as_json:
        print_json({
            "shift": made.to_config(), "out": str(out), "samples": len(shifted), "shape": shape, "labels": labels,
            "bytes": out.stat().st_size,
        })  # fmt: skip
        return
    what = f"{several(len(shifted), 'sample')} of shape {shape}, {'with' if labels else 'without'} labels"
    lines([("shift", in_short(made)), ("written", f"{what}, {size(out.stat().st_size)}"), ("file", near(out))])


class Remedies(Registered):
    """`homeostat apply REMEDY`."""

    kind, body = "Remedy", apply


class Shifts(Registered):
    """`homeostat shift SHIFT`."""

    kind, body = "Shift", shift


def _names(kind: str, incomplete: str) -> list[str]:
    from homeostat.core.outline import outline

    return [entry.name for entry in outline(kind) if entry.name.startswith(incomplete)]


def _network(text: str, run: Any, probes: Any = None) -> Any:
    """The network, on the device that was asked for."""
    from homeostat.core.place import placed
    from homeostat.loop.sources import open_model

    return placed(open_model(text, run=run), run.device)


def _check_parts(methods: Any, world: Any) -> None:
    """Raise our error, in the words of the command line, where a method needs what was not given."""
    from homeostat.core.errors import MissingPart

    options = {
        "source": "data from before (--before DATA)", "calibration": "data from before (--before DATA)",
        "target": "data from now (--target DATA)", "models": "another network (--with MODEL)",
    }  # fmt: skip
    for method in methods:
        needs = {need for need in method.needs() | method.prepares() if not need.startswith("model.")}
        missing = []
        for need in sorted(needs):
            try:
                world.check({need}, "")
            except MissingPart:
                head, _, leaf = need.partition(".")
                word = options.get(head, f"{need}, which only Python can give")
                has = head in ("source", "calibration", "target") and getattr(world, head) is not None
                missing.append(f"labelled {word}" if leaf == "y" or has else word)
        judged = world.held if world.held is not None else world.target
        if "y" in getattr(method, "reads", ()) and judged is not None and not judged.has_labels():
            missing.append("labels, and the data have none")
        if missing:
            kept = [word for word in dict.fromkeys(missing) if f"labelled {word}" not in missing]
            raise MissingPart(f"{type(method).__name__} needs {' and '.join(kept)}")


def _free(out: Path, force: bool) -> None:
    from homeostat.core.errors import InputError

    if out.exists() and not force:
        raise InputError(f"{out} is there already; give another --out, or --force, which replaces it")


def _first() -> Any:
    import torch

    return torch.arange(1)


def _number(reading: Any) -> str:
    return f"{reading.value:.4g}"


def _interval(reading: Any) -> str:
    interval = reading.interval
    return "" if interval is None else f"{interval.low:.4g} to {interval.high:.4g}"


def _changed(result: Any) -> str:
    if not result.numbers:
        return f"no number of {result.of:,}" + ("; it is to adapt when it serves" if result.online else "")
    where = several(len(result.changed + result.added), "tensor")
    moved = several(len(result.moved), "tensor")
    kept = f"; {moved} as before, within what was put around them" if result.moved else ""
    return f"{several(result.numbers, 'number')} ({result.of:,} before), in {where}{kept}"


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more (--json has all)" if len(names) > 8 else "")
