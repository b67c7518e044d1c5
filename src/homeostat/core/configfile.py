"""Specs in YAML files, with errors that point at the line.

Words are read as YAML 1.2 says: only `true` and `false` are truth values, so that `on` and `no` are words, and `1e-3`
is a number. A key that comes twice and a list that holds itself are refused.

>>> import tempfile, pathlib
>>> path = pathlib.Path(tempfile.mkdtemp()) / "plan.yaml"
>>> _ = path.write_text("SGD:\\n  lr: 0.1\\n  momentun: 0.9\\n")
>>> read_spec(path)
Traceback (most recent call last):
...
homeostat.core.errors.SpecError: plan.yaml, line 3: SGD has no field 'momentun'. Did you mean 'momentum'?
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from homeostat.core.errors import HomeostatError, InputError, SpecError
from homeostat.core.spec import Spec, from_config

LARGEST = 5_000_000
"""Bytes of a file that is read as YAML; what is larger is no configuration."""


class _Loader(yaml.SafeLoader):
    """Scalars of YAML 1.2; nothing but lists, mappings and scalars is ever made."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node)).replace("_", "")
        return int(text, 16 if "x" in text else 10)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)

for _tag, _form, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("int", r"[-+]?([0-9][0-9_]*|0x[0-9a-fA-F_]+)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9_]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
     "-+0123456789."),
    ("merge", "<<", "<"),
):  # fmt: skip
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_form})$"), [*_first])
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^$"), [""])


def read_spec(path: str | Path, kind: type = Spec) -> Any:
    """The Spec that a YAML file holds: a mapping with one registered name, or a name alone.

    Args:
        path: the file.
        kind: what it must be.

    Raises:
        InputError: the file is missing or no YAML. SpecError, UnknownName: with the file and the line.
    """
    path = Path(path)
    try:
        if path.is_file() and path.stat().st_size > LARGEST:
            raise InputError(f"{path} is larger than {LARGEST // 1_000_000} MB; a YAML file with a Spec is wanted")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text; a YAML file with a Spec is wanted") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        config, root = read_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        said = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        said = f"{error.context}, {said}" if str(said).startswith("but ") else said  # type: ignore[attr-defined]
        raise SpecError(f"{path.name}{where}: this is not YAML: {said}") from None
    except SpecError as error:
        raise SpecError(f"{path.name}, {error}") from None
    if config is None:
        want = "an object is a mapping with one name, as in {PGD: {eps: 0.03}}"
        raise SpecError(f"{path.name}, line 1: the file is empty; {want}")
    try:
        return from_config(config, kind)
    except HomeostatError as error:
        raise type(error)(f"{path.name}, line {_line(root, error.path)}: {error}") from None


def read_yaml(text: str) -> tuple[Any, yaml.Node | None]:
    """What a YAML text holds, and its tree with the lines.

    Raises:
        SpecError: a key comes twice, or something holds itself; with the line. yaml.YAMLError: it is no YAML.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
        if root is None:
            return None, None
        _check(root, (), set())
        loader = _Loader("")
        try:
            return loader.construct_document(root), root
        finally:
            loader.dispose()
    except RecursionError:
        raise SpecError("line 1: this is nested too deeply to be read") from None


def write_spec(spec: Spec, path: str | Path) -> None:
    """Write a Spec as YAML; `read_spec` reads it back."""
    Path(path).write_text(yaml.safe_dump(spec.to_config(), sort_keys=False))


def _check(node: yaml.Node, above: tuple[int, ...], seen: set[int]) -> None:
    if id(node) in above:
        raise SpecError(f"line {node.start_mark.line + 1}: this holds itself; write out what is meant")
    if id(node) in seen:
        return
    seen.add(id(node))
    inner: list[yaml.Node] = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise SpecError(f"line {line}: a key is a word; this one is a list or a mapping")
            if key.value in first and key.value != "<<":
                raise SpecError(
                    f"line {line}: {key.value} is there already, in line {first[key.value]}; keep one of them"
                )
            first[key.value] = line
            inner.append(value)
    for item in inner:
        _check(item, (*above, id(node)), seen)


def _line(node: Any, path: tuple[str | int, ...]) -> int:
    """Line of the deepest node of the path that is there."""
    line = 1 if node is None else node.start_mark.line + 1
    for key in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(key)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            break
    return line
