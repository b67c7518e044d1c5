"""Memory banks: which samples of an endless stream are kept, in a bounded number of tensors.

Rows are named tensors `[n, ...]` of one length (`{"x": images, "label": ids}`); what a bank holds lies in a `Bag`,
below a prefix, so that it is saved, restored and moved with everything else there. A bank itself has no state. A bag
that never saw a row is an empty bank. What `rows` returns may be a view: use it before the next row is added.
Samples of any structure become rows, and rows samples, by `as_rows` and `as_tree`.

- `Ring`: the last `capacity` rows.
- `Reservoir`: a uniform sample of all rows seen (algorithm R): row i takes a free place, or with probability
  capacity / i that of a random row held.
- `Balanced`: at most capacity / classes rows a class, and of a class those that are young and that the model is sure of
  (RoTTA). A row of age a and entropy u has the score timeliness / (1 + exp(-a / capacity)) + uncertainty u / log K. A
  new row of class k takes the place of the row with the highest score, among those of class k if that class has its
  share, else, if the bank is full, among the classes with most rows; if its own score is not lower it is left out.
  Ages count rows seen since.

>>> bag, ring = Bag(), Ring(capacity=3)
>>> for start in (0, 2):
...     ring.add(bag, {"x": torch.arange(start, start + 2)})
>>> ring.rows(bag)["x"], ring.seen(bag)
(tensor([1, 2, 3]), 4)
>>> rows = as_rows({"a": torch.ones(2), "b": (torch.zeros(2),)}, "x")
>>> list(rows), as_tree({"a": torch.ones(1), "b": (torch.ones(1),)}, "x", rows)
(['x.x.a', 'x.x.b.0'], {'a': tensor([1., 1.]), 'b': (tensor([0., 0.]),)})

References: Vitter, Random sampling with a reservoir, 1985; Yuan, Xie, Li, Robust test-time adaptation in dynamic
scenarios, CVPR 2023.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from homeostat.core.errors import InputError
from homeostat.core.online import Bag
from homeostat.core.tree import Tree, map_tree, named_leaves

Rows = Mapping[str, Tensor]


@dataclass(frozen=True)
class Bank:
    """Base of banks: where rows lie in a bag, and how many there are.

    Attributes:
        capacity: rows held at most.
        prefix: where they lie in the bag.
    """

    capacity: int
    prefix: str = "bank"

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise InputError(f"a bank holds at least 1 row; got capacity {self.capacity}")

    def seen(self, bag: Bag) -> int:
        """How many rows were ever added."""
        name = f"{self.prefix}.seen"
        return int(bag[name]) if name in bag else 0

    def held(self, bag: Bag) -> int:
        """How many rows are in it."""
        return min(self.seen(bag), self.capacity)

    def rows(self, bag: Bag) -> dict[str, Tensor]:
        """The rows held, by name; empty when there are none."""
        return {name: tensor[: self.held(bag)] for name, tensor in bag.under(f"{self.prefix}.row").items()}

    def sample(self, bag: Bag, count: int, draws: torch.Generator) -> dict[str, Tensor]:
        """`count` of the rows held (all, if there are no more), at random without repeats."""
        held = self.held(bag)
        chosen = torch.randperm(held, generator=draws)[:count]
        return {name: t[:held][chosen.to(t.device)] for name, t in bag.under(f"{self.prefix}.row").items()}

    def clear(self, bag: Bag) -> None:
        """Forget everything."""
        for name in bag:
            if name.startswith(f"{self.prefix}."):
                del bag[name]

    def _count(self, bag: Bag, new: int) -> None:
        bag[f"{self.prefix}.seen"] = torch.tensor(self.seen(bag) + new)

    def _write(self, bag: Bag, rows: Rows, slots: Tensor, needed: int) -> None:
        """Put rows into slots; storage doubles as it is needed, up to the capacity."""
        for name, new in rows.items():
            full = f"{self.prefix}.row.{name}"
            old = bag[full] if full in bag else new.new_empty(0, *new.shape[1:])
            if len(old) < needed:
                room = min(self.capacity, max(needed, 2 * len(old)))
                old = torch.cat([old, new.new_zeros(room - len(old), *new.shape[1:])])
                bag[full] = old
            with torch.no_grad():
                old.index_copy_(0, slots.to(old.device), new.detach().to(old))


def _length(rows: Rows) -> int:
    sizes = {len(tensor) for tensor in rows.values()}
    if len(sizes) != 1:
        raise InputError(f"the rows of a bank have one length; these have {sorted(sizes)}")
    return sizes.pop()


class Ring(Bank):
    """The last `capacity` rows: first in, first out."""

    def add(self, bag: Bag, rows: Rows) -> None:
        """Add rows, in their order."""
        count, seen = _length(rows), self.seen(bag)
        kept = min(count, self.capacity)
        slots = torch.arange(seen + count - kept, seen + count) % self.capacity
        self._write(bag, {name: t[count - kept :] for name, t in rows.items()}, slots, min(seen + count, self.capacity))
        self._count(bag, count)

    def rows(self, bag: Bag) -> dict[str, Tensor]:
        """The rows held, oldest first."""
        first = self.seen(bag) % self.capacity if self.seen(bag) > self.capacity else 0
        return {name: tensor.roll(-first, 0) if first else tensor for name, tensor in super().rows(bag).items()}


class Reservoir(Bank):
    """A uniform sample of all rows that were ever added."""

    def add(self, bag: Bag, rows: Rows, draws: torch.Generator) -> None:
        """Add rows, in their order; `draws` decides which stay."""
        count, seen = _length(rows), self.seen(bag)
        place = torch.arange(seen, seen + count)
        wanted = (torch.rand(count, generator=draws, dtype=torch.float64) * (place + 1)).long()
        slots = torch.where(place < self.capacity, place, wanted).tolist()
        last = {slot: row for row, slot in enumerate(slots) if slot < self.capacity}  # of two in one place the later
        chosen = torch.tensor(list(last.values()), dtype=torch.long)
        some = {name: t[chosen.to(t.device)] for name, t in rows.items()}
        self._write(bag, some, torch.tensor(list(last), dtype=torch.long), min(seen + count, self.capacity))
        self._count(bag, count)


@dataclass(frozen=True)
class Balanced(Bank):
    """Rows of all classes alike, and of a class the young ones that the model is sure of.

    Attributes:
        classes: how many there are.
        timeliness, uncertainty: weights of age and entropy in the score; the row of the highest goes first.
    """

    classes: int = 2
    timeliness: float = 1.0
    uncertainty: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes < 2:
            raise InputError(f"a bank is balanced over at least 2 classes; got {self.classes}")

    def add(self, bag: Bag, rows: Rows, labels: Tensor, entropy: Tensor) -> None:
        """Add rows one after another.

        Args:
            bag, rows: as above; the names `label`, `entropy` and `age` are the bank's own.
            labels: class of each, `[n]`.
            entropy: of the prediction for each, `[n]`.
        """
        count, old = _length(rows), super().rows(bag)
        held = len(old["age"]) if old else 0
        ages = old["age"].tolist() if old else []
        items = [
            [label, entropy, age, place]
            for place, (label, entropy, age) in enumerate(
                zip(old["label"].tolist(), old["entropy"].tolist(), ages, strict=True) if old else ()
            )
        ]
        for place, (label, unsure) in enumerate(zip(labels.tolist(), entropy.tolist(), strict=True)):
            self._consider(items, [label, unsure, 0, held + place])
            for item in items:
                item[2] += 1
        items.sort(key=lambda item: item[0])  # stable: rows of a class stay in the order in which they came
        places = torch.tensor([item[3] for item in items], dtype=torch.long)
        for name, new in rows.items():
            every = torch.cat([old[name], new.detach().to(old[name])]) if old else new.detach()
            bag[f"{self.prefix}.row.{name}"] = every[places.to(every.device)]
        own = {"label": (0, torch.long), "entropy": (1, entropy.dtype), "age": (2, torch.long)}
        for name, (column, dtype) in own.items():
            bag[f"{self.prefix}.row.{name}"] = torch.tensor([item[column] for item in items], dtype=dtype)
        self._count(bag, count)

    def held(self, bag: Bag) -> int:
        name = f"{self.prefix}.row.age"
        return len(bag[name]) if name in bag else 0

    def _consider(self, items: list[list[Any]], new: list[Any]) -> None:
        """Put a row in, in place of another where there is no room; or leave it out."""
        sizes = Counter(item[0] for item in items)
        if sizes[new[0]] < self.capacity / self.classes:
            most = max(sizes.values()) if len(items) >= self.capacity else 0
            candidates = {label for label, size in sizes.items() if size == most}
        else:
            candidates = {new[0]}
        worst, score = None, -math.inf
        for place, item in enumerate(items):
            if item[0] in candidates:
                own = self._score(item)
                # Of equal scores the later one, classes in their order, as the paper's code has it.
                if own > score or (own == score and worst is not None and item[0] >= items[worst][0]):
                    worst, score = place, own
        if worst is not None:
            if score <= self._score(new):
                return
            del items[worst]
        items.append(new)

    def _score(self, item: list[Any]) -> float:
        age = self.timeliness / (1 + math.exp(-item[2] / self.capacity))
        return age + self.uncertainty * item[1] / math.log(self.classes)


def as_rows(tree: Tree, prefix: str) -> dict[str, Tensor]:
    """The leaves of a tree by name, below a prefix."""
    return {f"{prefix}.{name}": leaf for name, leaf in named_leaves(tree, prefix)}


def as_tree(like: Tree, prefix: str, rows: Rows) -> Any:
    """The tree that rows were made of, in the structure of `like`."""
    names = iter([name for name, _ in named_leaves(like, prefix)])
    return map_tree(lambda _: rows[f"{prefix}.{next(names)}"], like)
