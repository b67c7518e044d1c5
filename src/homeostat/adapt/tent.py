"""Tent: lower the entropy of predictions by the scales and shifts of the norm layers.

While it serves, the network makes itself surer of what it sees, through few parameters that no single sample can bend
far. For a batch x with logits z = f(x) `[batch, classes]` and p = softmax(z):

    H(p) = - sum_k p_k log p_k,     loss = mean over the batch of H(p),

and one step of the optimiser on the scales and shifts of all normalisation layers. What is returned are the logits from
before the step. BatchNorm layers use the batch's statistics alone; GroupNorm, LayerNorm and InstanceNorm layers have no
statistics to follow, and adapt by scale and shift only. Stored BatchNorm statistics are kept, unused, in the weights.

Defaults: Adam with lr 1e-3 and no weight decay, as for CIFAR with batches of 200; for ImageNet SGD(lr=2.5e-4,
momentum=0.9) with batches of 64. It assumes batches of tens of samples in mixed order. On long streams, on streams
sorted by class, at batch size 1 and at too high a learning rate it falls apart: all samples in one class, with an
entropy of 0. Wrap it in `PeriodicReset`, or prefer EATA.

>>> import torch
>>> net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
>>> tent = Tent()(net)
>>> x = torch.randn(32, 2)
>>> before = softmax_entropy(tent.observe(x)).mean()
>>> bool(softmax_entropy(tent(x)).mean() < before)
True

Reference: Wang et al., Tent: Fully test-time adaptation by entropy minimization, ICLR 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from homeostat.adapt.learner import Learner
from homeostat.core.data import Batch
from homeostat.core.method import Card, Remedy
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.nn.losses import softmax_entropy
from homeostat.nn.norms import batch_statistics
from homeostat.nn.optimizers import Adam, Optimizer


class TentOnline(Learner):
    """A network that lowers its entropy while it serves.

    Args:
        model: a classifier with norm layers, BatchNorm already set to the batch's statistics.
        optimizer: of the scales and shifts.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer = Adam()):
        super().__init__(model, optimizer)

    def adapt(self, batch: Batch) -> Tensor:
        logits = self.logits(batch.x)
        self.descend(softmax_entropy(logits).mean())
        return logits


@dataclass(frozen=True)
class Tent(Remedy):
    """Test-time entropy minimisation.

    Attributes:
        optimizer: of the scales and shifts.
    """

    optimizer: Optimizer = Adam(lr=1e-3)

    card: ClassVar[Card] = Card(
        paper="Wang et al., Tent, ICLR 2021",
        handles=frozenset({"covariate"}),
        needs=frozenset({"model.norm"}),
        passes=3.0,
        batch_coupled=True,
    )

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return TentOnline(batch_statistics(model), self.optimizer)
