"""CoTTA: survive a long sequence of unknown drifts by learning from a slow copy of oneself.

Three copies of a network: a student that learns, a teacher that averages the student and serves, and the anchor, which
is the network as it was given. For a batch x, with BatchNorm on the batch's own statistics in all three:

    z = student(x),    c = mean over the batch of max_k softmax(anchor(x))_k
    z' = mean over i = 1..views of teacher(view_i(x))  if c < threshold,   else teacher(x)
    loss = mean over the batch of CE(softmax(z') -> softmax(z))          one optimiser step on the student
    teacher <- average teacher + (1 - average) student                   all weights and biases
    student <- anchor where a draw from Bernoulli(restore) says so, element by element

z' is returned. Views are only made when the anchor is unsure, which the batch as a whole decides; logits are averaged,
not probabilities; every view has BatchNorm statistics of its own; restoring comes after averaging and leaves the
teacher as it is.

Here the model *is* the teacher: `weights(model)`, saving and merging see what serves. Student and moments lie in
`carry`. `forward(x)` is pure and returns teacher(x) without views, so it differs from what `observe(x)` returns when
views are asked for, and costs one pass. Only parameters named `weight` or `bias` learn and are restored, as in the code
of the paper (class tokens and position embeddings stay). Dropout stays off.

Defaults are the paper's for CIFAR-10: Adam 1e-3, batches of 200, average 0.999, restore 0.01, 32 views, threshold 0.92.
CIFAR-100: threshold 0.72. ImageNet: threshold 0.1, restore 0.001, `SGD(lr=0.01)`, batches of 64, `symmetric=True`. It
costs `views` + 2 passes forward and one backward when the anchor is unsure; use it on batches of tens of images.

It fails on data that the anchor is sure of: without views student and teacher agree, the gradient is 0 but for
rounding, and Adam makes steps of full size out of rounding errors, which only restoring holds back.

>>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
>>> cotta, x = CoTTA(views=2)(net), torch.rand(16, 1, 8, 8)
>>> cotta.observe(x).shape, bool((cotta.model[4].weight == net[4].weight).all())
(torch.Size([16, 3]), False)

Reference: Wang, Fink, Van Gool, Dai, Continual test-time domain adaptation, CVPR 2022 (S094).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from homeostat.adapt.learner import Learn, MeanTeacher
from homeostat.core.data import Batch
from homeostat.core.method import Card, Remedy
from homeostat.core.random import generator
from homeostat.core.run import Run
from homeostat.core.spec import Count, Fraction
from homeostat.core.tree import Tree
from homeostat.core.world import World
from homeostat.nn.augment import RandomViews
from homeostat.nn.losses import soft_cross_entropy, symmetric_cross_entropy
from homeostat.nn.norms import batch_statistics
from homeostat.nn.optimizers import Adam, Optimizer
from homeostat.nn.restoring import random_masks, restore_into
from homeostat.nn.views import view_outputs


class CoTTAOnline(MeanTeacher):
    """A slowly averaged teacher that serves, with its student in `carry`.

    Args:
        model: the starting network, BatchNorm already set to the batch's statistics; it becomes the teacher.
        optimizer, average, restoring, threshold, views, augment, symmetric, learn: see `CoTTA` (`restore` there).
        seed: of views and of restored elements.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer = Adam(),
        average: float = 0.999,
        restoring: float = 0.01,
        threshold: float = 0.92,
        views: int = 32,
        augment: RandomViews = RandomViews(),
        symmetric: bool = False,
        learn: Learn = "all",
        seed: int = 0,
    ):
        self.restoring, self.threshold, self.views = restoring, threshold, views
        self.augment, self.symmetric, self.seed = augment, symmetric, seed
        super().__init__(model, optimizer, average, learn)

    def adapt(self, batch: Batch) -> Tensor:
        step = self.step
        confidence = self.anchor_says(batch.x).softmax(1).amax(1).mean()
        target = self._over_views(batch.x, step) if confidence < self.threshold else self.teacher_says(batch.x)
        student = self.student()
        logits = self.student_says(student, batch.x)
        each = symmetric_cross_entropy(target, logits) if self.symmetric else soft_cross_entropy(target, logits)
        gradients = self.learn_from(self.drawn(each.mean(), student), student)
        restore_into(student, self.anchor(), self.restored(step, gradients))
        return target

    def drawn(self, loss: Tensor, student: Mapping[str, Tensor]) -> Tensor:
        """The loss with whatever draws the student to a place; here nothing does."""
        return loss

    def restored(self, step: int, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Which elements of the student go back to the anchor after a step; here random ones."""
        return self.masks(step)

    def views_of(self, x: Tree, step: int) -> Iterator[Tensor]:
        """The views of a batch at a step, one after another."""
        draws = generator(self.seed, "CoTTA.views", step)
        for _ in range(self.views):
            yield self.augment(x, draws)  # type: ignore[arg-type]

    def masks(self, step: int) -> dict[str, Tensor]:
        """For each owned tensor, random elements at the rate of `restoring`."""
        return random_masks(self.anchor(), self.restoring, generator(self.seed, "CoTTA.restore", step))

    @torch.no_grad()
    def _over_views(self, x: Tree, step: int) -> Tensor:
        return view_outputs(self.model, self.views_of(x, step)).mean(0)


@dataclass(frozen=True)
class CoTTA(Remedy):
    """Continual test-time adaptation by an averaged teacher, views and random restoring.

    Attributes:
        optimizer: of the student.
        average: how much of the teacher stays at each step.
        restore: share of the student's elements that go back to the start at each step.
        threshold: views are made when the anchor's mean confidence is below it; 0 never, above 1 always.
        views: how many.
        augment: how a view is made; images in 0..1.
        symmetric: half of the cross-entropy in each direction, as on ImageNet.
        learn: `"all"`, or `"norm"` for scales and shifts only.
    """

    optimizer: Optimizer = Adam(lr=1e-3)
    average: Fraction = 0.999
    restore: Fraction = 0.01
    threshold: float = 0.92
    views: Count = 32
    augment: RandomViews = RandomViews()
    symmetric: bool = False
    learn: Learn = "all"

    card: ClassVar[Card] = Card(
        id="S094",
        paper="Wang et al., Continual Test-Time Domain Adaptation, CVPR 2022",
        handles=frozenset({"covariate"}),
        needs=frozenset({"model.parameters"}),
        passes=36.0,
        batch_coupled=True,
    )

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return CoTTAOnline(
            batch_statistics(model), self.optimizer, self.average, self.restore, self.threshold, self.views,
            self.augment, self.symmetric, self.learn, run.seed,
        )  # fmt: skip
