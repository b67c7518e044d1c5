"""The loop's candidates: which fit, what they are once applied, and what can be said of them without labels."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from homeostat.core.data import UNKNOWN, Batch, Data, Tensors, join
from homeostat.core.errors import HomeostatError, InputError, MissingPart, NonFiniteError
from homeostat.core.fork import fork
from homeostat.core.method import Kind, Remedy, Shift
from homeostat.core.online import Online
from homeostat.core.place import HOME, device_of, home, there
from homeostat.core.probe import Outputs, Probe, measure
from homeostat.core.reading import Finding, Reading
from homeostat.core.run import Run
from homeostat.core.save import content_hash
from homeostat.core.trace import Entry, Trace
from homeostat.core.tree import leaves
from homeostat.core.world import World
from homeostat.loop.estimate import Estimate, Normal, Same, Signs, Unknown
from homeostat.loop.plan import Plan
from homeostat.loop.progress import Progress
from homeostat.loop.propose import NOTHING
from homeostat.loop.rehearsal import Rehearsal, calibrate, kinds_of_shift
from homeostat.loop.sensor import Sensor
from homeostat.loop.trial import Trial
from homeostat.loop.verify import FAILURES, shadow, share_right
from homeostat.probe.shift_kind import KINDS, ShiftKind

DRIFT: frozenset[Kind] = frozenset({"covariate", "label", "subgroup", "concept", "novel-class", "correlated"})
"""Kinds of shift that an alarm of the monitor may stand for."""

LIKELY = 0.05
"""Probability from which a kind of shift is reckoned with."""


@dataclass(frozen=True)
class Outlook:
    """What what is served gains in a window, by its signs, and by how much more labels have shown it to gain."""

    estimate: Estimate
    signs: Signs
    bias: float

    @property
    def known(self) -> bool:
        """Whether there is an estimate at all."""
        return self.estimate.known

    @property
    def gain(self) -> float:
        """The estimated gain, a fraction."""
        return self.estimate.gain(self.signs) + self.bias

    @property
    def low(self) -> float:
        """Its lower bound by signs alone."""
        return self.estimate.low(self.signs)


class Repertoire:
    """Remedies by name, with their kits, over one frozen network.

    Args:
        remedies: candidates.
        sensor: reads the network as deployed.
        world: what there is besides the recent windows.
        before, seen: labelled data from before, and the network's outputs on them.
        simulate: shifts on which estimates are calibrated; without any there is none.
        plan: the loop's plan.
        run: seed and scratch folder.

    Raises:
        InputError: there are one or two shifts to simulate; a line needs three and the unshifted data.
    """

    def __init__(
        self, remedies: Sequence[Remedy], sensor: Sensor, world: World, before: Data, seen: Outputs,
        simulate: Sequence[Shift], plan: Plan, run: Run,
    ):  # fmt: skip
        if 0 < len(simulate) < 3:
            raise InputError(f"estimates need at least 3 shifts to simulate; got {len(simulate)}. Give more, or none")
        self.remedies = {_label(remedy, remedies): remedy for remedy in remedies}
        self.sensor, self.frozen, self.normal = sensor, sensor.frozen, Normal.of(seen)
        self.world, self.before, self.simulate = world, before, tuple(simulate)
        self.plan, self.run = plan, run
        self.kits = {name: remedy.kit(self.frozen, world, run=run) for name, remedy in self.remedies.items()}
        self._rehearsed: dict[str, Rehearsal | None] = {}
        self._estimates: dict[tuple[str, frozenset[str], bool], Estimate] = {}
        self._memo: dict[tuple[int, int], Outputs] = {}
        self._checked = seen[: 10 * plan.window]
        self._right_before = share_right(self._checked.logits, self._checked.labels)

    def diagnose(self, recent: Batch) -> tuple[Finding, dict[str, float]]:
        """What kind of shift the recent windows, in their order, come from.

        Returns:
            The finding, and the kinds that it may be with their probabilities, likeliest first.
        """
        probe, world, kit = self._diagnosing
        kits = None if kit is None else {probe: kit}
        (reading,) = measure([probe], self.sensor(recent), self.frozen, world, kits=kits, run=self.run)
        assert reading.finding is not None
        return reading.finding, _kinds(reading)

    @cached_property
    def _diagnosing(self) -> tuple[Probe, World, nn.Module | None]:
        """What names the kind of shift, what it sees, and its kit."""
        probe = self.plan.diagnose
        if isinstance(probe, ShiftKind) and not probe.simulate:
            # What the candidates rehearse is also what a change of inputs may look like.
            inputs = tuple(s for s in self.simulate if kinds_of_shift(s) <= {"covariate"})
            probe = probe.replace(simulate=inputs)
        world = World(source=self.before, task=self.world.task)
        return probe, world, probe.kit(self.frozen, world, run=self.run)

    def rehearse(self) -> None:
        """Fit the diagnosis and calibrate every candidate's estimate now; else each waits until it is first needed."""
        for name in self.remedies:
            self.estimate(name)
        with suppress(HomeostatError):  # it is said at the alarm why no kind can be told
            _ = self._diagnosing

    def propose(
        self, recent: Sequence[Batch], trace: Trace, kinds: Mapping[str, float]
    ) -> tuple[list[str], dict[str, str]]:
        """Names of the candidates to try, best first, and why each other one is left out.

        Args:
            recent: the recent windows.
            trace: earlier trials; its last entry names the present kind of shift.
            kinds: kinds that the shift may be of, with their probabilities; empty when nothing is known.
        """
        world, left = self._world(recent), dict[str, str]()
        for name, remedy in self.remedies.items():
            if why := self._unfit(name, remedy, world, kinds):
                left[name] = why
        options, chosen, spent = [n for n in self.remedies if n not in left], list[str](), 0.0
        trace = Trace((*self._rehearsals(options), *trace))
        while options and len(chosen) < self.plan.candidates:
            offered = [*options, NOTHING]
            name = offered[self.plan.proposer(trace, offered, run=self.run)]
            if name == NOTHING:
                left |= dict.fromkeys(options, "its trials came to nothing in this kind of shift")
                return chosen, left
            options.remove(name)
            passes = self.remedies[name].card.passes
            most = math.inf if self.plan.passes is None else self.plan.passes
            if spent + passes > most:
                left[name] = f"it costs {passes:g} passes, and {most - spent:g} are left"
                continue
            chosen.append(name)
            spent += passes
        return chosen, left | dict.fromkeys(options, f"others come first, and {len(chosen)} are tried")

    def _rehearsals(self, names: Sequence[str]) -> list[Entry]:
        """What candidates came to when they were rehearsed, as trials that the proposer learns from."""
        entries = list[Entry]()
        for name in names:
            self.estimate(name)
            if (made := self._rehearsed[name]) is not None:
                for one in made.first:
                    reading = Reading("gain", one.gain, unit="fraction", better="higher")
                    entries += [Entry(0, name, kind, (reading,), "rehearsed") for kind in sorted(one.kinds)]
        return entries

    def _unfit(self, name: str, remedy: Remedy, world: World, kinds: Mapping[str, float]) -> str:
        """Why a remedy does not fit the shift or the world, or nothing.

        A card that names no kind is for any. A remedy with a kit needs nothing more to prepare.
        """
        handles, likely = remedy.card.handles, _likely(kinds)
        if handles and likely and not handles & likely:
            return f"it is for {', '.join(sorted(handles))}, and this looks like {next(iter(kinds))}"
        if handles and not likely and not handles & DRIFT:
            return f"it is for {', '.join(sorted(handles))}, and not for drift"
        needs = remedy.needs() | (frozenset() if self.kits[name] is not None else remedy.prepares())
        try:
            world.check(needs, type(remedy).__name__)
        except HomeostatError as error:
            return str(error)
        return ""

    def apply(
        self, names: Sequence[str], recent: Sequence[Batch], step: int, served: str
    ) -> tuple[list[Trial], nn.Sequential]:
        """Apply candidates to the frozen network and replay the recent windows to those that adapt online.

        One that comes out with the content hash `served` is left out.
        """
        world, run = self._world(recent), self.run.replace(seed=self.run.seed_for("trial", step))
        replayed = [batch.replace(y=None).to(device_of(self.frozen)) for batch in recent]
        trials, models = list[Trial](), list[nn.Module]()
        for trial in map(Trial, names):
            made: nn.Module = nn.Identity()
            try:
                made = fork(self.frozen)
                if trial.name != "source":
                    made = self.remedies[trial.name](self.frozen, world, kit=self.kits[trial.name], run=run)
                for batch in replayed if isinstance(made, Online) else ():
                    shadow(made, batch)
            except FAILURES as error:
                trial.refused = f"it failed: {error}"
            if trial.refused or content_hash(made) != served:
                trials.append(trial)
                models.append(made)
        return trials, nn.Sequential(*models)

    def estimate(self, name: str, kinds: Mapping[str, float] | None = None, served: bool = False) -> Estimate:
        """How a candidate's signs tell its gain in a shift of these kinds; rehearsed when first asked for.

        What is `served` may have learnt in another world than this.

        Nothing is known of a candidate that fails on simulated shifts, or that a resumed store serves and this loop
        was not given.
        """
        if name == "source":
            return Same()
        if name not in self._rehearsed:
            plan, found = self.plan, None
            if self.simulate and name in self.remedies:
                try:
                    found = calibrate(
                        self.remedies[name], self.sensor, self.normal, self.world.replace(target=None, held=None),
                        self.before, self.simulate, window=plan.window, trial=plan.trial, kit=self.kits[name],
                        run=self.run, memo=self._memo,
                    )  # fmt: skip
                except FAILURES as error:
                    self.run.emit("no estimate", remedy=name, why=str(error))
            self._rehearsed[name] = found
        rehearsed, likely = self._rehearsed[name], _likely(kinds or {})
        if rehearsed is None:
            return Unknown()
        if (key := (name, likely, served)) not in self._estimates:
            try:
                self._estimates[key] = rehearsed.estimate(likely, served)
            except NonFiniteError as error:
                self.run.emit("no estimate", remedy=name, why=str(error))
                self._estimates[key] = Unknown()
        return self._estimates[key]

    def outlook(self, progress: Progress, out: Tensor, seen: Outputs) -> Outlook:
        """What what is served gains in a window.

        Args:
            progress: the loop's.
            out, seen: what is served, and the frozen network, give for the window.
        """
        estimate = self.estimate(progress.served, progress.kinds, served=True)
        return Outlook(estimate, Signs.of(out, seen, self.normal), progress.bias)

    def passes(self, name: str) -> float:
        """Forward passes a sample that a candidate costs while it acts, by its card."""
        return 1.0 if name == "source" else self.remedies[name].card.passes

    def loss_before(self, model: nn.Module) -> float:
        """How much accuracy a model loses on data from before, against the frozen network."""
        total, count = 0.0, len(self._checked)
        with torch.no_grad():
            for batch in self.before[:count].batches(self.plan.window):
                total += share_right(home(model(there(batch.x, model))), home(batch.labels)) * len(batch)
        return self._right_before - total / count

    def _world(self, recent: Sequence[Batch]) -> World:
        batch = join([batch.replace(meta={}) for batch in recent])
        target: Data = Tensors(batch.x, batch.y, batch.id)
        if not bool((batch.labels != UNKNOWN).any()):
            target = target.unlabelled()
        return self.world.replace(target=target, held=None)


def _kinds(reading: Reading) -> dict[str, float]:
    if "probabilities" not in reading.arrays:
        return {reading.finding.kind: 1.0} if reading.finding else {}
    kinds = dict(zip(KINDS, reading.arrays["probabilities"].tolist(), strict=True))
    return dict(sorted(kinds.items(), key=lambda item: -item[1]))


def _likely(kinds: Mapping[str, float]) -> frozenset[str]:
    return frozenset(kind for kind, p in kinds.items() if p >= LIKELY)


def labelled_before(world: World) -> Data:
    """The samples from before whose label is known: of `calibration`, or of `source` where there is none."""
    before = world.calibration if world.calibration is not None else world.source
    first = None if before is None else next(leaves(before.fetch(torch.arange(min(1, len(before)))).x))
    if first is not None and first.device != HOME:
        raise InputError(
            f"data from before lie on {first.device}; give them on the CPU: batches go where the network lies"
        )
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
