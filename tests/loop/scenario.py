"""A short run of the loop with all that can happen to a store, and what must hold wherever it was stopped.

A commit and a rollback with their snapshots, a plain snapshot, and the collection of checkpoints, in twelve windows.
Programs of this folder import it as a plain module.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from homeostat.core.run import Event, Run
from homeostat.core.save import content_hash
from homeostat.loop import Loop
from homeostat.loop.store import SWITCHES, Row, Store

LABELS = 25


def said(row: Row) -> list[Any]:
    """A row without what depends on the clock."""
    return [row.step, row.kind, row.checkpoint or "", {k: v for k, v in row.content.items() if k != "ms"}]


class Telling(Store):
    """A store that says which rows are written, once they are."""

    tell: Callable[[str], None] = staticmethod(lambda text: None)

    def write(self, rows: Any) -> None:
        super().write(rows)
        for row in rows:
            self.tell(json.dumps({"row": said(row)}))


class Scenario:
    """The network, the stream and the plan; `whole` is what an uninterrupted run leaves.

    Args:
        folder: for the uninterrupted run, and what its remedies prepared.
        url: a database for the journals; by default each store has its own.
    """

    def __init__(self, folder: Path, url: str | None = None):
        import conftest as problem

        torch.set_num_threads(1)
        self.url, self.loop, self.kits = url, problem.loop, folder.with_name(f"{folder.name} kits")
        self.net = problem.network()
        self.remedies = (problem.LoopTestUndoing(), problem.Tent())
        self.plan = problem.PLAN.replace(anchor=1.0, retry=3, trial=2, verify=1, patience=3, snapshot=4)
        self.stream = problem.stream([(problem.CLEAN, 2), (problem.DARK, 6), (problem.CLEAN, 4)])
        self.whole = self.finished(folder)
        kinds = [row[1] for row in self.whole[0]]
        assert kinds.count("snapshot") > kinds.count("commit") + kinds.count("rollback") + 1 > 2, kinds

    def opened(self, store: Store, run: Run = Run()) -> Loop:
        run = run.replace(scratch=self.kits)  # prepared once for all runs
        return self.loop(store, self.net, self.remedies, plan=self.plan, run=run)

    def finished(self, where: Path) -> tuple[list[list[Any]], str]:
        """Journal and content hash of what is served, at the end of the stream."""
        with self.opened(Store(where, self.url)) as loop:
            loop.run(self.stream, labels=LABELS)
            loop.flush()
            return [said(row) for row in loop.store.rows()], content_hash(loop.state.served)

    def serve(self, where: Path, tell: Callable[[str], None], go_on: Callable[[Exception], bool] | None = None) -> None:
        """Run to the end; `tell` hears of each row that is written and of what is served after each window.

        Errors go to `go_on`, which says whether the same loop runs on.
        """
        store = Telling(where, self.url)
        store.tell = tell

        def watch(event: Event) -> None:
            if event.name == "window":
                tell(json.dumps({"step": event.step - 1, "serves": loop.progress.served}))

        with self.opened(store, Run(watch=watch)) as loop:
            try:
                loop.run(self.stream, labels=LABELS)
            except Exception as error:
                if go_on is None or not go_on(error):
                    raise
                loop.run(self.stream, labels=LABELS)

    def faults(self, where: Path, told: list[str], *, whole: bool = True, finish: bool = True) -> list[str]:
        """What is wrong with a store that was left at some moment, given what had been acknowledged until then.

        Args:
            where: the store.
            told: what `serve` told.
            whole: the journal must be a beginning of the uninterrupted one; else its switches must be the same.
            finish: also resume to the end and compare with the uninterrupted run.
        """
        try:
            wrong = self._looked_at(where, [json.loads(text) for text in told], whole)
            if finish and not wrong:
                journal, served = self.finished(where)
                if served != self.whole[1] or _switches(journal) != _switches(self.whole[0]):
                    wrong.append(f"the resumed run ends otherwise than the uninterrupted one: {_switches(journal)}")
                if whole and journal != self.whole[0]:
                    wrong.append("the journal of the resumed run is not that of the uninterrupted one")
            return wrong
        except Exception:
            return [traceback.format_exc(limit=-3)]

    def _looked_at(self, where: Path, told: list[dict[str, Any]], whole: bool) -> list[str]:
        wrong = []
        with Store(where, self.url) as store:
            rows = list(store.rows())
            found = [said(row) for row in rows]
            if whole and found != self.whole[0][: len(found)]:
                wrong.append(f"the journal is no beginning of the uninterrupted one: {[row[:2] for row in found]}")
            wrong += [f"lost: {line['row'][:2]}" for line in told if "row" in line and line["row"] not in found]
            switches = [row for row in rows if row.kind in SWITCHES]
            snapshots = [row for row in rows if row.kind == "snapshot"]
            for line in told:
                if "serves" in line and line["serves"] != _serving(row for row in switches if row.step <= line["step"]):
                    wrong.append(f"after window {line['step']} {line['serves']} served; the journal says otherwise")
            resumed = snapshots[-1].content["served"] if snapshots else "source"
            if resumed != _serving(switches):
                wrong.append(f"a resumed loop would serve {resumed}, and the journal says {_serving(switches)}")
            there = {path.name for path in (where / "checkpoints").iterdir() if not path.name.startswith(".")}
            for name in there | {str(row.checkpoint) for row in (*switches, *snapshots[-1:])}:
                if content_hash(store.load(name, base=self.net)) != name:
                    wrong.append(f"{name} has another hash")
        return wrong


def _switches(journal: list[list[Any]]) -> list[list[Any]]:
    return [row[:3] for row in journal if row[1] in SWITCHES]


def _serving(switches: Iterable[Row]) -> str:
    """What serves after these."""
    return next((row.content.get("to", "source") for row in reversed(list(switches))), "source")
