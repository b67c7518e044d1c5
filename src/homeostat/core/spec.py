"""Hyper-parameters as frozen dataclasses, and the register of their names.

A `Spec` is a frozen dataclass whose fields are JSON scalars, tuples or other Specs. From the fields come the command
line's options, YAML, the repr, the documentation and the hash that names a cached result. In YAML an object is a
mapping with exactly one registered name:

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True)
... class Blur(Spec, register=False):
...     sigma: Positive = 1.0
>>> Blur(sigma=2.0).to_config()
{'Blur': {'sigma': 2.0}}
>>> Blur(sigma=-1.0)
Traceback (most recent call last):
...
homeostat.core.errors.SpecError: Blur.sigma = -1.0, but it must be > 0
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import json
import math
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import annotated_types as at

from homeostat.core.errors import HomeostatError, SpecError, UnknownName, nearest

Positive = Annotated[float, at.Gt(0)]
NonNegative = Annotated[float, at.Ge(0)]
Fraction = Annotated[float, at.Ge(0), at.Le(1)]
Count = Annotated[int, at.Ge(1)]
Index = Annotated[int, at.Ge(0)]

PACKAGES = (
    "adapt", "tune", "continual", "merge", "generalize", "federate", "robust", "trust", "select", "forget", "curate",
    "compress", "policy", "generate", "fit", "shift", "probe", "data", "nn", "loop", "bench",
)  # fmt: skip
"""Packages of the library whose public names may be registered."""

_REGISTRY: dict[str, type] = {}
S = TypeVar("S", bound="Spec")


@dataclasses.dataclass(frozen=True)
class Spec:
    """Base of everything that is configured; subclasses are frozen dataclasses.

    A class registers itself under its name when it is defined, unless it is declared with `abstract=True` (a base) or
    `register=False`. Fields are checked against their annotations when an object is made.
    """

    __no_type_check__: ClassVar[bool] = True  # fields are checked here, with our own errors, also in tests
    revision: ClassVar[int] = 1
    """Raised when a method's numbers change, so that results cached for the old code are not used."""

    def __init_subclass__(cls, *, abstract: bool = False, register: bool = True, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if register and not abstract:
            add(cls)

    def __post_init__(self) -> None:
        for field, hint in field_hints(type(self)):
            value = getattr(self, field.name)
            try:
                fixed = _accept(hint, value)
            except SpecError as error:
                where, wrong = _entry(field.name, value, error.path)
                raise SpecError(f"{type(self).__name__}.{where} = {wrong!r}, but it {error}").at(
                    field.name, *error.path
                ) from None
            if fixed is not value:
                object.__setattr__(self, field.name, fixed)

    def fields(self) -> dict[str, Any]:
        """Field names and values, in order."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    def to_config(self) -> dict[str, Any]:
        """A JSON-ready mapping `{name: {field: value}}`; `from_config` reads it back."""
        return {type(self).__name__: {name: plain(value) for name, value in self.fields().items()}}

    def replace(self: S, **changes: Any) -> S:
        """A copy with some fields changed; an unknown field is an error that suggests the nearest."""
        _check_names(type(self), changes)
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def digest(self) -> str:
        """Hash of every field and of the class's revision."""
        return digest(self.to_config(), _revisions(self))


def _entry(name: str, value: Any, path: tuple[str | int, ...]) -> tuple[str, Any]:
    """The entry of a tuple that an error is about, as it is written, and what it is."""
    for place in path:
        name, value = f"{name}[{place}]", value[place]
    return name, value


def digest(*values: Any) -> str:
    """SHA-256 of values' canonical JSON, as hex."""
    text = json.dumps([plain(v) for v in values], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def plain(value: Any) -> Any:
    """A value made of JSON types: Specs become mappings, tuples become lists."""
    if isinstance(value, Spec):
        return value.to_config()
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"inf": "inf", "-inf": "-inf"}.get(str(value), "nan")
    return value


def _revisions(value: Any) -> list[Any]:
    if isinstance(value, Spec):
        return [type(value).revision, *(r for item in value.fields().values() if (r := _revisions(item)))]
    if isinstance(value, tuple):
        return [r for item in value if (r := _revisions(item))]
    return []


# ------------------------------------------------------------------------------------------------------- registry


def add(cls: type) -> type:
    """Register a class under its name; two classes of one name are an error."""
    name = cls.__name__
    known = _REGISTRY.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise SpecError(f"the name {name!r} is taken by {known.__module__}; names are unique across the library")
    _REGISTRY[name] = cls
    return cls


def find(name: str) -> type:
    """The registered class of this name; imports only the module that defines it."""
    if name not in _REGISTRY:
        for package in _packages():
            if name in package.__all__:
                getattr(package, name)
                break
        else:
            for entry in importlib.metadata.entry_points(group="homeostat.methods"):
                if entry.name == name:
                    add(entry.load())
    if name not in _REGISTRY:
        raise UnknownName(f"no method, shift, probe or layer is called {name!r}.{nearest(name, names())}")
    return _REGISTRY[name]


def names() -> list[str]:
    """The name of everything registered, sorted; imports the whole library."""
    return [cls.__name__ for cls in registered()]


def registered(kind: type | tuple[type, ...] = object) -> Iterator[type]:
    """Every registered class that derives from `kind`, by name; imports the whole library."""
    for package in _packages():
        for name in package.__all__:
            if name[:1].isupper():
                getattr(package, name)
    for entry in importlib.metadata.entry_points(group="homeostat.methods"):
        add(entry.load())
    for name in sorted(_REGISTRY):
        if issubclass(_REGISTRY[name], kind):
            yield _REGISTRY[name]


@functools.cache
def _packages() -> tuple[types.ModuleType, ...]:
    found = [importlib.import_module("homeostat")]
    for name in PACKAGES:
        try:
            found.append(importlib.import_module(f"homeostat.{name}"))
        except ModuleNotFoundError as error:
            if error.name != f"homeostat.{name}":
                raise
    return tuple(found)


# ----------------------------------------------------------------------------------------------- reading a config


def from_config(config: Any, kind: type = Spec) -> Any:
    """Build an object from `{name: {field: value}}`, `name` alone (defaults), or pass a Spec through.

    Raises:
        UnknownName: the name is not registered (nearest names are suggested).
        SpecError: a field is unknown or its value does not fit, or the object is not a `kind`.
    """
    if isinstance(config, Spec):
        made: Any = config
    else:
        if isinstance(config, str):
            config = {config: {}}
        if not (isinstance(config, Mapping) and len(config) == 1):
            keys = f"one with {', '.join(map(str, config))}" if isinstance(config, Mapping) and config else repr(config)
            raise SpecError(f"an object is a mapping with one name, as in {{PGD: {{eps: 0.03}}}}; got {keys}")
        ((name, values),) = config.items()
        try:
            cls = find(str(name))
        except UnknownName as error:
            raise error.at(str(name)) from None
        values = {} if values is None else values
        if not isinstance(values, Mapping):
            raise SpecError(f"{name}: its fields are a mapping; got {values!r}").at(str(name))
        if not (issubclass(cls, Spec) and dataclasses.is_dataclass(cls)):
            raise SpecError(f"{name} is not configurable; it is a {cls.__mro__[1].__name__}").at(str(name))
        hints = {field.name: hint for field, hint in field_hints(cls)}
        try:
            _check_names(cls, values)
            made = cls(**{key: _read(hints[key], value, key) for key, value in values.items()})
        except HomeostatError as error:
            raise error.at(str(name)) from None
    if not isinstance(made, kind):
        raise SpecError(f"{type(made).__name__} is not a {kind.__name__}")
    return made


def _check_names(cls: type, values: Mapping[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            hint = nearest(str(key), known) or f" It has: {', '.join(known) or 'no fields'}."
            raise SpecError(f"{cls.__name__} has no field {key!r}.{hint}").at(str(key))


def _read(hint: Any, value: Any, key: str | int) -> Any:
    """JSON lists become tuples, and mappings or names become Specs where the field wants one."""
    try:
        return _value(hint, value)
    except HomeostatError as error:
        raise error.at(key) from None


def _value(hint: Any, value: Any) -> Any:
    if isinstance(value, list):
        inner = [a for h in options_of(hint) if get_origin(h) is tuple for a in get_args(h) if a is not Ellipsis]
        return tuple(_read(inner[min(i, len(inner) - 1)] if inner else Any, item, i) for i, item in enumerate(value))
    specs = [h for h in options_of(hint) if isinstance(h, type) and issubclass(h, Spec)]
    if specs and (isinstance(value, Mapping) or (isinstance(value, str) and str not in options_of(hint))):
        return from_config(value, Spec)
    floats = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
    return floats.get(value, value) if isinstance(value, str) and float in options_of(hint) else value


def options_of(hint: Any) -> list[Any]:
    """The alternatives of a union, without annotations."""
    if get_origin(hint) is Annotated:
        return options_of(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return [option for arm in get_args(hint) for option in options_of(arm)]
    return [hint]


@functools.cache
def field_hints(cls: type) -> tuple[tuple[dataclasses.Field[Any], Any], ...]:
    """The fields of a dataclass, each with its type."""
    hints: dict[str, Any] = {}
    try:
        for base in reversed(cls.__mro__):
            hints.update(inspect.get_annotations(base, eval_str=True))
    except NameError as error:
        raise SpecError(f"{cls.__name__}: a field's type cannot be found at run time ({error})") from None
    return tuple((field, hints[field.name]) for field in dataclasses.fields(cls))  # type: ignore[arg-type]


def _accept(hint: Any, value: Any) -> Any:
    """The value, converted where that is lossless (int to float, list to tuple), or a SpecError that says why not."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        value = _accept(args[0], value)
        for rule in args[1:]:
            _bound(rule, value)
        return value
    if origin in (Union, types.UnionType):
        reasons = []
        for arm in args:
            try:
                return _accept(arm, value)
            except SpecError as error:
                reasons.append(str(error))
        raise SpecError(" or ".join(dict.fromkeys(reasons)))
    if origin is Literal:
        if value not in args:
            hinted = nearest(value, [a for a in args if isinstance(a, str)]) if isinstance(value, str) else ""
            raise SpecError(f"must be one of {', '.join(map(repr, args))}.{hinted}")
        return value
    if origin is tuple or hint is tuple:
        if not isinstance(value, (tuple, list)):
            raise SpecError("must be a tuple")
        if len(args) == 2 and args[1] is Ellipsis:
            items = tuple(_item(args[0], item, place) for place, item in enumerate(value))
        elif args and len(args) != len(value):
            raise SpecError(f"must have {len(args)} entries")
        else:
            pairs = enumerate(zip(args, value, strict=True))
            items = tuple(_item(a, item, place) for place, (a, item) in pairs) if args else tuple(value)
        return value if isinstance(value, tuple) and all(a is b for a, b in zip(items, value, strict=True)) else items
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is None or hint is type(None):
        if value is not None:
            raise SpecError("must be None")
        return value
    wrong_bool = isinstance(value, bool) and hint is not bool
    if isinstance(hint, type) and (wrong_bool or not isinstance(value, hint)):
        raise SpecError(f"must be {'an' if hint.__name__[0] in 'aeiou' else 'a'} {hint.__name__}")
    if hint is float and math.isnan(value):
        raise SpecError("must not be NaN")
    return value


def _item(hint: Any, value: Any, place: int) -> Any:
    try:
        return _accept(hint, value)
    except SpecError as error:
        raise error.at(place) from None


def _bound(rule: Any, value: Any) -> None:
    if value is None:
        return
    checks = (("gt", "> {}", lambda v, b: v > b), ("ge", ">= {}", lambda v, b: v >= b))
    checks += (("lt", "< {}", lambda v, b: v < b), ("le", "<= {}", lambda v, b: v <= b))
    for attribute, text, holds in checks:
        bound = getattr(rule, attribute, None)
        if bound is not None and not holds(value, bound):
            raise SpecError(f"must be {text.format(bound)}")
