"""The k-th largest of very many numbers, exactly, without a sort and without holding them.

A sample brackets it. One pass then counts what lies above the bracket and keeps what lies within, some thousandths of
all, in which the rank that is left is found. Where the sample missed, the bracket is moved and the pass repeated. What
is kept is stored as values and how often each came, so that the numbers of half precision, of which many are equal,
take no more room.

Reference: Floyd and Rivest, "Expected time bounds for selection", Communications of the ACM, 1975.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLE = 1 << 17
"""Numbers that bracket the one sought; the bracket holds up to 1.4 % of all at 2^17, 0.5 % at 2^20."""

ROOM = 1 << 22
"""Numbers within the bracket from which they are counted by value."""


@dataclass(frozen=True)
class Cut:
    """Where a share of numbers is cut off.

    Attributes:
        size: the smallest that is kept.
        above: how many are larger.
        equal: how many are of this size.
    """

    size: float
    above: int
    equal: int


def bracket(sample: Tensor, share: float) -> tuple[float, float]:
    """Between what the number lies of which a share is as large or larger; five standard errors on both sides."""
    ranked = sample.sort(descending=True).values
    count = len(ranked)
    slack = 5 * math.sqrt(share * (1 - share) / count) + 1 / count
    high, low = math.floor((share - slack) * count), math.ceil((share + slack) * count)
    return (
        float(ranked[low]) if low < count else -math.inf,
        float(ranked[high]) if high >= 0 else math.inf,
    )


class Tally:
    """Numbers within a bracket, and how many lie above it; parts of it are counted apart and added.

    Args:
        low, high: the bracket; both ends are within.
    """

    def __init__(self, low: float, high: float):
        self.low, self.high, self.above = low, high, 0
        self._parts: list[Tensor] = []
        self._loose = 0
        self._values, self._counts = torch.empty(0), torch.empty(0, dtype=torch.int64)

    def add(self, numbers: Tensor) -> None:
        """Count some, `[n]`."""
        self.above += int(torch.count_nonzero(numbers > self.high))
        if self.low == self.high:
            # Half of all weights may be of one size; there is no need to collect them.
            if equal := int(torch.count_nonzero(numbers == self.low)):
                self._merge(numbers.new_tensor([self.low]), torch.tensor([equal]))
            return
        inside = numbers[(numbers >= self.low) & (numbers <= self.high)]
        if len(inside):
            self._parts.append(inside)
            self._loose += len(inside)
            if self._loose > ROOM:
                self._count()

    def join(self, other: Tally) -> None:
        """Add what another one counted with the same bracket."""
        self.above += other.above
        self._parts += other._parts
        self._loose += other._loose
        self._merge(other._values, other._counts)
        if self._loose > ROOM:
            self._count()

    def find(self, rank: int) -> Cut | None:
        """The number of which `rank` are as large or larger, from 1; None where it is not within the bracket."""
        self._count()
        left = rank - self.above
        if left < 1 or left > int(self._counts.sum()):
            return None
        before = self._counts.flip(0).cumsum(0)
        place = int(torch.searchsorted(before, left))
        values, counts = self._values.flip(0), self._counts.flip(0)
        larger = self.above + (int(before[place - 1]) if place else 0)
        return Cut(float(values[place]), larger, int(counts[place]))

    def _count(self) -> None:
        if self._parts:
            values, counts = torch.cat(self._parts).unique(return_counts=True)
            self._parts, self._loose = [], 0
            self._merge(values, counts)

    def _merge(self, values: Tensor, counts: Tensor) -> None:
        if not len(values):
            return
        if len(self._values):
            both, place = torch.cat([self._values.to(values), values]).unique(return_inverse=True)
            counts = torch.zeros(len(both), dtype=torch.int64).index_add_(0, place, torch.cat([self._counts, counts]))
            values = both
        self._values, self._counts = values, counts


def select(sample: Tensor, rank: int, count: int, tally: Callable[[Tally], None]) -> Cut:
    """The number of which `rank` out of `count` are as large or larger.

    Args:
        sample: some of them, drawn evenly.
        rank: from 1.
        count: of all.
        tally: counts all of them into a `Tally`.

    Returns:
        The cut. Its size is NaN where fewer than `rank` are numbers at all.
    """
    sample = sample[~sample.isnan()]
    low, high = bracket(sample, rank / count) if len(sample) else (-math.inf, math.inf)
    for _ in range(2):
        seen = Tally(low, high)
        tally(seen)
        if (found := seen.find(rank)) is not None:
            return found
        low, high = (high, math.inf) if seen.above >= rank else (-math.inf, low)
    return Cut(math.nan, 0, 0)
