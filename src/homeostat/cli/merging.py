"""The command `merge`: checkpoints on the disk into one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from homeostat.cli.printing import AsJson, Progress, Seed, lines, near, print_json, several, size

_ALIASES = {
    "linear": "Average", "task_arithmetic": "TaskArithmetic", "dare_linear": "DARE", "dare_ties": "DARE(elect=true)",
    "breadcrumbs_ties": "Breadcrumbs(elect=true)", "della_linear": "DELLA(elect=false)", "model_stock": "ModelStock",
}  # fmt: skip
"""What methods are called elsewhere."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def merge(
    paths: Annotated[list[str], typer.Argument(
        metavar="PLAN OUT | BASE DONOR...", show_default=False,
        help="A plan in YAML and where its result goes; with --method, the base and the donors: folders of safetensors "
        "files, such files, or what hs.save wrote.")],
    method: Annotated[str | None, typer.Option(
        metavar="SPEC", help="Such as ties, slerp, or 'TIES(density=0.3, scope=tensor)'.", show_default="the plan's",
        autocompletion=lambda incomplete: _names(incomplete))] = None,
    out: Annotated[Path | None, typer.Option(
        help="The folder that is written, or a file that ends in .safetensors.", show_default=False)] = None,
    density: Annotated[str | None, typer.Option(
        metavar="NUMBERS", help="Share of changes kept: one, or one for each donor.",
        show_default="the method's")] = None,
    weight: Annotated[str | None, typer.Option(
        metavar="NUMBERS", help="Of the donors: one for all, or 0.5,0.3 in their order.",
        show_default="the method's")] = None,
    scale: Annotated[float | None, typer.Option(
        help="Of what is added to the base.", show_default="the method's")] = None,
    skip: Annotated[list[str] | None, typer.Option(
        metavar="GLOB", help="Tensors that stay the base's; may be given again.", show_default=False)] = None,
    ignore: Annotated[list[str] | None, typer.Option(
        metavar="GLOB", help="Tensors of donors that are left out; may be given again.", show_default=False)] = None,
    dtype: Annotated[str | None, typer.Option(
        help="To write: float32, bfloat16, float16 or float64.", show_default="the plan's, else the base's")] = None,
    shard_size: Annotated[str, typer.Option(help="Of a file, from which another one is begun.")] = "5GB",
    threads: Annotated[int, typer.Option(min=1, help="Tensors that are merged at a time.")] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, write nothing, say what it takes.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the checkpoint that is there.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on with the same merge where one was stopped.")] = True,
    sync: Annotated[bool, typer.Option(help="Wait for the disk before the result gets its name.")] = True,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Merge checkpoints of any size, in little memory.

    By a plan in mergekit's words: homeostat merge plan.yaml OUT. Or by a method: homeostat merge --method ties BASE
    DONOR DONOR --out OUT. What does not fit is told before anything is written; a merge that was stopped goes on.
    """
    from homeostat.core.errors import InputError
    from homeostat.core.run import Run
    from homeostat.merge.checkpoints import merge_checkpoints
    from homeostat.merge.plans import merge_plan

    settings = {
        "density": _numbers("density", density), "weights": _numbers("weight", weight), "scale": scale,
        "skip": tuple(skip or ()) or None,
    }  # fmt: skip
    given = {name: value for name, value in settings.items() if value is not None}
    options: dict[str, Any] = {
        "dtype": dtype, "ignore": tuple(ignore or ()), "shard": _bytes(shard_size), "threads": threads,
        "overwrite": overwrite, "resume": resume, "sync": sync, "dry_run": dry_run,
    }  # fmt: skip
    if method is None:
        if given:
            names = ", ".join(f"--{'weight' if name == 'weights' else name}" for name in given)
            raise InputError(f"{names} belong to a --method; a plan has its own settings")
        plan, place = _plan_and_out(paths, out)
        with Progress("looking") as progress:
            report = merge_plan(plan, place, **options, run=Run(seed=seed, watch=progress))
    else:
        made = _method(method, given)
        if out is None:
            raise InputError("--out says where the result goes; give it")
        if len(paths) < 2:
            raise InputError(
                "a merge takes the base and one donor or more: homeostat merge --method ties BASE DONOR..."
            )
        with Progress("looking") as progress:
            run = Run(seed=seed, watch=progress)
            report = merge_checkpoints(made, paths[0], paths[1:], out, **options, run=run)
    if as_json:
        print_json(report.as_dict())
        return
    lines(_told(report))


def _plan_and_out(paths: list[str], out: Path | None) -> tuple[str, Path]:
    from homeostat.core.errors import InputError

    found = [*paths, *([str(out)] if out else [])]
    if len(found) != 2:
        raise InputError(
            f"a plan and where its result goes are wanted, and {several(len(found), 'path')} given; to merge without a "
            "plan, name the --method"
        )
    return found[0], Path(found[1])


def _method(text: str, given: dict[str, Any]) -> Any:
    """A merging method as it is written here or elsewhere, with the settings given."""
    from homeostat.core.errors import SpecError, UnknownName, nearest
    from homeostat.core.spec import registered
    from homeostat.core.spectext import parse_spec
    from homeostat.merge.merging import Merge

    plain = {kind.__name__.lower(): kind.__name__ for kind in registered(Merge)}
    word = text.strip().lower()
    found = _ALIASES.get(word.replace("-", "_")) or plain.get(word.replace("_", "").replace("-", ""))
    if found is None and word.replace("_", "").replace("-", "").isalnum():
        known = sorted({*_ALIASES, *plain})
        raise UnknownName(f"no merging method is called {text!r}.{nearest(word, known)} There are {', '.join(known)}")
    made = parse_spec(found or text, Merge)
    for name in given:
        if name not in made.fields():
            option = "weight" if name == "weights" else name
            raise SpecError(f"{type(made).__name__} has no {name}; leave out --{option}")
    return made.replace(**given)


def _numbers(option: str, text: str | None) -> float | tuple[float, ...] | None:
    from homeostat.core.errors import SpecError

    if text is None:
        return None
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        raise SpecError(f"--{option} {text} is no number and no list of them; write 0.5 or 0.5,0.3") from None
    return tuple(found) if len(found) > 1 else found[0]


def _bytes(text: str) -> int:
    from homeostat.core.errors import SpecError

    number = text.strip().rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    unit = text.strip()[len(number) :].upper()
    try:
        found = int(float(number) * _UNITS[unit])
    except (KeyError, ValueError):
        found = 0
    if found < 1:
        raise SpecError(f"--shard-size {text} is no size; write 5GB or 500MB")
    return found


def _told(report: Any) -> list[tuple[str, str]]:
    would = "would be " if report.dry else ""
    methods = list(report.methods.items())
    said = [("method", f"{text}, {several(count, 'tensor')}") for text, count in methods[:3]]
    if len(methods) > 3:
        said.append(("method", f"and {len(methods) - 3} more with other settings (--json has all)"))
    copied = f", {report.copied} as in the base" if report.copied else ""
    said.append(("tensors", f"{report.merged} merged{copied}; {several(report.numbers, 'number')}"))
    said += [("note", note) for note in report.notes]
    said.append(("bytes", f"{size(report.read)} {would}read, {size(report.written)} {would}written"))
    if report.dry:
        said.append(("memory", f"about {size(report.memory)} beside the program itself"))
        return [*said, ("dry run", "all fits; nothing was written")]
    if report.resumed:
        said.append(("resumed", f"{several(report.resumed, 'tensor')} were merged before"))
    rate = f", {size(report.written / report.seconds)} written a second" if report.seconds > 0.5 else ""
    said.append(("took", f"{report.seconds:.1f} s{rate}"))
    if report.peak is not None:
        said.append(("memory", f"{size(report.peak)} at most beside the program itself"))
    if (out := report.mean("outvoted")) is not None and (kept := report.mean("kept")) is not None:
        said.append(("signs", f"{kept:.1%} of changes kept, {out:.1%} of these outvoted (means over tensors)"))
    return [*said, ("saved", near(report.out))]


def _names(incomplete: str) -> list[str]:
    from homeostat.core.outline import outline

    return [entry.name for entry in outline("Merge") if entry.name.startswith(incomplete)]
