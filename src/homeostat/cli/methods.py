"""Commands that look things up: `list`, `show`, `version`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from homeostat.cli.printing import AsJson, print_json, table


def list_(
    kind: Annotated[str, typer.Argument(help="remedy, shift, probe, objective, choose, reader, hook, or all.")] = "all",
    as_json: AsJson = False,
) -> None:
    """List methods, shifts, probes and what else a file can name.

    Name, kind, catalogue id, kinds of shift that they are for, what they need.
    """
    methods = _methods()
    rows = [row for row in methods if kind in ("all", row["kind"])]
    if not rows:
        from homeostat.core.errors import UnknownName, nearest

        kinds = sorted({row["kind"] for row in methods})
        raise UnknownName(f"no methods are of kind {kind!r}.{nearest(kind, kinds)} Kinds: all, {', '.join(kinds)}")
    if as_json:
        print_json(rows)
        return
    table(rows, ("name", "kind", "id", "handles", "needs", "does"), whole=("name", "id"))


def show(name: Annotated[str, typer.Argument(help="Of a method, layer or shift, such as EATA.")]) -> None:
    """Show one of them: what it does, its fields, its reference.

    Fields are hyper-parameters, with their defaults; what it needs and what it costs come last.
    """
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


def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(installed("homeostat"))


def _methods() -> list[dict[str, Any]]:
    from homeostat.core import spec
    from homeostat.core.method import Remedy, Shift
    from homeostat.core.probe import Probe
    from homeostat.core.trace import Choose
    from homeostat.data.reader import Reader
    from homeostat.fit.objective import Objective
    from homeostat.loop.alerts import Hook

    kinds = {
        "remedy": Remedy, "shift": Shift, "probe": Probe, "objective": Objective, "choose": Choose, "reader": Reader,
        "hook": Hook,
    }  # fmt: skip
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
