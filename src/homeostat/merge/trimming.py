"""Which entries of task vectors are the largest, over a tensor or over a model, and those alone.

Among entries of equal size the first are kept, by the order of tensors and by index, so that the share is exact. Sizes
are found by selection (`selection`), in one pass over the tensors after a sample, and never sorted or held.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from homeostat.core.random import generator
from homeostat.merge.merging import Each, Group
from homeostat.merge.selection import Cut, Tally, held_cut, select

Ties = Literal["index", "all"]

HELD = 1 << 24
"""Entries up to which sizes are simply held, 64 MiB in float32."""

SAMPLE = 1 << 17
"""Least sizes that bracket the one sought; the bracket then holds up to 1.4 % of all."""


@dataclass(frozen=True)
class Kept:
    """What is kept of one tensor of one donor: what is larger than `size`, and what equals it before an index.

    Attributes:
        size: of the smallest.
        until: the flat index from which entries of that size are dropped.
    """

    size: float
    until: int


def trim(delta: Tensor, kept: Kept, start: int = 0) -> Tensor:
    """A block of a task vector with only what is kept; the rest is 0. NaN stays.

    Args:
        delta: flat; a tensor of the caller's own.
        kept: of its tensor.
        start: the block's place in the tensor.
    """
    if kept.until <= start:
        return torch.nn.functional.hardshrink(delta, kept.size)
    if kept.until >= start + delta.numel():
        # hardshrink drops what equals its bound, and so takes the next smaller one.
        return delta if kept.size <= 0 else torch.nn.functional.hardshrink(delta, _below(kept.size, delta.dtype))
    flat = delta.view(-1)
    cut = kept.until - start
    return torch.cat([trim(flat[:cut], Kept(kept.size, cut)), trim(flat[cut:], Kept(kept.size, 0))]).view_as(delta)


def _below(size: float, dtype: torch.dtype) -> float:
    return float(torch.nextafter(torch.tensor(size, dtype=dtype), torch.tensor(-1.0, dtype=dtype)))


def rank_of(density: float, count: int) -> int:
    """How many entries a share of so many is; at least one."""
    return max(1, round(density * count))


def largest(groups: Sequence[Group], ranks: Sequence[int], ties: Ties, each: Each[Any]) -> dict[str, tuple[Kept, ...]]:
    """What to keep of every donor, so that over all groups together it is so many of its largest entries.

    Args:
        groups: tensors in the order in which entries of equal size are kept.
        ranks: how many, of each donor, from 0.
        ties: among equal sizes keep the first by `"index"`, or `"all"`.
        each: calls a function on groups.

    Returns:
        By the group's name, one entry a donor.
    """
    count = sum(group.count for group in groups)
    asked = {number: rank for number, rank in enumerate(ranks) if 0 < rank < count}
    cuts = _cuts(groups, count, asked, each) if asked else {}
    kept = {group.name: [Kept(0.0, count) if rank else Kept(math.inf, 0) for rank in ranks] for group in groups}
    for number, cut in cuts.items():
        left = cut.equal if ties == "all" else asked[number] - cut.above
        for group, until in zip(groups, _untils(groups, number, cut, left), strict=True):
            kept[group.name][number] = Kept(cut.size, until)
    return {name: tuple(values) for name, values in kept.items()}


def one_by_one(call: Any, groups: Sequence[Group]) -> list[Any]:
    """An `each` that does nothing at a time but one."""
    return [call(group) for group in groups]


def _cuts(groups: Sequence[Group], count: int, ranks: dict[int, int], each: Each[Any]) -> dict[int, Cut]:
    if count <= HELD:
        return {
            number: held_cut(np.concatenate([part for group in groups for part in _parts(group, number)]), rank)
            for number, rank in ranks.items()
        }
    drawn = np.concatenate(each(lambda group: _sample(group, count, list(ranks)), groups), 1)
    found = dict[int, Cut]()
    for row, (number, rank) in enumerate(ranks.items()):

        def tally(seen: Tally, number: int = number) -> None:
            def one(group: Group) -> Tally:
                mine = Tally(seen.low, seen.high)
                for sizes in _parts(group, number):
                    mine.add(sizes)
                return mine

            for part in each(one, groups):
                seen.join(part)

        found[number] = select(drawn[row], rank, count, tally)
    return found


def _parts(group: Group, number: int) -> Iterator[np.ndarray]:
    """Sizes of one donor's changes, block by block."""
    one = Group(group.name, group.base, (group.donors[number],), group.dtype, group.shape)
    for block in one.blocks():
        yield next(block.deltas()).abs_().numpy()


def _sample(group: Group, count: int, numbers: list[int]) -> np.ndarray:
    """Sizes of some changes, `[donors, drawn]`; of each tensor as many as is its share."""
    much = math.ceil(max(SAMPLE, min(count // 256, 1 << 20)) * group.count / count)
    place = torch.randint(max(group.count, 1), (min(much, group.count),), generator=generator(0, "sample", group.name))
    base, donors = group.read()
    start = base[place].to(group.wide)
    return np.stack([(donors[n][place].to(group.wide) - start).abs_().numpy() for n in numbers])


def _untils(groups: Sequence[Group], number: int, cut: Cut, left: int) -> list[int]:
    """For each group the index from which entries of the cut's size are dropped, so that `left` stay in all."""
    if left >= cut.equal or math.isnan(cut.size):
        return [group.count for group in groups]
    found = []
    for group in groups:
        until = 0
        for sizes in _parts(group, number) if left else ():
            places = np.flatnonzero(sizes == cut.size)
            if len(places) >= left:
                found.append(until + int(places[left - 1]) + 1)
                left = 0
                break
            left -= len(places)
            until += len(sizes)
        else:
            found.append(group.count if left else 0)
    return found
