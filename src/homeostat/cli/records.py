"""Commands on a store: `status`, `history`, `why`, `rollback`, `report`."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from homeostat.cli.printing import AsJson, ago, called, lines, near, paragraphs, print_json, several, size, table
from homeostat.cli.serving import AStore, happened

if TYPE_CHECKING:
    from homeostat.loop.journal import Row


def status(
    store: AStore,
    prometheus: Annotated[bool, typer.Option("--prometheus", help="Print Prometheus' text format.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what is served, since when, and how things stand.

    Works while another process serves: nothing is locked and nothing is written.
    """
    if prometheus:
        from homeostat.integrate import prometheus as exposed

        typer.echo(exposed(store), nl=False)
        return
    from homeostat.loop.operate import status as look

    state = look(store)
    if as_json:
        print_json({**dataclasses.asdict(state), "finished": state.finished})
        return
    if state.phase == "new":
        lines([("store", near(store)), ("serves", "nothing was served yet")])
        return
    who = {None: "nobody serves from it now", 0: "a process serves from it now"}
    whole = "" if state.of is None else f" of {state.of:,}" + (", the end of the stream" if state.finished else "")
    said = [
        ("store", f"{near(store)}; {who.get(state.process, f'process {state.process} serves from it now')}"),
        ("serves", f"{called(state.served)}, "
                   + (f"since window {state.since:,}" if state.since else "as from the beginning")),
        ("windows", f"{state.windows:,}{whole}; last written {ago(time.time() - state.written)}"),
        ("happened", happened(dataclasses.asdict(state))),
        ("now", _phase(state)),
    ]  # fmt: skip
    if state.last_alarm is not None:
        said.append(("last alarm", f"window {state.last_alarm['step']:,}: {state.last_alarm.get('text', '')}"))
    if state.breach.get("count"):
        count, capital = several(state.breach["count"], "label"), state.breach.get("capital", 1.0)
        said.append(("against", f"evidence {capital:.3g} on {count} that the network as deployed is better now"))
    journal = "in its database" if state.journal_bytes is None else size(state.journal_bytes)
    if state.journal_bytes and state.windows:
        journal += f" ({size(state.journal_bytes / state.windows)} a window)"
    kept = f"{several(state.checkpoints, 'checkpoint')} {size(state.checkpoint_bytes)}"
    lines([*said, ("size", f"journal {journal}, {kept}")])


def history(
    store: AStore,
    kind: Annotated[list[str] | None, typer.Option(
        help="Only such rows; may be given again: start, alarm, propose, decision, commit, rollback, keep, window, "
        "snapshot.", show_default="all but window and snapshot")] = None,
    last: Annotated[int | None, typer.Option(min=1, help="Only the last so many rows.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """List what happened: alarms, trials, decisions, commits, rollbacks."""
    from homeostat.loop.operate import EVENTS, history as look, in_short

    rows = look(store, tuple(kind) if kind else EVENTS, last)
    if as_json:
        print_json([_plain(row) for row in rows])
        return
    told = [
        {"window": row.step, "time": _clock(row.time), "kind": row.kind, "what": in_short(row)} for row in rows
    ]  # fmt: skip
    table(told, ("window", "time", "kind", "what"), whole=("window", "time", "kind"))


def why(
    store: AStore,
    step: Annotated[int, typer.Argument(help="The window's number, from 0.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Say what led to what happened at a window.

    The alarm and its evidence, what was tried and what became of it, the decision, and in hindsight what followed.
    """
    from homeostat.loop.explain import why as ask

    told = ask(store, step)
    if as_json:
        print_json(dataclasses.asdict(told))
        return
    typer.secho(told.heading, bold=True)
    for text in told.before:
        paragraphs(["", text])
    for tried in told.tried:
        paragraphs([f"{tried['name']}: {tried['outcome']}. {tried['why']}"], indent="  - ")
    for text in told.after:
        paragraphs(["", text])


def rollback(
    store: AStore,
    to: Annotated[int | None, typer.Option(
        help="Window of an earlier commit or rollback: what it put in service comes back.",
        show_default="the network as deployed")] = None,
    why: Annotated[str, typer.Option(help="The reason, for the journal.", show_default=False)] = "",
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Put the network as deployed back in service, or an earlier one.

    Refused while another process serves. A trial in progress is dropped. The next resume serves what was put back.
    """
    from homeostat.loop.operate import rollback as undo

    row = undo(store, to, why)
    if as_json:
        print_json(_plain(row))
        return
    new, old = called(row.content["to"]), called(row.content["from"])
    typer.echo(f"From window {row.step + 1:,} on, {new} is served in place of {old}. The journal says so.")
    typer.echo(f"To go on: homeostat resume {near(store)}")


def report(
    store: AStore,
    out: Annotated[Path | None, typer.Option(help="The HTML file.", show_default="report.html in the store")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the report again, from the journal.

    Works while another process serves.
    """
    from homeostat.loop.serving import write_report

    path = write_report(store, out)
    if as_json:
        print_json({"report": str(path)})
    else:
        lines([("report", near(path))])


def _phase(state: Any) -> str:
    if state.phase != "trial":
        return "watching"
    seen = {one["name"]: one for one in state.trial["seen"]}
    said = []
    for name in state.trial["tried"]:
        one = seen.get(name, {})
        told = f"refused, {one['refused']}" if one.get("refused") else ""
        if one.get("count"):
            told = told or f"evidence {one.get('capital', 1.0):.3g} on {several(one['count'], 'label')}"
        said.append(called(name) + (f" ({told})" if told else ""))
    return f"a trial since window {state.trial['since']:,}: {', '.join(said)}"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _plain(row: Row) -> dict[str, Any]:
    return {"step": row.step, "kind": row.kind, "time": row.time, "checkpoint": row.checkpoint, "content": row.content}
