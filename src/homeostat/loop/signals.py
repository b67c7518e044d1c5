"""What is watched of a stream: signals, the columns of numbers in 0..1 that each has, and what is tested of them.

>>> layout = layout_of((("entropy", 2), ("error", 1)))
>>> layout.columns["error"], layout.tested["entropy"]
(slice(2, 3, None), [(0, 1), (1, 1), (0, -1)])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Signal = Literal["entropy", "confidence", "features", "classes", "error"]
"""What a monitor may watch."""

Column = tuple[int, int]
"""A column of a signal, and the direction (1 or -1) in which its mean may move."""


def columns_of(signal: str, width: int) -> list[Column]:
    """What is tested of a signal with so many columns, in the order of its detectors."""
    if signal in ("entropy", "confidence"):
        return [(0, 1), (1, 1), (0, -1)]
    if signal == "features":
        return [(i, 1) for i in range(width)] + [(i, -1) for i in range(2, width)]
    if signal == "classes":
        return [(i, side) for side in (1, -1) for i in range(width)]
    return [(0, 1)]


@dataclass(frozen=True)
class Layout:
    """Where signals' columns lie among those of all, and the detectors that stand on them.

    Attributes:
        widths: columns of each signal, in the order of their columns.
    """

    widths: tuple[tuple[str, int], ...]

    @cached_property
    def columns(self) -> dict[str, slice]:
        """By signal, its columns."""
        ends = torch.tensor([0, *(width for _, width in self.widths)]).cumsum(0).tolist()
        return {name: slice(ends[i], ends[i + 1]) for i, (name, _) in enumerate(self.widths)}

    @cached_property
    def tested(self) -> dict[str, list[Column]]:
        """By signal, what is tested of it."""
        return {name: columns_of(name, width) for name, width in self.widths}

    @cached_property
    def detectors(self) -> dict[str, slice]:
        """By signal, its detectors."""
        ends = torch.tensor([0, *(len(tested) for tested in self.tested.values())]).cumsum(0).tolist()
        return {name: slice(ends[i], ends[i + 1]) for i, name in enumerate(self.tested)}

    @cached_property
    def member(self) -> Float[Tensor, "signals columns"]:
        """1 where a column is of a signal."""
        return torch.block_diag(*(torch.ones(1, width).double() for _, width in self.widths))

    @cached_property
    def sides(self) -> tuple[Tensor, Tensor, Tensor]:
        """By detector, its column, and what to add to which multiple of it: u, or 1 - u for falling numbers."""
        low = {name: columns.start for name, columns in self.columns.items()}
        pairs = [(low[name] + column, side) for name, tested in self.tested.items() for column, side in tested]
        index, side = torch.tensor(pairs).view(-1, 2).T
        return index, (side < 0).double()[:, None], side.double()[:, None]

    def of(self, places: Mapping[str, slice]) -> slice:
        """Where these signals lie, which are neighbours there."""
        return slice(places[self.widths[0][0]].start, places[self.widths[-1][0]].stop)

    def observed(self, values: Float[Tensor, "columns observations"]) -> Float[Tensor, "detectors observations"]:
        """What each detector is shown of these numbers."""
        index, base, side = self.sides
        return torch.addcmul(base, side, values[index])


@cache
def layout_of(widths: tuple[tuple[str, int], ...]) -> Layout:
    """The same layout for the same widths."""
    return Layout(widths)


def kind_of(signal: str, column: Column) -> str:
    """The kind of alarm that a detector stands for."""
    if signal not in ("entropy", "confidence"):
        return signal
    return "uncertain" if column[0] == 1 or (column[1] > 0) == (signal == "entropy") else "certain"
