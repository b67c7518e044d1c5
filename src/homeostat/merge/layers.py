"""Which tensors of a checkpoint belong to which layer, told by the numbers in their names."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from homeostat.merge.opening import is_embeddings

NUMBERED = re.compile(r"^(?:(.*?)\.)??(\d+)\.(.+)$")
FIRST = ("embed", "wte", "wpe")
"""What names of tensors hold that come before the first layer."""


@dataclass(frozen=True)
class Stack:
    """The layers of a checkpoint.

    Attributes:
        counts: how many layers there are, by what stands before their number.
        main: what stands before the number of the stack with the most tensors.
        within: names after the number, by layer of the main stack.
        outer: names without a layer of the main stack.
    """

    counts: Mapping[str, int]
    main: str
    within: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    outer: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Layers of the main stack."""
        return self.counts.get(self.main, 0)

    def name(self, layer: int, rest: str) -> str:
        """A tensor's name in another layer."""
        return f"{self.main}.{layer}.{rest}" if self.main else f"{layer}.{rest}"

    def at(self, name: str) -> float:
        """How far a tensor's layer is among the layers, from 0 to 1; 0 outside of them."""
        found = NUMBERED.match(name)
        if found is None or (found[1] or "") not in self.counts:
            return 0.0
        return where(int(found[2]), self.counts[found[1] or ""])


def where(layer: int, count: int) -> float:
    """How far a layer is among so many, from 0 to 1; an only one is at the end."""
    return layer / (count - 1) if count > 1 else 1.0


def comes_first(name: str) -> bool:
    """Whether a tensor outside of the layers comes before them."""
    return is_embeddings(name) or any(word in name for word in FIRST)


def stack_of(names: Iterable[str]) -> Stack:
    """Read the layers from names.

    >>> found = stack_of(["embed.weight", "model.layers.0.q.weight", "model.layers.1.q.weight"])
    >>> found.main, found.count, found.within[1], found.outer, found.at("model.layers.1.q.weight")
    ('model.layers', 2, ('q.weight',), ('embed.weight',), 1.0)
    """
    held = [(name, NUMBERED.match(name)) for name in names]
    tensors = Counter(found[1] or "" for _, found in held if found)
    counts = dict[str, int]()
    for _, found in held:
        if found:
            counts[found[1] or ""] = max(counts.get(found[1] or "", 0), int(found[2]) + 1)
    main = tensors.most_common(1)[0][0] if tensors else ""
    within, outer = defaultdict[int, list[str]](list), list[str]()
    for name, found in held:
        if found and (found[1] or "") == main:
            within[int(found[2])].append(found[3])
        else:
            outer.append(name)
    return Stack(counts, main, {i: tuple(rest) for i, rest in within.items()}, tuple(outer))
