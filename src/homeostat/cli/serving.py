"""Commands that serve: `demo`, `run`, `resume`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from homeostat.cli.printing import AsJson, Device, Progress, Seed, called, lines, near, print_json, several

if TYPE_CHECKING:
    from homeostat.loop.deployment import Deployment

AStore = Annotated[Path, typer.Argument(help="The store's folder.", show_default=False)]


def demo(
    folder: Annotated[Path, typer.Option(help="Where runs, the cache and the report go.")] = Path("runs/demo"),
    labels: Annotated[int, typer.Option(min=0, help="Labels a window that the loop is shown.")] = 0,
    plan: Annotated[Path | None, typer.Option(help="A YAML file with a Plan, to replace the loop's settings.")] = None,
    seed: Seed = 0,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Show it all once: a network is trained, its stream shifts, the loop keeps it working.

    The report says what happened, and why.
    """
    from homeostat.core.configfile import read_spec
    from homeostat.core.run import Run
    from homeostat.loop.demo import demo as show
    from homeostat.loop.plan import Plan

    settings = Plan() if plan is None else read_spec(plan, Plan)
    _few_threads()
    with Progress() as progress:
        shown = show(folder, labels=labels, plan=settings, run=Run(seed=seed, device=device, watch=progress))
    served, frozen = (_mean(shown.trace, name) for name in ("accuracy", "frozen"))
    if as_json:
        print_json({"served": served, "frozen": frozen, "report": str(shown.report), "store": str(shown.store)})
        return
    typer.echo(f"data    {shown.data}")
    typer.echo(f"served  {served:.1%} right over the stream; the network left as it was: {frozen:.1%}")
    typer.echo(f"report  {shown.report}")


def run(
    file: Annotated[Path, typer.Argument(help="A YAML file with a Deployment.", show_default=False)],
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew; a store that is there is set aside.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Of all randomness.", show_default="the file's")] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Serve a stream and look after the network, as a YAML file says.

    A run that stopped goes on where it stopped. At the end of the stream the report is written.
    """
    from homeostat.loop.deployment import read_deployment

    deployment = read_deployment(file)
    _serve(deployment if seed is None else deployment.replace(seed=seed), fresh, device, as_json)


def resume(store: AStore, device: Device = None, as_json: AsJson = False) -> None:
    """Go on where a run stopped.

    The store keeps the deployment; the file that it came from is not needed. It may go on on another device.
    """
    from homeostat.loop.deployment import kept_deployment

    _serve(kept_deployment(store), False, device, as_json)


def _serve(deployment: Deployment, fresh: bool, device: str | None, as_json: bool) -> None:
    from homeostat.loop.serving import serve

    _few_threads()
    try:
        with Progress() as progress:
            served = serve(deployment, watch=progress, fresh=fresh, device=device)
    except KeyboardInterrupt:
        typer.echo(f"\ninterrupted; to go on: homeostat resume {near(deployment.store)}", err=True)
        raise typer.Exit(130) from None
    state = served.status
    if as_json:
        print_json({
            "store": state.store, "report": str(served.report), "windows": served.windows, "of": state.of,
            "accuracy": served.accuracy, "frozen": served.frozen, "served": state.served, "alarms": state.alarms,
            "commits": state.commits, "rollbacks": state.rollbacks, "alerts": served.alerts,
        })  # fmt: skip
        return
    said = []
    if not served.windows:
        what = "the stream is at its end and nothing was left to do; --fresh begins anew"
        said.append(("done", f"{several(state.windows, 'window')} were served before: {what}"))
    if served.accuracy is not None and served.frozen is not None:
        said.append(("right", f"{served.accuracy:.1%} as served; the network left as it was: {served.frozen:.1%}"))
    else:
        said.append(("right", "not known: the stream has no labels"))
    since = f"since window {state.since}" if state.since else "as from the beginning"
    said.append(("serves", f"{called(state.served)}, {since}"))
    said.append(("happened", happened(dataclasses.asdict(state))))
    said += [("store", near(state.store)), ("report", near(served.report))]
    said += [("alerts", served.alerts)] * bool(served.alerts)
    lines(said)


def happened(state: dict[str, Any]) -> str:
    """What a store has gone through, in numbers."""
    words = (("alarms", "alarm"), ("commits", "commit"), ("rollbacks", "rollback"))
    said = [several(state[key], word) for key, word in words]
    return ", ".join([*said, several(state["unchanged"], "trial") + " without a change"])


def _few_threads() -> None:
    import torch

    torch.set_num_threads(min(2, torch.get_num_threads()))


def _mean(trace: Any, name: str) -> float:
    values = [reading.value for entry in trace for reading in entry.readings if reading.name == name]
    return sum(values) / len(values) if values else float("nan")
