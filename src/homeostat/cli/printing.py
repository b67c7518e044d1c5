"""How commands print: tables for people, tabs and JSON for scripts, progress where somebody looks on."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from homeostat.core.run import Event

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Seed = Annotated[int, typer.Option(min=0, help="Of all randomness.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


def _usable(device: str | None) -> str | None:
    """The device; our error at once where it cannot be used, before anything is read or written."""
    if device is not None:
        from homeostat.core.place import check_device

        check_device(device, "--device")
    return device


Device = Annotated[
    str | None, typer.Option(help="Where to compute, such as cuda.", show_default="cpu", callback=_usable)
]


def print_json(value: Any) -> None:
    """Print a value as JSON; numbers that JSON has not become null."""
    typer.echo(json.dumps(_sound(value), indent=1))


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str], whole: Sequence[str] = ()) -> None:
    """Print rows: a table in a terminal, else tab-separated and without a head. Columns in `whole` are never broken."""
    # Not `Console.is_terminal`: a variable such as FORCE_COLOR must not change the format that a script reads.
    if not sys.stdout.isatty():
        for row in rows:
            typer.echo("\t".join(" ".join(str(row[column]).split()) for column in columns))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    made = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column, no_wrap=column in whole)
    for row in rows:
        made.add_row(*(escape(str(row[column])) for column in columns))
    Console().print(made)


def lines(said: Sequence[tuple[str, str]]) -> None:
    """Print name and text, a line each; names are set apart in a terminal."""
    if not sys.stdout.isatty():
        for name, text in said:
            typer.echo(f"{name}\t{text}")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    made = Table.grid(padding=(0, 2))
    made.add_column(no_wrap=True, style="bold")
    made.add_column()
    for name, text in said:
        made.add_row(name, escape(text))
    Console(highlight=False).print(made)


def paragraphs(said: Sequence[str], indent: str = "") -> None:
    """Print texts, broken between words at the terminal's width; in a file each is one line."""
    if not sys.stdout.isatty():
        for text in said:
            typer.echo(f"{indent}{text}")
        return
    import shutil
    import textwrap

    width = min(shutil.get_terminal_size().columns, 100)
    for text in said:
        typer.echo(textwrap.fill(text, width, initial_indent=indent, subsequent_indent=" " * len(indent)))


def size(count: int | float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:,.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:,.1f} {unit}"


def ago(seconds: int | float) -> str:
    """A length of time for people."""
    for unit, each in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        if seconds >= 1.5 * each or unit == "second":
            count = max(0, round(seconds / each))
            return f"{count:,} {unit}{'s' * (count != 1)} ago"
    return ""


def near(path: str | Path) -> str:
    """A path as short as it can be typed from here."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def called(name: str) -> str:
    """A model's name for people."""
    return "the network as deployed" if name == "source" else name


def several(count: int, word: str, many: str = "") -> str:
    """A number with its noun."""
    return f"{count:,} {word if count == 1 else many or word + 's'}"


def _sound(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _sound(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_sound(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Progress:
    """A bar with the time left for each stage, and a line for each change; nothing where nobody looks on."""

    _words = {  # noqa: RUF012
        "train": "training", "window": "serving", "calibrate": "calibrating candidates", "probe": "probing",
        "answer": "answering", "write": "writing", "cell": "cells", "merge": "merging",
        "survey": "looking at tensors",
    }  # fmt: skip

    def __init__(self, doing: str = ""):
        """Args: doing: what goes on before the first stage is told, shown without an end."""
        self._doing = doing

    def __enter__(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.text import Text

        class Done(MofNCompleteColumn):
            """How many of how many, where that is known."""

            def render(self, task: Any) -> Text:
                return Text("") if task.total is None or "said" in task.fields else super().render(task)

        console = Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), Done(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=console, disable=not sys.stderr.isatty())
        self._tasks: dict[str, Any] = {}
        self._bars.start()
        if self._doing:
            self._tasks[""] = self._bars.add_task(self._doing, total=None)
        return self

    def __call__(self, event: Event) -> None:
        """Take what the loop tells."""
        if event.name in ("alarm", "commit", "rollback"):
            if sys.stderr.isatty():
                said = event.values.get("text") or event.values.get("why", "")
                who = f"{called(str(event.values['served']))} is served: " if "served" in event.values else ""
                self._bars.console.print(f"window {event.step}: {event.name}, {who}{said}", markup=False)
        elif event.total is not None:
            word = self._words.get(event.name, event.name)
            if "" in self._tasks:
                self._bars.remove_task(self._tasks.pop(""))
            if event.name not in self._tasks:
                self._tasks[event.name] = self._bars.add_task(word, total=event.total)
            done = event.step + 1 if event.name == "train" else event.step
            if event.name == "merge":  # told in bytes
                if "survey" in self._tasks:
                    self._bars.remove_task(self._tasks.pop("survey"))
                said = f"{word} {size(event.step)} of {size(event.total)}"
                self._bars.update(
                    self._tasks[event.name], completed=done, total=event.total, description=said, said=True
                )
            elif "fraction" in event.values:  # steps that take very different times
                said = f"{word} {event.step:,} of {event.total:,}"
                self._bars.update(
                    self._tasks[event.name], completed=event.values["fraction"], total=1.0, description=said, said=True
                )
            else:
                self._bars.update(self._tasks[event.name], completed=done, total=event.total)

    def overall(self, word: str, done: int, total: int) -> None:
        """How far a command has come with its stages; the bar of a stage that is over goes."""
        for name in [name for name in self._tasks if name != word]:
            self._bars.remove_task(self._tasks.pop(name))
        if word not in self._tasks:
            self._tasks[word] = self._bars.add_task(word, total=total)
        self._bars.update(self._tasks[word], completed=done, total=total)

    def __exit__(self, *error: object) -> None:
        self._bars.stop()
