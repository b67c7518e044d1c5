"""Whether confidence means what it says: the expected calibration error.

With confidence `c = max_k p_k` and correctness `a = 1[argmax p = y]`, samples are put into bins by confidence:

    ECE = sum over bins of (n_b / n) |mean a - mean c in bin b|  =  sum over bins of |v_b|,
    v_b = mean over all samples of (a - c) 1[bin b]

Defaults: 15 bins of equal width `(0, 1/15], (1/15, 2/15], ...` (Guo et al. 2017). `adaptive=True` takes bins of equal
mass instead, with edges at the quantiles of the window's own confidences; equal confidences share a bin. The label-free
quantities of each bin (count, mean confidence, accuracy) are in `arrays`, for a reliability diagram.

The reported value is the usual plug-in one, which is too large: a perfectly calibrated network reads about 0.05 on 500
samples and 0.025 on 2000. The interval is for the binned error of the whole distribution and allows for that, so the
value often lies in its upper part. It is made from 2000 normal draws of `run.rng` (`probe.intervals.absolute_sum`) and
covers at least as often as stated, with adaptive edges taken as given; 100 samples in 15 bins cover 92 to 94 %. Where
every prediction is right with confidence 1 it has no width.

>>> import torch
>>> from torch import nn
>>> p = torch.tensor([[0.9, 0.1]] * 10)
>>> reading = ECE()(nn.Identity(), (p.log(), torch.tensor([0] * 7 + [1] * 3)))
>>> round(reading.value, 4)
0.2

References: Guo et al., On calibration of modern neural networks, ICML 2017; Nixon et al., Measuring calibration in deep
learning, 2019 (equal mass).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from homeostat.core.method import Card
from homeostat.core.probe import Outputs, Probe
from homeostat.core.reading import Reading
from homeostat.core.run import Run
from homeostat.core.spec import Count
from homeostat.core.world import World
from homeostat.probe.checks import labelled
from homeostat.probe.intervals import Level, absolute_sum, grouped_noise


@dataclass(frozen=True)
class ECE(Probe):
    """Expected calibration error of the predicted class."""

    card: ClassVar[Card] = Card()
    reads: ClassVar[frozenset[str]] = frozenset({"out", "y"})

    bins: Count = 15
    """Number of bins."""
    adaptive: bool = False
    """Bins of equal mass instead of equal width."""
    level: Level = 0.95
    """Stated coverage of the interval."""

    def measure(self, outputs: Outputs, world: World, kit: Any, run: Run) -> Reading:
        logits, y = labelled(outputs, "ECE", least=2)
        confidence, predicted = logits.double().softmax(1).cpu().max(1)
        right = predicted == y.cpu()
        which = mass_bins(confidence, self.bins) if self.adaptive else width_bins(confidence, self.bins)
        gap = right.double() - confidence

        def per_bin(values: Tensor) -> Tensor:
            return torch.zeros(self.bins, dtype=torch.float64).index_add_(0, which, values) / len(y)

        estimate = per_bin(gap)
        noise = grouped_noise(estimate, per_bin(gap.square()), len(y), run.rng("ECE"))
        share = per_bin(torch.ones_like(gap))
        filled = share.clamp(min=1 / len(y))
        arrays = {
            "count": torch.bincount(which, minlength=self.bins),
            "confidence": per_bin(confidence) / filled,
            "accuracy": per_bin(right.double()) / filled,
        }
        value = float(estimate.abs().sum())
        interval = absolute_sum(estimate, noise, len(y), self.level)
        return Reading("ece", value, interval, "fraction", "lower", arrays=arrays)


def expected_calibration_error(
    confidence: Float[Tensor, " samples"], right: Bool[Tensor, " samples"], which: Int[Tensor, " samples"]
) -> float:
    """The plug-in calibration error of samples whose bin is `which`."""
    gap = right.double() - confidence.double()
    return float(
        torch.zeros(int(which.max()) + 1, dtype=torch.float64).index_add_(0, which, gap).abs().sum() / len(gap)
    )


def width_bins(confidence: Float[Tensor, " samples"], bins: int) -> Int[Tensor, " samples"]:
    """Bins of equal width on (0, 1], closed on the right."""
    edges = torch.arange(1, bins, dtype=confidence.dtype) / bins
    return torch.bucketize(confidence, edges)


def mass_bins(confidence: Float[Tensor, " samples"], bins: int) -> Int[Tensor, " samples"]:
    """Bins of equal mass, closed on the right; samples of equal confidence share one."""
    ranks = torch.arange(1, bins) * len(confidence) // bins
    edges = confidence.sort().values[(ranks - 1).clamp(min=0)]
    return torch.bucketize(confidence, edges)
