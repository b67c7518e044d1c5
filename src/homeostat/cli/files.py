"""Commands that write files to begin with: `init`, `convert`, `schema`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from homeostat.cli.printing import AsJson, Force, lines, near, print_json, several

_ASKED = {
    "model": "The network: a folder that hs.save wrote, a YAML file, or Network(layout=ResNet(20), weights='...')",
    "before": "Labelled data from before: an .npz file, a folder of class folders, or such as Digits(stop=900)",
    "stream": "What it is to answer: the same kinds",
}


def init(
    file: Annotated[Path, typer.Argument(help="The YAML file that is written.")] = Path("deployment.yaml"),
    model: Annotated[str | None, typer.Option(help=f"{_ASKED['model']}.", show_default="asked for")] = None,
    before: Annotated[str | None, typer.Option(help=f"{_ASKED['before']}.", show_default="asked for")] = None,
    stream: Annotated[str | None, typer.Option(help=f"{_ASKED['stream']}.", show_default="asked for")] = None,
    labels: Annotated[int | None, typer.Option(
        min=0, help="Random labels of each window of 100 that the loop is shown.",
        show_default="asked for, else 0")] = None,
    store: Annotated[str | None, typer.Option(
        help="Folder of the journal and the checkpoints.", show_default="asked for, else runs/NAME")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Write a deployment file, with comments, for your own network and data.

    What options leave open is asked for in a terminal.
    """
    from homeostat.core.errors import InputError

    given: dict[str, Any] = {"model": model, "before": before, "stream": stream}
    missing = [name for name, value in given.items() if value is None]
    if file.exists() and not force:
        raise InputError(f"{file} is there already; give another name, or --force, which replaces it")
    if missing and (as_json or not sys.stdin.isatty()):
        raise InputError(f"{', '.join(f'--{name}' for name in missing)} must be given where nobody can be asked")
    if missing:
        asked = {name: _ask(name) for name in missing}
        given |= asked
        labels = (
            typer.prompt("Labels of each window of 100 that come back", default=0, type=int)
            if labels is None
            else labels
        )
        store = (
            typer.prompt("Folder of journal and checkpoints", default=f"runs/{file.stem}") if store is None else store
        )
    from homeostat.loop.drafting import draft

    made = draft(file, **given, labels=labels or 0, store=store or "", force=force)
    if as_json:
        print_json({"file": str(made.path), "deployment": made.deployment.to_config(), "doubts": made.doubts})
        return
    said = [("written", near(made.path)), *(("to do", doubt) for doubt in made.doubts)]
    lines([*said, ("next", f"homeostat run {near(made.path)}")])


def convert(
    weights: Annotated[Path, typer.Argument(
        help="A safetensors file, a folder of shards, or a file that torch.save wrote.", show_default=False)],
    out: Annotated[Path, typer.Option(
        help="Folder of the checkpoint; without --layout, a file that ends in .safetensors.", show_default=False)],
    layout: Annotated[str | None, typer.Option(
        metavar="SPEC", help="Network of homeostat.nn that the weights belong to, such as 'ResNet(20, classes=5)'.",
        show_default=False)] = None,
    mean: Annotated[str | None, typer.Option(
        metavar="NUMBERS", help="Of the training images, one a channel: 0.485,0.456,0.406.",
        show_default=False)] = None,
    std: Annotated[str | None, typer.Option(metavar="NUMBERS", help="The same.", show_default=False)] = None,
    key: Annotated[str, typer.Option(help="Where in the file the weights are.", show_default="looked for")] = "",
    force: Force = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Make a checkpoint, or a safetensors file, of weights from elsewhere.

    Nothing in the file is run: one that needs that is refused. What was done, and what no file shows, is said.
    """
    from homeostat.core.convert import convert as make
    from homeostat.core.errors import SpecError
    from homeostat.loop.sources import open_layout
    from homeostat.nn.normalized import Normalized

    if (mean is None) != (std is None):
        raise SpecError("--mean and --std belong together; give both or neither")
    if mean is not None and layout is None:
        raise SpecError("--mean and --std belong to a network; give its --layout")
    net = None if layout is None else open_layout(layout)
    around: dict[str, Any] = {}
    if mean is not None and std is not None:
        middle, spread = _numbers("--mean", mean), _numbers("--std", std)
        around["around"] = lambda inner: Normalized(inner, middle, spread)
    made = make(weights, out, net, key=key, force=force, **around)
    if as_json:
        print_json({**dataclasses.asdict(made), "path": str(made.path)})
        return
    said = [("source", note) for note in made.notes] + [("unchecked", text) for text in made.unchecked]
    what = "a checkpoint" if net is not None else "safetensors"
    count = f"{several(made.tensors, 'tensor')}, {several(made.numbers, 'number')}"
    said.append(("written", f"{near(made.path)}: {what} of {count}"))
    if net is not None:
        said.append(("next", f"homeostat probe {near(made.path)} DATA"))
    lines(said)


def schema(
    name: Annotated[str, typer.Argument(
        help="Of a Spec or a base: Deployment, Plan, Remedy, EATA.", show_default="any",
        autocompletion=lambda incomplete: _specs(incomplete))] = "Spec",
    out: Annotated[Path | None, typer.Option(help="The file that is written.", show_default="printed")] = None,
) -> None:  # fmt: skip
    """Print the JSON schema of YAML files, with which an editor completes and checks them.

    The first line of a file points its editor at it: # yaml-language-server: $schema=homeostat.schema.json
    """
    import json

    from homeostat.core.errors import StoreError
    from homeostat.core.schema import schema as make

    text = json.dumps(make(name), indent=1) + "\n"
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
    except OSError as error:
        raise StoreError(f"{out} cannot be written: {error.strerror or error}") from None
    lines([("written", near(out)), ("use", f"# yaml-language-server: $schema={near(out)}")])


def _ask(name: str) -> str:
    """An answer that can be read, asked for until there is one."""
    from homeostat.core.errors import HomeostatError

    while True:
        answer = typer.prompt(_ASKED[name])
        try:
            if name != "model":
                from homeostat.data.sources import as_reader

                as_reader(answer, name, name)
            return answer
        except HomeostatError as error:
            typer.secho(f"  {error}", err=True, fg=typer.colors.RED)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    from homeostat.core.errors import SpecError

    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise SpecError(f"{option} {text} is no list of numbers; write 0.485,0.456,0.406") from None


def _specs(incomplete: str) -> list[str]:
    from homeostat.core.outline import outline

    return [entry.name for entry in outline("Spec") if entry.name.startswith(incomplete)]
