"""EAR: a frozen encoder that notices new domains and grows a small adaptor for each.

For a device in the field that meets one domain after another, has few labels and must not forget. The network stays
frozen; its features phi `[N, d]`, centred by the source's mean, become hypervectors v = sign(R (phi - mean)) `[N, D]`
with R a fixed random normal matrix. A domain is a bundle (sum of v) for each of its classes:

    s_g = cos(v, bundle_g),   domain = that of argmax_g s_g,   new  <=>  max_g s_g < threshold of that domain

with the threshold at a quantile (5 %) of the domain's own scores, each sample compared with bundles that it is left out
of. Samples that are nearer to a domain from before do not count, as they are never held against this threshold and
would only draw it down. In `observe`, a batch is new when at least `alarm` of its samples are. The labels of new
batches are collected; at `shots` of them the model grows: perceptrons of one to three layers between `band * most` and
`most` parameters are ranked without training, by `proxies` (`homeostat.nn.zero_cost`: activation patterns, gradient
flow). The best is trained on these few features, and stored with the domain's bundles and threshold. Each sample goes
to the adaptor of its own nearest domain, the source's to the network's own head. Adaptors never change again, so that
nothing is forgotten but for samples that the bundles of a newer domain draw to themselves.

Everything that grows lies in `carry`: bundles as whole numbers `[groups, D]`, adaptors in full precision. `forward`
costs one pass and D x d multiply-adds a sample. R is drawn from the seed and not saved.

Defaults: D = 10,000 and the quantile from the published summary; `shots`, `most`, `band`, `alarm` and the recipe are
ours, and so are details that the summary leaves open (one layer's features, ranks averaged over proxies).

It fails where a domain does not move the features it reads: what looks like the source is sent to the source's head
and never grows an adaptor, however wrong the answers are (permuted labels, for one). A domain that
was learnt from few samples has small bundles and a low threshold, and then swallows domains that come later. A stream
that mixes domains within batches hardly raises the alarm. Five percent of familiar samples are called new, and
false alarms with labels add up.

>>> from homeostat.core.check import small_network, small_world
>>> world = small_world()
>>> ear = EAR(dimension=500, shots=16)(small_network(), world)
>>> near = world.target.load()
>>> far = near.replace(x=-9 * near.x)
>>> [bool(ear.detect(batch.x)[0].float().mean() > 0.5) for batch in (near, far)]
[False, True]
>>> _ = ear.observe(far)
>>> ear.domains
2

Reference: Efficient model adaptation for continual learning at the edge (S247).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.adapt.learner import logits_of
from homeostat.core.data import UNKNOWN, Batch, Tensors
from homeostat.core.errors import InputError, SpecError
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Bag, Online
from homeostat.core.place import device_of, there
from homeostat.core.random import seed_for
from homeostat.core.run import Run
from homeostat.core.spec import Count, Fraction
from homeostat.core.taps import tapped
from homeostat.core.task import check_labels
from homeostat.core.tree import Tree
from homeostat.core.world import World
from homeostat.fit.training import Recipe, train
from homeostat.nn.banks import Ring
from homeostat.nn.hyperdimensional import bundled, hypervectors, projection, similarity, unpack_signs
from homeostat.nn.mlp import MLP
from homeostat.nn.optimizers import Adam
from homeostat.nn.zero_cost import activation_diversity, best_by_rank, candidates, gradient_flow, layers_of, perceptron

Proxy = Literal["synflow", "naswot"]
_KIT = ("mean", "scale", "bundle", "domain", "threshold")


class EAROnline(Online):
    """A frozen network with an adaptor for each domain that it has come to know.

    Args:
        model: the classifier.
        features: numbers d that go into its last linear layer (or into `layer`).
        dimension, proxies, most, band, shots, alarm, quantile, largest, layer, recipe: see `EAR`.
        seed: of the projection and of adaptors.
    """

    def __init__(
        self,
        model: nn.Module,
        features: int,
        dimension: int = 10_000,
        proxies: tuple[str, ...] = ("synflow", "naswot"),
        most: int = 5000,
        band: float = 0.5,
        shots: int = 64,
        alarm: float = 0.25,
        quantile: float = 0.05,
        largest: int = 16,
        layer: str = "",
        recipe: Recipe = Recipe(optimizer=Adam(lr=5e-3), epochs=60, batch=32),
        seed: int = 0,
    ):
        super().__init__(model)
        self.features, self.dimension, self.proxies, self.most, self.band = features, dimension, proxies, most, band
        self.shots, self.alarm, self.quantile, self.largest = shots, alarm, quantile, largest
        self.layer, self.recipe, self.seed = layer, recipe, seed
        self.matrix: Tensor
        self.register_buffer("matrix", projection(dimension, features, seed), persistent=False)

    @property
    def domains(self) -> int:
        """How many domains it knows, the source included."""
        return len(self.carry["threshold"])

    def forward(self, x: Tree) -> Tensor:
        """Outputs of each sample's own adaptor."""
        logits, features, _, nearest = self._seen(x)
        return self._routed(logits, features, nearest)

    def detect(self, x: Tree) -> tuple[Tensor, Tensor]:
        """For each sample whether it is new, and its nearest domain."""
        with torch.no_grad():
            _, _, scores, nearest = self._seen(x)
        return scores < self.carry["threshold"][nearest], nearest

    def familiarity(self, x: Tree) -> Tensor:
        """The largest cosine with any bundle, `[batch]`: low where a sample is new."""
        with torch.no_grad():
            return self._seen(x)[2]

    def adapt(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            logits, features, scores, nearest = self._seen(batch.x)
            out = self._routed(logits, features, nearest)
            new = scores < self.carry["threshold"][nearest]
        if batch.y is None:
            return out
        y = batch.labels
        check_labels(y, logits.shape[1], "y", (len(logits),))
        known = y != UNKNOWN
        if float(new.float().mean()) >= self.alarm and bool(known.any()) and self.domains < self.largest:
            pending = Ring(max(self.shots, int(known.sum())), "pending")
            pending.add(self.carry, {"features": features[known], "labels": y[known]})
            if pending.held(self.carry) >= self.shots:
                rows = pending.rows(self.carry)
                self._grow(rows["features"].clone(), rows["labels"].clone(), logits.shape[1])
                pending.clear(self.carry)
        return out

    def _seen(self, x: Tree) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits, features, the largest similarity of each sample and the domain it belongs to."""
        out, features = tapped(self.model, x, self.model, self.layer or None)
        vectors = hypervectors(features.detach(), self.carry["mean"], self.matrix.to(features.device))
        scores, group = similarity(vectors, self._stored()).max(1)
        return logits_of(out), features, scores, self.carry["domain"][group]

    def _stored(self) -> Tensor:
        """The bundles to compare with."""
        kept = self.carry["bundle"]
        return unpack_signs(kept, self.dimension) if kept.dtype == torch.uint8 else kept

    def _routed(self, logits: Tensor, features: Tensor, nearest: Tensor) -> Tensor:
        out = logits
        for domain in nearest.unique().tolist():
            if domain:
                made = perceptron(self.adaptor(domain), self._scaled(features)).to(out)
                out = torch.where((nearest == domain)[:, None], made, out)
        return out

    def adaptor(self, domain: int) -> list[tuple[Tensor, Tensor]]:
        """Weights and biases of a domain's adaptor, layer by layer."""
        kept = self.carry.under(f"adaptor.{domain}")
        return [(kept[f"{i}.weight"], kept[f"{i}.bias"]) for i in range(len(kept) // 2)]

    def _scaled(self, features: Tensor) -> Tensor:
        return (features.to(self.carry["mean"]) - self.carry["mean"]) / self.carry["scale"]

    def _grow(self, features: Tensor, labels: Tensor, classes: int) -> None:
        domain, x = self.domains, self._scaled(features)
        for i, (weight, bias) in enumerate(self._trained(domain, x, labels, classes)):
            self.carry[f"adaptor.{domain}.{i}.weight"], self.carry[f"adaptor.{domain}.{i}.bias"] = weight, bias
        vectors = hypervectors(features, self.carry["mean"], self.matrix.to(features.device))
        elsewhere, bits = similarity(vectors, self._stored()).amax(1), self.carry["bundle"].dtype == torch.uint8
        bundle, threshold = bundled(vectors, labels, self.quantile, bits, elsewhere)
        own = torch.full((len(bundle),), domain, device=bundle.device)
        self.carry["bundle"] = torch.cat([self.carry["bundle"], bundle])
        self.carry["domain"] = torch.cat([self.carry["domain"], own])
        self.carry["threshold"] = torch.cat([self.carry["threshold"], threshold[None]])

    def _trained(self, domain: int, x: Tensor, labels: Tensor, classes: int) -> list[tuple[Tensor, Tensor]]:
        """The adaptor that is best before training, trained."""
        options = candidates(x.shape[1], classes, self.most, self.band)
        starts = [self._start(widths, domain).to(x) for widths in options]
        chosen = starts[best_by_rank([self._scores(layers_of(net), x) for net in starts])]
        data = {"new": Tensors(x, labels)}

        def losses(batches: Mapping[str, Batch], now: Run) -> Mapping[str, Tensor]:
            batch = batches["new"]
            return {"loss": F.cross_entropy(chosen(batch.x), batch.labels)}

        run = Run(seed=seed_for(self.seed, "EAR.adaptor", domain))
        train(chosen.train(), losses, data, dict(chosen.named_parameters()), self.recipe, run=run)
        return [(weight.detach().clone(), bias.detach().clone()) for weight, bias in layers_of(chosen)]

    def _start(self, widths: tuple[int, ...], domain: int) -> MLP:
        return MLP(widths[0], widths[-1], widths[1:-1], seed=seed_for(self.seed, "EAR.start", domain))

    def _scores(self, layers: list[tuple[Tensor, Tensor]], x: Tensor) -> list[float]:
        with torch.no_grad():
            known = {"synflow": lambda: gradient_flow(layers), "naswot": lambda: activation_diversity(layers, x[:64])}
            return [known[name]() for name in self.proxies]


@dataclass(frozen=True)
class EAR(Remedy):
    """A novelty detector of hypervectors and a small adaptor for each new domain.

    Attributes:
        dimension: length D of hypervectors.
        proxies: what ranks adaptors before training, `"synflow"` and `"naswot"`.
        most: parameters of an adaptor at most.
        band: share of `most` that a candidate has at least.
        shots: labelled samples of new batches that make a domain.
        alarm: share of a batch's samples that must be new.
        quantile: share of a domain's own samples that count as new.
        largest: domains at most.
        samples: source samples that are read at most.
        storage: of bundles; `"counts"`, 4 bytes a component, or `"bits"`, their signs alone, 1 bit.
        layer: dotted name of the layer whose input the features are; empty for the last linear layer.
        recipe: how an adaptor is trained.
    """

    dimension: Count = 10_000
    proxies: tuple[Proxy, ...] = ("synflow", "naswot")
    most: Count = 5000
    band: Fraction = 0.5
    shots: Count = 64
    alarm: Fraction = 0.25
    quantile: Fraction = 0.05
    largest: Count = 16
    samples: Count = 2000
    storage: Literal["counts", "bits"] = "counts"
    layer: str = ""
    recipe: Recipe = Recipe(optimizer=Adam(lr=5e-3), epochs=60, batch=32)

    card: ClassVar[Card] = Card(
        id="S247",
        paper="Efficient Model Adaptation for Continual Learning at the Edge",
        handles=frozenset({"covariate", "tasks"}),
        needs=frozenset({"model.linear"}),
        prepares=frozenset({"source.x", "source.y"}),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.proxies:
            raise SpecError("EAR.proxies is empty; name synflow, naswot or both")

    @torch.no_grad()
    def prepare(self, model: nn.Module | None, world: World, run: Run) -> nn.Module | None:
        if model is None or world.source is None:
            return None
        order = torch.randperm(len(world.source), generator=run.rng("EAR.source"))[: self.samples]
        rows, labels = [], []
        for batch in world.source[order].batches(256):
            rows.append(tapped(model, there(batch.x, model), model, self.layer or None)[1])
            labels.append(batch.labels.to(rows[-1].device))
        features, y = torch.cat(rows), torch.cat(labels)
        if len(features) < 2 or not bool((y != UNKNOWN).any()):
            raise InputError("EAR needs at least two source samples with labels")
        features, y = features[y != UNKNOWN], y[y != UNKNOWN]
        exact = features.to(torch.promote_types(features.dtype, torch.float32))
        mean = exact.mean(0)
        matrix = projection(self.dimension, features.shape[1], run.seed).to(features.device)
        bundle, threshold = bundled(hypervectors(exact, mean, matrix), y, self.quantile, self.storage == "bits")
        scale = (exact - mean).square().mean().sqrt().clamp(min=1e-6)
        domain = torch.zeros(len(bundle), dtype=torch.long, device=bundle.device)
        return Bag(dict(zip(_KIT, (mean, scale, bundle, domain, threshold[None]), strict=True)))

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        made = EAROnline(
            model, len(kit["mean"]), self.dimension, self.proxies, self.most, self.band, self.shots, self.alarm,
            self.quantile, self.largest, self.layer, self.recipe, run.seed,
        )  # fmt: skip
        for name in _KIT:
            made.carry[name] = kit[name].clone()
        made.mark()
        made.matrix = made.matrix.to(device_of(model))
        return made
