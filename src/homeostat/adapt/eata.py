"""EATA: entropy minimisation that learns only from samples worth learning from, and does not forget.

Like Tent it adapts the scales and shifts theta of the norm layers while it serves, but it leaves out samples that it is
unsure of (their gradients harm) and samples like those it has seen (they add nothing), and it holds weights that matter
for the source data near their start theta_0. For a batch with logits z `[batch, classes]`, p = softmax(z), entropy H:

    E_0 = margin log K                                   reliable:      A = {n : H_n < E_0}
    m   = running mean of p over the samples used        not redundant: B = {n in A : |cos(m, p_n)| < div_margin}
    loss = mean over B of exp(E_0 - H_n) H_n  +  fisher_alpha sum_j F_j (theta_j - theta_0j)^2

One step when B is not empty, none otherwise; then m <- 0.9 m + 0.1 mean_B p. At first, without an m, B = A and
m = mean_B p. The logits from before the step are returned. F is the diagonal Fisher information on about 2,000
unlabelled source samples (`nn.fisher_diagonal`), measured once, before deployment, under the same BatchNorm statistics
of the batch. `carry` counts samples `seen`, `reliable` and `used`.

Defaults are those of the peer benchmark for CIFAR-10: fisher_alpha 1, div_margin 0.4, Adam 1e-3, batches of 200. For
ImageNet the paper has fisher_alpha 2000, div_margin 0.05, SGD(lr=2.5e-4, momentum=0.9), batches of 64. The cosine
threshold must grow as classes get fewer: at 0.05 and 10 classes nearly every sample is refused. fisher_alpha must be
tuned again when `fisher_batch` changes. fisher_alpha = 0 is "ETA" and needs no source data.

`backward="masked"` is the paper's code: the whole batch goes through the backward pass. With `"subset"` a pass without
gradients finds B, and only B is run again, under that pass's BatchNorm statistics; the gradient through the statistics
is left out. Its loss is the same but its steps differ, and it is faster when B is less than about two thirds of the
batch. For models without BatchNorm both are the same. Like Tent it needs batches of tens of samples in mixed order.

>>> import torch
>>> net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
>>> x = torch.randn(64, 2)
>>> eata = EATA(margin=1.0)(net, World(source=x))
>>> logits = eata.observe(x[:32] + 0.5)
>>> int(eata.carry["seen"]), int(eata.carry["used"]) > 0
(32, True)

Reference: Niu et al., Efficient test-time model adaptation without forgetting, ICML 2022 (S058).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from homeostat.adapt.filters import reliable_and_fresh
from homeostat.adapt.learner import Learner
from homeostat.core.data import Batch
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Bag
from homeostat.core.place import there
from homeostat.core.run import Run
from homeostat.core.spec import Count, Fraction, NonNegative, Positive
from homeostat.core.tree import map_tree
from homeostat.core.world import World
from homeostat.nn.fisher import fisher_diagonal, weighted_distance
from homeostat.nn.losses import softmax_entropy
from homeostat.nn.norms import batch_statistics, norm_affine, recorded_statistics
from homeostat.nn.optimizers import Adam, Optimizer

Backward = Literal["masked", "subset"]


class EATAOnline(Learner):
    """A network that lowers the entropy of reliable, non-redundant samples while it serves.

    Args:
        model: a classifier with norm layers, BatchNorm already set to the batch's statistics.
        optimizer: of the scales and shifts.
        fisher_alpha: weight of the pull towards the starting weights; the information is in `carry`, below `fisher`.
        margin: E_0 in units of log K.
        div_margin: cosine above which a sample is redundant.
        backward: `"masked"` or `"subset"`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer = Adam(),
        fisher_alpha: float = 1.0,
        margin: float = 0.4,
        div_margin: float = 0.4,
        backward: Backward = "masked",
    ):
        self.fisher_alpha, self.margin, self.div_margin, self.backward = fisher_alpha, margin, div_margin, backward
        super().__init__(model, optimizer)
        if fisher_alpha > 0:
            self.carry.put("fisher", {name: torch.zeros_like(p) for name, p in self.owned().items()})

    def begin(self) -> None:
        super().begin()
        for name in ("seen", "reliable", "used"):
            self.carry[name] = torch.tensor(0)

    def adapt(self, batch: Batch) -> Tensor:
        replay = None
        if self.backward == "subset":
            with torch.no_grad(), recorded_statistics(self.model) as replay:
                logits = self.logits(batch.x)
        else:
            logits = self.logits(batch.x)
        limit = self.margin * math.log(logits.shape[1])
        entropy = softmax_entropy(logits)
        kept = reliable_and_fresh(logits.detach(), entropy.detach(), self.carry, limit, self.div_margin)
        used = kept.chosen
        for name, count in (("seen", len(logits)), ("reliable", kept.reliable), ("used", len(used))):
            self.carry[name] += count
        if len(used):
            if replay is not None:
                with replay():
                    entropy = softmax_entropy(self.model(map_tree(lambda t: t[used], batch.x)))
            else:
                entropy = entropy[used]
            weight = 1 / (entropy.detach() - limit).exp()
            self._step((entropy * weight).mean())
        return logits

    def _step(self, loss: Tensor) -> None:
        if self.fisher_alpha > 0:
            away = weighted_distance(self.owned(), self.anchor(), self.carry.under("fisher"))
            loss = loss + self.fisher_alpha * away
        self.descend(loss)


@dataclass(frozen=True)
class EATA(Remedy):
    """Efficient anti-forgetting test-time adaptation.

    Attributes:
        fisher_alpha: weight of the anti-forgetting penalty; 0 ("ETA") needs no source data.
        margin: samples with an entropy above `margin log K` are unreliable.
        div_margin: samples whose prediction has a cosine of at least this with the running mean are redundant.
        optimizer: of the scales and shifts.
        backward: `"masked"` as in the paper's code, or `"subset"`, cheaper when few samples are used.
        fisher_samples: how many source samples measure the Fisher information.
        fisher_batch: in batches of how many.
    """

    fisher_alpha: NonNegative = 1.0
    margin: Positive = 0.4
    div_margin: Fraction = 0.4
    optimizer: Optimizer = Adam(lr=1e-3)
    backward: Backward = "masked"
    fisher_samples: Count = 2000
    fisher_batch: Count = 64

    card: ClassVar[Card] = Card(
        id="S058",
        paper="Niu et al., Efficient Test-Time Model Adaptation without Forgetting, ICML 2022",
        handles=frozenset({"covariate"}),
        needs=frozenset({"model.norm"}),
        prepares=frozenset({"source.x"}),
        passes=3.0,
        batch_coupled=True,
    )

    def prepares(self) -> frozenset[str]:
        return self.card.prepares if self.fisher_alpha > 0 else frozenset()

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> nn.Module | None:
        if self.fisher_alpha == 0 or model is None or world.source is None:
            return None
        own = batch_statistics(model).requires_grad_(False).eval()
        names = norm_affine(own)
        some = world.source.shuffle(run.rng("EATA.fisher"))[: self.fisher_samples]
        inputs = (there(batch.x, own) for batch in some.batches(self.fisher_batch))
        return Bag(fisher_diagonal(own, inputs, names))

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        made = EATAOnline(
            batch_statistics(model), self.optimizer, self.fisher_alpha, self.margin, self.div_margin, self.backward
        )
        if self.fisher_alpha > 0:
            made.carry.put("fisher", {name: kit[name].clone() for name in kit})
            made.mark()
        return made
