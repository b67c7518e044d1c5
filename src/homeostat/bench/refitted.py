"""The plain rival where labels come: the network refitted on the last of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from homeostat.bench.entrants import Answers, Entrant, Opened
from homeostat.bench.protocols import Protocol, shown_labels
from homeostat.core.data import Batch, Data, Joined, Tensors, join
from homeostat.core.errors import NonFiniteError
from homeostat.core.method import Remedy
from homeostat.core.probe import Outputs, stacked
from homeostat.core.run import Run
from homeostat.core.spec import Count
from homeostat.core.world import World
from homeostat.fit.fit import Fit
from homeostat.fit.objective import Supervised
from homeostat.fit.training import Recipe
from homeostat.nn.optimizers import SGD

REFIT = Fit(
    objective=Supervised(on="target"), recipe=Recipe(epochs=5, batch=32, optimizer=SGD(lr=0.01)),
)  # fmt: skip
"""The plain rival where labels come: a few epochs on those of the last windows."""


@dataclass(frozen=True)
class Refitted(Entrant):
    """The network as deployed, fitted every few batches to the labels of the last ones.

    Attributes:
        remedy: fits to the world's target.
        every: batches between fits, and batches whose labels are used.
    """

    remedy: Remedy = REFIT
    every: Count = 4

    def called(self) -> str:
        return "Refitted"

    def fits(self, protocol: Protocol) -> bool:
        return protocol.whole and protocol.labels > 0

    def answer(
        self, opened: Opened, pieces: Sequence[Data], protocol: Protocol, reads: frozenset[str], run: Run
    ) -> Answers:
        began, rows, model = time.perf_counter(), list[Outputs](), opened.model
        recent: list[Batch] = []
        for step, batch in enumerate(Joined(pieces).batches(protocol.batch)):
            piece = Tensors(batch.x, batch.y, batch.id, batch.meta)
            rows.append(protocol.replace(labels=0).answer(model, [piece], reads, opened.task, run))
            shown = shown_labels(batch, protocol.labels, run, step)
            recent = [*recent, batch.replace(y=shown, meta={})][-self.every :]
            if (step + 1) % self.every == 0:
                seen = join(recent)
                # A fit that diverges is not served; the one before it stays.
                with suppress(NonFiniteError):
                    model = self.remedy(opened.model, World(target=Tensors(seen.x, seen.y)), run=Run(seed=run.seed))
        return Answers(stacked(rows, opened.task), model, 0.0, time.perf_counter() - began)
