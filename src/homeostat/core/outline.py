"""What is registered, read from the source files and not imported: fast enough for a shell that completes a name.

The packages' `.pyi` lists say which module defines a name; the module's syntax tree says what its class derives from
and what it does. Methods of other distributions are imported, as there is no other way to know what they are.

>>> [entry.name for entry in outline("Combine")]
['PCGrad', 'Sum']
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from homeostat.core.spec import PACKAGES

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Entry:
    """A class that a file can name.

    Attributes:
        name: of the class.
        bases: names of all classes it derives from, near ones first.
        does: the first line of its docstring.
    """

    name: str
    bases: tuple[str, ...]
    does: str


def outline(kind: str = "") -> list[Entry]:
    """Every registered class that derives from the class named `kind`, abstract ones left out, by name."""
    found = [*_own(), *_others()]
    return sorted((entry for entry in found if not kind or kind in entry.bases), key=lambda entry: entry.name)


@functools.cache
def _own() -> tuple[Entry, ...]:
    found = {}
    for package in ("", *PACKAGES):
        listed = ROOT / package / "__init__.pyi"
        if listed.is_file():
            for node in ast.parse(listed.read_text()).body:
                if isinstance(node, ast.ImportFrom) and node.module:
                    module = ".".join(filter(None, ("homeostat", package, node.module)))
                    for alias in node.names:
                        if alias.name[:1].isupper() and (entry := _entry(module, alias.name)):
                            found[alias.name] = entry
    return tuple(found.values())


def _entry(module: str, name: str) -> Entry | None:
    made = _classes(module).get(name)
    if made is None or any(word.arg == "abstract" for word in made.keywords):
        return None
    if any(word.arg == "register" for word in made.keywords):
        return None
    bases = _bases(module, name)
    if not {"Spec", "Part"} & set(bases):
        return None
    return Entry(name, bases, (ast.get_docstring(made) or "").partition("\n")[0].rstrip("."))


def _bases(module: str, name: str) -> tuple[str, ...]:
    """The names of what a class derives from, as far as the library's own files say."""
    made = _classes(module).get(name)
    found: list[str] = []
    for base in made.bases if made is not None else []:
        word = base.id if isinstance(base, ast.Name) else ""
        if word:
            home = module if word in _classes(module) else _imported(module).get(word, "")
            found += [word, *(_bases(home, word) if home else ())]
    return tuple(dict.fromkeys(found))


@functools.cache
def _tree(module: str) -> ast.Module:
    file = ROOT.joinpath(*module.split(".")[1:])
    path = file.with_suffix(".py") if file.with_suffix(".py").is_file() else file / "__init__.py"
    return ast.parse(path.read_text() if path.is_file() else "")


@functools.cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in _tree(module).body if isinstance(node, ast.ClassDef)}


@functools.cache
def _imported(module: str) -> dict[str, str]:
    found = {}
    for node in _tree(module).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("homeostat."):
            found.update({alias.asname or alias.name: str(node.module) for alias in node.names})
    return found


def _others() -> list[Entry]:
    found = []
    for point in importlib.metadata.entry_points(group="homeostat.methods"):
        cls = point.load()
        does = (cls.__doc__ or "").strip().partition("\n")[0].rstrip(".")
        found.append(Entry(cls.__name__, tuple(base.__name__ for base in cls.__mro__[1:]), does))
    return found
