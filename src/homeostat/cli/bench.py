"""The command that runs grids: `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from homeostat.cli.printing import AsJson, Progress, lines, near, print_json, several, table

if TYPE_CHECKING:
    from homeostat.bench.runner import Benched


def bench(
    suite: Annotated[
        str, typer.Argument(help="A suite that ships, or a YAML file with a Suite; without one they are listed.")
    ] = "",
    seeds: Annotated[int | None, typer.Option(min=1, help="How many.", show_default="the suite's")] = None,
    on: Annotated[str, typer.Option(help="Where cells are computed: here, processes or ray.")] = "processes",
    workers: Annotated[int, typer.Option(min=1, help="Cells at a time, on one thread each.")] = 2,
    address: Annotated[str, typer.Option(help="Of a Ray cluster, such as ray://head:10001; empty starts one.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder of results.", show_default="runs/bench/SUITE")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Compute cells that failed before once more.")] = False,
    reference: Annotated[str | None, typer.Option(help="Who others are held against.", show_default="Source")] = None,
    probe: Annotated[str | None, typer.Option(help="What the table is about.", show_default="the first")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a grid of networks, streams, remedies and protocols, and say what the numbers carry.

    Cells that are done are kept: the same command goes on where it stopped, and computes only what is missing or
    changed. It ends in a table, and in a report with pictures; and with 1 where cells failed.
    """
    from homeostat.bench.runner import bench as compute
    from homeostat.bench.suite import open_suite, shipped
    from homeostat.core.errors import UnknownName, nearest

    if not suite:
        _list(shipped(), as_json)
        return
    made = open_suite(suite)
    names = [name for name, _, _ in made.rivals()]
    if reference and reference not in names:
        raise UnknownName(f"no entrant is called {reference!r}.{nearest(reference, names)}")
    home = Path("runs/bench") / made.name if out is None else out
    try:
        with Progress("reading data") as progress:
            done = compute(
                made, home, on=on, count=workers, address=address, seeds=seeds, retry=retry, watch=progress,
            )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo(f"\ninterrupted; what is done is in {near(home)}; the same command goes on", err=True)
        raise typer.Exit(130) from None
    _said(done, home, reference, probe, as_json)


def _list(known: dict[str, Path], as_json: bool) -> None:
    from homeostat.bench.suite import Suite
    from homeostat.core.configfile import read_spec

    rows = []
    for name, path in known.items():
        made = read_spec(path, Suite)
        rows.append({"suite": name, "seeds": made.seeds, "about": made.about})
    if as_json:
        print_json(rows)
    else:
        table(rows, ("suite", "seeds", "about"), whole=("suite",))


def _said(done: Benched, home: Path, reference: str | None, probe: str | None, as_json: bool) -> None:
    from homeostat.bench.page import write_page
    from homeostat.bench.summary import summarize
    from homeostat.cli import grids

    suite = done.suite
    held = suite.reference if reference is None else reference
    if reference is None and held not in [name for name, _, _ in suite.rivals()]:
        held = ""
    tuning = [stream.name for stream in suite.streams if stream.tuning]
    summary = summarize(done.results, reference=held, probe=probe, tune=tuning, unlabelled=suite.unlabelled)
    protocols = {one.called(): first_sentence(type(one)) for one in suite.protocols}
    about = {"About": suite.about} if suite.about else {}
    page = write_page(
        home / "report.html", done.results, summary, title=suite.name, about=about, protocols=protocols,
    )  # fmt: skip
    if as_json:
        counts = {"computed": done.computed, "kept": done.kept, "cells_failed": done.failed}
        print_json({**grids.as_json(summary), **counts, "results": str(done.path), "report": str(page)})
    else:
        grids.show(summary)
        typer.echo()
        cells = f"{several(done.computed, 'cell')} computed, {done.kept:,} kept, {done.failed:,} failed"
        lines([("cells", cells), ("results", near(done.path)), ("report", near(page))])
    if done.failed:
        typer.echo("failed cells are in the report with their errors; --retry computes them once more", err=True)
        raise typer.Exit(1)


def first_sentence(kind: type) -> str:
    """The first sentence of a class's documentation."""
    import inspect

    return (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
