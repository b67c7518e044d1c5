"""MBTL: which few tasks to train on, so that what is learnt transfers to all of them.

Training a policy for each of N task variants (pole lengths, traffic densities) is dear, and a policy trained on one
variant works, somewhat worse, on its neighbours. MBTL models two things from what has been seen: how well training on a
variant goes, a Gaussian process over the variants' contexts, and how fast performance falls with distance, a slope. It
then trains next where the predicted gain over all variants is largest:

    V_ij = mu_i + b sigma_i - slope * |x_i - x_j|                 predicted performance of source i on target j
    a_i  = mean_j max(V_ij - best_j, 0),      next = argmax_i a_i over variants not yet trained

with mu, sigma `[N]` the process's mean and deviation, and best_j the best performance on target j so far. The first
choice is the middle variant. Contexts are scaled to 0..1 per dimension.

Performances are expected on a scale of about 0..1. Defaults: noise 0.1 and the kernel's bounds are the official code's,
here for contexts in 0..1 rather than 1..100. Two departures from it: the process is fitted to centred scores (zero-mean
on raw ones makes far tasks look bad), and the slope is estimated from the nearer transfers seen (`slope=0`), as a fixed
0.005 a step does badly on steep landscapes.

It helps where performance falls steeply with distance. On 12 made-up landscapes of 60 tasks it was better than random
choice with 5 trainings at a fall of 2 (+0.05 of a range of 1) and of 4 (+0.06) over the whole range, and no better at
falls of 0.5 and 1; evenly spaced choices were as good as it or better throughout.

>>> contexts = [(i / 9,) for i in range(10)]
>>> MBTL()(Trace(), contexts)
4

Reference: Cho et al., Model-Based Transfer Learning for Contextual Reinforcement Learning, NeurIPS 2024.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from homeostat.core.errors import InputError
from homeostat.core.method import Card
from homeostat.core.run import Run
from homeostat.core.spec import Index, NonNegative, Positive
from homeostat.core.trace import Choose, Trace

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MBTL(Choose):
    """Chooses the next source task from the transfers seen.

    `choose(trace, options)`: options are contexts, numbers or tuples of them. Each entry of the trace is one training:
    its subject is the source's index as text, and its reading `"performance"` has an array `"targets"` `[N]`, that
    source's performance on every option.

    Attributes:
        slope: fall of performance per unit of scaled distance; 0 estimates it from the transfers seen.
        noise: standard deviation of a performance around the process, in units of the scaled performance.
        bonus: weight b of the deviation: `"zero"`, `"one"`, `"decay"` 1 / (k + 1), `"log"` sqrt(log(k + 1)), after k
            trainings.
        restarts: of the kernel's fit.
    """

    slope: NonNegative = 0.0
    noise: Positive = 0.1
    bonus: Literal["zero", "one", "decay", "log"] = "decay"
    restarts: Index = 3

    card: ClassVar[Card] = Card(id="S001", paper="Cho et al., Model-Based Transfer Learning, NeurIPS 2024")

    def choose(self, trace: Trace, options: Sequence[Any], run: Run) -> int:
        x = scaled_contexts(options)
        trained, scores = transfers(trace, len(options))
        if not trained:
            return int(np.argmin(np.abs(x - 0.5).sum(1)))
        left = [i for i in range(len(options)) if i not in trained]
        if not left:
            raise InputError(f"all {len(options)} tasks are trained; there is none left to choose")
        mean, deviation = self._process(x, trained, scores, run)
        distance = np.abs(x[:, None] - x[None]).sum(-1)
        slope = self.slope or estimated_slope(distance, trained, scores)
        k = len(trained)
        weight = {"zero": 0.0, "one": 1.0, "decay": 1 / (k + 1), "log": math.sqrt(math.log(k + 1))}[self.bonus]
        gains = predicted_gains(mean + weight * deviation, distance, slope, scores.max(0))
        # Where no gain is predicted anywhere, the least known task is next rather than the first.
        return max(left, key=lambda i: (gains[i], deviation[i]))

    def _process(self, x: Array, trained: list[int], scores: Array, run: Run) -> tuple[Array, Array]:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel

        own = scores.max(0)[trained]
        process = GaussianProcessRegressor(
            ConstantKernel(1.0, (1e-3, 1e3)) * RBF(1.0, (1e-2, 1e2)), alpha=self.noise**2,
            n_restarts_optimizer=self.restarts, random_state=run.seed_for("mbtl", len(trained)) % 2**32,
        )  # fmt: skip
        with warnings.catch_warnings():
            # With few points the kernel's scale often lies at its bound, which is no fault here.
            warnings.simplefilter("ignore", ConvergenceWarning)
            process.fit(x[trained], own - own.mean())
        mean, deviation = (np.asarray(v, dtype=np.float64) for v in process.predict(x, return_std=True))
        return mean + own.mean(), deviation


def scaled_contexts(options: Sequence[Any]) -> Array:
    """Contexts as `[N, dimensions]`, each dimension scaled to 0..1."""
    try:
        x = np.asarray(options, dtype=np.float64).reshape(len(options), -1)
    except (TypeError, ValueError):
        raise InputError(
            f"MBTL chooses among contexts that are numbers or tuples of them; got {options[0]!r}"
        ) from None
    if not np.isfinite(x).all():
        raise InputError("a context is NaN or infinite")
    span = np.ptp(x, axis=0)
    return (x - x.min(0)) / np.where(span > 0, span, 1.0)


def transfers(trace: Trace, count: int) -> tuple[list[int], Array]:
    """The trained indices, and `[trained, N]` performances on every target."""
    trained, rows = list[int](), list[Array]()
    for entry in trace:
        try:
            index, row = int(entry.subject), np.asarray(entry["performance"].arrays["targets"], dtype=np.float64)
        except (KeyError, ValueError):
            raise InputError(
                f"step {entry.step}: a training is an entry whose subject is the source's index and whose reading "
                "'performance' has an array 'targets'"
            ) from None
        if row.shape != (count,) or not 0 <= index < count:
            raise InputError(
                f"step {entry.step}: source {index} with performances {row.shape}; there are {count} options"
            )
        trained.append(index)
        rows.append(row)
    return trained, np.array(rows)


def estimated_slope(distance: Array, trained: list[int], scores: Array, near: float = 0.25) -> float:
    """Least squares, through the origin, of the loss of performance on distance, over each source's nearer targets.

    Far targets are left out because performance has a floor there, which would flatten the line.

    Args:
        distance: `[N, N]`. trained: sources. scores: `[trained, N]`. near: share of targets that count as near.
    """
    far, loss = list[Array](), list[Array]()
    for row, i in enumerate(trained):
        close = distance[i] <= np.quantile(distance[i], near)
        far.append(distance[i][close])
        loss.append(np.abs(scores[row, i] - scores[row][close]))
    x, y = np.concatenate(far), np.concatenate(loss)
    return float(x @ y / max(x @ x, 1e-12))


def predicted_gains(optimistic: Array, distance: Array, slope: float, best: Array) -> Array:
    """`[N]` mean over targets of the predicted improvement on `best`, for each source."""
    return np.maximum(optimistic[:, None] - slope * distance - best[None], 0).mean(1)
