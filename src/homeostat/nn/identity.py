"""A hash of any Python object's content, without writing it down.

What an object consists of is asked of it as a copier would ask (`__reduce_ex__`), and hashed part by part: arrays by
their bytes, mappings by their items, classes and functions by their names. Two objects that were fitted alike have the
same hash in any process. Nothing is ever rebuilt from it.

>>> content_of({"a": [1, 2.0]}) == content_of({"a": [1, 2.0]}), content_of([1]) == content_of((1,))
(True, False)
"""

from __future__ import annotations

import hashlib
import struct
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from homeostat.core.errors import ModelError

_DEEPEST = 200


def content_of(value: Any) -> bytes:
    """32 bytes that name the content.

    Raises:
        ModelError: a part of it has no content that can be named (a lambda, an open file).
    """
    return _Reader().read(value)


class _Reader:
    def __init__(self) -> None:
        self.known: dict[int, bytes] = {}
        self.open: list[int] = []
        self.alive: list[Any] = []

    def read(self, value: Any) -> bytes:
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes)) or value is ...:
            return _sum("scalar", type(value).__name__, _scalar(value))
        if id(value) in self.known:
            return self.known[id(value)]
        if id(value) in self.open:
            # How far up the object lies that this part leads back to.
            return _sum("cycle", len(self.open) - self.open.index(id(value)))
        if len(self.open) >= _DEEPEST:
            raise ModelError(f"a {type(value).__name__} lies {_DEEPEST} objects deep; its content cannot be hashed")
        self.open.append(id(value))
        made = _sum(*self._parts(value))
        self.open.pop()
        self.known[id(value)] = made
        self.alive.append(value)  # an id may not be given again while it is known here
        return made

    def _parts(self, value: Any) -> Iterator[Any]:
        if isinstance(value, np.ndarray) and value.dtype.names is not None:
            # Field by field: between fields lie bytes that nobody wrote.
            fields = [(name, value[name]) for name in value.dtype.names]
            yield from ("records", value.shape, *(part for name, field in fields for part in (name, self.read(field))))
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            yield from ("array", str(value.dtype.descr), value.shape, np.ascontiguousarray(value).tobytes())
        elif isinstance(value, np.ndarray):
            yield from ("objects", value.shape, *map(self.read, value.ravel().tolist()))
        elif isinstance(value, torch.Tensor):
            yield from ("tensor", self.read(value.detach().cpu().numpy()))
        elif isinstance(value, np.dtype):
            yield from ("dtype", str(value.descr))
        elif isinstance(value, np.random.RandomState):
            yield from ("random", self.read(value.get_state(legacy=False)))
        elif isinstance(value, np.random.Generator):
            yield from ("random", self.read(value.bit_generator.state))
        elif type(value) in (list, tuple):
            yield from (type(value).__name__, *map(self.read, value))
        elif isinstance(value, Mapping) and type(value).__reduce_ex__ is object.__reduce_ex__:
            items = ((self.read(key), self.read(item)) for key, item in value.items())
            yield from (type(value).__name__, *(part for pair in sorted(items) for part in pair))
        elif isinstance(value, (set, frozenset)):
            yield from (type(value).__name__, *sorted(map(self.read, value)))
        elif isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType, np.ufunc)):
            yield from ("named", _named(value))
        elif isinstance(value, types.MethodType):
            yield from ("method", value.__name__, self.read(value.__self__))
        else:
            yield from self._asked(value)

    def _asked(self, value: Any) -> Iterator[Any]:
        try:
            said = value.__reduce_ex__(2)
        except Exception as error:  # whatever the object's own method raises
            text = (
                f"a {type(value).__name__} has no content that can be hashed ({error}); leave it out of the estimator"
            )
            raise ModelError(text) from None
        if isinstance(said, str):
            yield from ("global", type(value).__module__, said)
            return
        function, arguments, *rest = said
        yield from ("object", self.read(function), self.read(tuple(arguments)))
        state, items, pairs = ([*rest[:3], None, None, None])[:3]
        if isinstance(state, dict):
            # The release that is installed is noted when an estimator is asked, and is none of its content.
            state = {name: part for name, part in state.items() if name != "_sklearn_version"}
        yield self.read(state)
        yield self.read(None if items is None else list(items))
        yield self.read(None if pairs is None else [list(pair) for pair in pairs])


def _scalar(value: Any) -> bytes:
    if isinstance(value, float):
        return struct.pack("<d", value)
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


def _named(value: Any) -> str:
    name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value.__name__)}"
    if "<" in name:
        raise ModelError(f"the function {name} has no name to go by; define it in a module of its own")
    return name


def _sum(*parts: Any) -> bytes:
    sha = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else str(part).encode()
        sha.update(struct.pack("<Q", len(content)))
        sha.update(content)
    return sha.digest()
