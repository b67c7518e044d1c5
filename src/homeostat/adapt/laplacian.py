"""LAME: leave the network alone and make a batch's predictions agree with their neighbours.

When test samples come in related runs (video, bursts, one class at a time), neighbours in feature space mostly share
their class. For a batch of N samples with class probabilities p `[N, K]` of the frozen network and unit-length features
phi `[N, d]`, the corrected assignments Z `[N, K]` minimise, over rows on the simplex,

    sum_n KL(Z_n || p_n) - (lam / 2) sum_{n,m} W_nm Z_n . Z_m,

by the iteration Z <- softmax_rows(log(p + 1e-10) + lam W Z), which starts at p and stops when the energy changes by
less than 1e-8 of itself, or after `max_steps`. The affinity W `[N, N]` is

- `"rbf"`: W_nm = exp(-D_nm^2 / (2 sigma^2)), D the Euclidean distances, sigma the mean over n of the k-th smallest
  entry of row n. A row holds the distance 0 to itself, so that k = 5 means the fourth neighbour. W is dense, its
  diagonal 1.
- `"knn"`: W_nm = 1 when m is among the k nearest of n, n itself left out.
- `"linear"`: W = phi phi^T.

What is returned is log Z. BatchNorm keeps its stored statistics; nothing is learnt, so nothing can be forgotten.
Distances come from one matrix product, and knn and linear affinities are never made dense, so memory is N^2 numbers for
rbf and N(k + d) for the others.

Defaults rbf, k = 5, lam = 1 did best over the paper's seven scenarios. On a shuffled stream of balanced classes it does
harm, often ten points: neighbours then mislead more often than they help. Choose it when order is correlated.

>>> import torch
>>> p = torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.45, 0.55]])
>>> alike = torch.ones(3, 2)
>>> bool((lame(p, alike).argmax(1) == 0).all())  # two sure neighbours carry the third along
True

Reference: Boudiaf et al., Parameter-free online test-time adaptation, CVPR 2022 (S037).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.core.data import Batch
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Online
from homeostat.core.run import Run
from homeostat.core.spec import Count, NonNegative
from homeostat.core.taps import head, tapped
from homeostat.core.task import Classify
from homeostat.core.tree import Tree
from homeostat.core.world import World
from homeostat.nn.kernels import pairwise_sq

Affinity = Literal["rbf", "knn", "linear"]
_ROWS = 1 << 22  # entries of W looked at together when neighbours are sought


@torch.no_grad()
def lame(
    probabilities: Float[Tensor, "batch classes"],
    features: Float[Tensor, "batch features"],
    affinity: Affinity = "rbf",
    k: int = 5,
    lam: float = 1.0,
    max_steps: int = 100,
    tolerance: float = 1e-8,
    symmetric: bool = False,
) -> Float[Tensor, "batch classes"]:
    """`log Z`, the class assignments of a batch corrected by their neighbours'.

    Args:
        probabilities: of the network, rows add up to 1.
        features: what nearness is measured in; rows are scaled to length 1 here.
        affinity, k, lam, max_steps, symmetric: see `LAME`.
        tolerance: relative change of the energy at which to stop.
    """
    given = probabilities.dtype
    work = torch.promote_types(given, torch.float32)
    log_p = torch.log(probabilities.to(work) + 1e-10)
    smooth = _smoother(F.normalize(features.to(work), dim=1), affinity, k, symmetric)
    log_z = log_p.log_softmax(1)
    last = float("inf")
    for step in range(max_steps):
        pull = lam * smooth(log_z.exp())
        log_z = (log_p + pull).log_softmax(1)
        energy = float((log_z.exp() * (log_z - log_p - pull)).sum())
        if step > 1 and abs(energy - last) <= tolerance * abs(last):
            break
        last = energy
    return log_z.to(given)


def _smoother(unit: Tensor, affinity: Affinity, k: int, symmetric: bool) -> Callable[[Tensor], Tensor]:
    """`Z -> W Z` without making W where it is sparse or of low rank."""
    if affinity == "linear":
        return lambda z: unit @ (unit.T @ z)
    if affinity == "knn":
        index = _neighbours(unit, k)
        back = index.flatten()

        def gather(z: Tensor) -> Tensor:
            forth = z[index].sum(1)
            if not symmetric:
                return forth
            spread = z[:, None].expand(-1, index.shape[1], -1).flatten(0, 1)
            return 0.5 * (forth + torch.zeros_like(z).index_add_(0, back, spread))

        return gather
    weight = pairwise_sq(unit, unit)
    k = min(k, len(unit))
    furthest = weight.topk(k, dim=1, largest=False).values.amax(1)
    sigma = furthest.sqrt().mean().clamp_(min=torch.finfo(weight.dtype).tiny ** 0.5)
    weight.mul_(-0.5 / sigma**2).exp_()
    return lambda z: weight @ z


def _neighbours(unit: Tensor, k: int) -> Tensor:
    """Positions of the k nearest other rows, int64 `[batch, min(k, batch - 1)]`."""
    count = len(unit)
    found = []
    for rows in torch.arange(count, device=unit.device).split(max(1, _ROWS // count)):
        distance = pairwise_sq(unit[rows], unit)
        distance[torch.arange(len(rows), device=unit.device), rows] = float("inf")
        found.append(distance.topk(min(k, count - 1), dim=1, largest=False).indices)
    return torch.cat(found)


class LAMEOnline(Online):
    """A network whose predictions for a batch agree with their neighbours'; its weights never change.

    Args:
        model: a classifier.
        affinity, k, lam, max_steps, symmetric: see `LAME`.
        layer: dotted name of the layer whose input are the features; empty for the last linear layer.
    """

    def __init__(
        self,
        model: nn.Module,
        affinity: Affinity = "rbf",
        k: int = 5,
        lam: float = 1.0,
        max_steps: int = 100,
        symmetric: bool = False,
        layer: str = "",
    ):
        super().__init__(model)
        self.affinity: Affinity = affinity
        self.k, self.lam = k, lam
        self.max_steps, self.symmetric, self.layer = max_steps, symmetric, layer

    def forward(self, x: Tree) -> Tensor:
        """`log Z` of the batch."""
        logits, features = tapped(self.model, x, self.model, self.layer or None)
        Classify().check(logits, None)
        assert isinstance(logits, Tensor)
        return lame(
            logits.softmax(1), features, self.affinity, self.k, self.lam, self.max_steps, symmetric=self.symmetric
        )

    def adapt(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return self(batch.x)


@dataclass(frozen=True)
class LAME(Remedy):
    """Laplacian-adjusted maximum-likelihood estimation.

    Attributes:
        affinity: `"rbf"`, `"knn"` or `"linear"`.
        k: neighbours that set the width (rbf) or that count (knn).
        lam: weight of the neighbours against the network.
        max_steps: iterations at most.
        symmetric: use (W + W^T) / 2; only knn is not symmetric by itself.
        layer: dotted name of the layer whose input are the features; empty for the last linear layer.
    """

    affinity: Affinity = "rbf"
    k: Count = 5
    lam: NonNegative = 1.0
    max_steps: Count = 100
    symmetric: bool = False
    layer: str = ""

    card: ClassVar[Card] = Card(
        id="S037",
        paper="Boudiaf et al., Parameter-Free Online Test-Time Adaptation, CVPR 2022",
        handles=frozenset({"correlated", "label"}),
        batch_coupled=True,
    )

    def needs(self) -> frozenset[str]:
        return self.card.needs if self.layer else frozenset({"model.linear"})

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        made = LAMEOnline(model, self.affinity, self.k, self.lam, self.max_steps, self.symmetric, self.layer)
        if not self.layer:
            head(made.model)
        return made
