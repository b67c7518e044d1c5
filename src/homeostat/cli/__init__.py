"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys

import typer

from homeostat.cli import catalogue, methods, records, serving

app = typer.Typer(
    name="homeostat", no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False,
    help="Keeps a trained neural network working when the world it meets changes.",
    epilog="Ends with 0 when all is well, 2 when something is wrong that you can put right, 130 when interrupted.",
)  # fmt: skip

app.command()(serving.demo)
app.command()(serving.run)
app.command()(serving.resume)
app.command()(records.status)
app.command()(records.history)
app.command()(records.why)
app.command()(records.rollback)
app.command()(records.report)
app.command("list")(methods.list_)
app.command()(methods.show)
app.command()(catalogue.advise)
app.command()(methods.version)


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
