"""Accuracy without labels: the share of samples above a confidence threshold learnt on labelled source data.

With a score `s(x)`, larger where the network is surer, and the source's error `e`:

    threshold t:  share of the source with s < t  =  e
    estimate      =  share of the window with s >= t

`score="entropy"` takes `s = sum_k p_k log p_k` (negative entropy), `score="confidence"` takes `s = max_k p_k`; the
paper finds the first a little better, and it is the default. On the source itself the estimate is the source's accuracy
exactly, up to equal scores. It is exact elsewhere as long as the share of errors below the threshold stays balanced by
right answers there; it is usually too high under strong shifts. When all samples become a little less sure instead, and
a calibrated network rightly says so, many fall below the threshold and it is far too low (0.2 for 0.5 in our tests).

The source must be data the network was not trained on; `split="calibration"` takes the calibration data instead.

The interval is a percentile bootstrap that resamples the source (and so the threshold) and the window. It covers the
sampling of both, not the bias of the estimate.

>>> import torch
>>> from torch import nn
>>> p = torch.tensor([[0.6, 0.4]] * 5 + [[0.9, 0.1]] * 5)
>>> world = World(source=(p.log(), torch.tensor([1] * 5 + [0] * 5)), target=p[3:].log())
>>> round(ATC()(nn.Identity(), world).value, 4)
0.7143

Reference: Garg et al., Leveraging unlabeled data to predict out-of-distribution performance, ICLR 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from homeostat.core.method import Card
from homeostat.core.online import Bag
from homeostat.core.probe import Outputs, Probe
from homeostat.core.reading import Interval, Reading
from homeostat.core.run import Run
from homeostat.core.spec import Count
from homeostat.core.world import World
from homeostat.probe.checks import logits, same_width
from homeostat.probe.intervals import Level
from homeostat.probe.labelled_source import Split, judged, parts_of


@dataclass(frozen=True)
class ATC(Probe):
    """Accuracy estimated by average thresholded confidence."""

    card: ClassVar[Card] = Card(
        paper="Garg et al., Leveraging unlabeled data to predict out-of-distribution performance, ICLR 2022",
        handles=frozenset({"covariate", "label"}),
        prepares=parts_of("source"),
    )

    score: Literal["entropy", "confidence"] = "entropy"
    """What is thresholded: negative entropy or the largest probability."""
    split: Split = "source"
    """Which labelled data stand for the time before."""
    bootstraps: Count = 500
    """Resamples behind the interval."""
    level: Level = 0.95
    """Stated coverage of the interval, if the threshold still holds."""

    def prepares(self) -> frozenset[str]:
        return parts_of(self.split)

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> Bag:
        p, right = judged(model, world, self.split, "ATC")
        scores, order = self._scores(p).sort(stable=True)
        return Bag({"scores": scores, "right": right[order], "classes": torch.tensor(p.shape[1])})

    def measure(self, outputs: Outputs, world: World, kit: Any, run: Run) -> Reading:
        out = logits(outputs, "ATC", least=2)
        same_width(out.shape[1], int(kit["classes"]), "ATC", "classes")
        scores = self._scores(out.double().softmax(1)).cpu().sort().values
        known, right = kit["scores"].cpu(), kit["right"].cpu()
        value = float((scores >= atc_threshold(known, right)).double().mean())
        return Reading("atc", value, self._interval(scores, known, right, run), "fraction", "higher")

    def _scores(self, p: Tensor) -> Tensor:
        return p.amax(1) if self.score == "confidence" else -torch.special.entr(p).sum(1)

    def _interval(self, scores: Tensor, known: Tensor, right: Tensor, run: Run) -> Interval:
        generator, count = run.rng("ATC"), len(known)
        # A resample's threshold is the score below which as many of its rows lie as it has errors.
        drawn = torch.randint(count, (self.bootstraps, count), generator=generator).sort(1).values
        errors = (~right)[drawn].sum(1)
        above = torch.cat([known, known.new_tensor([torch.inf])])
        index = torch.cat([drawn, torch.full((self.bootstraps, 1), count)], 1).gather(1, errors[:, None])[:, 0]
        share = 1 - torch.searchsorted(scores, above[index]).double() / len(scores)
        # The share of a resampled window is binomial about the share of the window at hand.
        estimates = torch.binomial(torch.full_like(share, len(scores)), share, generator=generator) / len(scores)
        low, high = estimates.quantile(torch.tensor([0.5 - self.level / 2, 0.5 + self.level / 2], dtype=share.dtype))
        return Interval(float(low), float(high), self.level)


def atc_threshold(scores: Float[Tensor, " samples"], right: Bool[Tensor, " samples"]) -> float:
    """The threshold below which as many sorted scores lie as there are errors; infinite when all are errors."""
    errors = int((~right).sum())
    return float(scores[errors]) if errors < len(scores) else float("inf")
