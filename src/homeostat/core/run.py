"""How a method runs: seed, device, budget, scratch folder and who watches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from homeostat.core import random


@dataclass(frozen=True)
class Event:
    """Something a watcher may want to know: progress, a loss, a reading."""

    name: str
    step: int = 0
    total: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


def ignore(event: Event) -> None:
    """The default watcher."""


@dataclass(frozen=True)
class Budget:
    """What a method may spend. `None` is no limit.

    Attributes:
        seconds: wall-clock seconds.
        passes: forward passes over the data at hand, a backward pass counting as two.
    """

    seconds: float | None = None
    passes: float | None = None


@dataclass(frozen=True)
class Run:
    """Seed, device, budget, scratch folder and watcher, handed to every method.

    Attributes:
        seed: all randomness comes from here, through named generators.
        device: where networks go, for what builds or serves one (a loop, the command line); `None` leaves them where
            they lie. Methods compute where the model that they are given lies.
        budget: limits on what may be spent.
        scratch: a folder for caches (kits) and resumable training; `None` caches nothing.
        watch: called with each `Event`.

    >>> a, b = Run(seed=3).rng("restore"), Run(seed=3).rng("restore")
    >>> bool((torch.rand(4, generator=a) == torch.rand(4, generator=b)).all())
    True
    """

    seed: int = 0
    device: str | None = None
    budget: Budget | None = None
    scratch: Path | None = None
    watch: Callable[[Event], None] = ignore

    def __post_init__(self) -> None:
        if self.scratch is not None and not isinstance(self.scratch, Path):
            object.__setattr__(self, "scratch", Path(self.scratch))

    def rng(self, *names: str | int) -> torch.Generator:
        """A fresh CPU generator for this purpose; drawing from one never shifts another."""
        return random.generator(self.seed, *names)

    def seed_for(self, *names: str | int) -> int:
        """The seed behind `rng(*names)`."""
        return random.seed_for(self.seed, *names)

    def draw(self, ids: torch.Tensor, *names: str | int) -> random.Draw:
        """Per-sample randomness for the samples `ids` (see `core.random.Draw`)."""
        return random.Draw(self.seed_for(*names), ids)

    def replace(self, **changes: Any) -> Run:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def emit(self, name: str, step: int = 0, total: int | None = None, **values: Any) -> None:
        """Tell the watcher."""
        self.watch(Event(name, step, total, values))
