"""Confidence intervals of proportions, means and sums of absolute means.

- `wilson`: the score interval of a proportion. It keeps its coverage at small counts and at 0 and 1, where the normal
  interval has no width.
- `student`: mean ± t s / sqrt(n). Exact for normal values, and for others as the count grows; with few samples of a
  skewed quantity (the log-loss of a network that is rarely but badly wrong) it covers less than it states.
- `absolute_sum`: for `S = sum over b of |v_b|`, where each `v_b` is the mean of a quantity that is 0 outside group `b`
  (calibration error over bins; distance between class balances). The plug-in estimate is too large, because noise does
  not cancel inside absolute values, and a bootstrap is wrong where some `v_b` are 0. With noise `N = estimate - v`:

      sum |v + N| - sum |v|  <=  sum over unsettled b of |N_b|  +  sum over settled b of sign(v_b) N_b
      sum |v| - sum |v + N|  <=  - sum sign(v_b) N_b

  where `b` is settled when its estimate is more than sqrt(log n) standard errors from 0. The quantiles of the two right
  sides, from simulated normal noise, give an interval that covers at least as often as it states.

References: Wilson, JASA 1927; Andrews and Soares, Econometrica 2010 (the selection of settled means).

>>> interval = wilson(8, 10)
>>> round(interval.low, 3), round(interval.high, 3)
(0.49, 0.943)
"""

from __future__ import annotations

import math
from typing import Annotated

import annotated_types as at
import torch
from jaxtyping import Float
from scipy.special import ndtri, stdtrit
from torch import Tensor

from homeostat.core.reading import Interval

Level = Annotated[float, at.Gt(0), at.Lt(1)]
"""A coverage or a significance level: strictly between 0 and 1."""

DRAWS = 2000
"""Simulated noise vectors behind `absolute_sum`."""


def wilson(successes: float | int, count: float | int, level: float = 0.95) -> Interval:
    """The score interval of a proportion; both numbers may be fractional (an effective sample size)."""
    z = float(ndtri(0.5 + level / 2))
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(max(0.0, centre - half), min(1.0, centre + half), level)


def student(
    values: Float[Tensor, " samples"], level: float = 0.95, low: float = -math.inf, high: float = math.inf
) -> Interval:
    """Mean ± t s / sqrt(n) of at least 2 values, cut to the range `[low, high]` that the mean can have."""
    values = values.double()
    return around(float(values.mean()), float(values.std()) / math.sqrt(len(values)), len(values) - 1, level, low, high)


def around(
    value: float,
    error: float,
    freedom: float | int,
    level: float = 0.95,
    low: float = -math.inf,
    high: float = math.inf,
) -> Interval:
    """`value` ± t standard errors with this many degrees of freedom, cut to the range the quantity can have."""
    half = float(stdtrit(freedom, 0.5 + level / 2)) * error
    return Interval(max(low, value - half), min(high, value + half), level)


def grouped_noise(
    mean: Float[Tensor, " groups"],
    second: Float[Tensor, " groups"],
    count: int,
    generator: torch.Generator,
    draws: int = DRAWS,
) -> Float[Tensor, "draws groups"]:
    """Normal noise of the means of a quantity that is 0 outside a sample's group.

    Its covariance is `(diag(second) - mean mean') / count`.

    Args:
        mean: mean of the quantity over all samples, by group.
        second: mean of its square.
        count: samples behind the means.
    """
    root = second.sqrt()
    unit = torch.where(root > 0, mean / root, torch.zeros_like(root))
    length = float(unit.square().sum().clamp(max=1))
    shrink = (1 - math.sqrt(1 - length)) / length if length > 0 else 0.0
    white = torch.randn(draws, len(mean), generator=generator, dtype=torch.float64)
    # (I - shrink uu') is a root of I - uu', so no matrix is decomposed.
    return (white - shrink * (white @ unit)[:, None] * unit) * root / math.sqrt(count)


def absolute_sum(
    estimate: Float[Tensor, " groups"], noise: Float[Tensor, "draws groups"], count: int, level: float = 0.95
) -> Interval:
    """Interval of `sum |v|` from an estimate of `v` and simulated noise of that estimate.

    Args:
        estimate: estimated means, by group.
        noise: draws of the estimate's error.
        count: samples behind the estimate.
    """
    value = float(estimate.abs().sum())
    settled = estimate.abs() > math.sqrt(max(1.0, math.log(count))) * noise.std(0)
    signed = estimate.sign() * noise
    over = torch.where(settled, signed, noise.abs()).sum(1)
    tail = (1 - level) / 2
    low = value - float(over.quantile(1 - tail))
    high = value + float((-signed.sum(1)).quantile(1 - tail))
    return Interval(max(0.0, low), max(high, value), level)
