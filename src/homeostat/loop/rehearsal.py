"""Rehearsals: what a candidate does over simulated shifts of labelled data from before, where its gain is known.

Each candidate is run over every simulated shift, and over the data as they are, as the loop would run it: it adapts to
some windows, and is judged on the next. What is served, though, is there when the world moves on, and a remedy with a
memory brings what it learnt into the next one. So after each shift the candidate also meets another one, and the data
as they were. For what is served counts the lesser of two estimates of gain (`estimate`): from candidates that come
fresh to a world, and from all.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from homeostat.core.data import Data
from homeostat.core.errors import CheckpointError
from homeostat.core.method import Kind, Remedy, Shift
from homeostat.core.online import Bag, Online
from homeostat.core.part import recipe
from homeostat.core.place import device_of
from homeostat.core.probe import Outputs
from homeostat.core.run import Run
from homeostat.core.save import load, save
from homeostat.core.spec import digest
from homeostat.core.weights import fingerprint
from homeostat.core.world import World
from homeostat.loop.estimate import LEAST, Estimate, Least, Normal, Signs, mean_signs
from homeostat.loop.sensor import Sensor
from homeostat.loop.verify import shadow, share_right

JUDGED = 8
"""Windows on which a simulated scenario's gain is measured; fewer leave more noise in it."""

AFTER = 2
"""Windows of another world that a candidate then meets with what it has learnt; it is the first ones where it harms."""


@dataclass(frozen=True)
class Scenario:
    """What a candidate did in a simulated world.

    Attributes:
        signs, gain: means over its windows.
        world: the number of the shift; 0 is the data as they are.
        kinds: of the shift; none for the data as they are.
        samples: that signs and gain are the means of.
        after: whether the candidate had come from another world.
    """

    signs: Signs
    gain: float
    world: int
    kinds: frozenset[Kind]
    samples: int
    after: bool


@dataclass(frozen=True)
class Rehearsal:
    """What a candidate did over simulated shifts."""

    scenarios: tuple[Scenario, ...]

    @property
    def first(self) -> list[Scenario]:
        """Those in which the candidate had seen no other world."""
        return [scenario for scenario in self.scenarios if not scenario.after]

    def estimate(self, likely: Collection[str], served: bool = False) -> Estimate:
        """The estimate from scenarios of kinds that the shift at hand may be of; from all where these are too few.

        Scenarios that the diagnosis rules out say nothing about the shift at hand and would widen the margin. The data
        as they are, and shifts that name no kind, always count. What is `served` may have come from another world: for
        it counts the least of what is estimated without scenarios in which a candidate had, and with them.
        """
        fresh = _over(self.first, likely)
        return Least(fresh, _over(self.scenarios, likely)) if served else fresh


def _over(scenarios: Sequence[Scenario], likely: Collection[str]) -> Estimate:
    used = [s for s in scenarios if not s.kinds or not likely or s.kinds & set(likely)]
    used = used if len(used) >= LEAST else scenarios
    return Estimate([s.signs for s in used], [s.gain for s in used], [s.samples for s in used])


def calibrate(
    remedy: Remedy,
    sensor: Sensor,
    normal: Normal,
    world: World,
    data: Data,
    shifts: Sequence[Shift],
    *,
    window: int,
    trial: int,
    kit: Any,
    run: Run,
    memo: dict[tuple[int, int], Outputs],
) -> Rehearsal:
    """Run a candidate over simulated shifts of labelled data, where its gain is known.

    Each scenario takes `trial` windows to adapt, as the loop does, and some to judge, and sees what of the
    `world` the loop's candidates see. Then the world moves on, as it does for what was committed: to the next shift,
    and to the data as they were. Cached in `run.scratch`; `memo` keeps the frozen network's outputs by scenario and
    window for the candidates to come.
    """
    model = sensor.frozen
    key = digest(
        "signs", remedy.digest(), fingerprint(model), recipe(model), data.fingerprint(), world.fingerprint(),
        [s.to_config() for s in shifts], window, trial, JUDGED, AFTER, run.seed,
        None if kit is None else fingerprint(kit),
    )  # fmt: skip
    kinds = [frozenset[Kind](), *(kinds_of_shift(shift) for shift in shifts)]
    path = None if run.scratch is None else run.scratch / "estimates" / key
    if path is not None and path.exists():
        try:
            return _loaded(load(path), kinds)
        except CheckpointError:
            run.emit("estimate unreadable, calibrated again", values={"path": str(path)})

    @functools.cache
    def stream(number: int) -> Data:
        """A simulated world."""
        shifted = data.shuffle(run.rng("simulate", number))
        if number:
            shifted = shifts[number - 1](shifted, model=model, run=run.replace(seed=run.seed_for("simulate", number)))
        # A shift that leaves fewer samples than a trial takes has them come again.
        return shifted[torch.arange(window * (trial + JUDGED)) % len(shifted)]

    def scenario(candidate: nn.Module, number: int, after: bool) -> Scenario:
        """What a candidate does in a world: in its first windows, or in all after those that it adapted to."""
        seen, right, (first, last) = [], 0.0, (0, AFTER) if after else (trial, trial + JUDGED)
        for step, batch in enumerate(stream(number)[window * first : window * last].batches(window), first):
            there = batch.replace(y=None).to(device_of(model))
            out = shadow(candidate, there)
            if (number, step) not in memo:
                memo[number, step] = sensor(batch, there.x)
            frozen = memo[number, step]
            seen.append(Signs.of(out, frozen, normal))
            right += share_right(out, batch.labels) - share_right(frozen.logits, batch.labels)
        return Scenario(mean_signs(seen), right / len(seen), number, kinds[number], window * len(seen), after)

    found = list[Scenario]()
    for number in range(len(kinds)):
        target = stream(number)[: window * trial].unlabelled()
        candidate = remedy(model, world.replace(target=target, held=None), kit=kit, run=run)
        for batch in target.batches(window) if isinstance(candidate, Online) else ():
            shadow(candidate, batch.replace(y=None).to(device_of(model)))
        found.append(scenario(candidate, number, after=False))
        run.emit("calibrate", number + 1, len(kinds), gain=found[-1].gain)
        for other in (number % len(shifts) + 1, 0) if number else ():
            found.append(scenario(candidate, other, after=True))
    if path is not None:
        save(_saved(found), path)
    return Rehearsal(tuple(found))


def _saved(scenarios: Sequence[Scenario]) -> Bag:
    rows = [[*s.signs.row(), s.gain, s.world, s.samples, s.after] for s in scenarios]
    return Bag({"scenarios": torch.tensor(rows, dtype=torch.float64)})


def _loaded(table: Any, kinds: Sequence[frozenset[Kind]]) -> Rehearsal:
    rows = table["scenarios"].tolist()
    return Rehearsal(tuple(
        Scenario(Signs(*signs), gain, int(world), kinds[int(world)], int(samples), bool(after))
        for *signs, gain, world, samples, after in rows
    ))  # fmt: skip


def kinds_of_shift(shift: Shift) -> frozenset[Kind]:
    """Kinds of a shift by its card, or of the shifts among its fields."""
    inner = [v for value in shift.fields().values() for v in (value if isinstance(value, tuple) else (value,))]
    return shift.card.handles.union(*(kinds_of_shift(v) for v in inner if isinstance(v, Shift)))
