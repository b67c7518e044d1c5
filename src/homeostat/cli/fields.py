"""Subcommands made from the register: one for each remedy or shift, with its fields as options.

A subcommand is made when it is used. Help, and the shell's completion of names, read the outline of the source files
and import no method.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

Body = Callable[..., None]


class Registered(TyperGroup):
    """A group of commands with a subcommand for each registered class of a kind, or for a Spec as text."""

    kind = ""
    body: Body | None = None

    def list_commands(self, ctx: Any) -> list[str]:
        """Names, read from the source files."""
        from homeostat.core.outline import outline

        return [entry.name for entry in outline(self.kind)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A subcommand as help lists it, without its options."""
        from homeostat.core.outline import outline

        entry = next((entry for entry in outline(self.kind) if entry.name == cmd_name), None)
        return None if entry is None else _command(cmd_name, entry.does, lambda: None)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The subcommand that is used, with its options."""
        from homeostat.core.errors import HomeostatError

        if args[0].startswith("-"):
            ctx.fail(f"no option {args[0]} comes before the {self.kind.lower()}'s name")
        try:
            return args[0], self._made(args[0]), args[1:]
        except HomeostatError:
            if ctx.resilient_parsing:  # a shell completes what is not whole yet
                return None, None, args[1:]
            raise

    def _made(self, text: str) -> Any:
        from homeostat.core.errors import SpecError, UnknownName, nearest
        from homeostat.core.outline import outline
        from homeostat.core.spec import find
        from homeostat.core.spectext import parse_spec

        known = {entry.name: entry for entry in outline()}
        if re.fullmatch(r"\w+", text):
            if text in known and self.kind not in known[text].bases:
                kinds = [kind for kind in ("Remedy", "Shift", "Probe") if kind in known[text].bases]
                raise SpecError(
                    f"{text} is a {kinds[0] if kinds else known[text].bases[0]}, and a {self.kind} is wanted"
                )
            fitting = [name for name, entry in known.items() if self.kind in entry.bases]
            if text not in fitting:
                hint = nearest(text, fitting)
                what = self.kind.lower()
                raise UnknownName(f"no {what} is called {text!r}.{hint} All of them: homeostat list {what}")
            cls, written = find(text), None
        else:
            written = parse_spec(text, find(self.kind) if self.kind in known else _base(self.kind))
            cls = type(written)
        assert self.body is not None
        return _with_options(cls, written, self.kind, type(self).body)  # type: ignore[arg-type]


def _base(kind: str) -> type:
    from homeostat.core import method

    return getattr(method, kind)


def _command(name: str, does: str, function: Callable[..., None]) -> Any:
    app = typer.Typer(add_completion=False)
    app.command(name=name, help=does)(function)
    return typer.main.get_command(app)


def _with_options(cls: Any, written: Any, kind: str, body: Body) -> Any:
    """A command whose options are the body's own and the class's fields."""
    from homeostat.core.fieldtext import field_texts
    from homeostat.core.spec import field_hints

    texts = field_texts(cls)
    own = [parameter for name, parameter in inspect.signature(body, eval_str=True).parameters.items() if name != "made"]
    taken = {parameter.name for parameter in own}
    places, fields = {}, []
    for field, hint in field_hints(cls):
        place = f"its_{field.name}" if field.name in taken or f"as_{field.name}" in taken else field.name
        places[place] = field.name
        usual = getattr(written, field.name) if written is not None else field.default
        fields.append(_option(cls, place, field, hint, usual, texts.get(field.name, "")))

    def function(**given: Any) -> None:
        body(made=_read(cls, written, {places[name]: given.pop(name) for name in places}), **given)

    function.__signature__ = inspect.Signature([*own, *fields])  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *fields)}
    does = (cls.__doc__ or "").strip().partition("\n\n")[0]
    does = " ".join(does.split()) + f"\n\nMore: homeostat show {cls.__name__}"
    return _command(cls.__name__, does, function)


def _option(cls: Any, place: str, field: Any, hint: Any, usual: Any, text: str) -> inspect.Parameter:
    import dataclasses

    from homeostat.core.fieldtext import choices, in_words, kinds_within
    from homeostat.core.spec import options_of

    words = list(getattr(cls, "words", {}).get(field.name, ())) or choices(hint)
    kinds = [kind.__name__ for kind in kinds_within(hint)]
    is_flag = bool in options_of(hint) and len(options_of(hint)) == 1
    flag = f"--{place.replace('_', '-')}"
    must = usual is dataclasses.MISSING

    def completed(incomplete: str) -> list[str]:
        from homeostat.core.outline import outline

        found = words + [entry.name for kind in kinds for entry in outline(kind)]
        head, comma, last = incomplete.rpartition(",")
        return [f"{head}{comma}{word}" for word in found if word.startswith(last)]

    said: dict[str, Any] = {
        "help": (text[:1].upper() + text[1:]) if text else None, "show_default": False if must else in_short(usual),
        "rich_help_panel": f"Fields of {cls.__name__}",
    }  # fmt: skip
    if is_flag:
        option: Any = typer.Option(f"{flag}/--no-{flag[2:]}", **said)
    else:
        option = typer.Option(flag, metavar=in_words(hint), autocompletion=completed, **said)
    plain: Any = bool if is_flag else str
    annotation = Annotated[plain, option] if must else Annotated[plain | None, option]
    default = inspect.Parameter.empty if must else None
    return inspect.Parameter(place, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _read(cls: Any, written: Any, given: dict[str, Any]) -> Any:
    from homeostat.core.spectext import parse_field

    values = {
        name: parse_field(cls, name, value) if isinstance(value, str) else value
        for name, value in given.items() if value is not None
    }  # fmt: skip
    return cls(**values) if written is None else written.replace(**values)


def in_short(value: Any) -> str:
    """A value with only those fields that are not as usual, as it may be typed."""
    from homeostat.core.spec import Spec

    if isinstance(value, Spec):
        usual = {name: field.default for name, field in type(value).__dataclass_fields__.items()}
        said = [f"{name}={_written(item)}" for name, item in value.fields().items() if item != usual[name]]
        return type(value).__name__ + (f"({', '.join(said)})" if said else "")
    if isinstance(value, tuple):
        return ", ".join(in_short(item) for item in value) or "none at all"
    return (
        {None: "none", True: "true", False: "false"}.get(value, str(value))
        if isinstance(value, bool | None)
        else str(value)
    )


def _written(value: Any) -> str:
    from homeostat.core.spec import Spec

    if isinstance(value, tuple):
        return f"({', '.join(_written(item) for item in value)}{',' * (len(value) == 1)})"
    return in_short(value) if isinstance(value, Spec) else repr(value)
