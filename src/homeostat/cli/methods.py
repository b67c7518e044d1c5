"""Commands that look things up: `list`, `show`, `version`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from homeostat.cli.printing import AsJson, print_json, table

_KINDS = ("all", "remedy", "shift", "probe", "objective", "choose", "reader", "hook")


def list_(
    kind: Annotated[str, typer.Argument(
        help="remedy, shift, probe, objective, choose, reader, hook, or all; with --catalogue, of systems.",
        autocompletion=lambda incomplete: [word for word in _KINDS if word.startswith(incomplete)])] = "all",
    handles: Annotated[str | None, typer.Option(
        help="Only those for this kind of shift: covariate, label, concept, ...", show_default=False)] = None,
    needs: Annotated[str | None, typer.Option(
        help="Only those that need this: source, source.y, target, model.batchnorm, ...", show_default=False)] = None,
    without: Annotated[str | None, typer.Option(
        help="Only those that do not need this, also not to prepare.", show_default=False)] = None,
    catalogue: Annotated[bool, typer.Option(
        "--catalogue", help="The 320 published systems, and which of them run here.")] = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """List methods, shifts, probes and what else a file can name.

    Name, kind, catalogue id, kinds of shift that they are for, what they need.
    """
    if catalogue:
        _list_catalogue(kind, as_json)
        return
    methods = _methods()
    rows = [row for row in methods if kind in ("all", row["kind"])]
    if not rows:
        from homeostat.core.errors import UnknownName, nearest

        kinds = sorted({row["kind"] for row in methods})
        raise UnknownName(f"no methods are of kind {kind!r}.{nearest(kind, kinds)} Kinds: all, {', '.join(kinds)}")
    asked = {part for row in methods for word in row["asks"] for part in (word, word.partition(".")[0])}
    whole = [(row, row.pop("asks")) for row in rows]
    _check_word("--handles", handles, {word for row in methods for word in row["handles"].split(", ")})
    _check_word("--needs", needs, asked)
    _check_word("--without", without, asked)
    rows = [
        row for row, asks in whole
        if (handles is None or handles in row["handles"].split(", ")) and (needs is None or _asks(asks, needs))
        and (without is None or not _asks(asks, without))
    ]  # fmt: skip
    if as_json:
        print_json(rows)
        return
    table(rows, ("name", "kind", "id", "handles", "needs", "does"), whole=("name", "id"))


def _list_catalogue(kind: str, as_json: bool) -> None:
    """The systems of a stage or a kind, or all."""
    from homeostat.catalogue import systems
    from homeostat.core.errors import UnknownName, nearest

    every = systems().values()
    known = {"all", *(system.stage for system in every), *(system.kind for system in every)}
    if kind not in known:
        words = ", ".join(sorted(known))
        raise UnknownName(f"no system is of stage or kind {kind!r}.{nearest(kind, known)} There are {words}")
    rows = [
        {
            "id": system.id, "title": system.title, "stage": system.stage, "kind": system.kind, "status": system.status,
            "methods": [cls.__name__ for cls in system.methods()], "exact": list(system.exact()),
            "claims": [
                {"name": one.name, "verdict": one.verdict, "effect": one.effect, "interval": one.interval,
                 "says": one.statement.says}
                for one in system.claims()
            ], "does": system.does,
        }
        for system in every if kind in ("all", system.stage, system.kind)
    ]  # fmt: skip
    if as_json:
        print_json(rows)
        return
    told = [{**row, "methods": ", ".join(row["methods"])} for row in rows]
    table(told, ("id", "title", "stage", "kind", "status", "methods"), whole=("id", "status"))


def _check_word(option: str, word: str | None, known: set[str]) -> None:
    if word is not None and word not in known:
        from homeostat.core.errors import UnknownName, nearest

        words = sorted(known - {""})
        raise UnknownName(f"{option} {word}: no method says so.{nearest(word, words)} There are {', '.join(words)}")


def _asks(asks: list[str], word: str) -> bool:
    return any(need == word or need.startswith(f"{word}.") for need in asks)


def show(
    name: Annotated[str, typer.Argument(
        help="Of a method, layer or shift, such as EATA.", show_default=False,
        autocompletion=lambda incomplete: _names(incomplete))],
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Show one of them: what it does, its fields, its reference.

    Fields are hyper-parameters, with their defaults; what it needs and what it costs come last.
    """
    import dataclasses
    import inspect

    from homeostat.core import spec
    from homeostat.core.errors import UnknownName
    from homeostat.core.fieldtext import field_texts, in_words

    try:
        cls: Any = spec.find(name)
    except UnknownName as error:
        raise UnknownName(f"{error} All of them: homeostat list") from None
    module = inspect.getmodule(cls)
    about, doc = inspect.cleandoc((module and module.__doc__) or ""), inspect.cleandoc(cls.__doc__ or "")
    texts, card = field_texts(cls), getattr(cls, "card", None)
    fields = spec.field_hints(cls) if issubclass(cls, spec.Spec) and dataclasses.is_dataclass(cls) else ()
    if as_json:
        told = [
            {
                "name": field.name, "holds": in_words(hint), "text": texts.get(field.name, ""),
                "must": field.default is dataclasses.MISSING,
                "default": None if field.default is dataclasses.MISSING else spec.plain(field.default),
            }
            for field, hint in fields
        ]  # fmt: skip
        print_json({"name": name, "module": cls.__module__, "about": about, "doc": doc, "fields": told,
                    "card": None if card is None else _plain(card)})  # fmt: skip
        return
    typer.echo(f"{name}  ({cls.__module__})\n")
    typer.echo(about)
    typer.echo(f"\n{doc}")
    if fields:
        typer.echo("\nHyper-parameters:")
        said = " ".join(doc.split())
        for field, _ in fields:
            default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
            typer.echo(f"  {field.name}: {field.type}{default}")
            if (text := texts.get(field.name, "")) and text not in said:
                typer.echo(f"      {text}")
    if card is not None:
        needs = ", ".join(sorted(card.needs)) or "nothing"
        prepares = ", ".join(sorted(card.prepares)) or "nothing"
        typer.echo(f"\nNeeds {needs}; to prepare, {prepares}. Costs {card.passes:g} passes a sample.")


def version(as_json: AsJson = False) -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    if not as_json:
        typer.echo(installed("homeostat"))
        return
    import platform

    print_json({"homeostat": installed("homeostat"), "torch": installed("torch"), "python": platform.python_version()})


def _plain(card: Any) -> dict[str, Any]:
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in vars(card).items()}


def _names(incomplete: str) -> list[str]:
    from homeostat.core.outline import outline

    return [entry.name for entry in outline() if entry.name.startswith(incomplete)]


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
                "needs": ", ".join(needs), "does": does, "asks": _asked(card),
            })  # fmt: skip
    return rows


def _asked(card: Any) -> list[str]:
    return [] if card is None else sorted(need for need in card.needs | card.prepares if not need.endswith("?"))
