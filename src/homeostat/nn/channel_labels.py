"""Labels of channels that turn out to be the same: a union-find whose members may be parts of one channel.

Each position of an axis has a label `(id, part)`: which channel, and which of the positions that the channel fills
(flattening `[channels, height, width]` gives each channel height * width parts). Id 0 is what must not move; a negative
id is a constant, which may be anything. Joining two labels makes their channels one, where their parts agree.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

FIXED = 0
Mark = tuple[Any, int]


class Axis(NamedTuple):
    """Labels along an axis: `ids` and `parts`, int64 `[positions]` each."""

    ids: np.ndarray
    parts: np.ndarray

    def cut(self, index: Any) -> Axis:
        """Some of the positions."""
        return Axis(self.ids[index], self.parts[index])

    @staticmethod
    def joined(axes: Iterable[Axis]) -> Axis:
        """Axes one after another."""
        ids, parts = zip(*axes, strict=True)
        return Axis(np.concatenate(ids), np.concatenate(parts))


class Places(NamedTuple):
    """Where a set of channels stands along an axis: positions `[channels, positions each]`, in `blocks` blocks."""

    positions: np.ndarray
    blocks: int


class Labels:
    """All labels of a forward pass, and what tells channels apart."""

    def __init__(self) -> None:
        self.parent, self.part, self.whole = [FIXED], [0], [True]
        self.marks: defaultdict[int, set[Mark]] = defaultdict(set)
        self.sizes: dict[Any, int] = {}
        """Channels of each group, by the step of a GroupNorm."""

    def fresh(self, count: int) -> Axis:
        """New channels."""
        low = len(self.parent)
        self.parent += range(low, low + count)
        self.part += [0] * count
        self.whole += [True] * count
        return Axis(np.arange(low, low + count), np.zeros(count, dtype=np.int64))

    def fixed(self, count: int) -> Axis:
        """Positions that must stay."""
        return Axis(np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64))

    def constant(self, count: int, step: int) -> Axis:
        """Positions that all hold the same."""
        return Axis(np.full(count, -step), np.zeros(count, dtype=np.int64))

    def find(self, label: int, part: int = 0) -> tuple[int, int]:
        """The channel that a label belongs to now, and which part of it."""
        path = []
        while self.parent[label] != label:
            path.append(label)
            label = self.parent[label]
        total = 0
        for node in reversed(path):
            total += self.part[node]
            self.parent[node], self.part[node] = label, total
        return label, (part + total if label != FIXED else 0)

    def resolved(self, axis: Axis) -> list[tuple[int, int]]:
        """`find` along an axis; constants stay as they are."""
        pairs = zip(axis.ids.tolist(), axis.parts.tolist(), strict=True)
        return [(label, part) if label <= 0 else self.find(label, part) for label, part in pairs]

    def freeze(self, axes: Iterable[Axis]) -> None:
        """What stands along these axes must stay."""
        for axis in axes:
            for label in set(axis.ids[axis.ids > 0].tolist()):
                self._fix(label)

    def mark(self, axes: Iterable[Axis], mark: Mark) -> None:
        """Tell the channels along these axes apart from those without this mark."""
        for axis in axes:
            for label in set(axis.ids[axis.ids > 0].tolist()):
                self.marks[self.find(label)[0]].add(mark)

    def join(self, *axes: Axis) -> Axis:
        """Make positions the same, one axis with the next; returns their labels."""
        out = axes[0]
        for axis in axes[1:]:
            if not (out.ids.any() or axis.ids.any()):
                continue
            for (a, i), (b, j) in zip(self.resolved(out), self.resolved(axis), strict=True):
                if a < 0 or b < 0:
                    if max(a, b) > 0:
                        self.marks[max(a, b)].add(("constant", min(a, b)))
                elif a != b or i != j:
                    self._join(a, i, b, j)
            # A constant takes the label of what it meets.
            ids = np.where(out.ids < 0, axis.ids, out.ids)
            out = Axis(ids, np.where(out.ids < 0, axis.parts, out.parts))
        return out

    def _join(self, a: int, i: int, b: int, j: int) -> None:
        if FIXED in (a, b):
            self._fix(max(a, b))
        elif a != b and i == j:
            self._link(a, b, 0)
        elif a != b and j == 0 and self.whole[b]:
            self._link(b, a, i)
        elif a != b and i == 0 and self.whole[a]:
            self._link(a, b, j)
        else:
            self._fix(a)
            self._fix(b)

    def _link(self, child: int, root: int, part: int) -> None:
        self.parent[child], self.part[child] = root, part
        self.whole[root] = self.whole[root] and self.whole[child] and part == 0
        self.marks[root] |= self.marks.pop(child, set())

    def _fix(self, label: int) -> None:
        root, _ = self.find(label)
        if root != FIXED:
            self.parent[root], self.part[root] = FIXED, 0

    def reshaped(self, value: Sequence[Axis], shape: tuple[int, ...], new: tuple[int, ...]) -> tuple[Axis, ...]:
        """Labels after a reshape: axes that are merged keep their channels, those that are split are fixed."""
        out, i, j = list[Axis](), 0, 0
        while i < len(shape) or j < len(new):
            a, b = i + 1, j + 1
            while (left := math.prod(shape[i:a])) != (right := math.prod(new[j:b])):
                a, b = (a + 1, b) if left < right else (a, b + 1)
            before = [axis for axis in value[i:a] if len(axis.ids) != 1]
            wide = [n for n in new[j:b] if n != 1]
            if len(wide) == 1 and before:
                after = [before[0] if len(before) == 1 else self._merged(before)]
            else:
                self.freeze(before)
                after = [self.fixed(n) for n in wide]
            out += [after.pop(0) if n != 1 else self.fixed(1) for n in new[j:b]]
            i, j = a, b
        return tuple(out)

    def _merged(self, axes: Sequence[Axis]) -> Axis:
        sizes = [len(axis.ids) for axis in axes]
        found = [self.resolved(axis) for axis in axes]
        moving = [at for at, pairs in enumerate(found) if any(label > 0 for label, _ in pairs)]
        if len(moving) != 1:
            self.freeze(axes)
            return self.fixed(math.prod(sizes))
        at = moving[0]
        outer, inner = math.prod(sizes[:at]), math.prod(sizes[at + 1 :])
        ids = np.array([max(label, FIXED) for label, _ in found[at]])
        parts = np.array([part for _, part in found[at]])
        if outer * inner > 1:
            for label in set(ids.tolist()) - {FIXED}:
                self.whole[label] = False
        steps = np.arange(outer)[:, None, None] * inner + np.arange(inner)
        shape = (outer, sizes[at], inner)
        spread = parts[:, None] * outer * inner + steps
        return Axis(np.broadcast_to(ids[:, None], shape).reshape(-1), spread.reshape(-1))

    def interchangeable(self, named: Mapping[str, Sequence[Axis]]) -> list[dict[tuple[str, int], Places]]:
        """Sets of at least two channels that stand in the same axes of the same tensors, and have the same marks."""
        stands: defaultdict[int, dict[tuple[str, int], list[tuple[int, int]]]] = defaultdict(dict)
        for name, axes in named.items():
            for number, axis in enumerate(axes):
                for position, (root, part) in enumerate(self.resolved(axis)):
                    if root > 0:
                        stands[root].setdefault((name, number), []).append((part, position))
        alike: defaultdict[Any, list[int]] = defaultdict(list)
        for root, places in stands.items():
            for filled in places.values():
                filled.sort()
            parts = tuple((place, tuple(part for part, _ in filled)) for place, filled in places.items())
            alike[parts, frozenset(self.marks[root])].append(root)
        found = []
        for (parts, _), blocks in self._blocks(alike).items():
            roots = [root for block in blocks for root in block]
            if len(roots) < 2:
                continue
            found.append(
                {
                    place: Places(np.array([[p for _, p in stands[root][place]] for root in roots]), len(blocks))
                    for place, _ in parts
                }
            )
        return found

    def _blocks(self, alike: Mapping[Any, list[int]]) -> dict[Any, list[list[int]]]:
        """Sets that differ only in which whole group of a GroupNorm they are become blocks of one set."""
        joined: defaultdict[Any, list[list[int]]] = defaultdict(list)
        for (parts, marks), roots in alike.items():
            groups = [mark for mark in marks if mark[0] in self.sizes]
            if groups and all(self.sizes[step] == len(roots) for step, _ in groups):
                marks = marks - set(groups) | {("groups", step) for step, _ in groups}
            joined[parts, marks].append(roots)
        return joined
