"""LabelShiftAdapter: a small network that fits the classifier to how common classes are now, beneath any other remedy.

Networks learn the class balance of their training data and lean on it. When the balance changes, and inputs change
too, methods such as Tent learn from predictions that lean the wrong way. Here a small network, trained before
deployment on labelled source data, rewrites the classifier for a given balance, and another remedy adapts the network
so rewritten. With features h `[batch, features]`, head (W, b), source prior pi_s and K classes, the balance is one
number:

    degree(pi) = (pi - 1/K).(pi_s - 1/K), scaled to 1 at pi_s, 0 at uniform, -1 at pi_s with its ranks reversed
    path(degree) = the prior on the way from reversed (-1) over uniform (0) to pi_s (1), linear in between
    (gamma, beta, a, c) = MLP(degree)
    z_k = (1 + a_k) W_k.((1 + gamma) h + beta) + b_k + c_k + log path(degree)_k - log pi_s,k

Trained are the MLP's weights, on source samples and random degrees t, by the cross-entropy of
z + log pi_s - log path(t): with that offset the best z for the source data is the best classifier for the balance
path(t). The last layer starts at 0, so that z starts as Bayes' correction, and where logits are calibrated it stays
there; what is learnt is where they are not. While it serves, the prior is estimated from the *uncorrected* outputs of
the same pass,

    pi <- keep pi + (1 - keep) (mean_n p_n + 1/N) / (1 + K/N),     from the uniform prior on,

since an estimate from corrected ones would confirm itself. When pi_s is balanced (total variation below `balanced`) the
degree means nothing; then nothing is trained and z = uncorrected + log pi - log pi_s.

The paper's numbers are not public in detail; width, epochs and learning rate are ours, as are the scale a of a class's
weights in place of new ones (which keeps the MLP small) and the start at Bayes' correction. pi_s is that of the known
labels of the source and one more of every class. It costs no pass.

It fails where the new balance is not on the path: when one class of middling rank takes over, the degree stays near 0,
and the correction is that for balanced classes. Use `PriorCorrection(rule="add")` there.

>>> import torch
>>> x, y = torch.randn(300, 4), (torch.arange(300) % 10 > 7).long()  # 80 % of class 0
>>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
>>> served = LabelShiftAdapter(Source())(net, World(source=(x, y)))
>>> served.observe(x[:50]).shape, served.prior().shape
(torch.Size([50, 2]), torch.Size([2]))

Reference: Park, Yang, Choo, Yun, Label shift adapter for test-time adaptation under covariate and label shifts, ICCV
2023 (S309).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.adapt.batchnorm_blend import BatchNormBlend
from homeostat.adapt.class_balance import Prior, degree_of, estimate_prior, path_prior
from homeostat.adapt.learner import logits_of
from homeostat.adapt.source import Source as Source  # for the example above
from homeostat.core.data import Batch, Tensors
from homeostat.core.errors import InputError
from homeostat.core.fork import fork
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Bag, Online
from homeostat.core.part import Part
from homeostat.core.place import home, there
from homeostat.core.run import Run
from homeostat.core.spec import Count, Fraction
from homeostat.core.taps import head, tapped
from homeostat.core.task import Classify, check_labels
from homeostat.core.tree import Tree
from homeostat.core.world import World
from homeostat.fit.training import Recipe, train
from homeostat.nn.blocks import start
from homeostat.nn.optimizers import Adam


class LabelShiftHead(Part):
    """What a degree changes in a classifier; see the module's docstring.

    Args:
        features: numbers that the head reads.
        prior: the source's class balance; a share for each class.
        hidden: width of the MLP's hidden layer.
        seed: of its starting weights.
    """

    def __init__(self, features: int, prior: tuple[float, ...], hidden: int = 64, seed: int = 0):
        super().__init__()
        self.features, self.prior, self.hidden, self.seed = features, tuple(prior), hidden, seed
        self.rise = nn.Linear(1, hidden)
        self.spread = nn.Linear(hidden, 2 * features + 2 * len(prior))
        start(self, seed)
        nn.init.zeros_(self.spread.weight)

    def forward(self, degree: Tensor, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What is added to the logits of features `[batch, features]`, for degrees `[1]` or `[batch]`."""
        source = torch.tensor(self.prior, dtype=features.dtype, device=features.device)
        classes = len(self.prior)
        made = self.spread(F.relu(self.rise(degree[:, None])))
        gamma, beta, a, c = made.split([self.features, self.features, classes, classes], 1)
        bent = torch.addcmul(beta, 1 + gamma, features) @ weight.T * (1 + a) - features @ weight.T
        return bent + c + path_prior(degree, source).log() - source.log()


class AdjustedForLabels(Part):
    """A classifier whose head follows a class balance, which lies in `carry`.

    Args:
        model: the classifier.
        change: what a degree changes; `None` for the direct correction by log prior - log source prior.
        prior: the source's class balance.
        keep: how much of the estimate stays at each batch.
    """

    carry: Bag

    def __init__(self, model: nn.Module, change: nn.Module | None, prior: tuple[float, ...], keep: float = 0.9):
        super().__init__()
        self.model, self.change, self.prior, self.keep = model, change, tuple(prior), keep
        self.carry, self._estimates = Bag(), False
        self.begin()

    def begin(self) -> None:
        """Expect all classes alike."""
        self.carry["prior"] = torch.full((len(self.prior),), 1 / len(self.prior), dtype=torch.float64)

    @contextmanager
    def estimating(self) -> Iterator[None]:
        """Inside, the first pass moves the estimate before it is corrected by it."""
        self._estimates = True
        try:
            yield
        finally:
            self._estimates = False

    def forward(self, x: Tree) -> Tensor:
        """Logits for the class balance in `carry`."""
        layer: Any = self.model.get_submodule(head(self.model))
        out, features = tapped(self.model, x, self.model)
        logits = logits_of(out)
        if logits.shape[1] != len(self.prior):
            raise InputError(
                f"the network has {logits.shape[1]} outputs, and the source prior {len(self.prior)} shares"
            )
        if self._estimates:
            self._estimates = False
            new = estimate_prior(home(logits.detach()).double().softmax(1))
            self.carry["prior"] = self.keep * home(self.carry["prior"]) + (1 - self.keep) * new
        prior, source = home(self.carry["prior"]), torch.tensor(self.prior, dtype=torch.float64)
        if self.change is None:
            return logits + (prior.log() - source.log()).to(logits)
        return logits + self.change(degree_of(prior, source)[None].to(logits), features, layer.weight, layer.bias)


class LabelShiftOnline(Online):
    """What another remedy made of a classifier whose head follows the class balance.

    Args:
        model: from that remedy; it adapts by itself or does not.
    """

    def __init__(self, model: nn.Module):
        owned = {f"model.{name}" for name in model.anchor()} if isinstance(model, Online) else set()
        super().__init__(fork(model, own=owned))
        self.begin()

    @property
    def adjusted(self) -> AdjustedForLabels:
        """The classifier within."""
        return next(m for m in self.model.modules() if isinstance(m, AdjustedForLabels))

    def begin(self) -> None:
        self.adjusted.begin()

    def prior(self) -> Prior:
        """The class balance as it is estimated now."""
        return home(self.adjusted.carry["prior"]).clone()

    def adapt(self, batch: Batch) -> Tree:
        with self.adjusted.estimating():
            if isinstance(self.model, Online):
                return self.model.observe(batch)
            with torch.no_grad():
                return self.model(batch.x)

    def snapshot(self) -> dict[str, Tensor]:
        return self.model.snapshot() if isinstance(self.model, Online) else super().snapshot()

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        self.model.restore(snapshot) if isinstance(self.model, Online) else super().restore(snapshot)


@dataclass(frozen=True)
class LabelShiftAdapter(Remedy):
    """Another remedy, over a classifier that follows the class balance.

    Attributes:
        remedy: what adapts the network to changed inputs; `Source()` for nothing.
        hidden: width of the small network.
        keep: how much of the estimated balance stays at each batch.
        balanced: total variation of the source's balance from uniform below which the direct correction is used.
        recipe: how the small network is trained.
    """

    remedy: Remedy = BatchNormBlend()
    hidden: Count = 64
    keep: Fraction = 0.9
    balanced: Fraction = 0.02
    recipe: Recipe = Recipe(optimizer=Adam(lr=1e-3), epochs=10, batch=128)

    card: ClassVar[Card] = Card(
        id="S309",
        paper="Park et al., Label Shift Adapter for Test-Time Adaptation, ICCV 2023",
        handles=frozenset({"label", "covariate"}),
        needs=frozenset({"model.linear"}),
        prepares=frozenset({"source.x", "source.y"}),
    )

    def needs(self) -> frozenset[str]:
        return self.card.needs | self.remedy.needs()

    def prepares(self) -> frozenset[str]:
        return self.card.prepares | self.remedy.prepares()

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> nn.Module | None:
        if model is None or world.source is None:
            return None
        own = fork(model).requires_grad_(False).eval()
        features, logits, labels = self._read(own, world)
        counts = torch.bincount(labels, minlength=logits.shape[1]).double() + 1
        prior = tuple((counts / counts.sum()).tolist())
        change: LabelShiftHead | None = None
        if 0.5 * sum(abs(share - 1 / len(prior)) for share in prior) >= self.balanced:
            made = LabelShiftHead(features.shape[1], prior, self.hidden, run.seed_for("LabelShiftAdapter"))
            made = self._trained(made.to(features.device), own, Tensors({"h": features, "z": logits}, labels), run)
            change = made.to(next(own.parameters()).dtype)
        adjusted = AdjustedForLabels(fork(model), change, prior, self.keep)
        inner = self.remedy.prepare(adjusted, world.only(self.remedy.prepares()), run)
        return nn.Sequential(LabelShiftKit(change, prior), nn.Identity() if inner is None else inner)

    @torch.no_grad()
    def _read(self, own: nn.Module, world: World) -> tuple[Tensor, Tensor, Tensor]:
        """Features and logits of the labelled source samples, in float32 at least, and their labels."""
        seen, every = list[tuple[Tensor, Tensor]](), list[Tensor]()
        assert world.source is not None
        for batch in world.source.batches(256):
            known = Classify().known(batch.labels)
            out, features = tapped(own, there(batch.x, own), own)
            logits = logits_of(out)
            check_labels(batch.labels, logits.shape[1], "source.y", (len(logits),))
            wide = torch.promote_types(logits.dtype, torch.float32)
            seen.append((features[known.to(features.device)].to(wide), logits[known.to(logits.device)].to(wide)))
            every.append(batch.labels[known])
        labels = home(torch.cat(every))
        if len(labels) == 0:
            raise InputError("no label of the source is known; LabelShiftAdapter needs some")
        return torch.cat([f for f, _ in seen]), torch.cat([z for _, z in seen]), labels

    def _trained(self, change: LabelShiftHead, own: nn.Module, data: Tensors, run: Run) -> LabelShiftHead:
        layer: Any = own.get_submodule(head(own))
        x: Any = data.batch.x
        change = change.to(x["h"].dtype)
        weight, source = layer.weight.to(x["h"]), torch.tensor(change.prior).to(x["h"])

        def losses(batches: Mapping[str, Batch], now: Run) -> dict[str, Tensor]:
            some: Any = batches["source"]
            degree = 2 * torch.rand(len(some), generator=now.rng("LabelShiftAdapter.degree")) - 1
            degree = degree.to(some.x["h"])
            z = some.x["z"] + change(degree, some.x["h"], weight, layer.bias)
            offset = source.log() - path_prior(degree, source).log()
            return {"loss": F.cross_entropy(z + offset, some.y.to(z.device))}

        train(change, losses, {"source": data}, dict(change.named_parameters()), self.recipe, run=run)
        return change.requires_grad_(False).eval()

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        adjusted = AdjustedForLabels(fork(model), kit[0].change, kit[0].prior, self.keep)
        inner = None if isinstance(kit[1], nn.Identity) else kit[1]
        return LabelShiftOnline(self.remedy.apply(adjusted, world.only(self.remedy.needs()), inner, run))


class LabelShiftKit(Part):
    """The kit: what was learnt of the source."""

    def __init__(self, change: nn.Module | None, prior: tuple[float, ...]):
        super().__init__()
        self.change, self.prior = change, tuple(prior)
