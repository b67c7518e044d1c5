"""Whether features shifted, and which: tests of each feature's conditional distribution given the others.

A sensor can be tampered with so that its own histogram stays as it was; only its relation to the other features breaks.
Tests of single columns are blind to that. This one compares `p(x_j | x_-j)` with `q(x_j | x_-j)` for every feature `j`,
without a model: `p` is fitted to the reference `X [n, D]`, `q` to the window `Y [m, D]`.

`statistic="score"` (the paper's Fisher divergence) fits Gaussians with means `a, b` and covariances `S, T` (plus
`ridge` times the identity, in units of the source's variances) and precisions `P = S^-1`, `Q = T^-1`. The derivative of
`log p(x)` by `x_j` depends on `p(x_j | x_-j)` alone, so one gradient serves all tests:

    s_j = E (d/dx_j log p(x) - d/dx_j log q(x))^2,     half of the points from p, half from q
        = 1/2 [ (Q d)_j^2 + (P d)_j^2 + (Q S Q + P T P - P - Q)_jj ],     d = a - b

The paper averages over 100 drawn points of each density; for Gaussians the expectation has this closed form.
`statistic="knn"` fits nothing: for `expectation` rows of either sample, the `neighbors` nearest rows in `x_-j` are
found in X and in Y, and `s_j` is the mean Kolmogorov-Smirnov distance between their `x_j`. It is hundreds of times
slower and needs more samples; take it when dependence is far from linear.

The null comes from the source alone, for windows of `window` samples: `bootstrap="simple"` draws both samples with
replacement, `"time"` takes the reference and the window on either side of a random moment, which keeps autocorrelation.
Feature `j` has `p_j = (1 + #{null >= s_j}) / (bootstraps + 1)`; there is a finding when `D p_j <= level` for some `j`
(Bonferroni) and its effect is at least `min_effect`. Then the `budget` features with the largest null-standardised
score `z_j = (s_j - mean null) / std null` are named. The value is the largest `z_j`. `"time"` needs a long record, at
least 4 times reference and window together: its draws overlap, and at that length some 10 % of windows alarm falsely,
at 40 times that length some 5 %.

The effect is the shift of the conditional in its own standard deviations: `sqrt(s_j / P_jj)`, and for knn what a normal
would have moved by for as much distance as there is beyond the null mean, `2 N^-1((1 + s_j - mean null) / 2)`, N its
distribution function. Neighbourhoods are wide where features are many, so that knn sees much less of a shift than there
is: with 24 others of 0.2 nats some 0.1 to 0.3. `min_effect = 0.1` is ours; other defaults are the paper's. `bootstraps`
must be at least `D / level - 1`, and window and reference have at least `2 D + 2` rows. A window of another size than
prepared for is bootstrapped on the spot. Many features that change together can hide the one that caused it.

>>> import torch
>>> x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)).cumsum(1)
>>> y = x.clone()
>>> y[:, 2] = y[torch.randperm(500, generator=torch.Generator().manual_seed(1)), 2]
>>> FeatureShift(bootstraps=100, window=500)(None, World(source=x, target=y)).finding.subjects
(2,)

Reference: Kulinski, Bagchi and Inouye, Feature shift detection, NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import annotated_types as at
import torch
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.core.errors import InputError
from homeostat.core.method import Card
from homeostat.core.online import Bag
from homeostat.core.probe import Outputs, Probe, outputs as pass_over
from homeostat.core.reading import Finding, Reading
from homeostat.core.run import Run
from homeostat.core.spec import Count, NonNegative
from homeostat.core.world import World
from homeostat.probe.checks import enough, matrix, same_width
from homeostat.probe.intervals import Level
from homeostat.probe.kolmogorov import ks_columns

_POOL = 50_000  # source rows kept to draw nulls from
_CHUNK = 1 << 21  # numbers gathered at once, 16 MB


@dataclass(frozen=True)
class FeatureShift(Probe):
    """Largest shift of a feature's conditional distribution, and which features shifted."""

    card: ClassVar[Card] = Card(
        id="S290",
        paper="Kulinski, Bagchi and Inouye, Feature shift detection: localizing which features have shifted via "
        "conditional distribution tests, NeurIPS 2020",
        handles=frozenset({"covariate"}),
        prepares=frozenset({"source.x"}),
        passes=0.0,
    )
    revision: ClassVar[int] = 2
    reads: ClassVar[frozenset[str]] = frozenset({"x"})

    statistic: Literal["score", "knn"] = "score"
    """Gaussian score, or nearest neighbours."""
    bootstrap: Literal["simple", "time"] = "simple"
    """How the null is drawn from the source."""
    bootstraps: Count = 500
    """Draws of the null."""
    window: Count = 1000
    """Samples of the windows whose null is prepared."""
    reference: Count = 1000
    """Source rows that a window is compared with; fewer where the source has fewer."""
    level: Level = 0.05
    """False alarms per window without shift."""
    budget: Count = 1
    """How many features are named when a shift is found."""
    min_effect: NonNegative = 0.1
    """Smallest effect that counts."""
    ridge: Annotated[float, at.Gt(0)] = 1e-5
    """Added to the variances of the fitted Gaussians."""
    expectation: Count = 30
    """Rows of either sample about which neighbours are compared (knn)."""
    neighbors: Annotated[int, at.Ge(2)] = 100
    """Neighbours per row and sample (knn)."""

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> Bag:
        assert world.source is not None
        timed, count = self.bootstrap == "time", len(world.source)
        order = torch.randperm(count, generator=run.rng("FeatureShift", "pool"))[:_POOL]
        chosen = torch.arange(count)[-_POOL:] if timed else order
        pool = matrix(pass_over(None, world.source[chosen], {"x"}), "x", "FeatureShift").double().cpu()
        features, spread = pool.shape[1], pool.std(0)
        if (self.bootstraps + 1) * self.level < features:
            least = int(features / self.level + 0.999999) - 1
            raise InputError(
                f"FeatureShift: {self.bootstraps} bootstraps cannot show a p-value of {self.level} over {features} "
                f"features; give bootstraps={least} or more"
            )
        rows = self.reference + self.window
        self._enough(4 * rows if timed else 0, len(pool), features, "samples of source.x")
        self._enough(0, self.window, features, "samples a window (its field `window`)")
        scale = torch.where(spread > 0, spread, 1.0)
        bag = Bag({"pool": (pool - pool.mean(0)) / scale, "mean": pool.mean(0), "scale": scale})
        bag["null"] = self._null(bag["pool"], self.window, run.rng("FeatureShift", "null"))
        return bag

    def measure(self, outputs: Outputs, world: World, kit: Any, run: Run) -> Reading:
        # In the order of ids, because neighbours are looked at about randomly chosen rows.
        x = matrix(outputs, "x", "FeatureShift")[outputs.id.argsort(stable=True)]
        features = len(kit["mean"])
        same_width(x.shape[1], features, "FeatureShift", "features")
        self._enough(0, len(x), features, "samples in the window")
        pool, y = kit["pool"].cpu(), (x.double().cpu() - kit["mean"].cpu()) / kit["scale"].cpu()
        prepared = len(y) == self.window
        null = kit["null"].cpu() if prepared else self._null(pool, len(y), run.rng("FeatureShift", "null", len(y)))
        known = pool[-min(self.reference, len(pool)) :]
        score, unit = self._scores(known[None], y[None], run.rng("FeatureShift", "points"))
        score, unit = score[0], unit[0]
        mean = null.mean(0)
        z = (score - mean) / null.std(0).clamp(min=1e-6)
        # Columns that are constant in the source have a null of rounding errors; those are not exceeded by others.
        reached = (null >= score - 1e-6 * (1 + score.abs())).sum(0)
        p_value = ((1 + reached) / (len(null) + 1) * features).clamp(max=1.0)
        effect = (score / unit).sqrt() if self.statistic == "score" else moved_by(score - mean)
        detected = bool(((p_value <= self.level) & (effect >= self.min_effect)).any())
        named = tuple(z.argsort(descending=True, stable=True)[: self.budget].tolist()) if detected else ()
        top = int(z.argmax())
        where = f"most of all feature {top}" if detected else f"largest for feature {top}"
        said = "a feature shifted against the others" if detected else "no feature shifted notably against the others"
        text = f"{said} ({where}, {float(effect[top]):.2f} standard deviations)"
        finding = Finding("feature", detected, named, None, float(p_value.min()), float(effect[top]), text)
        arrays = {"score": score, "z": z, "p_value": p_value, "effect": effect}
        return Reading("feature_shift", float(z[top]), unit="null standard deviations", finding=finding, arrays=arrays)

    def _enough(self, least: int, count: int, features: int, what: str) -> None:
        knn = self.neighbors + 1 if self.statistic == "knn" else 0
        enough(count, max(least, 2 * features + 2, knn), "FeatureShift", f"{what} ({features} features)")

    def _null(self, pool: Tensor, window: int, generator: torch.Generator) -> Tensor:
        """Scores `[bootstraps, features]` of pairs of samples drawn from the source."""
        pairs = self._pairs(pool, min(self.reference, len(pool)), window, generator)
        return torch.cat([self._scores(x, y, generator)[0] for x, y in pairs])

    def _pairs(self, pool: Tensor, n: int, m: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        if self.bootstrap == "time" and n + m > len(pool):
            raise InputError(
                f"FeatureShift: windows of {m} and {n} reference rows do not fit into {len(pool)} source rows"
            )
        step = max(1, _CHUNK // ((n + m) * pool.shape[1]))
        for low in range(0, self.bootstraps, step):
            count = min(step, self.bootstraps - low)
            if self.bootstrap == "time":
                start = torch.randint(len(pool) - n - m + 1, (count, 1), generator=generator)
                rows = pool[start + torch.arange(n + m)]
            else:
                rows = pool[torch.randint(len(pool), (count, n + m), generator=generator)]
            yield rows[:, :n], rows[:, n:]

    def _scores(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Scores `[batch, features]` of pairs of samples, and the reference's conditional precisions."""
        if self.statistic == "knn":
            found = [knn_scores(a, b, self.expectation, self.neighbors, generator) for a, b in zip(x, y, strict=True)]
            return torch.stack(found), torch.ones(len(x), x.shape[2], dtype=x.dtype)
        p, q = gaussian(x, self.ridge), gaussian(y, self.ridge)
        return score_difference(*p, *q), torch.linalg.inv(p[1]).diagonal(dim1=-2, dim2=-1)


def gaussian(
    x: Float[Tensor, "*batch samples features"], ridge: float = 1e-5
) -> tuple[Float[Tensor, "*batch features"], Float[Tensor, "*batch features features"]]:
    """Mean and covariance, with `ridge` added to the variances."""
    mean = x.mean(-2)
    centred = x - mean[..., None, :]
    covariance = centred.mT @ centred / (x.shape[-2] - 1)
    covariance.diagonal(dim1=-2, dim2=-1).add_(ridge)
    return mean, covariance


def gaussian_score(
    x: Float[Tensor, "samples features"],
    mean: Float[Tensor, " features"],
    covariance: Float[Tensor, "features features"],
) -> Float[Tensor, "samples features"]:
    """Gradient of the Gaussian log-density at `x`: `-(x - mean) covariance^-1`."""
    return -torch.linalg.solve(covariance, (x - mean).T).T


def score_difference(
    mean_p: Float[Tensor, "*batch features"],
    covariance_p: Float[Tensor, "*batch features features"],
    mean_q: Float[Tensor, "*batch features"],
    covariance_q: Float[Tensor, "*batch features features"],
) -> Float[Tensor, "*batch features"]:
    """Expected squared difference of two Gaussians' scores by feature, over both Gaussians in equal parts."""
    p, q = torch.linalg.inv(covariance_p), torch.linalg.inv(covariance_q)
    moved = (mean_p - mean_q)[..., None]
    shift = ((q @ moved).square() + (p @ moved).square())[..., 0]
    spread = ((q @ covariance_p) * q).sum(-1) + ((p @ covariance_q) * p).sum(-1)
    return 0.5 * (shift + spread - (p + q).diagonal(dim1=-2, dim2=-1)).clamp(min=0)


def moved_by(distance: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """How many standard deviations a normal moves for a Kolmogorov-Smirnov distance; 0 for none or less.

    >>> moved_by(torch.tensor([-0.1, 0.0, 0.0399])).round(decimals=2)
    tensor([0.0000, 0.0000, 0.1000])
    """
    return 2 * torch.special.ndtri((1 + distance.clamp(0, 1 - 1e-6)) / 2)


def knn_scores(
    x: Float[Tensor, "n features"],
    y: Float[Tensor, "m features"],
    expectation: int,
    neighbors: int,
    generator: torch.Generator,
) -> Float[Tensor, " features"]:
    """Mean Kolmogorov-Smirnov distance by feature between neighbours in `x` and in `y`, found by the other features."""
    points = torch.cat([s[torch.randint(len(s), (expectation,), generator=generator)] for s in (x, y)])
    whole = [torch.cdist(points, s).square() for s in (x, y)]
    scores = []
    for j in range(x.shape[1]):
        near = []
        for sample, distance in zip((x, y), whole, strict=True):
            rest = distance - (points[:, j, None] - sample[:, j]).square()
            near.append(sample[rest.topk(neighbors, dim=1, largest=False).indices, j])
        scores.append(ks_columns(near[0].sort(1).values, near[1]).mean())
    return torch.stack(scores)
