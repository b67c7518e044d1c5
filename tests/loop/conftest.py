"""A problem small enough to run the loop on many times: striped images that a damage to their light makes unreadable.

`killed.py` imports this file too, as a plain module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from homeostat.adapt import BatchNormBlend, Tent
from homeostat.core.check import small_network
from homeostat.core.data import Data, Tensors, join
from homeostat.core.fork import fork
from homeostat.core.method import Remedy, Shift
from homeostat.core.part import Part
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.fit import Fit, Recipe
from homeostat.loop import Loop, Monitor, Plan
from homeostat.loop.store import Row
from homeostat.nn.optimizers import Adam
from homeostat.probe import ShiftKind

WINDOW = 25


@dataclass(frozen=True)
class LoopTestLight(Shift):
    """Images times `gain` plus `offset`: what a network with BatchNorm fails on, and batch statistics undo."""

    gain: float = 1.0
    offset: float = 0.0

    def apply(self, data: Data, model: nn.Module | None, run: Run) -> Data:
        batch = data.load()
        return Tensors(batch.x * self.gain + self.offset, batch.y, batch.id, batch.meta)


@dataclass(frozen=True)
class LoopTestOneClass(Shift):
    """Nothing but class 0, as often as it takes: where the statistics of a batch mislead."""

    def apply(self, data: Data, model: nn.Module | None, run: Run) -> Data:
        rows = torch.nonzero(data.load().labels == 0).flatten()
        return data[rows.repeat(-(-len(data) // len(rows)))[: len(data)]]


class LoopTestUndo(Part):
    """A network that sees its inputs less `offset`, over `gain`."""

    def __init__(self, model: nn.Module, gain: float, offset: float):
        super().__init__()
        self.model, self.gain, self.offset = model, gain, offset

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - self.offset) / self.gain)


@dataclass(frozen=True)
class LoopTestUndoing(Remedy):
    """Undoes one light: perfect there, and harmful anywhere else."""

    gain: float = 0.4
    offset: float = -0.2

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return LoopTestUndo(fork(model), self.gain, self.offset)


CLEAN, DARK = LoopTestLight(), LoopTestLight(0.4, -0.2)
SIMULATED = (
    *(LoopTestLight(g, o) for g, o in ((0.5, -0.2), (0.6, -0.2), (0.4, 0.0), (0.3, 0.1), (1.3, 0.3))),
    LoopTestOneClass(),
)
NEAR = tuple(
    LoopTestLight(g, o) for g, o in ((0.5, -0.2), (0.45, -0.2), (0.6, -0.2), (1.0, 0.05), (1.1, 0.0), (0.9, 0.0))
)
"""Lights on which the estimate tells where `LoopTestUndoing` helps and where it harms."""


def images(count: int, seed: int) -> Tensors:
    """`[count, 1, 8, 8]` noise with a bright stripe whose place is the class, one of three."""
    draws = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (count,), generator=draws)
    x = 0.8 * torch.rand(count, 1, 8, 8, generator=draws)
    columns = torch.arange(8).expand(count, 1, 8, 8)
    x += 0.35 * ((columns >= 2 * y.view(-1, 1, 1, 1)) & (columns < 2 * y.view(-1, 1, 1, 1) + 3))
    return Tensors(x, y)


def network() -> nn.Module:
    recipe = Recipe(epochs=12, batch=50, optimizer=Adam(lr=0.02))
    return Fit(recipe=recipe)(small_network(), World(source=images(600, 1)), run=Run(seed=3))


def stream(phases: Sequence[tuple[Shift, int]], seed: int = 5) -> Tensors:
    """Phases of so many windows, one after another."""
    data, parts, low = images(WINDOW * sum(windows for _, windows in phases), seed), [], 0
    for number, (shift, windows) in enumerate(phases):
        batch = shift(data[low : low + WINDOW * windows]).load()
        parts.append(batch.replace(meta={"phase": torch.full((len(batch),), number)}))
        low += WINDOW * windows
    made = join(parts)
    return Tensors(made.x, made.y, meta=made.meta)


PLAN = Plan(
    window=WINDOW, trial=3, verify=2, patience=6, retry=6, snapshot=7, monitor=Monitor(run_length=200, block=5),
    diagnose=ShiftKind(simulations=24, reference=100),
)  # fmt: skip


def loop(
    folder: Path,
    net: nn.Module,
    remedies: Sequence[Remedy] = (BatchNormBlend(blend=0.0), Tent()),
    *,
    plan: Plan = PLAN,
    world: World | None = None,
    **more: Any,
) -> Loop:
    return Loop(net, world or World(source=images(200, 2)), remedies, folder, plan=plan, **more)


def told(loop: Loop) -> list[tuple[int, str, str, dict[str, Any]]]:
    """The journal without what depends on the clock."""
    return [
        (row.step, row.kind, row.checkpoint or "", {k: v for k, v in row.content.items() if k != "ms"})
        for row in rows(loop)
    ]


def rows(loop: Loop, *kinds: str) -> list[Row]:
    """Rows of the journal, those that wait among them."""
    loop.flush()
    return list(loop.store.rows(*kinds))


@pytest.fixture(scope="session")
def problem() -> SimpleNamespace:
    torch.set_num_threads(1)
    return SimpleNamespace(
        net=network(), images=images, stream=stream, loop=loop, told=told, rows=rows, Light=LoopTestLight, PLAN=PLAN,
        DARK=DARK, SIMULATED=SIMULATED, CLEAN=CLEAN, NEAR=NEAR, Undoing=LoopTestUndoing, WINDOW=WINDOW,
    )  # fmt: skip


@pytest.fixture
def drift(problem) -> Tensors:
    """A stream that goes dark."""
    return problem.stream([(problem.CLEAN, 6), (problem.DARK, 14)])
