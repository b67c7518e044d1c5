"""What fields mean, in the words of their class: from its docstring's `Attributes:`, or the text beneath each field.

>>> from homeostat.core.run import Budget
>>> field_texts(Budget)["seconds"]
'wall-clock seconds.'
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import re
import textwrap
from typing import Any, Literal, get_args, get_origin

from homeostat.core.spec import Spec, options_of

_ENTRY = re.compile(r"    (\w+(?:, \w+)*): (.*)")


@functools.cache
def field_texts(cls: type) -> dict[str, str]:
    """What each field means, in one line; a field of which nothing is said is left out. Bases are read too."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if "__doc__" in vars(base) and base.__module__.partition(".")[0] not in ("builtins", "typing", "abc"):
            found.update(_listed(inspect.cleandoc(base.__doc__ or "")))
            found.update(_beneath(base))
    return found


def in_words(hint: Any) -> str:
    """What a field holds, in a word or two: `number > 0`, `subset|masked`, `Optimizer`, `list of Shift`."""
    options = [option for option in options_of(hint) if option is not type(None)]
    said = [_word(option) for option in options]
    bounds = [_bound(rule) for rule in getattr(hint, "__metadata__", ())]
    for arm in get_args(hint):
        bounds += [_bound(rule) for rule in getattr(arm, "__metadata__", ()) if get_origin(hint) is not tuple]
    several = " ".join(bound for bound in bounds if bound)
    return " or ".join(dict.fromkeys(said)) + (f" {several}" if several else "")


def _word(option: Any) -> str:
    if get_origin(option) is Literal:
        return "|".join(str(choice) for choice in get_args(option))
    if get_origin(option) is tuple:
        inner = [in_words(arg) for arg in get_args(option) if arg is not ...]
        return f"list of {inner[0]}" if ... in get_args(option) else ", ".join(inner)
    words = {bool: "true|false", int: "whole number", float: "number", str: "text", Any: "anything"}
    return words.get(option) or getattr(option, "__name__", str(option))


def _bound(rule: Any) -> str:
    signs = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
    said = [f"{sign} {value:g}" for name, sign in signs if (value := getattr(rule, name, None)) is not None]
    return " ".join(text for text in said if "inf" not in text)


def choices(hint: Any) -> list[str]:
    """The values that a field may have, where they are few and known."""
    found = [str(choice) for option in options_of(hint) if get_origin(option) is Literal for choice in get_args(option)]
    return found + ["true", "false"] * (bool in options_of(hint)) + ["none"] * (type(None) in options_of(hint))


def kinds_within(hint: Any) -> list[type]:
    """The Specs that a field holds, alone or in a tuple."""
    found = []
    for option in options_of(hint):
        if isinstance(option, type) and issubclass(option, Spec):
            found.append(option)
        elif get_origin(option) is tuple:
            found += [kind for arg in get_args(option) if arg is not ... for kind in kinds_within(arg)]
    return found


def _listed(doc: str) -> dict[str, str]:
    found: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line in doc.splitlines():
        if not inside or (line and not line.startswith("    ")):
            inside, names = line.strip() == "Attributes:", []
        elif entry := _ENTRY.fullmatch(line):
            names = entry[1].split(", ")
            found.update(dict.fromkeys(names, entry[2].strip()))
        elif line.strip():
            found.update({name: f"{found[name]} {line.strip()}" for name in names})
        else:
            inside = False
    return found


def _beneath(cls: type) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError, SyntaxError):  # of a class that was typed in, or made
        return {}
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    found = {}
    for field, text in itertools.pairwise(body):
        says = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and says:
            found[field.target.id] = " ".join(inspect.cleandoc(text.value.value).split())  # type: ignore[attr-defined]
    return found
