"""How shifts come: together, one after another, gradually, again and again, or mixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.core.data import Batch, Data, Joined, floating
from homeostat.core.errors import InputError, SpecError
from homeostat.core.method import Shift
from homeostat.core.random import Draw, seed_for
from homeostat.core.run import Run
from homeostat.core.spec import Count, Index, digest
from homeostat.shift.pointwise import Pointwise


@dataclass(frozen=True)
class Clean(Shift):
    """No shift: the data as they are."""

    def apply(self, data: Data, model: nn.Module | None, run: Run) -> Data:
        return data


@dataclass(frozen=True)
class Phases(Shift):
    """Shifts one after another, each over the next part of the stream; `meta["phase"]` counts the parts from 0.

    One shift is an abrupt change, several are continual change, more cycles are recurring change.

    Attributes:
        shifts: one per phase.
        each: samples a phase, and samples after the last phase are left out; 0 cuts the data into equal parts, and the
            last phase also takes what the division leaves over.
        cycles: how often the phases come.

    >>> stream = Phases((Clean(), Clean()), cycles=2)(torch.zeros(8, 1))
    >>> stream.load().meta["phase"].tolist()
    [0, 0, 1, 1, 2, 2, 3, 3]
    """

    shifts: tuple[Shift, ...] = (Clean(),)
    each: Index = 0
    cycles: Count = 1

    def apply(self, data: Data, model: nn.Module | None, run: Run) -> Data:
        count = len(self.shifts) * self.cycles
        if not count:
            raise SpecError("Phases.shifts is empty; give at least one shift")
        each = self.each or len(data) // count
        if each == 0 or each * count > len(data):
            raise InputError(
                f"{count} phases of {max(1, each)} samples need {max(1, each) * count}; there are {len(data)}"
            )
        parts = []
        for phase in range(count):
            end = len(data) if phase + 1 == count and not self.each else (phase + 1) * each
            part = data[phase * each : end]
            shift, seed = self.shifts[phase % len(self.shifts)], run.seed_for("phase", phase)
            parts.append(Tagged(shift(part, model=model, run=run.replace(seed=seed)), phase))
        return Joined(parts)


@dataclass(frozen=True)
class Compose(Shift):
    """Shifts on top of each other: the second acts on what the first gives. Each has a seed of its own.

    Attributes:
        shifts: in the order in which they act.

    >>> Compose()(torch.ones(2, 1)).load().x.tolist()
    [[1.0], [1.0]]
    """

    shifts: tuple[Shift, ...] = ()

    def apply(self, data: Data, model: nn.Module | None, run: Run) -> Data:
        for number, shift in enumerate(self.shifts):
            data = shift(data, model=model, run=run.replace(seed=run.seed_for("compose", number)))
        return data


@dataclass(frozen=True)
class Gradual(Shift):
    """A shift that grows step by step from severity 0 to its own, and back when `back`.

    Attributes:
        shift: one with a `severity`.
        back: return to severity 0 at the end.
    """

    shift: Shift = Clean()
    back: bool = True

    def apply(self, data: Data, model: nn.Module | None, run: Run) -> Data:
        top = self.shift.fields().get("severity")
        if not isinstance(top, int):
            raise SpecError(f"Gradual wants a shift with a severity; {type(self.shift).__name__} has none")
        levels = [*range(top + 1), *(range(top - 1, -1, -1) if self.back else ())]
        return Phases(tuple(self.shift.replace(severity=level) for level in levels)).apply(data, model, run)


@dataclass(frozen=True)
class Mixed(Pointwise):
    """Every sample gets one of several pointwise shifts, drawn by its id.

    Attributes:
        shifts: to draw from, with equal chances.
    """

    shifts: tuple[Pointwise, ...] = ()

    def identity(self) -> bool:
        return not self.shifts

    def change(self, batch: Batch, draw: Draw) -> Batch:
        which = draw.integers(0, len(self.shifts))
        x = floating(batch.x, "Mixed").clone()
        for number, shift in enumerate(self.shifts):
            rows = torch.nonzero(which == number).flatten()
            if len(rows) and not shift.identity():
                part = batch[rows]
                moved: Any = shift.change(part, Draw(seed_for(draw.seed, number), part.id)).x
                x[rows] = moved
        return batch.replace(x=x)


class Tagged(Data):
    """Other data with `meta["phase"]` set."""

    def __init__(self, base: Data, phase: int):
        self.base, self.phase = base, phase

    def __len__(self) -> int:
        return len(self.base)

    def fetch(self, positions: Tensor) -> Batch:
        batch = self.base.fetch(positions)
        return batch.replace(meta={**batch.meta, "phase": torch.full_like(batch.id, self.phase)})

    def has_labels(self) -> bool:
        return self.base.has_labels()

    def fingerprint(self) -> str:
        return digest("phase", self.phase, self.base.fingerprint())
