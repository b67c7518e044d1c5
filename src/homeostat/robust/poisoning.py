"""Batch poisoning: a few samples of a batch are changed so that the others are misread.

A network that takes statistics from the batch it serves (test-time BatchNorm, and what is built on it) lets samples
touch each other. Whoever controls a share of a batch can then raise the loss of samples that are not theirs. With
benign samples (x_b, y_b), malicious ones x_m and f_B the network under the statistics of the batch B,

    x_m <- Proj_{0..1, |x_m - x| <= eps} (x_m + step * sign(grad_{x_m} sum_b loss(f_{[x_b, x_m]}(x_b), y_b))).

This is the indiscriminate attack of the paper in its first-order form: the change that one step of adaptation makes to
the weights is left out of the gradient. Where no sample touches another (LayerNorm, GroupNorm, stored statistics) the
gradient is zero and the malicious samples stay as they are: such networks have nothing to attack in the forward pass.

The labels of malicious samples become unknown (-100), so that a judge counts the benign ones alone.

Defaults: a fifth of the batch, unbounded changes within 0..1, as in the paper (40 of 200, eps 1); its 500 steps of
1/255 are shortened to 20 larger ones.

>>> net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).eval()
>>> data = BatchPoisoning(size=10)((torch.rand(20, 3), torch.arange(20) % 2), model=net)
>>> (data.all_labels() == -100).sum().item()
4

Reference: Wu et al., Uncovering Adversarial Risks of Test-Time Adaptation, ICML 2023 (DIA).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.core.data import UNKNOWN, Data, Tensors, floating, join
from homeostat.core.errors import MissingPart
from homeostat.core.fork import unwrap
from homeostat.core.method import Card, Shift
from homeostat.core.place import there
from homeostat.core.run import Run
from homeostat.core.spec import Count, Fraction, NonNegative
from homeostat.nn.norms import batch_statistics
from homeostat.robust.pgd import ascend


@dataclass(frozen=True)
class BatchPoisoning(Shift):
    """Samples of a batch that make a network with batch statistics misread the others.

    Attributes:
        share: of each batch that is malicious, rounded down; which samples is drawn.
        size: samples of a batch: that of the windows they are served in.
        eps: how far a value may move, in the unit of inputs (0..1).
        steps: of ascent.
        step: size of a step as a share of eps.
    """

    share: Fraction = 0.2
    size: Count = 100
    eps: NonNegative = 1.0
    steps: Count = 20
    step: NonNegative = 0.05

    card: ClassVar[Card] = Card(
        paper="Wu et al., Uncovering Adversarial Risks of Test-Time Adaptation, ICML 2023",
        handles=frozenset({"adversarial"}), needs=frozenset({"target.x", "target.y"}),
    )  # fmt: skip

    def apply(self, data: Data, model: nn.Module | None, run: Run) -> Data:
        if model is None:
            raise MissingPart("BatchPoisoning attacks a model: BatchPoisoning()(data, model=net)")
        if not data.has_labels():
            raise MissingPart("BatchPoisoning climbs the loss of the true labels, and these data have none")
        net, poisoned = batch_statistics(unwrap(model)).eval().requires_grad_(False), []
        for number, batch in enumerate(data.batches(self.size)):
            came, count = floating(batch.x, "BatchPoisoning"), int(self.share * len(batch))
            drawn = torch.randperm(len(batch), generator=run.rng("poison", number))[:count]
            x, truth, bad = there((came, batch.labels, drawn), net)
            good = torch.ones(len(batch), dtype=torch.bool, device=x.device)
            good[bad] = False

            def loss(moved: Tensor, x: Tensor = x, bad: Tensor = bad, good: Tensor = good, y=truth) -> Tensor:
                return F.cross_entropy(net(x.index_copy(0, bad, moved))[good], y[good], reduction="none")

            changed, labels = x.clone(), truth.clone()
            if count and self.eps and bool(good.any()):
                changed[bad] = ascend(loss, x[bad], x[bad], self.eps, self.step * self.eps, self.steps, "inf")
            labels[bad] = UNKNOWN
            poisoned.append(batch.replace(x=changed.to(came.device), y=labels.to(batch.labels.device)))
        whole = join(poisoned)
        return Tensors(whole.x, whole.y, whole.id, whole.meta)
