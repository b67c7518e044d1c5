"""SAR: entropy minimisation that stays alive on one sample at a time, on mixed shifts and on streams sorted by class.

Lowering entropy online ends in collapse where batches are small or of one class: some samples give large, noisy
gradients, and the network falls into a state that calls everything one class. SAR leaves unsure samples out, looks for
flat minima, in which a noisy step does little harm, and starts afresh when the entropy says that it has collapsed. For
a batch with logits z `[batch, classes]` and entropies H at the scales and shifts theta of the norm layers:

    E_0 = margin log K,     A = {n : H_n(theta) < E_0}
    g = gradient of mean_A H(theta),      e = radius g / |g|
    B = {n in A : H_n(theta + e) < E_0},      theta <- optimiser's step with the gradient of mean_B H at theta + e
    m <- 0.9 m + 0.1 mean_B H(theta + e),   at first mean_B H;      if m < recover: weights, optimiser and m start anew

What is returned are the logits from before the step. Where A or B is empty the gradient is 0, and an optimiser with
momentum coasts on, as in the code of the paper; m then stays. After a recovery that code goes on with the low m, and so
recovers at every step until m has climbed again, and with the momentum, which it means to drop; here both start anew.
`carry` counts `recoveries`.

BatchNorm takes the batch's statistics, which mislead in small or sorted batches whatever is learnt: the paper's answer
is a network with GroupNorm or LayerNorm. The norm layers of the last stage do most harm and are left alone:
`leave_out` names them for a ResNet-50 and a ViT-B, and in networks without such names all of them learn.

Defaults are those of the peer benchmark for CIFAR-10, SGD(lr=1e-3, momentum=0.9) with batches of 200, margin 0.4,
radius 0.05, recover 0.2. For ImageNet the paper has lr 2.5e-4 (ResNet-50) and 1e-3 (ViT-B), batches of 64, and smaller
in proportion for smaller batches. It costs two passes forward and two backward.

`recover` is an entropy in nats and was chosen for 1,000 classes. Where classes are few or the network is sure, the
reliable samples' entropy is below 0.2 from the start: every step is taken back, and nothing is ever learnt. Watch
`recoveries`, and lower it (0 never recovers).

>>> import torch
>>> net = nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)).eval()
>>> sar, x = SAR(margin=1.0, optimizer=SGD(lr=0.1))(net), torch.randn(1, 2)
>>> before = softmax_entropy(sar.observe(x))
>>> bool(softmax_entropy(sar(x)) < before)
True

Reference: Niu et al., Towards stable test-time adaptation in dynamic wild world, ICLR 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from homeostat.adapt.learner import TOP_LAYERS, Learner, norms_but
from homeostat.core.data import Batch
from homeostat.core.method import Card, Remedy
from homeostat.core.run import Run
from homeostat.core.spec import NonNegative, Positive
from homeostat.core.world import World
from homeostat.nn.losses import softmax_entropy
from homeostat.nn.norms import batch_statistics
from homeostat.nn.optimizers import SGD, Optimizer, gradients_of
from homeostat.nn.restoring import put_back
from homeostat.nn.sharpness import worst_nearby

KEEP = 0.9
"""How much of the running entropy stays at each step."""


class SAROnline(Learner):
    """A network that lowers the entropy of reliable samples at the worst point nearby, and recovers from collapse.

    Args:
        model: a classifier with norm layers, BatchNorm already set to the batch's statistics.
        optimizer, margin, radius, recover, leave_out: see `SAR`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer = SGD(lr=1e-3),
        margin: float = 0.4,
        radius: float = 0.05,
        recover: float = 0.2,
        leave_out: tuple[str, ...] = TOP_LAYERS,
    ):
        self.margin, self.radius, self.recover, self.leave_out = margin, radius, recover, tuple(leave_out)
        super().__init__(model, optimizer, norms_but(model, self.leave_out))

    def begin(self) -> None:
        super().begin()
        self.carry["recoveries"] = torch.tensor(0)

    def adapt(self, batch: Batch) -> Tensor:
        logits, owned = self.logits(batch.x), self.owned()
        limit = self.margin * math.log(logits.shape[1])
        entropy = softmax_entropy(logits)
        reliable = entropy.detach() < limit
        here = gradients_of(_mean(entropy, reliable), owned)
        with worst_nearby(list(owned.values()), list(here.values()), self.radius):
            entropy = softmax_entropy(self.logits(batch.x))
            reliable &= entropy.detach() < limit
            loss = _mean(entropy, reliable)
            there = gradients_of(loss, owned)
        self.optimizer.update(owned, there, self.carry)
        if bool(reliable.any()):
            self._watch(float(loss.detach()))
        return logits

    def _watch(self, entropy: float) -> None:
        """Move the running entropy, and start anew where it has become too small."""
        if "entropy" in self.carry:
            entropy = KEEP * float(self.carry["entropy"]) + (1 - KEEP) * entropy
        self.carry["entropy"] = torch.tensor(entropy, dtype=torch.float64)
        if entropy < self.recover:
            put_back(self.owned(), self.anchor())
            self.optimizer.begin(self.owned(), self.carry)
            del self.carry["entropy"]
            self.carry["recoveries"] += 1


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Of the chosen; 0, with gradient 0, where there are none."""
    return values[chosen].sum() / max(1, int(chosen.sum()))


@dataclass(frozen=True)
class SAR(Remedy):
    """Sharpness-aware and reliable entropy minimisation.

    Attributes:
        optimizer: of the scales and shifts.
        margin: samples with an entropy above `margin log K` are left out.
        radius: how far away the gradient is taken.
        recover: running entropy, in nats, below which the network starts anew; 0 never.
        leave_out: names of scales and shifts that do not learn, as globs.
    """

    optimizer: Optimizer = SGD(lr=1e-3, momentum=0.9)
    margin: Positive = 0.4
    radius: NonNegative = 0.05
    recover: NonNegative = 0.2
    leave_out: tuple[str, ...] = TOP_LAYERS

    card: ClassVar[Card] = Card(
        paper="Niu et al., Towards Stable Test-Time Adaptation in Dynamic Wild World (SAR), ICLR 2023",
        handles=frozenset({"covariate", "label", "correlated"}),
        needs=frozenset({"model.norm"}),
        passes=6.0,
        batch_coupled=True,
    )

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return SAROnline(
            batch_statistics(model), self.optimizer, self.margin, self.radius, self.recover, self.leave_out
        )
