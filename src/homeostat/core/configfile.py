"""Specs in YAML files, with errors that point at the line.

>>> import tempfile, pathlib
>>> path = pathlib.Path(tempfile.mkdtemp()) / "plan.yaml"
>>> _ = path.write_text("SGD:\\n  lr: 0.1\\n  momentun: 0.9\\n")
>>> read_spec(path)
Traceback (most recent call last):
...
homeostat.core.errors.SpecError: plan.yaml, line 3: SGD has no field 'momentun'. Did you mean 'momentum'?
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from homeostat.core.errors import HomeostatError, InputError, SpecError
from homeostat.core.spec import Spec, from_config


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
        text = path.read_text()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        config, root = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise SpecError(f"{path.name}{where}: this is not YAML: {getattr(error, 'problem', error)}") from None
    try:
        return from_config(config, kind)
    except HomeostatError as error:
        raise type(error)(f"{path.name}, line {_line(root, error.path)}: {error}") from None


def write_spec(spec: Spec, path: str | Path) -> None:
    """Write a Spec as YAML; `read_spec` reads it back."""
    Path(path).write_text(yaml.safe_dump(spec.to_config(), sort_keys=False))


def _line(node: Any, path: tuple[str | int, ...]) -> int:
    """Line of the deepest node of the path that is there."""
    line = 1 if node is None else node.start_mark.line + 1
    for key in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == key), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            break
    return line
