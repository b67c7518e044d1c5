"""DRM: one classifier a source domain on a shared encoder, and for every sample those that seem to fit it.

When training data come from several domains, one classifier for all learns what holds on average. Here every domain k
keeps a head h_k of its own, and a pooled head is trained on all of them; which heads count is decided for each test
sample by itself, without labels. Training, on the encoder g and all heads, in each step on a batch of every domain:

    sum over domains k of CE(h_k(g(x)), y) for (x, y) of domain k      +  CE(pooled(g(x)), y) over all of them

Then, for a sample with features g and head k's logits z_k = b_k h_k(g), p_k = softmax(z_k):

    weight="entropy":     w_k proportional to exp(-gamma H(p_k))
    weight="similarity":  w_k proportional to exp(gamma cos(g, mean feature of domain k))
    output = sum_k w_k log p_k        `[batch, classes]`; the pooled head is one of them

gamma = 0 averages the heads, a large one picks one. Entropies only compare when heads are equally honest: the scale b_k
(an inverse temperature) makes head k calibrated on the tenth of its domain that it was not trained on, the pooled head
on those of all. Weights are per sample, so a batch of one is served as any other. `steer` moves things while it serves:
`"entropy"` lowers the mixture's entropy by the heads, `"templates"` lets the nearest domain's mean feature follow.

Domains are `world.parts`, labelled. The given network is the encoder with its last linear layer as the start of every
head; `learn="heads"` leaves the encoder. Defaults are ours: the paper's text is not public in enough detail.

At the default gamma it is near a plain average, in which heads of far domains count nearly as much as those of near
ones: where domains are steps of one change, such as angles, it can be below its own pooled head, in them and beyond.

It fails where a head is sure for the wrong reason: a head that learnt a shortcut of its domain (a colour) is surest
where the shortcut is strongest, whatever it means there, and takes over. The pooled head alone is then better; lower
gamma, or use `weight="similarity"`.

>>> import torch
>>> parts = {str(k): (torch.randn(60, 3) + k, torch.arange(60) % 2) for k in range(2)}
>>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
>>> served = DRM()(net, World(parts=parts))
>>> served(torch.randn(5, 3)).shape, served.mixture(torch.randn(5, 3)).shape
(torch.Size([5, 2]), torch.Size([5, 3]))

Reference: Zhang et al., Domain-specific risk minimization for domain generalization, KDD 2023 (S226).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.adapt.learner import logits_of
from homeostat.core.data import Batch, Data
from homeostat.core.errors import InputError, ModelError
from homeostat.core.fork import fork
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Online
from homeostat.core.part import Part
from homeostat.core.place import home, there
from homeostat.core.run import Run
from homeostat.core.spec import NonNegative
from homeostat.core.taps import head, tapped
from homeostat.core.task import Classify, check_labels
from homeostat.core.tree import Tree, cat, named_leaves
from homeostat.core.world import World
from homeostat.fit.training import Recipe, train
from homeostat.nn.losses import softmax_entropy
from homeostat.nn.optimizers import SGD, Optimizer
from homeostat.nn.temperature import honest_scale

Weigh = Literal["entropy", "similarity"]
Steer = Literal["none", "entropy", "templates"]


class DomainHeads(Part):
    """A network whose last layer is one head a domain and a pooled one; see the module's docstring.

    Args:
        model: the encoder with its own last layer, which only says where the features are.
        domains: how many.
        classes: how many.
        features: numbers that a head reads.
        weight, gamma: see `DRM`.
    """

    def __init__(
        self, model: nn.Module, domains: int, classes: int, features: int, weight: Weigh = "entropy", gamma: float = 1.0
    ):
        super().__init__()
        self.model, self.domains, self.classes, self.features, self.gamma = model, domains, classes, features, gamma
        self.weight: Weigh = weight
        self.heads = nn.ModuleList(nn.Linear(features, classes) for _ in range(domains + 1))
        self.register_buffer("scales", torch.ones(domains + 1))
        self.register_buffer("templates", torch.zeros(domains + 1, features))

    def features_of(self, x: Tree) -> Float[Tensor, "batch features"]:
        """What the heads read."""
        return tapped(self.model, x, self.model)[1]

    def said(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "heads batch classes"]:
        """Calibrated log-probabilities of every head, the pooled one last."""
        raw = torch.stack([head_(features) for head_ in self.heads])
        scales: Tensor = self.scales  # type: ignore[assignment]
        return (raw * scales[:, None, None]).log_softmax(2)

    def weigh(self, features: Tensor, said: Tensor) -> Float[Tensor, "batch heads"]:
        """What every head counts for every sample."""
        if self.weight == "entropy":
            return torch.stack([-self.gamma * softmax_entropy(log_p) for log_p in said], 1).softmax(1)
        templates: Tensor = self.templates  # type: ignore[assignment]
        return (self.gamma * F.cosine_similarity(features[:, None], templates[None], dim=2)).softmax(1)

    def mixture(self, x: Tree) -> Float[Tensor, "batch heads"]:
        """What every head counts for these inputs, the pooled one last."""
        features = self.features_of(x)
        return self.weigh(features, self.said(features))

    def forward(self, x: Tree) -> Float[Tensor, "batch classes"]:
        """Weighted log-probabilities."""
        features = self.features_of(x)
        said = self.said(features)
        return torch.einsum("nk,knc->nc", self.weigh(features, said), said)


class DRMOnline(Online):
    """Heads that are steered while they serve.

    Args:
        model: trained heads.
        steer: `"entropy"` or `"templates"`.
        optimizer: of the heads.
        follow: how far the nearest template goes towards the batch.
    """

    model: DomainHeads

    def __init__(
        self, model: nn.Module, steer: Steer = "entropy", optimizer: Optimizer = SGD(lr=1e-3), follow: float = 0.1
    ):
        heads = tuple(name for name, _ in model.named_parameters() if name.startswith("heads."))
        super().__init__(model, own=heads if steer == "entropy" else ("templates",))
        self.steer: Steer = steer
        self.optimizer, self.follow = optimizer, follow
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(steer == "entropy" and name in heads)
        self.begin()

    def begin(self) -> None:
        if self.steer == "entropy":
            self.optimizer.begin(self.owned(), self.carry)

    def adapt(self, batch: Batch) -> Tensor:
        logits = self.model(batch.x)
        if self.steer == "entropy":
            self.optimizer.minimize(softmax_entropy(logits).mean(), self.owned(), self.carry)
            return logits
        with torch.no_grad():
            features, templates = self.model.features_of(batch.x), self.owned()["templates"]
            nearest = F.cosine_similarity(features[:, None], templates[None, :-1], dim=2).argmax(1)
            for domain in nearest.unique().tolist():
                templates[domain].lerp_(features[nearest == domain].mean(0), self.follow)
        return logits


@dataclass(frozen=True)
class DRM(Remedy):
    """Domain-specific risk minimization.

    Attributes:
        weight: heads count by their own `"entropy"`, or by the `"similarity"` of a sample to their domain.
        gamma: how sharply.
        learn: `"all"` trains encoder and heads, `"heads"` the heads alone.
        steer: what moves while it serves: nothing, the heads, or the domains' mean features.
        steering: optimiser of the heads while it serves.
        recipe: how everything is trained; a batch is that of one domain.
    """

    weight: Weigh = "entropy"
    gamma: NonNegative = 1.0
    learn: Literal["all", "heads"] = "all"
    steer: Steer = "none"
    steering: Optimizer = SGD(lr=1e-3)
    recipe: Recipe = Recipe(optimizer=SGD(lr=0.01), epochs=5, batch=64)

    card: ClassVar[Card] = Card(
        id="S226",
        paper="Zhang et al., Domain-Specific Risk Minimization for Domain Generalization, KDD 2023",
        handles=frozenset({"covariate", "concept"}),
        needs=frozenset({"model.linear"}),
        prepares=frozenset({"parts.*.x", "parts.*.y", "model.linear"}),
    )

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> nn.Module | None:
        if model is None:
            return None
        trained, held = dict[str, Data](), dict[str, Data]()
        for name, data in world.parts.items():
            known = data[Classify().known(data.all_labels())]
            if len(known) < 10:
                raise InputError(f"parts.{name} has {len(known)} labelled samples; a domain needs 10 at least")
            held[name], trained[name] = known.split(0.1, generator=run.rng("DRM.held", name))
        _check_alike(trained)
        made = self._heads(model, trained)
        for name, data in world.parts.items():
            check_labels(data.all_labels(), made.classes, f"parts.{name}.y")
        self._train(made, trained, run)
        _measure(made, trained, held)
        return made.requires_grad_(False).eval()

    def _heads(self, model: nn.Module, parts: Mapping[str, Data]) -> DomainHeads:
        own = fork(model, own="*").eval()
        layer: Any = own.get_submodule(head(own))
        with torch.no_grad():
            first = next(iter(parts.values())).fetch(torch.arange(1))
            out, features = tapped(own, there(first.x, own), own)
        classes, wide = logits_of(out).shape[1], features.shape[1]
        if tuple(layer.weight.shape) != (classes, wide):
            raise ModelError(f"the last linear layer {head(own)} does not make the {classes} outputs; DRM replaces it")
        made = DomainHeads(own, len(parts), classes, wide, self.weight, self.gamma).to(features)
        with torch.no_grad():
            for each in made.heads:
                each.weight.copy_(layer.weight)  # type: ignore[union-attr,operator]
                each.bias.copy_(0 if layer.bias is None else layer.bias)  # type: ignore[union-attr,operator]
        return made

    def _train(self, made: DomainHeads, parts: Mapping[str, Data], run: Run) -> None:
        """Train in place."""
        unused = f"model.{head(made.model)}."
        learnt = {
            name: p.requires_grad_(True)
            for name, p in made.named_parameters()
            if name.startswith("heads.") or (self.learn == "all" and not name.startswith(unused))
        }
        made.train()
        if self.learn == "heads":
            made.model.eval()

        def losses(batches: Mapping[str, Batch], now: Run) -> dict[str, Tensor]:
            features = made.features_of(there(cat([batch.x for batch in batches.values()]), made))
            labels = torch.cat([batch.labels for batch in batches.values()]).to(features.device)
            sizes = [len(batch) for batch in batches.values()]
            found = {"pooled": F.cross_entropy(made.heads[-1](features), labels)}
            parted = zip(batches, features.split(sizes), labels.split(sizes), made.heads, strict=False)
            return found | {name: F.cross_entropy(each(part), y) for name, part, y, each in parted}

        train(made, losses, parts, learnt, self.recipe, run=run)

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        made = fork(kit).eval()
        return made if self.steer == "none" else DRMOnline(made, self.steer, self.steering)


def _check_alike(parts: Mapping[str, Data]) -> None:
    """Samples of all domains go through the encoder as one batch."""
    kinds = {
        name: [(leaf, t.dtype, tuple(t.shape[1:])) for leaf, t in named_leaves(part.fetch(torch.arange(1)).x, "x")]
        for name, part in parts.items()
    }
    first = next(iter(kinds))
    for name, kind in kinds.items():
        if kind != kinds[first]:
            raise InputError(
                f"samples of parts.{name} are {kind}, those of parts.{first} {kinds[first]}; give all domains one shape"
            )


@torch.no_grad()
def _measure(made: DomainHeads, trained: Mapping[str, Data], held: Mapping[str, Data]) -> None:
    """Mean features of the domains, and scales that make the heads honest; in place."""
    made.eval()
    templates: Any = made.templates
    scales: Any = made.scales
    each = [torch.cat([made.features_of(there(b.x, made)) for b in part.batches(256)]) for part in trained.values()]
    for domain, features in enumerate([*each, torch.cat(each)]):
        templates[domain] = features.mean(0)
    left = [torch.cat([made.features_of(there(b.x, made)) for b in part.batches(256)]) for part in held.values()]
    labels = [part.all_labels() for part in held.values()]
    for domain, (features, y) in enumerate(zip([*left, torch.cat(left)], [*labels, torch.cat(labels)], strict=True)):
        scales[domain] = honest_scale(home(made.heads[domain](features)).double(), y)
