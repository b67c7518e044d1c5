"""The loop's candidates: which fit, what they are once applied, and what can be said of them without labels."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import torch
from torch import nn

from homeostat.core.data import UNKNOWN, Batch, Data, Tensors, join
from homeostat.core.errors import InputError, MissingPart
from homeostat.core.fork import fork
from homeostat.core.method import Remedy, Shift
from homeostat.core.online import Online
from homeostat.core.run import Run
from homeostat.core.trace import Trace
from homeostat.core.world import World
from homeostat.loop.plan import Plan
from homeostat.loop.propose import fitting
from homeostat.loop.trial import Trial
from homeostat.loop.verify import FAILURES, Estimate, calibrate, shadow, share_right


class Repertoire:
    """Remedies by name, with their kits, over one frozen network.

    Args:
        remedies: candidates.
        frozen: the network as deployed.
        world: what there is besides the recent windows.
        before: labelled data from before.
        simulate: shifts on which estimates are calibrated; without any there is none.
        plan: the loop's plan.
        run: seed and scratch folder.

    Raises:
        InputError: there are one or two shifts to simulate; a line needs three and the unshifted data.
    """

    def __init__(
        self, remedies: Sequence[Remedy], frozen: nn.Module, world: World, before: Data, simulate: Sequence[Shift],
        plan: Plan, run: Run,
    ):  # fmt: skip
        if 0 < len(simulate) < 3:
            raise InputError(f"estimates need at least 3 shifts to simulate; got {len(simulate)}. Give more, or none")
        self.remedies = {_label(remedy, remedies): remedy for remedy in remedies}
        self.frozen, self.world, self.before, self.simulate = frozen, world, before, tuple(simulate)
        self.plan, self.run = plan, run
        self.kits = {name: remedy.kit(frozen, world, run=run) for name, remedy in self.remedies.items()}
        self._estimates = {"source": Estimate()}
        self._right_before = self._right(frozen)

    def propose(self, recent: Sequence[Batch], trace: Trace) -> list[str]:
        """Names of the candidates to try, best first, at most `plan.candidates`."""
        world, names = self._world(recent), list(self.remedies)
        fits = fitting(list(self.remedies.values()), world, [self.kits[name] is not None for name in names])
        options, chosen = [names[i] for i in fits], list[str]()
        while options and len(chosen) < self.plan.candidates:
            chosen.append(options.pop(self.plan.proposer(trace, options, run=self.run)))
        return chosen

    def apply(self, names: Sequence[str], recent: Sequence[Batch], step: int) -> tuple[list[Trial], nn.Sequential]:
        """Apply candidates to the frozen network and replay the recent windows to those that adapt online."""
        world, run = self._world(recent), self.run.replace(seed=self.run.seed_for("trial", step))
        trials, models = [Trial(name) for name in names], list[nn.Module]()
        for trial in trials:
            made: nn.Module = nn.Identity()
            try:
                made = fork(self.frozen)
                if trial.name != "source":
                    made = self.remedies[trial.name](self.frozen, world, kit=self.kits[trial.name], run=run)
                for batch in recent if isinstance(made, Online) else ():
                    shadow(made, batch.replace(y=None))
            except FAILURES as error:
                trial.refused = f"it failed: {error}"
            models.append(made)
        return trials, nn.Sequential(*models)

    def estimate(self, name: str) -> Estimate:
        """How a candidate's signs tell its gain; calibrated when first asked for.

        Nothing is known of a candidate that fails on simulated shifts, or that a resumed store serves and this loop
        was not given.
        """
        if name not in self._estimates:
            plan, found = self.plan, Estimate(margin=math.inf)
            if self.simulate and name in self.remedies:
                try:
                    found = calibrate(
                        self.remedies[name], self.frozen, self.before, self.simulate, window=plan.window,
                        trial=plan.trial, verify=plan.verify, kit=self.kits[name], task=self.world.task, run=self.run,
                    )  # fmt: skip
                except FAILURES as error:
                    self.run.emit("no estimate", remedy=name, why=str(error))
            self._estimates[name] = found
        return self._estimates[name]

    def loss_before(self, model: nn.Module) -> float:
        """How much accuracy a model loses on data from before, against the frozen network."""
        return self._right_before - self._right(model)

    def _right(self, model: nn.Module) -> float:
        part, total = self.before[: 10 * self.plan.window], 0.0
        with torch.no_grad():
            for batch in part.batches(self.plan.window):
                total += share_right(model(batch.x), batch.labels) * len(batch)
        return total / len(part)

    def _world(self, recent: Sequence[Batch]) -> World:
        batch = join(recent)
        target: Data = Tensors(batch.x, batch.y, batch.id)
        if not bool((batch.labels != UNKNOWN).any()):
            target = target.unlabelled()
        return self.world.replace(target=target, held=None)


def labelled_before(world: World) -> Data:
    """The samples from before whose label is known: of `calibration`, or of `source` where there is none."""
    before = world.calibration if world.calibration is not None else world.source
    known = before.all_labels() != UNKNOWN if before is not None and before.has_labels() else torch.zeros(0)
    if before is None or not bool(known.any()):
        raise MissingPart("the loop needs labelled data from before: World(source=(x, y)) or calibration=(x, y)")
    return before if bool(known.all()) else before[known]


def _label(remedy: Remedy, remedies: Sequence[Remedy]) -> str:
    name = type(remedy).__name__
    twins = [other for other in remedies if type(other) is type(remedy)]
    if len(twins) == 1:
        return name
    fields = remedy.to_config()[name]
    differing = {k: v for k, v in fields.items() if any(t.to_config()[name][k] != v for t in twins)}
    return name + "(" + ", ".join(f"{k}={json.dumps(v)}" for k, v in differing.items()) + ")"
