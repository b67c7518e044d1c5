"""Which modules a piece of code reaches, and a hash of what they say.

A result that is kept is worth as much as the certainty that the same code would give it again. The hash of a cell or a
claim therefore covers every module that its code imports, directly or through others, and no more, so that a changed
report does not throw a table away. Imports are read from the syntax tree, inside functions too; names that a package
hands on lazily (`from homeostat.adapt import EATA`, `hs.adapt.EATA`) are followed to the module that defines them.
Comments, docstrings and blank lines do not count.

What is only named in a text at run time (a class that `find` looks up) is not seen; hand such classes over, too.

>>> modules = reached(["homeostat.core.random"])
>>> "homeostat.core.random" in modules, any(name.startswith("homeostat.adapt") for name in modules)
(True, False)
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import io
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from homeostat.core.spec import Spec

LIBRARY = "homeostat"


def code_digest(modules: Iterable[str], files: Iterable[str | Path] = ()) -> str:
    """A hash of the code of modules and files and of everything that they reach, as hex.

    Args:
        modules: dotted names.
        files: Python files that are no modules of a package.

    Raises:
        ModuleNotFoundError: there is no such module, or it has no Python source.
    """
    sha = hashlib.sha256()
    files = [Path(file) for file in files]
    for name in reached(modules, files):
        sha.update(f"{name} {_said(_file(name))}\n".encode())
    for file in sorted(files, key=lambda path: path.name):
        sha.update(f"{file.name} {_said(file)}\n".encode())
    return sha.hexdigest()


def reached(modules: Iterable[str], files: Iterable[str | Path] = ()) -> list[str]:
    """Modules that code imports, itself included, as far as they belong to this library or to a starting package.

    Args:
        modules: dotted names to start from.
        files: Python files to start from.

    Raises:
        ModuleNotFoundError: a module to start from does not exist, or has no Python source.
    """
    start = list(modules)
    roots = {LIBRARY, *(name.partition(".")[0] for name in start)}
    for name in start:
        if _file(name) is None:
            raise ModuleNotFoundError(f"{name} has no Python source that can be read", name=name)
    found, todo = set[str](), [*start]
    for file in files:
        todo += _imports(Path(file), "", False)
    while todo:
        name = todo.pop()
        if name.partition(".")[0] in roots and name not in found and (file := _file(name)) is not None:
            found.add(name)
            todo += [parent for parent in _parents(name) if parent not in found]
            todo += _imports(file, name, file.name == "__init__.py")
    return sorted(found)


def modules_of(*specs: Any) -> list[str]:
    """The modules that define Specs and all Specs within them."""
    found = set[str]()
    for spec in specs:
        if isinstance(spec, (tuple, list)):
            found.update(modules_of(*spec))
        elif isinstance(spec, Spec):
            found.add(type(spec).__module__)
            found.update(modules_of(*spec.fields().values()))
    return sorted(found)


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


@functools.cache
def _file(name: str) -> Path | None:
    """The source of a module; None where there is no such module or no source."""
    known = getattr(sys.modules.get(name), "__file__", None)
    if known is None:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError, AttributeError):
            return None
        known = spec.origin if spec is not None else None
    path = Path(known) if known else None
    return path if path is not None and path.suffix == ".py" and path.is_file() else None


@functools.cache
def _imports(file: Path, name: str, package: bool) -> tuple[str, ...]:
    """Modules that a file imports, as far as they can be read off."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found, bound = list[str](), dict[str, str]()
    for node in _running(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.append(alias.name)
                bound[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, name, package)
            for alias in node.names:
                found += _named(base, alias.name)
                bound[alias.asname or alias.name] = f"{base}.{alias.name}"
    for node in _running(tree):
        if isinstance(node, ast.Attribute) and (path := _dotted(node)) and path[0] in bound:
            found += _along(bound[path[0]], path[1:])
    return tuple(dict.fromkeys(found))


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only type checkers read."""
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            todo += node.orelse
        else:
            todo += ast.iter_child_nodes(node)


def _base(node: ast.ImportFrom, name: str, package: bool) -> str:
    """The absolute module that `from ... import` names."""
    if not node.level:
        return node.module or ""
    parts = name.split(".")
    parts = parts[: len(parts) - node.level + package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _named(base: str, name: str) -> list[str]:
    """The modules behind one name of a module: itself, a module below it, or the one that its list hands on."""
    if base.partition(".")[0] != LIBRARY and _file(base) is None:
        return []
    below = f"{base}.{name}"
    if _file(below) is not None:
        return [below]
    return [base, *([handed] if (handed := _list(base).get(name)) else [])]


def _along(base: str, path: list[str]) -> list[str]:
    """The modules that `base.a.b.c` goes through."""
    found = []
    for part in path:
        step = _named(base, part) if _file(base) is not None else []
        found += step
        base = f"{base}.{part}"
    return found


@functools.cache
def _list(package: str) -> dict[str, str]:
    """Name to module, from the `.pyi` of a package that hands its names on lazily."""
    file = _file(package)
    if file is None or file.name != "__init__.py" or not (stub := file.with_suffix(".pyi")).is_file():
        return {}
    nodes = [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ImportFrom) and node.level == 1]
    return {
        alias.asname or alias.name: f"{package}.{node.module or alias.name}" for node in nodes for alias in node.names
    }


def _dotted(node: ast.Attribute) -> list[str]:
    parts = [node.attr]
    inner: ast.expr = node.value
    while isinstance(inner, ast.Attribute):
        parts.append(inner.attr)
        inner = inner.value
    return [inner.id, *reversed(parts)] if isinstance(inner, ast.Name) else []


@functools.cache
def _said(file: Path | None) -> str:
    """A hash of a file's code without comments, docstrings, and blank lines."""
    if file is None:
        return ""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for inner in body or ():
                # Also the texts that say what an attribute is.
                if isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant):
                    for row in range(inner.lineno - 1, inner.end_lineno or inner.lineno):
                        lines[row] = ""
    return hashlib.sha256("\n".join(line.rstrip() for line in lines if line.strip()).encode()).hexdigest()
