"""DeYO: lower the entropy only of predictions that rest on the shape of things.

Entropy alone does not say whether a sample is safe to learn from: a network can be sure because of a background that
goes with the class in training and not here. DeYO destroys the object, by default by shuffling patches, and asks how
much of the probability of the predicted class that costs. For a batch with logits z `[batch, classes]`, p = softmax(z),
entropy H, y_n = argmax p_n, and p' the network's probabilities for the destroyed view of the samples in A:

    A = {n : H_n < margin log K}
    PLPD_n = p_n[y_n] - p'_n[y_n]                                   pseudo-label probability difference, -1 to 1
    B = {n in A : PLPD_n > threshold}
    w_n = exp(E_0 - H_n) + exp(PLPD_n),     E_0 = reference log K,  detached
    loss = mean over B of w_n H_n

and one step of the optimiser on the scales and shifts of the norm layers, or none where B is empty. The logits from
before the step are returned. BatchNorm uses the batch's statistics, and those of A for the view, which costs a pass
forward over A without gradients. As in SAR, `leave_out` names what stays as it is. `carry` counts `seen`, `sure` (in A)
and `used` (in B).

Defaults: margin 0.5, reference 0.4, threshold 0.2 and patches 4 x 4 as in the peer benchmark, with its optimiser for
CIFAR-10, Adam 1e-3 at batches of 200; the paper has threshold 0.2 or 0.3 and, for ImageNet, SGD(lr=2.5e-4,
momentum=0.9) with batches of 64, or 1e-3 for a ViT-B.

It fails where classes are told apart by what survives the view. Where that is color, shuffled patches change no
prediction, PLPD is 0 for every sample, and nothing is learnt though all of it would help; `Occluded` or a lower
threshold may. A network that takes a destroyed image for a class of its own, as many do, finds no sample of that class.

>>> import torch
>>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
>>> deyo, x = DeYO(margin=1.0, threshold=-1.0)(net), torch.rand(16, 1, 8, 8)
>>> deyo.observe(x).shape, int(deyo.carry["used"])
(torch.Size([16, 3]), 16)

Reference: Lee et al., Entropy is not enough for test-time adaptation: From the perspective of disentangled factors,
ICLR 2024.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import annotated_types as at
import torch
from torch import Tensor, nn

from homeostat.adapt.learner import TOP_LAYERS, Learner, norms_but
from homeostat.core.data import Batch
from homeostat.core.method import Card, Remedy
from homeostat.core.random import generator
from homeostat.core.run import Run
from homeostat.core.spec import NonNegative, Positive
from homeostat.core.world import World
from homeostat.nn.destroy import Destroyed, ShuffledPatches
from homeostat.nn.losses import softmax_entropy
from homeostat.nn.norms import batch_statistics
from homeostat.nn.optimizers import Adam, Optimizer


class DeYOOnline(Learner):
    """A network that lowers the entropy of predictions that a destroyed view changes.

    Args:
        model: a classifier with norm layers, BatchNorm already set to the batch's statistics.
        optimizer, margin, reference, threshold, destroy, leave_out: see `DeYO`.
        seed: of the views.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer = Adam(),
        margin: float = 0.5,
        reference: float = 0.4,
        threshold: float = 0.2,
        destroy: Destroyed = ShuffledPatches(),
        leave_out: tuple[str, ...] = TOP_LAYERS,
        seed: int = 0,
    ):
        self.margin, self.reference, self.threshold, self.destroy = margin, reference, threshold, destroy
        self.leave_out, self.seed = tuple(leave_out), seed
        super().__init__(model, optimizer, norms_but(model, self.leave_out))

    def begin(self) -> None:
        super().begin()
        for name in ("step", "seen", "sure", "used"):
            self.carry[name] = torch.tensor(0)

    def adapt(self, batch: Batch) -> Tensor:
        self.destroy.check(batch.x)
        logits, step = self.logits(batch.x), int(self.carry["step"])
        entropy, unit = softmax_entropy(logits), math.log(logits.shape[1])
        sure = torch.nonzero(entropy.detach() < self.margin * unit).flatten()
        used, lost = sure, entropy.new_zeros(0)
        if len(sure):
            lost = self._lost(logits.detach()[sure], self.view_of(batch.x[sure], step))  # type: ignore[index,call-overload]
            used, lost = sure[lost > self.threshold], lost[lost > self.threshold]
        if len(used):
            weight = (self.reference * unit - entropy.detach()[used]).exp() + lost.exp()
            self.descend((weight * entropy[used]).mean())
        for name, count in (("step", 1), ("seen", len(logits)), ("sure", len(sure)), ("used", len(used))):
            self.carry[name] += count
        return logits

    def view_of(self, x: Tensor, step: int) -> Tensor:
        """The destroyed view of some images at a step."""
        return self.destroy(x, generator(self.seed, "DeYO.views", step))

    @torch.no_grad()
    def _lost(self, logits: Tensor, view: Tensor) -> Tensor:
        """How much of the predicted class's probability the view costs, `[batch]`."""
        probability, label = logits.softmax(1).max(1, keepdim=True)
        return (probability - self.logits(view).softmax(1).gather(1, label)).squeeze(1)


@dataclass(frozen=True)
class DeYO(Remedy):
    """Entropy minimisation on samples whose prediction depends on the object.

    Attributes:
        optimizer: of the scales and shifts.
        margin: samples with an entropy above `margin log K` are left out.
        reference: the entropy, in units of log K, at which the first part of a sample's weight is 1.
        threshold: the view must cost more than this of the predicted class's probability; -1 takes every sample.
        destroy: how objects are destroyed.
        leave_out: names of scales and shifts that do not learn, as globs.
    """

    optimizer: Optimizer = Adam(lr=1e-3)
    margin: Positive = 0.5
    reference: NonNegative = 0.4
    threshold: Annotated[float, at.Ge(-1), at.Le(1)] = 0.2
    destroy: Destroyed = ShuffledPatches()
    leave_out: tuple[str, ...] = TOP_LAYERS

    card: ClassVar[Card] = Card(
        paper="Lee et al., Entropy is not Enough for Test-Time Adaptation (DeYO), ICLR 2024",
        handles=frozenset({"covariate", "label", "subgroup"}),
        needs=frozenset({"model.norm"}),
        passes=4.0,
        batch_coupled=True,
    )

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return DeYOOnline(
            batch_statistics(model), self.optimizer, self.margin, self.reference, self.threshold, self.destroy,
            self.leave_out, run.seed,
        )  # fmt: skip
