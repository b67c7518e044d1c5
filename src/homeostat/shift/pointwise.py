"""Shifts that change each sample by itself: what happens to a sample is seeded by its id, not by when it is read."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from homeostat.core.data import Batch, Data
from homeostat.core.errors import DtypeError, InputError
from homeostat.core.method import Shift
from homeostat.core.random import Draw
from homeostat.core.run import Run
from homeostat.core.spec import digest


class Pointwise(Shift, abstract=True):
    """Base of shifts of single samples; a subclass gives `change`."""

    @abstractmethod
    def change(self, batch: Batch, draw: Draw) -> Batch:
        """The batch after the shift; randomness from `draw` alone."""

    def identity(self) -> bool:
        """Whether these hyper-parameters change nothing."""
        return False

    def apply(self, data: Data, model: nn.Module | None, run: Run) -> Data:
        return data if self.identity() else Changed(data, self, run.seed_for(type(self).__name__))


class Changed(Data):
    """Other data seen through a pointwise shift; computed when fetched."""

    def __init__(self, base: Data, shift: Pointwise, seed: int):
        self.base, self.shift, self.seed = base, shift, seed

    def __len__(self) -> int:
        return len(self.base)

    def fetch(self, positions: Tensor) -> Batch:
        batch = self.base.fetch(positions)
        return self.shift.change(batch, Draw(self.seed, batch.id)) if len(batch) else batch

    def has_labels(self) -> bool:
        return self.base.has_labels()

    def fingerprint(self) -> str:
        return digest("changed", self.shift.digest(), self.seed, self.base.fingerprint())


def images_of(batch: Batch, who: str) -> Tensor:
    """The batch's images `[batch, channels, height, width]`, floating, or our error."""
    x = batch.x
    if not isinstance(x, Tensor) or x.ndim != 4:
        found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"{who} changes images [batch, channels, height, width]; got {found}")
    if not x.is_floating_point():
        raise DtypeError(f"{who} changes images as floats in 0..1; got {x.dtype}: divide by 255 first")
    return x
