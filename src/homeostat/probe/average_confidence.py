"""The accuracy a calibrated network would have, without labels.

    estimate = mean over the window of max_k p_k,     p = softmax(z)

This is right when confidence means what it says on the data at hand. Under a covariate shift networks usually stay too
confident, and the estimate is then too high. Calibrate the network first (temperature scaling), or use
`DifferenceOfConfidences` or `ATC`, which are corrected on labelled data.

The interval is the t interval of the mean: it covers the sampling of the window, not the bias of the estimate.

>>> import torch
>>> from torch import nn
>>> p = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
>>> round(AverageConfidence()(nn.Identity(), p.log()).value, 4)
0.8

Reference: Guillory et al., Predicting with confidence on unseen distributions, ICCV 2021 (as a baseline).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from homeostat.core.method import Card
from homeostat.core.probe import Outputs, Probe
from homeostat.core.reading import Reading
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.probe.checks import logits
from homeostat.probe.intervals import Level, student


@dataclass(frozen=True)
class AverageConfidence(Probe):
    """Accuracy estimated as the mean confidence."""

    card: ClassVar[Card] = Card(handles=frozenset({"covariate", "label"}))

    level: Level = 0.95
    """Stated coverage of the interval, if confidence is calibrated."""

    def measure(self, outputs: Outputs, world: World, kit: Any, run: Run) -> Reading:
        confidence = logits(outputs, "AverageConfidence", least=2).double().softmax(1).amax(1)
        interval = student(confidence, self.level, 0.0, 1.0)
        return Reading("average_confidence", float(confidence.mean()), interval, "fraction", "higher")
