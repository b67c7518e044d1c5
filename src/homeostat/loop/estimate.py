"""What a candidate gains, without labels: an estimate from signs, calibrated on simulated shifts.

Confidence rises under entropy minimization whether or not answers get better, so that no sign alone tells a gain. Each
candidate is therefore run over simulated shifts of labelled data from before, where its true gain is known, and gain is
regressed on four signs z of it against the frozen network:

- disagreement d: share of samples on which the predicted classes differ;
- rise: mean largest probability less the frozen network's;
- balance: how much nearer the predicted class shares are to those from before than the frozen network's are, in total
  variation;
- drop: how much less sure the frozen network is than it was before.

Only where the two disagree can one gain, so that gain = d h(z) with h in -1..1, the share of disagreements that are won
less the share that are lost. h is a Gaussian process with a constant, a linear and a squared-exponential part,

    k_h(z, z') = c + a z . z' / 4 + b exp(-|z - z'|^2 / 2 l^2),     gain ~ N(d h(z), (d + floor) / n),

z in units of its spread over the simulated shifts, n samples a scenario; c, a, b and l maximise the likelihood over a
grid. Where signs are unlike all simulated ones its deviation s(z) is large. The lower bound is

    gain(z) - q s(z),     q = the largest overestimate of a scenario by the others, in its s; at least 1,

a jackknife on the scale of s. It has no probability: it holds for most new shifts as far as those are exchangeable with
the simulated ones.

What is served is there when the world moves on, and a remedy with a memory brings what it learnt into the next one. So
every candidate also meets, right after each simulated shift, another one and the data as they were. For what is served
counts the lesser of the estimate from candidates that come fresh to a world, and from all.

Reference: Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, ch. 2 and 5 (leave-one-out);
Guillory et al., "Predicting with Confidence on Unseen Distributions", ICCV 2021 (confidence differences as signs).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.core.data import Data
from homeostat.core.errors import CheckpointError, InputError, NonFiniteError
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
from homeostat.loop.sensor import Sensor
from homeostat.loop.verify import class_shares, shadow, share_right

JUDGED = 8
"""Windows on which a simulated scenario's gain is measured; fewer leave more noise in it."""

AFTER = 2
"""Windows of another world that a candidate then meets with what it has learnt; it is the first ones where it harms."""

LEAST = 4
"""Scenarios that an estimate needs."""

FLOOR = 0.02
"""Part of the noise of a gain that does not vanish with the disagreement."""


@dataclass(frozen=True)
class Normal:
    """What is normal for the frozen network: its confidence and predicted class shares on data from before."""

    confidence: float
    shares: Tensor

    @classmethod
    def of(cls, before: Outputs) -> Normal:
        """From the frozen network's outputs."""
        return cls(confidence(before.logits), class_shares(before.logits))


def confidence(logits: Tensor) -> float:
    """Mean largest probability."""
    return float(logits.float().softmax(-1).amax(-1).mean())


@dataclass(frozen=True)
class Signs:
    """What can be seen of a candidate without labels, against the frozen network on the same samples.

    Attributes:
        disagreement, rise, balance, drop: see the module's docstring.
    """

    disagreement: float = 0.0
    rise: float = 0.0
    balance: float = 0.0
    drop: float = 0.0

    @classmethod
    def of(cls, out: Tensor, frozen: Outputs, normal: Normal) -> Signs:
        """From the candidate's logits `[window, classes]` and the frozen network's outputs."""
        theirs = frozen.logits
        far, near = ((class_shares(z) - normal.shares).abs().sum() / 2 for z in (theirs, out))
        sure = confidence(theirs)
        differ = float(out.argmax(-1).ne(theirs.argmax(-1)).float().mean())
        return cls(differ, confidence(out) - sure, float(far - near), normal.confidence - sure)

    def row(self) -> list[float]:
        """The four numbers."""
        return [self.disagreement, self.rise, self.balance, self.drop]


def mean_signs(windows: Sequence[Signs]) -> Signs:
    """The mean over windows; no signs at all when there are none."""
    rows = [signs.row() for signs in windows] or [[0.0] * 4]
    return Signs(*(sum(column) / len(rows) for column in zip(*rows, strict=True)))


class Estimate:
    """A candidate's gain in accuracy over the frozen network, from its signs; see the module's docstring.

    Args:
        signs, gains: of the simulated scenarios.
        samples: that each was measured on, or all.

    Attributes:
        known: whether there is an estimate at all.

    >>> seen = [Signs(0.1 * i, 0.05 * i) for i in range(6)]
    >>> estimate = Estimate(seen, [0.08 * i for i in range(6)], samples=1000)
    >>> abs(estimate.gain(Signs(0.3, 0.15)) - 0.24) < 0.02
    True

    Raises:
        InputError: fewer than 4 scenarios. NonFiniteError: NaN or infinity among signs or gains.
    """

    def __init__(self, signs: Sequence[Signs], gains: Sequence[float], samples: int | Sequence[int] = 300):
        if len(signs) < LEAST:
            raise InputError(f"an estimate of gain needs at least {LEAST} simulated shifts; got {len(signs)}")
        z = torch.tensor([s.row() for s in signs], dtype=torch.float64)
        y = torch.tensor(gains, dtype=torch.float64)
        if not bool(torch.isfinite(z).all() and torch.isfinite(y).all()):
            raise NonFiniteError("the candidate's outputs on simulated shifts hold NaN or infinity")
        self.known, self.samples = True, torch.as_tensor(samples, dtype=torch.float64)
        self.scale = z.pow(2).mean(0).sqrt().clamp(min=1e-3)
        self.z, self.y = z, y
        self.weights = max(_GRID, key=self._likelihood)
        k = self._kernel(z, z) + torch.diag(self._noise(z))
        self._inverse = torch.linalg.inv(k)
        self._solved = self._inverse @ y
        # Leave-one-out means and deviations in closed form.
        spread = self._inverse.diagonal().rsqrt()
        over = self._solved * spread * -1
        self.q = max(1.0, float(over.max()))

    def _kernel(self, a: Tensor, b: Tensor) -> Tensor:
        constant, linear, smooth, length = self.weights
        x, w = a / self.scale, b / self.scale
        h = constant + linear * x @ w.T / x.shape[1]
        h = h + smooth * torch.exp(-torch.cdist(x, w).pow(2) / (2 * length**2))
        return a[:, :1] * h * b[:, 0]

    def _noise(self, z: Tensor) -> Tensor:
        return (z[:, 0] + FLOOR) / self.samples + 1e-9

    def _likelihood(self, weights: tuple[float, float, float, float]) -> float:
        self.weights = weights
        k = self._kernel(self.z, self.z) + torch.diag(self._noise(self.z))
        factor = torch.linalg.cholesky(k)
        fit = torch.cholesky_solve(self.y[:, None], factor)[:, 0] @ self.y
        return float(-0.5 * fit - factor.diagonal().log().sum())

    def gain(self, signs: Signs) -> float:
        """The estimated gain, a fraction."""
        z = torch.tensor([signs.row()], dtype=torch.float64)
        return float(self._kernel(z, self.z)[0] @ self._solved)

    def margin(self, signs: Signs) -> float:
        """How far below the estimate the lower bound is."""
        z = torch.tensor([signs.row()], dtype=torch.float64)
        k = self._kernel(z, self.z)[0]
        variance = self._kernel(z, z)[0, 0] - k @ self._inverse @ k
        return self.q * float(variance.clamp(min=0).sqrt())

    def low(self, signs: Signs) -> float:
        """The lower bound of the gain, a fraction."""
        return self.gain(signs) - self.margin(signs)


_GRID = tuple(itertools.product((0.01, 0.1, 0.5), (0.0, 0.1, 0.5), (0.0, 0.1, 0.5), (0.7, 1.5)))


class Least(Estimate):
    """The least that several estimates say."""

    def __init__(self, *estimates: Estimate) -> None:
        self.known, self.estimates = all(one.known for one in estimates), estimates

    def gain(self, signs: Signs) -> float:
        return min(one.gain(signs) for one in self.estimates)

    def margin(self, signs: Signs) -> float:
        return self.gain(signs) - min(one.low(signs) for one in self.estimates)


class Same(Estimate):
    """Of the frozen network itself: no gain, for sure."""

    def __init__(self) -> None:
        self.known = True

    def gain(self, signs: Signs) -> float:
        return 0.0

    def margin(self, signs: Signs) -> float:
        return 0.0


class Unknown(Estimate):
    """Of a candidate that cannot be simulated: nothing is known."""

    def __init__(self) -> None:
        self.known = False

    def gain(self, signs: Signs) -> float:
        return 0.0

    def margin(self, signs: Signs) -> float:
        return math.inf


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

    def stream(number: int, windows: int) -> Data:
        """The first windows of a simulated world, the same ones every time."""
        shifted = data.shuffle(run.rng("simulate", number))
        if number:
            shifted = shifts[number - 1](shifted, model=model, run=run.replace(seed=run.seed_for("simulate", number)))
        # A shift that leaves fewer samples than a trial takes has them come again.
        return shifted[torch.arange(window * windows) % len(shifted)]

    def scenario(candidate: nn.Module, number: int, shifted: Data, after: bool) -> Scenario:
        """What a candidate does in a world after the windows that it adapted to, or from the first on."""
        seen, right, first = [], 0.0, 0 if after else trial
        for step, batch in enumerate(shifted[window * first :].batches(window), first):
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
        shifted = stream(number, trial + JUDGED)
        target = shifted[: window * trial].unlabelled()
        candidate = remedy(model, world.replace(target=target, held=None), kit=kit, run=run)
        for batch in target.batches(window) if isinstance(candidate, Online) else ():
            shadow(candidate, batch.replace(y=None).to(device_of(model)))
        found.append(scenario(candidate, number, shifted, False))
        run.emit("calibrate", number + 1, len(kinds), gain=found[-1].gain)
        for other in (number % len(shifts) + 1, 0) if number else ():
            found.append(scenario(candidate, other, stream(other, AFTER), True))
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
