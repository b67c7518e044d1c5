"""JSON schema of Specs, by which an editor completes and checks a YAML file.

Every registered Spec is under `$defs` by its name. A field that holds a Remedy may be any registered one, as
`any.Remedy` says: a name alone where all fields have a default, or a mapping of one name to its fields. The schema
accepts what `read_spec` accepts and refuses misspelt names, wrong types and values out of range; what fields mean
together (a folder that is not there, too few simulated shifts) is found when the file is read.

>>> schema("Chain")["$defs"]["Chain"]["properties"]["remedies"]["items"]
{'$ref': '#/$defs/any.Remedy'}
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args, get_origin

from homeostat.core.errors import HomeostatError, SpecError
from homeostat.core.fieldtext import field_texts
from homeostat.core.spec import Spec, _bound, field_hints, find, options_of, plain, registered

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def schema(name: str = "Spec") -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a file that holds a Spec.

    Args:
        name: of a Spec, such as `"Deployment"`, or of a base, such as `"Remedy"`; default, any Spec.

    Raises:
        UnknownName: nothing of this name is registered. SpecError: it is no Spec.
    """
    specs = [cls for cls in registered(Spec) if dataclasses.is_dataclass(cls)]
    bases = {base.__name__: base for cls in specs for base in cls.__mro__ if issubclass(base, Spec)}
    root = bases[name] if name in bases else find(name)
    if not issubclass(root, Spec):
        raise SpecError(f"{name} is no Spec; a file holds a Deployment, a Plan, a Remedy, ...")
    wanted: dict[str, type] = {root.__name__: root}
    defs: dict[str, Any] = {cls.__name__: _fields(cls, wanted) for cls in specs if not _abstract(cls)}
    unions = {f"any.{kind}": _union(base, specs) for kind, base in sorted(wanted.items())}
    return {
        "$schema": DRAFT, "title": f"homeostat {root.__name__}", "$ref": f"#/$defs/any.{root.__name__}",
        "$defs": {**defs, **unions},
    }  # fmt: skip


def _abstract(cls: type) -> bool:
    return bool(getattr(cls, "__abstractmethods__", None))


def _union(base: type, specs: list[type]) -> dict[str, Any]:
    """A name alone, or a mapping of one name to its fields."""
    fitting = [cls for cls in specs if issubclass(cls, base) and not _abstract(cls)]
    alone = [cls.__name__ for cls in fitting if not _missing(cls)]
    named = {
        "type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": False,
        "properties": {cls.__name__: {"$ref": f"#/$defs/{cls.__name__}"} for cls in fitting},
    }  # fmt: skip
    if [cls.__name__ for cls in fitting] == [base.__name__]:
        named["required"] = [base.__name__]
    return {"anyOf": [{"enum": alone}, named]} if alone else named


def _fields(cls: type, wanted: dict[str, type]) -> dict[str, Any]:
    texts, missing, properties = field_texts(cls), _missing(cls), {}
    for field, hint in field_hints(cls):
        said = {"description": texts[field.name]} if field.name in texts else {}
        if field.default is not dataclasses.MISSING and field.name not in missing:
            said["default"] = plain(field.default)
        words = getattr(cls, "words", {}).get(field.name)
        properties[field.name] = {**({"enum": list(words)} if words else _value(hint, wanted)), **said}
    made: dict[str, Any] = {"description": (cls.__doc__ or "").strip().partition("\n")[0]}
    # A name with nothing after the colon is a name with its defaults.
    made |= {"type": "object"} if missing else {"type": ["object", "null"]}
    made |= {"properties": properties, "additionalProperties": False}
    return {**made, "required": missing} if missing else made


def _missing(cls: type) -> list[str]:
    """Fields without which no object can be made."""
    bare = [
        field.name for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    if bare:
        return bare
    try:
        cls()
    except HomeostatError as error:
        must = getattr(cls, "must", None) or error.path[:1]
        return [str(name) for name in must]
    return []


def _value(hint: Any, wanted: dict[str, type]) -> dict[str, Any]:
    origin, args = get_origin(hint), get_args(hint)
    rules = getattr(hint, "__metadata__", ())
    if rules:
        inner = _value(args[0], wanted)
        bounds = {word: bound for rule in rules for word, bound in _bounds(rule)}
        if "anyOf" not in inner:
            return {**inner, **bounds}
        number, words = {**inner["anyOf"][0], **bounds}, [w for w in inner["anyOf"][1]["enum"] if _fits(rules, w)]
        return {"anyOf": [number, {"enum": words}]} if words else number
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return {"type": "array", "items": _value(args[0], wanted)}
        each = [_value(arg, wanted) for arg in args]
        return {"type": "array", "prefixItems": each, "minItems": len(each), "maxItems": len(each)}
    if origin is Literal:
        return {"enum": list(args)}
    if len(options_of(hint)) > 1:
        return {"anyOf": [_value(arg, wanted) for arg in args]}
    if isinstance(hint, type) and issubclass(hint, Spec):
        wanted[hint.__name__] = hint
        return {"$ref": f"#/$defs/any.{hint.__name__}"}
    simple: dict[Any, dict[str, Any]] = {
        bool: {"type": "boolean"}, int: {"type": "integer"}, str: {"type": "string"}, type(None): {"type": "null"},
        float: {"anyOf": [{"type": "number"}, {"enum": ["inf", "-inf"]}]}, tuple: {"type": "array"},
    }  # fmt: skip
    return dict(simple.get(hint, {}))


def _bounds(rule: Any) -> Iterator[tuple[str, float]]:
    words = (("gt", "exclusiveMinimum"), ("ge", "minimum"), ("lt", "exclusiveMaximum"), ("le", "maximum"))
    for name, word in words:
        bound = getattr(rule, name, None)
        if bound is not None and math.isfinite(bound):
            yield word, bound


def _fits(rules: Iterable[Any], word: str) -> bool:
    """Whether an infinite number, which JSON writes as a word, is within the bounds."""
    try:
        for rule in rules:
            _bound(rule, float(word))
    except SpecError:
        return False
    return True
