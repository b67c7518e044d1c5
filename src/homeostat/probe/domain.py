"""Whether a classifier can tell a window from the source: the classifier two-sample test.

A logistic classifier learns "source or window" on half of the rows of either side and is judged on the other half:

    AUC = P(a held-out row of the window scores above a held-out row of the source)

Without shift the held-out rows are exchangeable whatever was learnt, so the rank test (Mann and Whitney, one-sided) is
valid. `score="accuracy"` holds out equally many rows of both sides and takes the exact binomial test of the share that
is told apart. The effect is the distance from 1/2; there is a finding when `p <= level` and it is at least
`min_effect`.

Which rows train is drawn per sample id, so the order of the window does not matter. Columns are standardised by the
reference. `penalty` is scikit-learn's `1 / C`. Defaults: half and half and a linear classifier follow Lopez-Paz and
Oquab; `min_effect = 0.1` is ours.

A linear classifier sees shifts of means, not of variances or dependence alone. It takes some ten milliseconds, more
than `MMD`, and has less power in small windows, because half of them train; in many columns its AUC is easier to read.

>>> import torch
>>> source, target = torch.randn(2, 300, 3, generator=torch.Generator().manual_seed(0))
>>> reading = ClassifierTwoSample(on="x")(None, World(source=source, target=target[:100] + 1))
>>> reading.value > 0.8, reading.finding.detected
(True, True)

Reference: Lopez-Paz and Oquab, Revisiting classifier two-sample tests, ICLR 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import annotated_types as at
import numpy as np
import torch
from torch import Tensor, nn

from homeostat.core.method import Card
from homeostat.core.online import Bag
from homeostat.core.probe import Outputs, Probe
from homeostat.core.reading import Finding, Reading
from homeostat.core.run import Run
from homeostat.core.spec import Positive
from homeostat.core.world import World
from homeostat.probe.checks import Source, matrix, same_width
from homeostat.probe.intervals import Level
from homeostat.probe.reference import reads_for, source_rows

_LEAST = 20  # ten rows to learn from and ten to judge by


@dataclass(frozen=True)
class ClassifierTwoSample(Probe):
    """Held-out skill of a logistic classifier that tells a window from the source."""

    card: ClassVar[Card] = Card(
        paper="Lopez-Paz and Oquab, Revisiting classifier two-sample tests, ICLR 2017",
        handles=frozenset({"covariate"}),
        prepares=frozenset({"source.x"}),
    )

    on: Source = "features"
    """What is compared."""
    score: Literal["auc", "accuracy"] = "auc"
    """How the classifier is judged."""
    reference: Annotated[int, at.Ge(_LEAST)] = 500
    """Source rows kept; fewer where the source has fewer."""
    penalty: Positive = 1.0
    """Weight of the classifier's squared norm."""
    level: Level = 0.05
    """False alarms per window without shift."""
    min_effect: Annotated[float, at.Ge(0), at.Le(0.5)] = 0.1
    """Smallest distance from 1/2 that counts."""

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        return reads_for(self.on)

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> Bag:
        rows = source_rows(model, world, self.on, self.reference, run, "ClassifierTwoSample", _LEAST)
        spread = rows.std(0)
        return Bag({"reference": rows, "mean": rows.mean(0), "spread": torch.where(spread > 0, spread, 1.0)})

    def measure(self, outputs: Outputs, world: World, kit: Any, run: Run) -> Reading:
        x = matrix(outputs, self.on, "ClassifierTwoSample", _LEAST).cpu()
        same_width(x.shape[1], len(kit["mean"]), "ClassifierTwoSample", "columns")
        order = run.draw(outputs.id.cpu(), "ClassifierTwoSample", "window").uniform().argsort(stable=True)
        y = kit["reference"].cpu()
        y = y[torch.randperm(len(y), generator=run.rng("ClassifierTwoSample", "reference"))]
        if self.score == "accuracy":
            y = y[: len(x)]
        mean, spread = kit["mean"].cpu(), kit["spread"].cpu()
        window, kept = domain_scores((x[order] - mean) / spread, (y - mean) / spread, self.penalty)
        value, p_value = rank_test(window, kept) if self.score == "auc" else _guesses(window, kept)
        effect = value - 0.5
        detected = p_value <= self.level and effect >= self.min_effect
        said = "can" if detected else "cannot reliably"
        text = f"a linear classifier {said} tell these {self.on} from the source's ({self.score} {value:.3f})"
        finding = Finding("covariate", detected, p_value=p_value, effect=effect, text=text)
        return Reading(f"domain_{self.score}", value, unit="fraction", finding=finding)


def domain_scores(window: Tensor, reference: Tensor, penalty: float = 1.0) -> tuple[Tensor, Tensor]:
    """Scores of the second half of either sample by a logistic classifier fitted on the first halves."""
    from sklearn.linear_model import LogisticRegression

    a, b = len(window) // 2, len(reference) // 2
    sides = torch.cat([torch.ones(a), torch.zeros(b)])
    fit = LogisticRegression(C=1 / penalty, class_weight="balanced", max_iter=200, tol=1e-3)
    fit.fit(torch.cat([window[:a], reference[:b]]).double().numpy(), sides.numpy())
    slope = torch.from_numpy(np.asarray(fit.coef_)[0])
    offset = float(np.asarray(fit.intercept_)[0])
    return window[a:].double() @ slope + offset, reference[b:].double() @ slope + offset


def rank_test(high: Tensor, low: Tensor) -> tuple[float, float]:
    """`(AUC, p)`: how often a value of `high` exceeds one of `low` (ties count half), and the one-sided rank test."""
    from scipy.stats import mannwhitneyu

    found = mannwhitneyu(high.numpy(), low.numpy(), alternative="greater", method="asymptotic")
    return float(found.statistic) / (len(high) * len(low)), float(found.pvalue)


def _guesses(window: Tensor, reference: Tensor) -> tuple[float, float]:
    from scipy.stats import binom

    count = min(len(window), len(reference))
    right = int((window[:count] > 0).sum()) + int((reference[:count] <= 0).sum())
    return right / (2 * count), float(binom.sf(right - 1, 2 * count, 0.5))
