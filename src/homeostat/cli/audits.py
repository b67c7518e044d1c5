"""The command `audit`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from homeostat.cli.printing import AsJson, Seed, lines, print_json, table


def audit(
    deployment: Annotated[Path, typer.Argument(
        help="A YAML file with a Deployment, or the store's folder.", show_default=False)],
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Check how a network in service is looked after: data, drift, calibration, robustness, rollback, and more.

    Nothing is written, and it works while another process serves. What cannot be checked is said to be so, and why.
    Ends with 1 when a check fails.
    """
    from homeostat.core.run import Run
    from homeostat.loop.checklist import audit_deployment

    made = audit_deployment(deployment, run=Run(seed=seed))
    if as_json:
        print_json({"failed": list(made.failed), "checks": [dataclasses.asdict(check) for check in made.checks]})
    else:
        rows = [dataclasses.asdict(check) | {"what was found": check.said} for check in made.checks]
        table(rows, ("practice", "name", "state", "what was found"), whole=("practice", "name", "state"))
        counts = [
            (state, sum(check.state == state for check in made.checks)) for state in ("pass", "fail", "not checked")
        ]
        lines([("in all", ", ".join(f"{count} {state}" for state, count in counts))])
    if made.failed:
        raise typer.Exit(1)
