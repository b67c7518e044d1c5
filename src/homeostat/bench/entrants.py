"""Who answers a stream.

A `Remedy` is an entrant as it is: it is applied to the network before the first sample, with the data from before as
the world's source and the first batch, without labels, as its target. What answers and is no remedy is an `Entrant`:
the loop (`Looped`), a refit on labels as they come (`Refitted`), another one under a name of its own (`Named`).
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from homeostat.bench.protocols import Protocol
from homeostat.core.data import Data, Tensors
from homeostat.core.errors import SpecError
from homeostat.core.method import Remedy
from homeostat.core.probe import Outputs
from homeostat.core.run import Run
from homeostat.core.spec import Spec
from homeostat.core.spectext import short_text
from homeostat.core.task import Task
from homeostat.core.world import World


@dataclass(frozen=True)
class Opened:
    """A setting with its network and data at hand."""

    model: nn.Module
    before: Data
    pool: Data
    task: Task


@dataclass(frozen=True)
class Answers:
    """What an entrant gave.

    Attributes:
        seen: its outputs, in the order in which samples came.
        model: as applied, for probes that look at a network.
        prepare_seconds, seconds: before the first sample, and from there on.
        about: what it says of itself, JSON-ready.
    """

    seen: Outputs
    model: nn.Module
    prepare_seconds: float
    seconds: float
    about: dict[str, Any] = field(default_factory=dict)


class Entrant(Spec, abstract=True):
    """Base of what answers a stream and is no remedy."""

    def called(self) -> str:
        """Its name in tables."""
        return short_text(self)

    def fits(self, protocol: Protocol) -> bool:
        """Whether it can answer under a protocol; where it cannot there is no cell."""
        return True

    @abstractmethod
    def answer(
        self, opened: Opened, pieces: Sequence[Data], protocol: Protocol, reads: frozenset[str], run: Run
    ) -> Answers:
        """Answer all samples."""


@dataclass(frozen=True)
class Named(Entrant):
    """Another entrant under a name of its own.

    Attributes:
        name: in tables.
        entrant: a remedy or another entrant.
        whole: only under protocols that never reset.
    """

    name: str = ""
    entrant: Remedy | Entrant | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name or self.entrant is None:
            raise SpecError("Named needs name and entrant").at("entrant" if self.name else "name")

    def called(self) -> str:
        return self.name

    def fits(self, protocol: Protocol) -> bool:
        return fits(self.entrant, protocol) and (protocol.whole or not self.whole)

    def answer(
        self, opened: Opened, pieces: Sequence[Data], protocol: Protocol, reads: frozenset[str], run: Run
    ) -> Answers:
        return answer(self.entrant, opened, pieces, protocol, reads, run)


def name_of(entrant: Any) -> str:
    """An entrant's name in tables: a remedy as it is written, what is at its default left out."""
    return entrant.called() if isinstance(entrant, Entrant) else short_text(entrant)


def fits(entrant: Any, protocol: Protocol) -> bool:
    """Whether there is a cell of the two."""
    return not isinstance(entrant, Entrant) or entrant.fits(protocol)


def answer(
    entrant: Any, opened: Opened, pieces: Sequence[Data], protocol: Protocol, reads: frozenset[str], run: Run
) -> Answers:
    """What an entrant or a remedy answers to a stream."""
    if isinstance(entrant, Entrant):
        return entrant.answer(opened, pieces, protocol, reads, run)
    began = time.perf_counter()
    first = pieces[0].fetch(torch.arange(min(protocol.batch, len(pieces[0]))))
    world = World(source=opened.before, target=Tensors(first.x, None, first.id), task=opened.task)
    model = entrant(opened.model, world, run=run)
    ready = time.perf_counter()
    seen = protocol.answer(model, pieces, reads, opened.task, run)
    return Answers(seen, model, ready - began, time.perf_counter() - ready)
