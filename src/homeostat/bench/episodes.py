"""TTAB's oracle: the best that a method could have done for each batch, over its steps and its settings.

For each batch every setting starts from the network as it was, sees the batch so many times as the protocol says, and
of all answers the one counts that is right most often by the batch's labels, ties broken by their cross-entropy, then
by order. Nobody who adapts has those labels: it is an upper bound of what choosing hyper-parameters and the moment to
stop could give, and its distance to the same method run as it can be is what a table tuned on its own test hides.

>>> from homeostat.adapt import Tent
>>> from homeostat.bench import Axis
>>> EpisodicGrid(Tent(), (Axis("optimizer.lr", (1e-4, 1e-3, 1e-2)),)).called()
'Tent, 3 settings'

Reference: Zhao et al., On Pitfalls of Test-Time Adaptation, ICML 2023.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from homeostat.bench.entrants import Answers, Entrant, Opened, name_of
from homeostat.bench.protocols import Episodic, Protocol, Tries
from homeostat.bench.suite import Axis, Sweep
from homeostat.core.data import Data, Tensors
from homeostat.core.errors import SpecError
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Online
from homeostat.core.run import Run
from homeostat.core.world import World


@dataclass(frozen=True)
class EpisodicGrid(Entrant):
    """A remedy with several hyper-parameters, of which each batch gets the best: an upper bound, and no method.

    It answers under `Episodic` where that selects, by labels (`oracle`) or by entropy (`unlabelled`).

    Attributes:
        remedy: a method that adapts while it serves.
        axes: what is varied in it; every combination is tried.
    """

    remedy: Remedy | None = None
    axes: tuple[Axis, ...] = ()

    card: ClassVar[Card] = Card(
        id="S260", paper="Zhao et al., On Pitfalls of Test-Time Adaptation, ICML 2023",
        needs=frozenset({"target.x", "target.y"}), passes=45.0,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        Sweep(self.remedy, self.axes)

    def called(self) -> str:
        return f"{name_of(self.remedy)}, {len(Sweep(self.remedy, self.axes).members())} settings"

    def fits(self, protocol: Protocol) -> bool:
        return isinstance(protocol, Episodic) and protocol.select != "last"

    def answer(
        self, opened: Opened, pieces: Sequence[Data], protocol: Protocol, reads: frozenset[str], run: Run
    ) -> Answers:
        began = time.perf_counter()
        first = pieces[0].fetch(torch.arange(min(protocol.batch, len(pieces[0]))))
        world = World(source=opened.before, target=Tensors(first.x, None, first.id), task=opened.task)
        nets = list[Online]()
        for name, member in Sweep(self.remedy, self.axes).members().items():
            net = member(opened.model, world, run=run)
            if not isinstance(net, Online):
                raise SpecError(f"EpisodicGrid takes steps with what adapts while it serves; {name} does not")
            nets.append(net)
        ready = time.perf_counter()
        seen = protocol.answer(Tries(nets), pieces, reads, opened.task, run)
        return Answers(seen, nets[0], ready - began, time.perf_counter() - ready)
