"""Commands on the catalogue: `advise`."""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated

import typer

from homeostat.cli.printing import AsJson, Progress, print_json, table


def advise(
    text: Annotated[list[str], typer.Argument(
        help='What has changed or is wanted, such as "my labels are imbalanced and the camera changed".',
        show_default=False)],
    labels: Annotated[bool | None, typer.Option(help="Labels of what comes now.", show_default=False)] = None,
    source: Annotated[bool | None, typer.Option(help="Data from before.", show_default=False)] = None,
    batchnorm: Annotated[bool | None, typer.Option(help="The network has BatchNorm.", show_default=False)] = None,
    passes: Annotated[float | None, typer.Option(
        min=0, help="Forward passes a sample that may be spent.", show_default=False)] = None,
    top: Annotated[int, typer.Option(min=1, help="Entries to name.")] = 8,
    by: Annotated[str | None, typer.Option(
        help="meaning or terms.", show_default="meaning where homeostat[text] is installed")] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Name what in the catalogue may be of use, and say why.

    All 320 published systems are ranked, and the baselines; what needs something that you do not have goes down.
    """
    from homeostat.catalogue import Situation, advise as ask
    from homeostat.core.run import Run

    with Progress("reading the catalogue") as progress:
        situation = Situation(labels, source, batchnorm, passes)
        found = ask(" ".join(text), situation, top=top, by=by, run=Run(watch=progress))
    if as_json:
        print_json([dataclasses.asdict(advice) for advice in found])
        return
    if not found:
        typer.echo("nothing in the catalogue shares a word with that; say it in other words", err=True)
        return
    rows = [
        {"name": advice.name, "kind": advice.kind, "id": advice.id, "stage": advice.stage, "does": advice.does,
         "why": "; ".join(advice.why)}
        for advice in found
    ]  # fmt: skip
    table(rows, ("name", "kind", "id", "stage", "does", "why"), whole=("id",))
    if sys.stdout.isatty() and (first := next((advice for advice in found if advice.runs), None)):
        typer.echo(f"\nMore: homeostat show {first.name}")
