"""RMT: a mean teacher with a gentler loss, held near the source by class prototypes and, if wanted, replayed samples.

A student learns from a teacher that averages it, as in CoTTA, with one view in place of thirty-two. Let f = head o g
with features h = g(x), c_k the mean feature of source class k, proj two linear layers with a ReLU between, x' a view
of the batch x `[N, ...]`, and BatchNorm on the statistics of each batch:

    SCE(z, z_t) = -1/2 sum_k t_k log p_k - 1/2 sum_k p_k log t_k,   p = softmax(z), t = softmax(z_t), z_t = teacher(x)
    self-training   mean_n 1/2 SCE(f(x), z_t) + 1/2 SCE(f(x'), z_t)
    contrastive     of the rows proj(c), proj(h), proj(h') of a sample, scaled to length 1, each finds the other two
                    among all 3N - 1 others, at temperature T; c is the prototype of highest cosine with h
    replay          mean cross-entropy of f on a labelled batch of the source
    loss = w_trg self-training + w_con contrastive + w_src replay                one step on the student and proj
    teacher <- average teacher + (1 - average) student                           all weights and biases

What is served is student + teacher, the sum of their logits before the step; `forward` gives the same and changes
nothing. As in the authors' code, parameters of other names (class tokens, position embeddings) stay. Before deployment
`prepare` takes prototypes from the labelled source, and then warms up on `warmup` source inputs without labels: loss
SCE(f(x), teacher(x)), the learning rate rising linearly to its value, the teacher following. Adam's moments of the
warm-up are kept.

The kit holds all that is needed while serving: prototypes, the warmed-up pair, and for replay a uniform sample of
`replay` labelled source images, so memory is bounded and the source may be gone. With `w_src=0` no image is kept: the
source-free variant. With `w_src=0, w_con=0, warmup=0` nothing is prepared, and it is a mean teacher.

Defaults are the authors' for CIFAR-10: Adam 1e-3, batches of 200, average 0.999, T 0.1, projections to 128 numbers,
all weights 1, 50,000 warm-up samples. For ImageNet SGD(lr=0.01), batches of 64. A step costs two student passes with
gradients, one more for replay, and one teacher pass.

It fails on streams in which a batch holds one class, as all that use the batch's statistics do; prototypes and replay
do not help, for the source's batches have statistics of their own.

>>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
>>> x, y = torch.rand(48, 1, 8, 8), torch.arange(48) % 3
>>> rmt = RMT(warmup=64, batch=16)(net, World(source=(x, y)))
>>> bool(torch.allclose(rmt(x[:16]), rmt.observe(x[:16]), atol=1e-5)), rmt.observe(x[:16]).shape
(True, torch.Size([16, 3]))

Reference: Döbler, Marsden, Yang, Robust mean teacher for continual and gradual test-time adaptation, CVPR 2023 (S057).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.adapt.learner import MeanTeacher, logits_of
from homeostat.core.data import UNKNOWN, Batch, Data
from homeostat.core.errors import MissingPart
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Bag
from homeostat.core.place import there
from homeostat.core.random import generator
from homeostat.core.run import Run
from homeostat.core.spec import Count, Fraction, Index, NonNegative, Positive
from homeostat.core.taps import tapped
from homeostat.core.tree import Tree
from homeostat.core.world import World
from homeostat.fit.training import Cosine, Recipe, train
from homeostat.nn.augment import RandomViews, check_pixels
from homeostat.nn.losses import contrastive_loss, symmetric_cross_entropy
from homeostat.nn.norms import batch_statistics
from homeostat.nn.optimizers import Adam, Optimizer, gradients_of
from homeostat.nn.prototypes import class_prototypes

_MOST = 100_000  # source samples that prototypes are taken from


class RMTOnline(MeanTeacher):
    """Student and teacher that serve together; the student in `carry`, prototypes and replayed samples below `fixed`.

    Args:
        model: the starting network, BatchNorm already set to the batch's statistics; it becomes the teacher.
        optimizer, average, temperature, w_src, w_trg, w_con, alpha, batch, augment, layer: see `RMT`.
        seed: of views and of what is replayed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer = Adam(),
        average: float = 0.999,
        temperature: float = 0.1,
        w_src: float = 1.0,
        w_trg: float = 1.0,
        w_con: float = 1.0,
        alpha: float = 0.5,
        batch: int = 200,
        augment: RandomViews = RandomViews(),
        layer: str = "",
        seed: int = 0,
    ):
        self.temperature, self.w_src, self.w_trg, self.w_con = temperature, w_src, w_trg, w_con
        self.alpha, self.batch, self.augment, self.layer, self.seed = alpha, batch, augment, layer, seed
        super().__init__(model, optimizer, average)

    def take(self, kit: Bag) -> None:
        """Start from what was prepared."""
        with torch.no_grad():
            owned = self.owned()
            for name, tensor in kit.under("teacher").items():
                owned[name].copy_(tensor)
        for name in kit:
            if not name.startswith("teacher."):
                self.carry[name] = kit[name].clone()
        projector = self.carry.under("projector")
        if projector:
            self.optimizer.begin(projector, self.carry, "projecting")
        self.mark()

    def forward(self, x: Tree) -> Tensor:
        """The sum of the student's and the teacher's logits; changes nothing."""
        return self.student_says(self.carry.under("student"), x) + logits_of(self.model(x))

    def adapt(self, batch: Batch) -> Tensor:
        step, student = self.step, self.student()
        projector = {name: t.requires_grad_(True) for name, t in self.carry.under("projector").items()}
        x, seen = batch.x, self.view_of(batch.x, step)
        taught = self.teacher_says(x)
        (logits, *features), (viewed, *others) = (self._says(student, images, bool(projector)) for images in (x, seen))
        own = 0.5 * (self._gap(taught, logits) + self._gap(taught, viewed))
        loss = self.w_trg * own.mean()
        if projector:
            nearest = nearest_prototypes(features[0].detach(), self.carry["fixed.prototypes"])
            rows = project(torch.stack([nearest, *features, *others]), projector)
            loss = loss + self.w_con * contrastive_loss(rows, self.temperature)
        if self.w_src > 0:
            loss = loss + self.w_src * self._replayed(student, step)
        self._learn(loss, student, projector)
        return logits.detach() + taught

    def view_of(self, x: Tree, step: int) -> Tensor:
        """The view of a batch at a step."""
        return self.augment(x, generator(self.seed, "RMT.view", step))  # type: ignore[arg-type]

    def replayed(self, step: int) -> tuple[Tensor, Tensor]:
        """The source images and labels that are replayed at a step."""
        x, y = self.carry["fixed.replay.x"], self.carry["fixed.replay.y"]
        chosen = torch.randperm(len(y), generator=generator(self.seed, "RMT.replay", step))[: self.batch].to(y.device)
        return x[chosen], y[chosen]

    def warm(self, source: Data, samples: int, run: Run) -> None:
        """Let student and teacher agree on source inputs, before there is anything to adapt to."""
        positions = torch.arange(samples) % len(source)
        steps = -(-samples // self.batch)

        def losses(batches: Any, now: Run) -> dict[str, Tensor]:
            x = self.laid_out(there(batches["source"].x, self.model))
            return {"agree": self._gap(self.teacher_says(x), self.student_says(self.student(), x)).mean()}

        def follow(step: int, per_epoch: int) -> None:
            self.follow(self.carry.under("student"))

        recipe = Recipe(optimizer=self.optimizer, schedule=Cosine(warmup=steps), batch=self.batch)
        train(self, losses, {"source": source[positions]}, self.student(), recipe, run=run, after=follow,
              carry=self.carry)  # fmt: skip

    def _gap(self, taught: Tensor, logits: Tensor) -> Tensor:
        return symmetric_cross_entropy(taught, logits, self.alpha)

    def _says(self, student: dict[str, Tensor], x: Tree, features: bool) -> tuple[Tensor, ...]:
        """The student's logits and, where they are wanted, features: a network may lack the layer that has them."""
        if not features:
            return (self.student_says(student, x),)
        out, found = tapped(lambda x: self.student_says(student, x), x, self.model, self.layer or None)
        return logits_of(out), found

    def _replayed(self, student: dict[str, Tensor], step: int) -> Tensor:
        x, y = self.replayed(step)
        return F.cross_entropy(self.student_says(student, self.laid_out(x)), y)

    def _learn(self, loss: Tensor, student: dict[str, Tensor], projector: dict[str, Tensor]) -> None:
        moving = student | {f"projector.{name}": tensor for name, tensor in projector.items()}
        gradients = gradients_of(loss, moving)
        self.optimizer.update(student, gradients, self.carry)
        if projector:
            own = {name: gradients[f"projector.{name}"] for name in projector}
            self.optimizer.update(projector, own, self.carry, "projecting")
            for tensor in projector.values():
                tensor.requires_grad_(False)
        self.follow(student)


def nearest_prototypes(features: Tensor, prototypes: Tensor) -> Tensor:
    """For each row of features `[n, width]` the prototype of highest cosine similarity, `[n, width]`."""
    similarity = F.normalize(features, dim=1) @ F.normalize(prototypes, dim=1).T
    return prototypes[similarity.argmax(1)]


def project(rows: Tensor, projector: dict[str, Tensor]) -> Tensor:
    """Two linear layers with a ReLU between, on the last dimension."""
    hidden = F.linear(rows, projector["first.weight"], projector["first.bias"]).relu()
    return F.linear(hidden, projector["second.weight"], projector["second.bias"])


def _new_projector(width: int, size: int, like: Tensor, draws: torch.Generator) -> dict[str, Tensor]:
    """Starting weights: uniform up to 1 / sqrt(inputs), as PyTorch's linear layers start."""
    made = {}
    for name, inputs in (("first", width), ("second", size)):
        for leaf, shape in (("weight", (size, inputs)), ("bias", (size,))):
            noise = torch.rand(shape, generator=draws, dtype=torch.float64)
            made[f"{name}.{leaf}"] = ((2 * noise - 1) * inputs**-0.5).to(like)
    return made


@dataclass(frozen=True)
class RMT(Remedy):
    """Robust mean teacher: symmetric cross-entropy, prototypes, warm-up and replay.

    Attributes:
        optimizer: of the student and the projector.
        average: how much of the teacher stays at each step.
        temperature: T of the contrastive loss.
        projection: how many numbers features are projected to for it.
        w_src: weight of replay; 0 keeps no source image.
        w_trg: weight of self-training.
        w_con: weight of the contrastive loss; 0 needs no prototypes.
        alpha: weight of the direction student -> teacher in SCE; 0 is plain cross-entropy.
        warmup: source samples to warm up on, repeated where there are fewer; 0 for none.
        batch: source samples in a step of warm-up and of replay, best as many as test batches have.
        replay: labelled source samples kept for replay, at most.
        augment: how the view is made; images in 0..1.
        layer: dotted name of the layer whose input are the features; empty for the last linear layer.
    """

    optimizer: Optimizer = Adam(lr=1e-3)
    average: Fraction = 0.999
    temperature: Positive = 0.1
    projection: Count = 128
    w_src: NonNegative = 1.0
    w_trg: NonNegative = 1.0
    w_con: NonNegative = 1.0
    alpha: Fraction = 0.5
    warmup: Index = 50_000
    batch: Count = 200
    replay: Count = 2000
    augment: RandomViews = RandomViews()
    layer: str = ""

    card: ClassVar[Card] = Card(
        id="S057",
        paper="Döbler et al., Robust Mean Teacher for Continual and Gradual Test-Time Adaptation, CVPR 2023",
        handles=frozenset({"covariate"}),
        needs=frozenset({"model.parameters"}),
        prepares=frozenset({"source.x", "source.y"}),
        passes=10.0,
        batch_coupled=True,
    )

    def prepares(self) -> frozenset[str]:
        if self.w_con > 0 or self.w_src > 0:
            return self.card.prepares
        return frozenset({"source.x"}) if self.warmup else frozenset()

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> nn.Module | None:
        if model is None or world.source is None:
            return None
        online, source, kit = self._online(model, run.seed), world.source.shuffle(run.rng("RMT.source")), Bag()
        if self.w_con > 0:
            some = source[:_MOST]
            prototypes = class_prototypes(online.model, some, self.layer or None, self.batch)
            kit["fixed.prototypes"] = prototypes
            width, draws = prototypes.shape[1], run.rng("RMT.projector")
            kit.put("projector", _new_projector(width, self.projection, prototypes, draws))
        if self.w_src > 0:
            known = source.all_labels() != UNKNOWN
            if not bool(known.any()):
                raise MissingPart("replay needs labelled source samples, and no label is known; leave it out: w_src=0")
            kept = source[torch.nonzero(known).flatten()[: self.replay]].load()
            check_pixels(kept.x)  # type: ignore[arg-type]
            kit["fixed.replay.x"] = there(kept.x, online.model)  # type: ignore[assignment]
            kit["fixed.replay.y"] = there(kept.labels, online.model)
        if self.warmup:
            online.warm(source, self.warmup, run.replace(seed=run.seed_for("RMT.warmup")))
            kit.put("teacher", online.owned())
            for prefix in ("student", "optimizer"):
                kit.put(prefix, online.carry.under(prefix))
        return kit

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        made = self._online(model, run.seed)
        if kit is not None:
            made.take(kit)
        return made

    def _online(self, model: nn.Module, seed: int) -> RMTOnline:
        return RMTOnline(
            batch_statistics(model), self.optimizer, self.average, self.temperature, self.w_src, self.w_trg,
            self.w_con, self.alpha, self.batch, self.augment, self.layer, seed,
        )  # fmt: skip
