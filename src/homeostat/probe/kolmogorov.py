"""Which columns changed their distribution: two-sample Kolmogorov-Smirnov tests with Holm's correction.

For column `j`, with empirical distribution functions `F` of the reference (m rows) and `G` of the window (n rows):

    D_j = sup over t of |F_j(t) - G_j(t)|,      p_j = P(K > sqrt(n m / (n + m)) D_j),  K Kolmogorov's limit

The reference is sorted once, in the kit; a window is sorted and all columns are compared by binary search at once. The
p-values are Holm-adjusted: the chance of naming any unchanged column is at most `level`. A column is named when its
adjusted `p <= level` and `D >= min_effect`, largest distance first. The value is the largest `D`.

`on="outputs"` with the predicted probabilities is the black-box shift detector of Rabanser et al. (2019).
Defaults: `min_effect = 0.1` is ours. The whole source serves as reference unless it exceeds `reference` rows.

Columns are looked at one by one: a change of dependence that leaves every margin as it was is invisible (see
`FeatureShift`). The limit makes p-values some 5 to 15 % too large at 500 rows against 100, more in tiny windows, never
too small; so do ties. Many columns and small windows leave little power: with 64 columns a window of 100 must show `D`
of about 0.22.

>>> import torch
>>> source = torch.linspace(0, 1, 200)[:, None].repeat(1, 2)
>>> target = source[:100] * 2 + torch.tensor([0.0, 0.6])
>>> KS(on="x")(None, World(source=source, target=target)).finding.subjects
(1,)

References: Holm, Scandinavian Journal of Statistics 1979; Rabanser et al., Failing loudly, NeurIPS 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import kolmogorov
from torch import Tensor, nn

from homeostat.core.method import Card
from homeostat.core.online import Bag
from homeostat.core.probe import Outputs, Probe
from homeostat.core.reading import Finding, Reading
from homeostat.core.run import Run
from homeostat.core.spec import Count, Fraction
from homeostat.core.world import World
from homeostat.probe.checks import Source, matrix, same_width
from homeostat.probe.intervals import Level
from homeostat.probe.reference import reads_for, source_rows

_BLOCK = 1 << 20  # values looked at in one go


@dataclass(frozen=True)
class KS(Probe):
    """Largest Kolmogorov-Smirnov distance of a column, and the columns whose distribution changed."""

    card: ClassVar[Card] = Card(
        paper="Rabanser et al., Failing loudly: methods for detecting dataset shift, NeurIPS 2019",
        handles=frozenset({"covariate"}),
        prepares=frozenset({"source.x"}),
    )

    on: Source = "features"
    """What is compared."""
    reference: Count = 100_000
    """Source rows kept at most."""
    level: Level = 0.05
    """Chance per window of naming any column without shift."""
    min_effect: Fraction = 0.1
    """Smallest distance that counts."""

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        return reads_for(self.on)

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> Bag:
        rows = source_rows(model, world, self.on, self.reference, run, "KS", least=10)
        return Bag({"sorted": sorted_rows(rows.T)})

    def measure(self, outputs: Outputs, world: World, kit: Any, run: Run) -> Reading:
        x = matrix(outputs, self.on, "KS", least=5)
        known = kit["sorted"].to(x)
        same_width(x.shape[1], len(known), "KS", "columns")
        distance = ks_columns(known, x.T).cpu()
        p_value = holm(ks_p_values(distance, known.shape[1], len(x)))
        named = ((p_value <= self.level) & (distance >= self.min_effect)).nonzero()[:, 0]
        named = named[distance[named].argsort(descending=True, stable=True)]
        value = float(distance.max())
        text = f"{len(named)} of {len(distance)} columns changed their distribution (largest distance {value:.3f})"
        finding = Finding("covariate", len(named) > 0, tuple(named.tolist()), None, float(p_value.min()), value, text)
        return Reading("ks", value, finding=finding, arrays={"distance": distance, "p_value": p_value})


def ks_columns(reference: Float[Tensor, "columns m"], window: Float[Tensor, "columns n"]) -> Float[Tensor, " columns"]:
    """Two-sample Kolmogorov-Smirnov distances, float64; `reference` is sorted along its rows, `window` need not be."""
    m, n = reference.shape[1], window.shape[1]
    step = max(1, _BLOCK // n)
    parts = zip(reference.split(step), window.split(step), strict=True)
    return torch.cat([_steps(known, sorted_rows(part)) for known, part in parts]).double() / (m * n)


def _steps(reference: Tensor, window: Tensor) -> Tensor:
    """`m n D` of sorted rows, as integers."""
    (m, n), below = (reference.shape[1], window.shape[1]), torch.searchsorted(reference, window, right=True)
    position = torch.arange(n, device=window.device)
    # Both functions are steps: the largest differences lie at, or just before, a step of the window's. Among equal
    # values of the window the last one is the largest of the first kind, and the first one of the second.
    over = ((position + 1) * m - below * n).amax(1)
    last = (below - 1).clamp(min=0)
    tied = reference.gather(1, last) == window
    if n < m and bool(tied.any()):
        below = torch.searchsorted(reference, window)
    elif bool(tied.any()):
        # As many values as there are to search among: where each run of equal ones starts is found sooner.
        fresh = torch.arange(m, device=window.device).expand(reference.shape).clone()
        fresh[:, 1:][reference[:, 1:] == reference[:, :-1]] = 0
        below = torch.where(tied, fresh.cummax(1).values.gather(1, last), below)
    return torch.maximum(over, (below * n - position * m).amax(1)).clamp(min=0)


def sorted_rows(x: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Each row in rising order."""
    if x.device.type != "cpu":
        return x.contiguous().sort(1).values
    # NumPy's vectorised sort is several times faster than PyTorch's on a processor.
    return torch.from_numpy(np.sort(np.ascontiguousarray(x.numpy()), 1))


def ks_p_values(distance: Float[Tensor, " columns"], m: int, n: int) -> Float[Tensor, " columns"]:
    """Two-sided p-values by Kolmogorov's limit; a little too large, never too small."""
    return torch.from_numpy(np.asarray(kolmogorov(math.sqrt(m * n / (m + n)) * distance.numpy()))).reshape(
        distance.shape
    )


def holm(p: Float[Tensor, " tests"]) -> Float[Tensor, " tests"]:
    """p-values adjusted by Holm's step-down method."""
    values, order = p.sort()
    stepped = (values * torch.arange(len(p), 0, -1, dtype=p.dtype)).cummax(0).values.clamp(max=1)
    return torch.empty_like(p).scatter_(0, order, stepped)
