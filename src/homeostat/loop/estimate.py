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

Reference: Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, ch. 2 and 5 (leave-one-out);
Guillory et al., "Predicting with Confidence on Unseen Distributions", ICCV 2021 (confidence differences as signs).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from homeostat.core.errors import InputError, NonFiniteError
from homeostat.core.probe import Outputs
from homeostat.loop.verify import class_shares

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
