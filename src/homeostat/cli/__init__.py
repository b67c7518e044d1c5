"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys

import typer

from homeostat.cli import audits, bench, catalogue, claims, clouds, files, merging, methods, records, serving, trying

app = typer.Typer(
    name="homeostat", no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False,
    help="Keeps a trained neural network working when the world it meets changes.",
    epilog="Ends with 0 when all is well, 1 when a check of claims or an audit finds something wrong, 2 when something "
    "is wrong that you can put right, 130 when interrupted.",
)  # fmt: skip

_BEGIN, _SERVE, _TRY, _COMPARE, _LOOK = "Begin", "Serve", "Try", "Compare", "Look up"
app.command(rich_help_panel=_BEGIN)(serving.demo)
app.command(rich_help_panel=_BEGIN)(files.init)
app.command(rich_help_panel=_BEGIN)(files.convert)
app.command(rich_help_panel=_SERVE)(serving.run)
app.command(rich_help_panel=_SERVE)(serving.resume)
app.command(rich_help_panel=_SERVE)(records.status)
app.command(rich_help_panel=_SERVE)(records.history)
app.command(rich_help_panel=_SERVE)(records.why)
app.command(rich_help_panel=_SERVE)(records.rollback)
app.command(rich_help_panel=_SERVE)(records.report)
app.command(rich_help_panel=_SERVE)(audits.audit)
app.command(rich_help_panel=_SERVE)(clouds.cloud)
app.command(rich_help_panel=_TRY)(trying.probe)
app.add_typer(
    typer.Typer(cls=trying.Remedies, no_args_is_help=True), name="apply", rich_help_panel=_TRY,
    help="Apply a remedy to a network and save the result: homeostat apply EATA --help.",
)  # fmt: skip
app.add_typer(
    typer.Typer(cls=trying.Shifts, no_args_is_help=True), name="shift", rich_help_panel=_TRY,
    help="Apply a shift to data and write the result: homeostat shift Corrupt --help.",
)  # fmt: skip
app.command(rich_help_panel=_TRY)(merging.merge)
app.command(rich_help_panel=_COMPARE)(bench.bench)
app.add_typer(
    claims.app, name="claims", rich_help_panel=_COMPARE,
    help="What papers claim, run again in minutes: list, run, check.",
)  # fmt: skip
app.command("list", rich_help_panel=_LOOK)(methods.list_)
app.command(rich_help_panel=_LOOK)(methods.show)
app.command(rich_help_panel=_LOOK)(catalogue.advise)
app.command(rich_help_panel=_LOOK)(files.schema)
app.command(rich_help_panel=_LOOK)(methods.version)


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
