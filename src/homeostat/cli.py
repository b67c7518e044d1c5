"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from homeostat.core.run import Event

app = typer.Typer(
    name="homeostat", no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False,
    help="Keeps a trained neural network working when the world it meets changes.",
)  # fmt: skip

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where runs, the cache and the report go.")] = Path("runs/demo"),
    labels: Annotated[int, typer.Option(min=0, help="Labels a window that the loop is shown.")] = 0,
    plan: Annotated[Path | None, typer.Option(help="A YAML file with a Plan, to replace the loop's settings.")] = None,
    seed: Annotated[int, typer.Option(help="Of all randomness.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train a small network, let its stream shift, run the loop over it, write the report."""
    import torch

    from homeostat.core.configfile import read_spec
    from homeostat.core.run import Run
    from homeostat.loop.demo import demo as show
    from homeostat.loop.plan import Plan

    settings = Plan() if plan is None else read_spec(plan, Plan)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    with _Progress() as progress:
        shown = show(folder, labels=labels, plan=settings, run=Run(seed=seed, watch=progress))
    served, frozen = (_mean(shown.trace, name) for name in ("accuracy", "frozen"))
    if as_json:
        found = {"served": served, "frozen": frozen, "report": str(shown.report), "store": str(shown.store)}
        typer.echo(json.dumps(found))
        return
    typer.echo(f"data    {shown.data}")
    typer.echo(f"served  {served:.1%} right over the stream; the network left as it was: {frozen:.1%}")
    typer.echo(f"report  {shown.report}")


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help="remedy, shift, probe, objective, choose, or all.")] = "all",
    as_json: AsJson = False,
) -> None:
    """List methods: name, catalogue id, what kinds of shift they are for, what they need."""
    methods = _methods()
    rows = [row for row in methods if kind in ("all", row["kind"])]
    if not rows:
        from homeostat.core.errors import UnknownName, nearest

        kinds = sorted({row["kind"] for row in methods})
        raise UnknownName(f"no methods are of kind {kind!r}.{nearest(kind, kinds)} Kinds: all, {', '.join(kinds)}")
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    _table(rows, ("name", "kind", "id", "handles", "needs", "does"))


@app.command()
def show(name: Annotated[str, typer.Argument(help="Of a method, layer or shift, such as EATA.")]) -> None:
    """Show one method: what it does, its hyper-parameters with defaults, what it needs, the reference."""
    import dataclasses
    import inspect

    from homeostat.core import spec

    cls: Any = spec.find(name)
    module = inspect.getmodule(cls)
    typer.echo(f"{name}  ({cls.__module__})\n")
    typer.echo(inspect.cleandoc((module and module.__doc__) or ""))
    typer.echo(f"\n{inspect.cleandoc(cls.__doc__ or '')}")
    if dataclasses.is_dataclass(cls) and (fields := dataclasses.fields(cls)):
        typer.echo("\nHyper-parameters:")
        for field in fields:
            default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
            typer.echo(f"  {field.name}: {field.type}{default}")
    card = getattr(cls, "card", None)
    if card is not None:
        needs = ", ".join(sorted(card.needs)) or "nothing"
        prepares = ", ".join(sorted(card.prepares)) or "nothing"
        typer.echo(f"\nNeeds {needs}; to prepare, {prepares}. Costs {card.passes:g} passes a sample.")


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(installed("homeostat"))


def main() -> None:
    """Run a command; our own errors end it with exit code 2 and one message, an interrupt with 130."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from homeostat.core.errors import HomeostatError

        if not isinstance(error, HomeostatError):
            raise
        typer.secho(f"homeostat: {error}", err=True, fg=typer.colors.RED)
        sys.exit(2)


def _methods() -> list[dict[str, Any]]:
    from homeostat.core import spec
    from homeostat.core.method import Remedy, Shift
    from homeostat.core.probe import Probe
    from homeostat.core.trace import Choose
    from homeostat.fit.objective import Objective
    from homeostat.shift.text import TextShift

    kinds = {"remedy": Remedy, "shift": (Shift, TextShift), "probe": Probe, "objective": Objective, "choose": Choose}
    rows = []
    for kind, base in kinds.items():
        for cls in spec.registered(base):
            if getattr(cls, "__abstractmethods__", None):
                continue
            card = getattr(cls, "card", None)
            does = (cls.__doc__ or "").strip().partition("\n")[0].rstrip(".")
            handles, needs = (sorted(getattr(card, key)) if card else [] for key in ("handles", "needs"))
            rows.append({
                "name": cls.__name__, "kind": kind, "id": card.id if card else "", "handles": ", ".join(handles),
                "needs": ", ".join(needs), "does": does,
            })  # fmt: skip
    return rows


def _table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    # Not `Console.is_terminal`: a variable such as FORCE_COLOR must not change the format that a script reads.
    if not sys.stdout.isatty():
        for row in rows:
            typer.echo("\t".join(str(row[column]) for column in columns))
        return
    console = Console()
    table = Table(box=None, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column in ("name", "id"))
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    console.print(table)


def _mean(trace: Any, name: str) -> float:
    values = [reading.value for entry in trace for reading in entry.readings if reading.name == name]
    return sum(values) / len(values) if values else float("nan")


class _Progress:
    """A bar with the time left for each stage; nothing where output is not a terminal."""

    _words = {"train": "training", "window": "serving", "calibrate": "calibrating candidates"}  # noqa: RUF012

    def __enter__(self) -> _Progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=console, disable=not console.is_terminal)
        self._tasks: dict[str, Any] = {}
        self._bars.start()
        return self

    def __call__(self, event: Event) -> None:
        if event.name in ("commit", "rollback"):
            self._bars.console.print(
                f"window {event.step}: {event.name}, {event.values['served']} is served: {event.values['why']}"
            )
        elif event.total is not None:
            word = self._words.get(event.name, event.name)
            if event.name not in self._tasks:
                self._tasks[event.name] = self._bars.add_task(word, total=event.total)
            done = event.step + 1 if event.name == "train" else event.step
            self._bars.update(self._tasks[event.name], completed=done, total=event.total)

    def __exit__(self, *error: object) -> None:
        self._bars.stop()
