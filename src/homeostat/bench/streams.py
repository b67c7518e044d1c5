"""Streams of a grid: samples drawn for a seed, and what happens to them part by part."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from homeostat.core.data import Data, Tensors
from homeostat.core.errors import InputError
from homeostat.core.method import Shift
from homeostat.core.run import Run
from homeostat.shift.label import LabelShift


def drawn(pool: Data, shifts: Sequence[Shift], each: int, model: nn.Module | None, run: Run) -> list[Data]:
    """A part of `each` samples for each shift, in memory, with `meta["phase"]` its number.

    Samples are drawn anew for each seed and differ between parts; where the pool is smaller than the stream they come
    again. Ids count along the stream. A `LabelShift` draws from the whole pool, as no part of it holds enough of the
    classes that it wants more of.

    Raises:
        InputError: the pool is smaller than a part.
    """
    if len(pool) < each:
        raise InputError(f"a part of {each:,} samples cannot be drawn from a pool of {len(pool):,}")
    mixed, parts = pool.shuffle(run.rng("pool")), list[Data]()
    for phase, shift in enumerate(shifts):
        first = phase * each
        mine = mixed[torch.arange(first, first + each) % len(mixed)]
        if isinstance(shift, LabelShift):
            mine, shift = mixed, shift.replace(size=each)
        batch = shift(mine, model=model, run=run.replace(seed=run.seed_for("phase", phase))).load()
        where = {**batch.meta, "phase": torch.full((len(batch),), phase)}
        parts.append(Tensors(batch.x, batch.y, torch.arange(first, first + len(batch)), where))
    return parts


def share(pool: Data, tuning: bool) -> Data:
    """The third of a pool on which hyper-parameters are tuned, or the rest; the same whatever the seed."""
    order = torch.randperm(len(pool), generator=Run().rng("tuning"))
    cut = len(pool) // 3
    return pool[order[:cut] if tuning else order[cut:]]
