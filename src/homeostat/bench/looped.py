"""The loop as an entrant of a grid."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from homeostat.bench.entrants import Answers, Entrant, Opened
from homeostat.bench.protocols import Protocol, shown_labels
from homeostat.core.data import Data, Joined
from homeostat.core.errors import SpecError
from homeostat.core.method import Remedy, Shift
from homeostat.core.probe import Outputs, stacked
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.loop.loop import Loop
from homeostat.loop.plan import Plan


@dataclass(frozen=True)
class Looped(Entrant):
    """The loop: it monitors, tries remedies in shadow, commits what it verified, and takes back what failed.

    It looks at windows of the protocol's batch, and is shown the protocol's labels.

    Attributes:
        remedies: what it may try.
        simulate: shifts that it rehearses before it serves; none, or at least three.
        plan: how it works; `window` is the protocol's.
    """

    remedies: tuple[Remedy, ...] = ()
    simulate: tuple[Shift, ...] = ()
    plan: Plan = Plan()

    def called(self) -> str:
        return "Looped"

    def fits(self, protocol: Protocol) -> bool:
        return protocol.whole and protocol.batch >= 20

    def answer(
        self, opened: Opened, pieces: Sequence[Data], protocol: Protocol, reads: frozenset[str], run: Run
    ) -> Answers:
        if "features" in reads:
            raise SpecError("Looped gives no features; leave out probes that read them")
        began, rows = time.perf_counter(), list[Outputs]()
        world, plan = World(source=opened.before), self.plan.replace(window=protocol.batch)
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "store"
            with Loop(
                opened.model, world, self.remedies, store, simulate=self.simulate, plan=plan, run=run,
            ) as loop:  # fmt: skip
                ready = time.perf_counter()
                for step, batch in enumerate(Joined(pieces).batches(protocol.batch)):
                    out = loop.step(batch.replace(y=shown_labels(batch, protocol.labels, run, step)))
                    x = batch.x if "x" in reads else None
                    rows.append(Outputs(out, batch.y, batch.id, x, None, batch.meta, opened.task))
                ended, history = time.perf_counter(), loop.history()
        about = {
            "alarms": sum(row.kind == "alarm" for row in history),
            "switches": [
                {"kind": row.kind, "at": row.step, "to": row.content["to"], "why": row.content["why"]}
                for row in history if row.kind in ("commit", "rollback")
            ],
        }  # fmt: skip
        return Answers(stacked(rows, opened.task), opened.model, ready - began, ended - ready, about)
