"""Batches and data: random access by position, batches in order from any start.

`Data` is anything with a length and `fetch(positions)`. The rest (batches, slices, loading all, a content hash) comes
with it, so a shift of data, a subset of it or a shuffled order of it are data again, nothing is copied until it is
fetched, and a run that stopped continues at the sample where it stopped.

>>> import torch
>>> data = Tensors(torch.arange(6.0), torch.tensor([0, 1, 0, 1, 0, 1]))
>>> [batch.x.tolist() for batch in data[1:].batches(2)]
[[1.0, 2.0], [3.0, 4.0], [5.0]]
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homeostat.core.errors import DtypeError, InputError, MissingPart, NonFiniteError
from homeostat.core.spec import digest
from homeostat.core.tree import Tree, cat, length, map_tree, named_leaves

UNKNOWN = -100
"""The label of a sample whose label is not known (PyTorch's `ignore_index`); float targets use NaN."""


@dataclass(frozen=True)
class Batch:
    """Samples that are looked at together.

    Attributes:
        x: inputs, a tree whose leaves have the batch as first dimension. Whatever inference needs (task id, client,
            mask, time gap) is in here.
        y: labels or targets, or None. Unknown ones are `UNKNOWN` (integers) or NaN (floats).
        id: int64 `[batch]`, names each sample, so that replay, unlearning and per-sample state can.
        meta: more per-sample tensors (domain, time), not seen by networks.
    """

    x: Tree
    y: Tree | None = None
    id: Tensor = None  # type: ignore[assignment]
    meta: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.id is None:
            object.__setattr__(self, "id", torch.arange(length(self.x)))

    def __len__(self) -> int:
        return len(self.id)

    def __getitem__(self, index: Any) -> Batch:
        """Rows by slice, mask or positions."""
        return self.map(lambda t: t[index])

    @property
    def labels(self) -> Tensor:
        """`y` as one tensor.

        Raises:
            MissingPart: there are no labels, or they are no single tensor.
        """
        y = self.y
        if not isinstance(y, Tensor):
            raise MissingPart(
                f"labels are wanted as one tensor, and y is {'absent' if y is None else 'a tree of them'}"
            )
        return y

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Apply a function to every tensor."""
        y = None if self.y is None else map_tree(function, self.y)
        return Batch(map_tree(function, self.x), y, function(self.id), {k: function(v) for k, v in self.meta.items()})

    def to(self, device: str | torch.device | None) -> Batch:
        """The batch on a device; `None` leaves it where it is."""
        return self if device is None else self.map(lambda t: t.to(device))

    def replace(self, **changes: Any) -> Batch:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def revealed(labels: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """So many of a batch's labels, chosen at random; the others unknown."""
    shown = torch.full((len(labels),), UNKNOWN)
    chosen = torch.randperm(len(labels), generator=draws)[:count]
    shown[chosen] = labels[chosen]
    return shown


def join(batches: Sequence[Batch]) -> Batch:
    """One batch of several, in order."""
    if not batches:
        raise InputError("there is no batch to join; the data are empty")
    if len(batches) == 1:
        return batches[0]
    y = None if batches[0].y is None else cat([b.y for b in batches])  # type: ignore[misc]
    meta = {key: torch.cat([b.meta[key] for b in batches]) for key in batches[0].meta}
    return Batch(cat([b.x for b in batches]), y, torch.cat([b.id for b in batches]), meta)


class Data(ABC):
    """Samples by position. A subclass gives `__len__`, `fetch` and `fingerprint`."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def fetch(self, positions: Tensor) -> Batch:
        """The samples at these positions (int64 `[n]`, each in `[0, len)`), in this order."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the content: equal for equal samples in equal order."""

    def batches(self, size: int, *, start: int = 0) -> Iterator[Batch]:
        """Batches of `size` samples in order, from sample `start`; the last may be short."""
        if size < 1:
            raise InputError(f"a batch has at least one sample; got size {size}")
        for low in range(start, len(self), size):
            yield self.fetch(torch.arange(low, min(low + size, len(self))))

    def load(self) -> Batch:
        """All samples as one batch."""
        return self.fetch(torch.arange(len(self)))

    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> Data:
        """A subset by slice, boolean mask or positions; nothing is copied."""
        positions = torch.arange(len(self))[index if isinstance(index, slice) else torch.as_tensor(index)]
        return Subset(self, positions)

    def shuffle(self, generator: torch.Generator) -> Data:
        """The same samples in random order."""
        return Subset(self, torch.randperm(len(self), generator=generator))

    def split(self, *fractions: float, generator: torch.Generator | None = None) -> tuple[Data, ...]:
        """Disjoint parts of the given fractions and the rest, shuffled when a generator is given."""
        if not fractions or min(fractions) < 0 or sum(fractions) > 1:
            raise InputError(f"fractions are not negative and add up to at most 1; got {fractions}")
        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        edges = [0, *(round(sum(fractions[: i + 1]) * len(self)) for i in range(len(fractions))), len(self)]
        return tuple(Subset(self, order[a:b]) for a, b in itertools.pairwise(edges))

    def has_labels(self) -> bool:
        """Whether the samples come with `y`."""
        return self.fetch(torch.arange(min(1, len(self)))).y is not None

    def all_labels(self) -> Tensor:
        """All labels in order, as one tensor; reads the samples a batch at a time where labels lie with them.

        Raises:
            MissingPart: there are no labels, or they are no single tensor.
        """
        return torch.cat([batch.labels for batch in self.batches(256)])

    def unlabelled(self) -> Data:
        """The same samples without `y`."""
        return Unlabelled(self)


class Tensors(Data):
    """Samples held in memory.

    Args:
        x: tree of tensors or arrays, the first dimension is the sample.
        y: labels or targets, or None.
        id: int64 `[samples]`; default `0..n-1`.
        meta: more per-sample tensors.
    """

    def __init__(self, x: Any, y: Any = None, id: Any = None, meta: Mapping[str, Any] | None = None):
        tree_x = _tensors(x, "x")
        for name, leaf in named_leaves(tree_x, "x"):
            if leaf.ndim == 0:
                raise InputError(f"{name} has shape (); its first dimension is the sample")
        count = length(tree_x)
        self.batch = Batch(
            tree_x,
            None if y is None else _tensors(y, "y"),
            torch.arange(count) if id is None else torch.as_tensor(id, dtype=torch.int64),
            {key: torch.as_tensor(value) for key, value in (meta or {}).items()},
        )
        named = [*named_leaves(self.batch.x, "x"), ("id", self.batch.id), *self.batch.meta.items()]
        named += [] if self.batch.y is None else [*named_leaves(self.batch.y, "y")]
        for name, leaf in named:
            if leaf.ndim == 0 or len(leaf) != count:
                raise InputError(f"x has {count} samples, but {name} has shape {tuple(leaf.shape)}")
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.batch)

    def fetch(self, positions: Tensor) -> Batch:
        count = len(positions)
        if count and bool((positions.diff() == 1).all()):
            low = int(positions[0])
            return self.batch[low : low + count]
        return self.batch[positions]

    def all_labels(self) -> Tensor:
        return self.batch.labels

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            sha = hashlib.sha256()
            parts: list[tuple[str, Tree | None]] = [("x", self.batch.x), ("y", self.batch.y), ("id", self.batch.id)]
            for name, tree in [*parts, *sorted(self.batch.meta.items())]:
                for leaf_name, leaf in named_leaves(tree, name) if tree is not None else ():
                    hash_tensor(sha, leaf_name, leaf)
            self._fingerprint = sha.hexdigest()
        return self._fingerprint


class Subset(Data):
    """Some samples of other data, in a given order."""

    def __init__(self, base: Data, positions: Tensor):
        if isinstance(base, Subset):
            base, positions = base.base, base.positions[positions]
        self.base, self.positions = base, positions

    def __len__(self) -> int:
        return len(self.positions)

    def fetch(self, positions: Tensor) -> Batch:
        return self.base.fetch(self.positions[positions])

    def all_labels(self) -> Tensor:
        return self.base.all_labels()[self.positions]

    def fingerprint(self) -> str:
        sha = hashlib.sha256(self.base.fingerprint().encode())
        hash_tensor(sha, "positions", self.positions)
        return sha.hexdigest()


class Unlabelled(Data):
    """Other data without labels."""

    def __init__(self, base: Data):
        self.base = base

    def __len__(self) -> int:
        return len(self.base)

    def fetch(self, positions: Tensor) -> Batch:
        return self.base.fetch(positions).replace(y=None)

    def fingerprint(self) -> str:
        return digest("unlabelled", self.base.fingerprint())


class Joined(Data):
    """Several data one after another."""

    def __init__(self, parts: Sequence[Data]):
        if not parts:
            raise InputError("there are no parts to join")
        self.parts = tuple(parts)
        self.edges = torch.tensor([0, *(len(p) for p in self.parts)]).cumsum(0)

    def __len__(self) -> int:
        return int(self.edges[-1])

    def fetch(self, positions: Tensor) -> Batch:
        which = torch.bucketize(positions, self.edges[1:], right=True)
        present = which.unique().tolist()
        if len(present) <= 1:
            part = present[0] if present else 0
            return self.parts[part].fetch(positions - self.edges[part])
        rows = [torch.nonzero(which == part).flatten() for part in present]
        pieces = [
            self.parts[part].fetch(positions[row] - self.edges[part]) for part, row in zip(present, rows, strict=True)
        ]
        return join(pieces)[torch.argsort(torch.cat(rows))]

    def all_labels(self) -> Tensor:
        return torch.cat([part.all_labels() for part in self.parts])

    def fingerprint(self) -> str:
        return digest("joined", [part.fingerprint() for part in self.parts])


def _tensors(value: Any, name: str) -> Tree:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        return {str(key): _tensors(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_tensors(item, f"{name}.{i}") for i, item in enumerate(value))
    try:
        return torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise DtypeError(f"{name} is a {type(value).__name__} that is no tensor: {error}") from None


def hash_tensor(sha: Any, name: str, tensor: Tensor) -> None:
    """Feed a tensor's name, type, shape and bytes to a hash."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    sha.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
    sha.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def floating(x: Any, who: str) -> Tensor:
    """The inputs as one floating tensor, or an error that names who wants it so."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = x.dtype if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise InputError(f"{who} wants one tensor of floating inputs; these are {found}")
    return x


def check_finite(tree: Tree, name: str) -> None:
    """Raise `NonFiniteError` when a floating leaf holds NaN or infinity."""
    for leaf_name, leaf in named_leaves(tree, name):
        # The extremes are NaN or infinite when any value is, and take one pass without a mask.
        if leaf.is_floating_point() and leaf.numel() and not bool(torch.stack(torch.aminmax(leaf)).isfinite().all()):
            bad = int((~torch.isfinite(leaf)).sum())
            raise NonFiniteError(
                f"{leaf_name} holds {bad} values that are NaN or infinite; clean them or drop the samples"
            )
