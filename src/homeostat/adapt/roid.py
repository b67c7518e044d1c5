"""ROID: adapt to whatever comes, domains one by one or mixed, classes balanced or not, without losing the source.

A network lowers its uncertainty by the scales and shifts theta of its norm layers. It learns most from samples that it
is sure of and that are unlike what it predicts all the time; it wants the same answer for a changed view; it is pulled
back to its start theta_0 a little at each step; and its answers lean towards the classes that are common in the batch.
For a batch of N samples with logits z `[N, K]`, p = softmax(z) and the running mean prediction m `[K]`, at first 1/K:

    d_n = 1 - cos(m, p_n),    c_n = -H(p_n),    both scaled to 0..1 over the batch
    B   = {n : d_n >= mean d},    w_n = exp(d_n c_n / temperature);    then m <- momentum m + (1 - momentum) mean_n p_n
    loss = 1/N sum over B of w_n (SLR(z_n) + SCE(z_n, z'_n))             one optimiser step
    theta <- keep theta + (1 - keep) theta_0

SLR is the soft likelihood ratio and SCE the symmetric cross-entropy of `nn.losses`; z' are the logits of one view of
the samples in B, which have BatchNorm statistics of their own; gradients go through z and z'. What is returned, by
`forward` too, are the logits from before the step after `correct_prior`. Nothing of w is differentiated.

The code of the paper divides the loss by the configured batch size, so that a last, short batch makes a smaller
gradient. Here N is the batch at hand, the same for full batches; `batch=200` divides by that number always. A value
that is the same for all samples of a batch has nothing to be scaled by and counts as 0, so a batch of one has the
weight 1, where that code divides by 0. Views repeat the image's edge where that code mirrors it.

Defaults are those of the peer benchmark for CIFAR-10: Adam 1e-3, batches of 200, keep 0.99, momentum 0.9, temperature
1/3. For ImageNet SGD(lr=2.5e-4, momentum=0.9), batches of 64. Views take images in 0..1; `consistency=False` takes
anything, and costs one forward and one backward pass less.

It fails where batches mislead. Weights are scaled within a batch, so from every batch something is learnt with full
weight, however wrong all of it is: noise moves this network, and EATA refuses it. And BatchNorm's statistics of a batch
of one class are wrong before anything is learnt; on sorted streams it needs GroupNorm or LayerNorm.

>>> import torch
>>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
>>> roid, x = ROID()(net), torch.rand(16, 1, 8, 8)
>>> roid.observe(x).shape, bool((roid.model[1].weight == net[1].weight).all())
(torch.Size([16, 3]), False)

Reference: Marsden, Döbler, Yang, Universal test-time adaptation through weight ensembling, diversity weighting, and
prior correction, WACV 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.adapt.filters import MEAN
from homeostat.adapt.learner import Learner
from homeostat.adapt.prior_correction import correct_prior
from homeostat.core.data import Batch
from homeostat.core.method import Card, Remedy
from homeostat.core.random import generator
from homeostat.core.run import Run
from homeostat.core.spec import Fraction, Index, Positive
from homeostat.core.tree import Tree
from homeostat.core.world import World
from homeostat.nn.augment import RandomViews, check_pixels
from homeostat.nn.losses import soft_likelihood_ratio, softmax_entropy, symmetric_cross_entropy
from homeostat.nn.norms import batch_statistics
from homeostat.nn.optimizers import Adam, Optimizer
from homeostat.nn.teacher import average_into

Prior = Literal["multiply", "add", "none"]
VIEW = RandomViews(blur=(0.0, 0.0), noise=0.0)
"""The view of the paper: colour, geometry and flip."""


class ROIDOnline(Learner):
    """A network that learns from sure and uncommon samples while it serves, and stays near its start.

    Args:
        model: a classifier with norm layers, BatchNorm already set to the batch's statistics.
        optimizer, keep, momentum, temperature, weighting, consistency, augment, prior, batch: see `ROID`.
        seed: of views.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer = Adam(),
        keep: float = 0.99,
        momentum: float = 0.9,
        temperature: float = 1 / 3,
        weighting: bool = True,
        consistency: bool = True,
        augment: RandomViews = VIEW,
        prior: Prior = "multiply",
        batch: int = 0,
        seed: int = 0,
    ):
        self.keep, self.momentum, self.temperature, self.weighting = keep, momentum, temperature, weighting
        self.consistency, self.augment, self.prior, self.batch, self.seed = consistency, augment, prior, batch, seed
        super().__init__(model, optimizer)

    def begin(self) -> None:
        super().begin()
        self.carry["step"] = torch.tensor(0)

    def forward(self, x: Tree) -> Tensor:
        """Logits of the network as it is, corrected by the batch's prior."""
        return self._corrected(self.logits(x))

    def adapt(self, batch: Batch) -> Tensor:
        if self.consistency:
            check_pixels(batch.x)  # type: ignore[arg-type]
        logits, step = self.logits(batch.x), int(self.carry["step"])
        kept, weight = self._weights(logits.detach())
        each = soft_likelihood_ratio(logits[kept])
        if self.consistency:
            seen = self.logits(self.view_of(batch.x[kept], step))  # type: ignore[index,call-overload]
            each = each + symmetric_cross_entropy(logits[kept], seen)
        self.descend((each * weight).sum() / (self.batch or len(logits)))
        anchor, owned = self.anchor(), self.owned()
        average_into(list(owned.values()), [anchor[name] for name in owned], self.keep)
        self.carry["step"] += 1
        return self._corrected(logits.detach())

    def view_of(self, x: Tensor, step: int) -> Tensor:
        """The view of some images at a step."""
        return self.augment(x, generator(self.seed, "ROID.views", step))

    def _corrected(self, logits: Tensor) -> Tensor:
        return logits if self.prior == "none" else correct_prior(logits, self.prior)  # type: ignore[arg-type]

    @torch.no_grad()
    def _weights(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of the samples to learn from and their weights; moves the running mean prediction."""
        if not self.weighting:
            return torch.arange(len(logits), device=logits.device), logits.new_ones(len(logits))
        p = logits.softmax(1)
        mean = self.carry[MEAN] if MEAN in self.carry else torch.full_like(p[0], 1 / p.shape[1])
        diverse = _spread(1 - F.cosine_similarity(mean[None], p, dim=1))
        weight = (diverse * _spread(-softmax_entropy(logits)) / self.temperature).exp()
        kept = torch.nonzero(diverse >= diverse.mean()).flatten()
        self.carry[MEAN] = self.momentum * mean + (1 - self.momentum) * p.mean(0)
        return kept, weight[kept]


def _spread(values: Tensor) -> Tensor:
    """Scaled to 0..1; 0 where all are the same."""
    low, high = values.aminmax()
    return (values - low) / (high - low) if bool(high > low) else torch.zeros_like(values)


@dataclass(frozen=True)
class ROID(Remedy):
    """Robust test-time adaptation by certainty and diversity weighting, weight ensembling and prior correction.

    Attributes:
        optimizer: of the scales and shifts.
        keep: how much of the adapted weights stays at each step; the rest is the source's. 1 never goes back.
        momentum: of the running mean prediction.
        temperature: of the weights; smaller tells samples further apart.
        weighting: by certainty and diversity; without it every sample counts alike.
        consistency: learn from a view of the samples too.
        augment: how that view is made; images in 0..1.
        prior: `"multiply"` the batch's prior onto the answers, `"add"` its logarithm, or `"none"`.
        batch: what the sum of the losses is divided by; 0 for the number of samples at hand.
    """

    optimizer: Optimizer = Adam(lr=1e-3)
    keep: Fraction = 0.99
    momentum: Fraction = 0.9
    temperature: Positive = 1 / 3
    weighting: bool = True
    consistency: bool = True
    augment: RandomViews = VIEW
    prior: Prior = "multiply"
    batch: Index = 0

    card: ClassVar[Card] = Card(
        paper="Marsden et al., Universal Test-Time Adaptation (ROID), WACV 2024",
        handles=frozenset({"covariate", "label", "correlated"}),
        needs=frozenset({"model.norm"}),
        passes=5.0,
        batch_coupled=True,
    )

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return ROIDOnline(
            batch_statistics(model), self.optimizer, self.keep, self.momentum, self.temperature, self.weighting,
            self.consistency, self.augment, self.prior, self.batch, run.seed,
        )  # fmt: skip
