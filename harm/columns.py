"""What is compared: accuracy of each rival, phase by phase."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harm.networks import Problem
from homeostat.core.data import UNKNOWN, Batch, Tensors, join, revealed
from homeostat.core.errors import NonFiniteError
from homeostat.core.method import Remedy
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.loop import Loop, Plan
from homeostat.loop.verify import shadow


class Score:
    """Counts right answers by phase; samples without a label do not count."""

    def __init__(self, phases: int):
        self.right, self.count = [0] * phases, [0] * phases

    def add(self, out: Tensor, batch: Batch) -> None:
        known = batch.labels != UNKNOWN
        hit = out.argmax(-1)[known] == batch.labels[known]
        for phase in batch.meta["phase"].unique().tolist():
            mine = batch.meta["phase"][known] == phase
            self.right[phase] += int(hit[mine].sum())
            self.count[phase] += int(mine.sum())

    def shares(self) -> list[float]:
        return [right / count for right, count in zip(self.right, self.count, strict=True)]


def always_on(remedy: Remedy | None, problem: Problem, stream: Tensors, seed: int, scratch: Path) -> list[float]:
    """A remedy from the first window to the last, or the network as it is."""
    model: nn.Module = problem.net
    if remedy is not None:
        world = World(source=problem.before, target=stream[: problem.window].unlabelled())
        model = remedy(problem.net, world, run=Run(seed=seed, scratch=scratch))
    return _served(model, problem, stream)


def refitted(problem: Problem, stream: Tensors, seed: int, labels: int) -> list[float]:
    """The plain rival: every four windows the network as deployed is refitted on the labels of the last four."""
    refit, model, score = problem.remedies[-1], problem.net, Score(_phases(stream))
    recent: list[Batch] = []
    for step, batch in enumerate(stream.batches(problem.window)):
        with torch.no_grad():
            score.add(model(batch.x), batch)
        shown = revealed(batch.labels, labels, Run(seed=seed).rng("labels", step))
        recent = [*recent, batch.replace(y=shown, meta={})][-4:]
        if len(recent) == 4 and step % 4 == 3:
            seen = join(recent)
            # A refit that diverges is not served; the one before it stays.
            with suppress(NonFiniteError):
                model = refit(problem.net, World(target=Tensors(seen.x, seen.y)), run=Run(seed=seed))
    return score.shares()


def looped(
    problem: Problem, stream: Tensors, seed: int, labels: int, store: Path, scratch: Path
) -> tuple[list[float], dict[str, Any]]:
    """What the loop serves, and what it did."""
    plan, run = Plan(window=problem.window), Run(seed=seed, scratch=scratch)
    with Loop(
        problem.net,
        World(source=problem.before),
        problem.remedies,
        store,
        simulate=problem.simulate,
        plan=plan,
        run=run,
    ) as loop:
        trace = loop.run(stream, labels=labels)
        rows = loop.history()
    score = Score(_phases(stream))
    kinds = [row.kind for row in rows]
    windows = [[entry["accuracy"].value, entry["frozen"].value, entry.subject] for entry in trace]
    for (served, _, _), batch in zip(windows, stream.batches(problem.window), strict=True):
        count = int((batch.labels != UNKNOWN).sum())
        phase = int(batch.meta["phase"][0])
        score.right[phase] += round(served * count)
        score.count[phase] += count
    switches = [
        {"kind": row.kind, "at": row.step, "to": row.content["to"], "why": row.content["why"]}
        for row in rows
        if row.kind in ("commit", "rollback")
    ]
    decisions = [{"at": row.step, **row.content} for row in rows if row.kind == "decision"]
    said = {"alarms": kinds.count("alarm"), "switches": switches, "decisions": decisions, "windows": windows}
    return score.shares(), said


def _served(model: nn.Module, problem: Problem, stream: Tensors) -> list[float]:
    score = Score(_phases(stream))
    for batch in stream.batches(problem.window):
        score.add(shadow(model, batch.replace(y=None)), batch)
    return score.shares()


def _phases(stream: Tensors) -> int:
    return int(stream.batch.meta["phase"].max()) + 1
