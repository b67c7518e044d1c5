"""Specs written as text, on a command line or in a notebook's cell.

What `repr` prints is read back, and so is what a person types: a name alone, a call, or the mapping of a YAML file. The
text is taken apart with `ast` and never run; what it can name is what is registered.

>>> from homeostat.core.method import Chain
>>> parse_spec("Chain()") == parse_spec("Chain") == parse_spec("{Chain: {remedies: []}}") == Chain()
True
>>> parse_spec("Chain(remedy=Chain())")
Traceback (most recent call last):
...
homeostat.core.errors.SpecError: Chain has no field 'remedy'. Did you mean 'remedies'?
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from typing import Any, Literal, get_args, get_origin

import yaml

from homeostat.core.configfile import read_yaml
from homeostat.core.errors import SpecError
from homeostat.core.spec import Spec, _read, field_hints, find, from_config, options_of

_FORMS = "write a name, EATA; a call, EATA(margin=0.4); or a mapping, {EATA: {margin: 0.4}}"
_WORDS = {"true": True, "false": False, "null": None, "none": None}
_MAPPING = re.compile(r"\s*(\{|\w+:(\s|$))")


def parse_spec(text: str | Any, kind: type = Spec) -> Any:
    """The Spec that a text stands for.

    Args:
        text: `EATA`, `EATA(margin=0.4)`, what `repr` prints, or a YAML or JSON mapping. A Spec is passed through.
        kind: what it must be.

    Raises:
        SpecError: it cannot be read, a field is unknown or does not fit, or it is not a `kind`.
        UnknownName: nothing of this name is registered; the nearest names are suggested.
    """
    if isinstance(text, Spec):
        return from_config(text, kind)
    if not isinstance(text, str):
        raise SpecError(f"an object is written as text; got a {type(text).__name__}")
    return from_config(_config(text), kind)


def parse_config(text: str) -> Any:
    """What a text stands for as `from_config` takes it: a name, or a mapping of a name to fields or arguments."""
    return _config(text)


def short_text(spec: Spec) -> str:
    """A Spec as a person writes it: what is not at its default, which `parse_spec` reads back.

    >>> from homeostat.core.method import Chain
    >>> short_text(Chain((Chain(),))), short_text(Chain())
    ('Chain(remedies=(Chain,))', 'Chain')
    """
    said = []
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        usual = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if type(value) is not type(usual) or value != usual:
            said.append(f"{field.name}={_written(value)}")
    return f"{type(spec).__name__}({', '.join(said)})" if said else type(spec).__name__


def _written(value: Any) -> str:
    if isinstance(value, Spec):
        return short_text(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(_written, value))}{',' * (len(value) == 1)})"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else repr(value)


def parse_field(cls: type[Spec], name: str, text: str) -> Any:
    """What a text stands for as the value of a field: a number, a word, a list `0.4, 0.5`, a Spec, or `none`.

    Ranges are checked when the object is made.

    Raises:
        SpecError: it cannot be read as what the field holds.
    """
    hint = {field.name: hint for field, hint in field_hints(cls)}[name]
    options = options_of(hint)
    if type(None) in options and text.strip().lower() in ("none", "null"):
        return None
    if str in options or any(get_origin(option) is Literal for option in options):
        return _chosen(options, text)
    try:
        return _read(hint, _listed(options, text), name)
    except SpecError as error:
        if error.path[1:]:  # the fault lies within a Spec, which the error names
            raise
        raise SpecError(f"{cls.__name__}.{name} = {text!r} cannot be read: {error}") from None


def _chosen(options: list[Any], text: str) -> Any:
    """The text itself, or the choice that is written like it."""
    choices = [choice for option in options if get_origin(option) is Literal for choice in get_args(option)]
    return next((choice for choice in choices if str(choice) == text), text)


def _listed(options: list[Any], text: str) -> Any:
    """A text as configuration; where a tuple is wanted, brackets may be left out."""
    inner = [arg for option in options if get_origin(option) is tuple for arg in get_args(option) if arg is not ...]
    if not inner:
        return _config(text)
    bare = text.strip()
    if bare[:1] in ("[", "("):
        return _config(bare)
    if not bare:
        return []
    words = [option for arg in inner for option in options_of(arg)]
    if all(word is str or get_origin(word) is Literal for word in words):
        return [word.strip().strip("\"'") for word in bare.split(",") if word.strip()]
    return _config(f"[{bare}]")


def _config(text: str) -> Any:
    """A text as what `from_config` takes: mappings, lists, scalars."""
    if not text.strip():
        raise SpecError(f"the text is empty; {_FORMS}")
    if _MAPPING.match(text):
        try:
            return read_yaml(text)[0]
        except yaml.YAMLError as error:
            said = getattr(error, "problem", None) or error
            raise SpecError(f"{_short(text)} cannot be read: {said}; {_FORMS}") from None
    try:
        return _value(ast.parse(text.strip(), mode="eval").body, text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, SpecError):
            raise
        where = f" at character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
        said = error.msg if isinstance(error, SyntaxError) else error
        raise SpecError(f"{_short(text)} cannot be read{where} ({said}); {_FORMS}") from None


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float, bool, type(None))):
        return node.value
    if isinstance(node, ast.Name):
        return _WORDS.get(node.id, node.id)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item, text) for item in node.elts]
    if isinstance(node, ast.Dict) and None not in node.keys:
        keys = [_value(key, text) for key in node.keys if isinstance(key, (ast.Constant, ast.Name))]
        if len(keys) < len(node.keys):
            raise SpecError(f"{_short(text)} has a key that is no word")
        return dict(zip(keys, (_value(item, text) for item in node.values), strict=True))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _value(node.operand, text)
        return f"-{number}" if number in ("inf", "nan") else -_number(number, text)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):  # as in PGD(eps=8/255)
        below = _number(_value(node.right, text), text)
        if below == 0:
            raise SpecError(f"{_short(text)} divides by zero")
        return _number(_value(node.left, text), text) / below
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return {node.func.id: _fields(node, node.func.id, text)}
    raise SpecError(f"{_short(ast.unparse(node))} is nothing that a field can hold; {_FORMS}")


def _fields(call: ast.Call, name: str, text: str) -> dict[str, Any]:
    """A call's arguments by name; those without one go by their place."""
    if any(isinstance(item, ast.Starred) for item in call.args) or any(item.arg is None for item in call.keywords):
        raise SpecError(f"{_short(text)}: stars cannot be read; name each field")
    given = {}
    if call.args:
        known = _in_place(name)
        if len(call.args) > len(known):
            takes = f"takes {', '.join(known)} in this order" if known else "takes no value without a field's name"
            raise SpecError(f"{name} {takes}; got {len(call.args)} values")
        given = {field: _value(item, text) for field, item in zip(known, call.args, strict=False)}
    for item in call.keywords:
        if item.arg in given:
            raise SpecError(f"{name} is given {item.arg} twice")
        given[str(item.arg)] = _value(item.value, text)
    return given


def _in_place(name: str) -> list[str]:
    """The fields, or a layer's arguments, that may be given without their name."""
    cls = find(name)
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls) if field.init and not field.kw_only]
    return [key for key in inspect.signature(cls.__init__).parameters if key != "self"]


def _number(value: Any, text: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SpecError(f"{value!r} in {_short(text)} is no number")
    return value


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
