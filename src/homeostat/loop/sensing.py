"""Sensing on demand: look only when the task needs it, predict the rest, and notice when the predictions go wrong.

At the edge a look costs energy, radio or a person's time. A process x_t `[n]` that moves by itself, and sensors that
see parts of it,

    x_{t+1} = A x_t + w,  w ~ N(0, c Q)        y = C_s x_t + v,  v ~ N(0, R_s)   where sensor s looks,

are tracked by a Kalman filter, which says without looking how unsure it is. There is a look when the predicted standard
deviation of what the task needs, sqrt(max_j (M P M^T)_jj), exceeds `uncertainty`; of several sensors the one that
lowers it most for its energy. Several agents that share what they see are several sensors of one loop.

A predictor that is wrong is sure of it, looks rarely, and goes wrong further: the error cascades. So the innovations,
whitened, z = L^{-1} (y - C m) with L L^T = C P C^T + R, are watched; only what was *sensed* enters. For a right
predictor they are independent N(0, 1), and for each of a few alternatives q (a mean of +-`shift` in a component, a
variance of 2 or 8) the Shiryaev-Roberts sum R <- (R + 1) q(z) / N(z; 0, 1) grows by 1 a look. The first look at which
the mean of the sums reaches `run_length` comes after `run_length` looks on average, or more. Then the caution c is
multiplied by the mean of z^2, at least by `caution`, the predictions grow unsure faster, and looks become frequent;
every look without an alarm takes a share `calm` of ln c away again, so that looks become rare when they are not needed.

A look is answered `latency` steps later. It enters where it belongs, in the state of the step in which it was made;
what is served is the prediction from there. The energy comes in by `budget` a step and is kept up to `reserve`; a look
that cannot be paid is counted in `carry["starved"]` and not made.

It fails where the process is far from linear, and it cannot see what no sensor sees; an error that stays within the
noise of the sensors is not found.

>>> loop = SensingLoop(Process(), Sensing(uncertainty=2.0))
>>> looks = [loop.step([lambda: torch.zeros(1)]).sensor for _ in range(8)]
>>> looks
[0, None, None, None, 0, None, None, None]

Reference: a position paper on sensing-to-action loops at the edge (S213), made concrete with textbook parts: Kalman,
1960; Shin, Ramdas, Rinaldo, E-detectors, NEJSDS 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import annotated_types as at
import torch
from torch import Tensor

from homeostat.core.errors import InputError, NonFiniteError, SpecError
from homeostat.core.method import Card
from homeostat.core.online import Bag
from homeostat.core.part import Part
from homeostat.core.spec import Index, Positive, Spec

Matrix = tuple[tuple[float, ...], ...]
Look = Callable[[], Tensor]
SCALES = (2.0, 8.0)
"""Variances of the innovations that the monitor looks for."""


def _matrix(rows: Matrix) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@dataclass(frozen=True)
class Sensed(Spec):
    """A sensor.

    Attributes:
        reads: C, one row a number that it gives.
        error: R, the covariance of its errors.
        energy: what a look costs.
    """

    reads: Matrix = ((1.0,),)
    error: Matrix = ((1.0,),)
    energy: Positive = 1.0


@dataclass(frozen=True)
class Process(Spec):
    """What is tracked, as the predictor believes it to be.

    Attributes:
        moves: A, `[n, n]`.
        noise: Q, `[n, n]`, of one step.
        start: the variance of every component before the first look.
        needs: M, the combinations of components that the task needs; none means every component.
        sensors: at least one.
    """

    moves: Matrix = ((1.0,),)
    noise: Matrix = ((1.0,),)
    start: Positive = 100.0
    needs: Matrix = ()
    sensors: tuple[Sensed, ...] = (Sensed(),)

    def __post_init__(self) -> None:
        super().__post_init__()
        n = len(self.moves)
        if not self.sensors:
            raise SpecError("Process.sensors is empty; nothing could ever be seen")
        shapes = [("moves", self.moves, n), ("noise", self.noise, n), ("needs", self.needs, None)]
        shapes += [(f"sensors[{i}].reads", s.reads, None) for i, s in enumerate(self.sensors)]
        for name, matrix, rows in shapes:
            if (rows is not None and len(matrix) != rows) or any(len(row) != n for row in matrix):
                raise SpecError(f"Process.{name} has rows of {[len(row) for row in matrix]}; the process has {n}")
        for i, sensor in enumerate(self.sensors):
            m = len(sensor.reads)
            if not m or len(sensor.error) != m or any(len(row) != m for row in sensor.error):
                raise SpecError(f"Process.sensors[{i}].error is not {m} x {m}, as many as the sensor gives numbers")
        errors = [(f"sensors[{i}].error", s.error) for i, s in enumerate(self.sensors)]
        for name, matrix in [("noise", self.noise), *errors]:
            value = _matrix(matrix)
            if not torch.equal(value, value.T) or not float(least := torch.linalg.eigvalsh(value).min()) >= 0:
                raise SpecError(f"Process.{name} is no covariance: it is not symmetric, or negative somewhere")
            if name != "noise" and float(least) == 0:
                # What a sensor without errors saw twice would have no likelihood.
                raise SpecError(f"Process.{name} is singular; give a sensor without errors a small one, such as 1e-9")


@dataclass(frozen=True)
class Sensing(Spec):
    """When to look, and what becomes of surprises.

    Attributes:
        uncertainty: predicted standard deviation of what the task needs above which there is a look.
        run_length: average number of looks between false alarms of a right predictor, at least; None watches nothing.
        shift: mean of a whitened innovation that the monitor looks for, in standard deviations.
        caution: by what the process noise is multiplied at an alarm, at least.
        most: largest multiple of the process noise.
        calm: share of the logarithm of that multiple that every look without an alarm takes away.
        latency: steps until a look is answered.
        budget: energy a step; None has no limit.
        reserve: energy that can be kept.
    """

    uncertainty: Positive = 1.0
    run_length: Annotated[int, at.Ge(2)] | None = 500
    shift: Positive = 1.0
    caution: Annotated[float, at.Gt(1)] = 4.0
    most: Annotated[float, at.Ge(1)] = 1e6
    calm: Annotated[float, at.Ge(0), at.Le(1)] = 0.1
    latency: Index = 0
    budget: Positive | None = None
    reserve: Positive = 10.0

    card: ClassVar[Card] = Card(id="S213", paper="A position paper on sensing-to-action loops at the edge")


@dataclass(frozen=True)
class Belief:
    """What is served in a step.

    Attributes:
        mean: of the process, `[n]`.
        covariance: `[n, n]`.
        sensor: number of the sensor that looks in this step, or None.
        alarmed: whether an answered look showed that the predictor is wrong.
    """

    mean: Tensor
    covariance: Tensor
    sensor: int | None
    alarmed: bool


class SensingLoop(Part):
    """Tracks a process with as few looks as the task allows; all state lies in `carry`, so it can be saved and goes on.

    Args:
        process: what is tracked.
        policy: when to look.
    """

    def __init__(self, process: Process = Process(), policy: Sensing = Sensing()):
        super().__init__()
        self.process, self.policy, self.carry = process, policy, Bag()
        n = len(process.moves)
        self.carry["mean"] = torch.zeros(n, dtype=torch.float64)
        self.carry["covariance"] = process.start * torch.eye(n, dtype=torch.float64)
        for name, value in (("caution", 1.0), ("energy", policy.reserve), ("evidence", 0.0)):
            self.carry[name] = torch.tensor(value, dtype=torch.float64)
        for name in ("step", "looks", "starved", "alarms"):
            self.carry[name] = torch.tensor(0)

    def step(self, looks: Sequence[Look]) -> Belief:
        """Decide whether to look, look, take in what is answered, and predict.

        Args:
            looks: one function a sensor, which is called only if that sensor is to look; it gives `[numbers]` seen now.

        Raises:
            InputError: not one function a sensor, or it gives another number of numbers. NonFiniteError: it gives NaN.
        """
        if len(looks) != len(self.process.sensors):
            raise InputError(f"one function a sensor is wanted, {len(self.process.sensors)}; got {len(looks)}")
        carry, now = self.carry, int(self.carry["step"])
        sensor = self._choose()
        if sensor is not None:
            carry[f"seen.{now}.{sensor}"] = self._seen(sensor, looks[sensor])
            carry["looks"] += 1
            carry["energy"] = carry["energy"] - self.process.sensors[sensor].energy
        alarmed = self._take_in(now - self.policy.latency)
        mean, covariance = carry["mean"], carry["covariance"]
        for _ in range(min(self.policy.latency, now)):
            mean, covariance = self._predict(mean, covariance)
        belief = Belief(mean.clone(), covariance.clone(), sensor, alarmed)
        if now >= self.policy.latency:
            carry["mean"], carry["covariance"] = self._predict(carry["mean"], carry["covariance"])
        income = math.inf if self.policy.budget is None else self.policy.budget
        carry["energy"] = (carry["energy"] + income).clamp(max=self.policy.reserve)
        carry["step"] += 1
        return belief

    def _choose(self) -> int | None:
        """The sensor that looks now, or None."""
        planned, sensors = self._planned(), self.process.sensors
        if (unsure := self._unsure(planned)) <= self.policy.uncertainty:
            return None
        after = [self._unsure(self._gained(planned, i)[1]) for i in range(len(sensors))]
        best = max(range(len(sensors)), key=lambda i: (unsure - after[i]) / sensors[i].energy)
        if self.policy.budget is not None and sensors[best].energy > float(self.carry["energy"]):
            self.carry["starved"] += 1
            return None
        return best

    def _planned(self) -> Tensor:
        """The covariance of now, as it will be once all looks that were made are answered."""
        covariance, now = self.carry["covariance"], int(self.carry["step"])
        for when in range(max(0, now - self.policy.latency), now):
            for name in self._waiting(when):
                covariance = self._gained(covariance, int(name.rpartition(".")[2]))[1]
            covariance = self._predict(self.carry["mean"], covariance)[1]
        return covariance

    def _waiting(self, when: int) -> list[str]:
        return [name for name in self.carry if name.startswith(f"seen.{when}.")]

    def _seen(self, sensor: int, look: Look) -> Tensor:
        wanted = len(self.process.sensors[sensor].reads)
        seen = torch.as_tensor(look(), dtype=torch.float64).flatten()
        if len(seen) != wanted:
            raise InputError(f"sensor {sensor} gives {wanted} numbers; it gave {len(seen)}")
        if not bool(torch.isfinite(seen).all()):
            raise NonFiniteError(f"sensor {sensor} gave {seen.tolist()}; nothing was taken in")
        return seen

    def _unsure(self, covariance: Tensor) -> float:
        needs = _matrix(self.process.needs) if self.process.needs else torch.eye(len(covariance), dtype=torch.float64)
        return float((needs @ covariance @ needs.T).diagonal().max().clamp(min=0).sqrt())

    def _take_in(self, when: int) -> bool:
        """Update the state of a step by what was looked at in it; whether the monitor alarms."""
        carry, alarmed = self.carry, False
        for name in self._waiting(when):
            sensor = int(name.rpartition(".")[2])
            gain, covariance, root = self._gained(carry["covariance"], sensor)
            apart = carry[name] - _matrix(self.process.sensors[sensor].reads) @ carry["mean"]
            carry["mean"], carry["covariance"] = carry["mean"] + gain @ apart, covariance
            del carry[name]
            white = torch.linalg.solve_triangular(root, apart[:, None], upper=False)[:, 0]
            alarmed = self._surprised(white) or alarmed
        return alarmed

    def _gained(self, covariance: Tensor, sensor: int) -> tuple[Tensor, Tensor, Tensor]:
        """The gain of a look, the covariance after it, and the root of the innovation's covariance."""
        reads, error = (_matrix(m) for m in (self.process.sensors[sensor].reads, self.process.sensors[sensor].error))
        root = torch.linalg.cholesky(reads @ covariance @ reads.T + error)
        gain = torch.cholesky_solve(reads @ covariance, root).T
        rest = torch.eye(len(covariance), dtype=torch.float64) - gain @ reads
        # Joseph's form: what comes out is a covariance whatever the rounding.
        return gain, rest @ covariance @ rest.T + gain @ error @ gain.T, root

    def _predict(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        moves = _matrix(self.process.moves)
        noise = self.carry["caution"] * _matrix(self.process.noise)
        return moves @ mean, moves @ covariance @ moves.T + noise

    def _surprised(self, white: Tensor) -> bool:
        """Whether the evidence against the predictor reaches its limit; moves the caution."""
        policy, carry = self.policy, self.carry
        if policy.run_length is None:
            return False
        sums = carry["sums"] if "sums" in carry else torch.zeros(2 + len(SCALES), dtype=torch.float64)
        ratios = [sign * policy.shift * white - policy.shift**2 / 2 for sign in (1, -1)]
        ratios += [white.square() * (1 - 1 / scale) / 2 - math.log(scale) / 2 for scale in SCALES]
        # A change of the mean may be in one component; the mean over components is a likelihood ratio, too.
        grown = [r.exp().mean() for r in ratios[:2]] + [r.sum().exp() for r in ratios[2:]]
        sums = ((sums + 1) * torch.stack(grown)).clamp(max=1e300)
        carry["evidence"] = sums.mean()
        if float(carry["evidence"]) < policy.run_length:
            carry["sums"] = sums
            carry["caution"] = carry["caution"] ** (1 - policy.calm)
            return False
        carry["sums"], carry["evidence"] = torch.zeros_like(sums), torch.zeros_like(sums[0])
        growth = white.square().mean().clamp(min=policy.caution)
        carry["caution"] = (carry["caution"] * growth).clamp(max=policy.most)
        carry["alarms"] += 1
        return True
