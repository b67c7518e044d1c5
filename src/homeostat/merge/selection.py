"""The k-th largest of very many numbers, exactly, without a sort and without holding them.

A sample brackets it. One pass then counts what lies above the bracket and keeps what lies within, some hundredths of
all, in which the rank that is left is found. Where the sample missed, the bracket is moved and the pass repeated. What
is kept is stored as values and how often each came, so that the numbers of half precision, of which many are equal,
take no more room.

Arrays are NumPy's, whose comparisons and partitions are several times as fast as those of PyTorch on a CPU.

Reference: Floyd and Rivest, "Expected time bounds for selection", Communications of the ACM, 1975.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

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


def held_cut(numbers: np.ndarray, rank: int) -> Cut:
    """The number of which `rank` are as large or larger, of `[n]` that are held; they are put into another order."""
    place = len(numbers) - rank
    numbers.partition(place)
    size = numbers[place]
    above = int(np.count_nonzero(numbers[place:] > size))
    return Cut(float(size), above, int(np.count_nonzero(numbers == size)))


def bracket(sample: np.ndarray, share: float) -> tuple[float, float]:
    """Between what the number lies of which a share is as large or larger; five standard errors on both sides."""
    ranked, count = np.sort(sample)[::-1], len(sample)
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
        self._parts: list[np.ndarray] = []
        self._loose = 0
        self._values, self._counts = np.empty(0), np.empty(0, dtype=np.int64)

    def add(self, numbers: np.ndarray) -> None:
        """Count some, `[n]`."""
        self.above += int(np.count_nonzero(numbers > self.high))
        if self.low == self.high:
            # Half of all weights may be of one size; there is no need to collect them.
            if equal := int(np.count_nonzero(numbers == self.low)):
                self._merge(np.array([self.low]), np.array([equal]))
            return
        inside = numbers[(numbers >= self.low) & (numbers <= self.high)]
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
        values, counts = self._values[::-1], self._counts[::-1]
        before = counts.cumsum()
        place = int(np.searchsorted(before, left))
        larger = self.above + (int(before[place - 1]) if place else 0)
        return Cut(float(values[place]), larger, int(counts[place]))

    def _count(self) -> None:
        parts, self._parts, self._loose = self._parts, [], 0
        if parts:
            self._merge(*np.unique(np.concatenate(parts), return_counts=True))

    def _merge(self, values: np.ndarray, counts: np.ndarray) -> None:
        if len(self._values) and len(values):
            both, place = np.unique(np.concatenate([self._values, values]), return_inverse=True)
            total = np.zeros(len(both), dtype=np.int64)
            np.add.at(total, place, np.concatenate([self._counts, counts]))
            values, counts = both, total
        if len(values):
            self._values, self._counts = values, counts


def select(sample: np.ndarray, rank: int, count: int, tally: Callable[[Tally], None]) -> Cut:
    """The number of which `rank` out of `count` are as large or larger.

    Args:
        sample: some of them, drawn evenly.
        rank: from 1.
        count: of all.
        tally: counts all of them into a `Tally`.

    Returns:
        The cut. Its size is NaN where fewer than `rank` are numbers at all.
    """
    sample = sample[~np.isnan(sample)]
    low, high = bracket(sample, rank / count) if len(sample) else (-math.inf, math.inf)
    for _ in range(2):
        seen = Tally(low, high)
        tally(seen)
        if (found := seen.find(rank)) is not None:
            return found
        low, high = (high, math.inf) if seen.above >= rank else (-math.inf, low)
    return Cut(math.nan, 0, 0)


def among_largest(sizes: np.ndarray, count: int) -> np.ndarray:
    """Which entries of each row are among its `count` largest; of equal ones the first. `[rows, width]`, booleans."""
    width = sizes.shape[1]
    if count == 0 or count >= width:
        return np.full(sizes.shape, count > 0)
    least = np.partition(sizes, width - count, axis=1)[:, width - count, None]
    larger, equal = sizes > least, sizes == least
    left = count - np.count_nonzero(larger, axis=1)
    if bool((np.count_nonzero(equal, axis=1) == left).all()):
        return larger | equal
    return larger | (equal & (np.cumsum(equal, axis=1, dtype=np.int32) <= left[:, None]))
