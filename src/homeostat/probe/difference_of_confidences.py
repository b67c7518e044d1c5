"""Accuracy without labels: the source's accuracy, less what confidence has fallen.

With confidence `c = max_k p_k` and correctness `a`, on labelled source data (n_s) and on the window (n):

    estimate = mean_source(a) - (mean_source(c) - mean_window(c))

This removes the miscalibration that the source and the window share. It is still too high when the network grows more
overconfident under the shift, which is usual when the shift is large. The source must be data the network was not
trained on; `split="calibration"` takes the calibration data instead.

The estimate is a sum of two independent means, `mean_source(a - c) + mean_window(c)`, and the interval is the normal
one with Welch's degrees of freedom. It covers the sampling of both, not the bias of the estimate. The estimate and the
interval are cut to 0..1, where accuracies lie.

>>> import torch
>>> from torch import nn
>>> p = torch.tensor([[0.9, 0.1]] * 10)
>>> world = World(source=(p.log(), torch.tensor([0, 1] * 5)), target=torch.tensor([[0.8, 0.2], [0.7, 0.3]]).log())
>>> round(DifferenceOfConfidences()(nn.Identity(), world).value, 4)
0.35

Reference: Guillory et al., Predicting with confidence on unseen distributions, ICCV 2021.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from homeostat.core.method import Card
from homeostat.core.online import Bag
from homeostat.core.probe import Outputs, Probe
from homeostat.core.reading import Reading
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.probe.checks import logits, same_width
from homeostat.probe.intervals import Level, around
from homeostat.probe.labelled_source import Split, judged, parts_of


@dataclass(frozen=True)
class DifferenceOfConfidences(Probe):
    """Accuracy estimated from the fall of the mean confidence."""

    card: ClassVar[Card] = Card(
        paper="Guillory et al., Predicting with confidence on unseen distributions, ICCV 2021",
        handles=frozenset({"covariate", "label"}),
        prepares=parts_of("source"),
    )

    split: Split = "source"
    """Which labelled data stand for the time before."""
    level: Level = 0.95
    """Stated coverage of the interval, if the network is no more overconfident than before."""

    def prepares(self) -> frozenset[str]:
        return parts_of(self.split)

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> Bag:
        out, right = judged(model, world, self.split, "DifferenceOfConfidences")
        return Bag({"excess": right.double() - out.amax(1), "classes": torch.tensor(out.shape[1])})

    def measure(self, outputs: Outputs, world: World, kit: Any, run: Run) -> Reading:
        out = logits(outputs, "DifferenceOfConfidences", least=2)
        same_width(out.shape[1], int(kit["classes"]), "DifferenceOfConfidences", "classes")
        confidence, excess = out.double().softmax(1).amax(1), kit["excess"]
        a, b = float(confidence.var()) / len(confidence), float(excess.var()) / len(excess)
        value = min(1.0, max(0.0, float(confidence.mean()) + float(excess.mean())))
        spread = a**2 / (len(confidence) - 1) + b**2 / (len(excess) - 1)
        freedom = (a + b) ** 2 / spread if spread > 0 else float(len(excess))
        interval = around(value, math.sqrt(a + b), freedom, self.level, 0.0, 1.0)
        return Reading("difference_of_confidences", value, interval, "fraction", "higher")
