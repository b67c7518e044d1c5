"""Whether a window comes from the source's distribution: kernel two-sample test against a cached reference.

With the window's rows `X` (n) and the reference's `Y` (m), `k(x, y) = exp(-|x - y|^2 / (2 sigma^2))`,
`sigma^2 = median |y - y'|^2 / 2`:

    MMD^2 = mean over i != j of k(x_i, x_j) + mean over i != j of k(y_i, y_j) - 2 mean of k(x_i, y_j)

Preparing caches the reference, the width, the mean over the reference alone, and the threshold for windows of `window`
samples: the `1 - level` quantile over random divisions of `reference + window` source rows. A window then costs its own
kernel and that with the reference (under a millisecond for 100 x 500 x 64). Only when the value passes the threshold is
the pooled kernel permuted for the p-value. There is a finding when `p <= level` and the effect, `MMD = sqrt(max(MMD^2,
0))`, is at least `min_effect`. Windows of another size than prepared for have no threshold and are permuted each time,
and so are all windows when the source has fewer than `2 window` rows.

Defaults: 500 reference rows and windows of 100 are ours. `min_effect = 0.05` is, for one normal column, a shift of the
mean by about 0.12 standard deviations: large windows should not alarm on less.

The false-alarm rate is `level` on average over references; for one reference of 500 and windows of 100 it lies between
some 2 and 10 %, because the reference is itself a sample. Rows are taken as independent: consecutive frames of a video
are not, and alarm too often. In many columns the kernel sees less and less; the network's features are the default.

>>> import torch
>>> source, shifted = torch.linspace(-2, 2, 400)[:, None], torch.linspace(-1, 3, 100)[:, None]
>>> found = MMD(on="x", reference=200, permutations=99)(None, World(source=source, target=shifted)).finding
>>> found.detected, found.p_value
(True, 0.01)

Reference: Gretton et al., A kernel two-sample test, JMLR 2012.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import annotated_types as at
import torch
from torch import Tensor, nn

from homeostat.core.method import Card
from homeostat.core.online import Bag
from homeostat.core.probe import Outputs, Probe
from homeostat.core.reading import Finding, Reading
from homeostat.core.run import Run
from homeostat.core.spec import Count, NonNegative
from homeostat.core.world import World
from homeostat.nn.kernels import median_bandwidth, mmd2, mmd2_permutation, off_diagonal_mean, rbf
from homeostat.probe.checks import Source, matrix, same_width
from homeostat.probe.intervals import Level
from homeostat.probe.reference import reads_for, source_rows


@dataclass(frozen=True)
class MMD(Probe):
    """Unbiased squared maximum mean discrepancy between a window and the source."""

    card: ClassVar[Card] = Card(
        paper="Gretton et al., A kernel two-sample test, JMLR 2012",
        handles=frozenset({"covariate"}),
        prepares=frozenset({"source.x"}),
    )

    on: Source = "features"
    """What is compared."""
    reference: Annotated[int, at.Ge(10)] = 500
    """Source rows kept; fewer where the source has fewer."""
    window: Annotated[int, at.Ge(2)] = 100
    """Samples of the windows whose threshold is prepared."""
    level: Level = 0.05
    """False alarms per window without shift."""
    min_effect: NonNegative = 0.05
    """Smallest MMD that counts."""
    permutations: Count = 500
    """Random divisions behind the threshold and behind a p-value."""

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        return reads_for(self.on)

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> Bag:
        rows = source_rows(model, world, self.on, self.reference + self.window, run, "MMD", least=10)
        spared = self.window if len(rows) >= 2 * self.window else 0
        kept = rows[: min(self.reference, len(rows) - spared)]
        sigma, threshold = median_bandwidth(kept), -math.inf
        if spared:
            kernel = rbf(rows, rows, sigma).fill_diagonal_(0)
            null = mmd2_permutation(kernel, self.window, self.permutations, run.rng("MMD", "threshold"))[1]
            threshold = float(null.quantile(1 - self.level))
        within = off_diagonal_mean(rbf(kept, kept, sigma))
        numbers = {"sigma": sigma, "window": self.window, "threshold": threshold}
        scalars = {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
        return Bag({"reference": kept.contiguous(), "within": within, **scalars})

    def measure(self, outputs: Outputs, world: World, kit: Any, run: Run) -> Reading:
        x = matrix(outputs, self.on, "MMD", least=2)
        y, sigma = kit["reference"].to(x), float(kit["sigma"])
        same_width(x.shape[1], y.shape[1], "MMD", "columns")
        value = float(mmd2(x, y, sigma, kit["within"].to(x)))
        effect = max(value, 0.0) ** 0.5
        prepared = len(x) == int(kit["window"])
        if prepared and value <= float(kit["threshold"]):
            p_value = None
        else:
            p_value = self._p_value(x[outputs.id.argsort(stable=True)], y, sigma, run)
        detected = p_value is not None and p_value <= self.level and effect >= self.min_effect
        said = "differ" if detected else "do not differ notably"
        text = f"{self.on} of {len(x)} samples {said} from the source's (MMD {effect:.3f})"
        finding = Finding("covariate", detected, p_value=p_value, effect=effect, text=text)
        return Reading("mmd2", value, finding=finding)

    def _p_value(self, x: Tensor, y: Tensor, sigma: float, run: Run) -> float:
        pooled = torch.cat([x, y])
        kernel = rbf(pooled, pooled, sigma).fill_diagonal_(0)
        value, null = mmd2_permutation(kernel, len(x), self.permutations, run.rng("MMD", "permutation"))
        return (1 + int((null >= value).sum())) / (self.permutations + 1)
