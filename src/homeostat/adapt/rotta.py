"""RoTTA: adapt on streams whose classes come in runs, from a small balanced memory of what was seen.

Methods that learn from a batch as it comes need it to hold all classes. Here the network serves with stored
statistics, and learns from a bank of `capacity` samples that holds classes alike and, of each, young samples that the
teacher is sure of (`nn.Balanced`; a sample of age a and entropy u goes first when
timeliness / (1 + exp(-a / capacity)) + uncertainty u / log K is highest). For a batch x of any order:

    z = teacher(x), with stored statistics: what is served
    each sample enters the bank with its predicted class and entropy; after every `frequency` samples a step on the bank
    (x_i, a_i), i = 1..M, with a view x' of it:

    mean, var <- (1 - momentum) stored + momentum of the bank         of each BatchNorm, student and teacher apart
    loss = mean over i of w_i CE(softmax(teacher(x_i)) -> softmax(student(x'_i))),  w_i = 1 / (1 + exp(a_i / capacity))
    teacher <- average teacher + (1 - average) student                scales and shifts of norm layers

In a step both networks normalise with the statistics just moved; gradients go through the bank's share of them. Served
outputs do not depend on the batch, so a batch of one is as good as any, and before the first step the network is the
given one exactly. Networks without BatchNorm keep their norm layers as they are and learn their scales and shifts,
where the authors' code learns nothing. That code takes the logarithm of p + 1e-6 for the entropy; here it is exact.

Defaults are the authors' for CIFAR-10: capacity and frequency 64, momentum 0.05, average 0.999, Adam 1e-3. A step costs
a student and a teacher pass over the bank, whatever the batch; `carry` holds the images of the bank.

It fails when the world changes at once: statistics move by a twentieth in 64 samples, so that for hundreds of samples
it serves with those of before, where a network on the batch's own statistics follows within one batch. It learns
nothing from a stream shorter than `frequency`, and predicted classes that are wrong fill the bank with wrong classes.

>>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
>>> rotta, x = RoTTA(capacity=8, frequency=8)(net), torch.rand(20, 1, 8, 8)
>>> bool((rotta.observe(x) == net(x)).all()), rotta.step, rotta.bank(3).held(rotta.carry) <= 8
(True, 2, True)

Reference: Yuan, Xie, Li, Robust test-time adaptation in dynamic scenarios, CVPR 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from homeostat.adapt.learner import MeanTeacher
from homeostat.core.data import Batch
from homeostat.core.fork import fork
from homeostat.core.method import Card, Remedy
from homeostat.core.random import generator
from homeostat.core.run import Run
from homeostat.core.spec import Count, Fraction, NonNegative
from homeostat.core.world import World
from homeostat.nn.augment import RandomViews, check_pixels
from homeostat.nn.banks import Balanced
from homeostat.nn.losses import soft_cross_entropy, softmax_entropy
from homeostat.nn.norms import BATCHNORMS, batchnorm_statistics, blend_batchnorm, moving_statistics, norm_affine
from homeostat.nn.optimizers import Adam, Optimizer


class RoTTAOnline(MeanTeacher):
    """A teacher on moving statistics that serves; the student and the bank are in `carry`.

    Args:
        model: a network with norm layers, BatchNorm already a blend that trusts the stored statistics.
        optimizer, average, capacity, frequency, momentum, timeliness, uncertainty, augment: see `RoTTA`.
        seed: of views.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer = Adam(),
        average: float = 0.999,
        capacity: int = 64,
        frequency: int = 64,
        momentum: float = 0.05,
        timeliness: float = 1.0,
        uncertainty: float = 1.0,
        augment: RandomViews = RandomViews(),
        seed: int = 0,
    ):
        self.capacity, self.frequency, self.momentum = capacity, frequency, momentum
        self.timeliness, self.uncertainty, self.augment, self.seed = timeliness, uncertainty, augment, seed
        super().__init__(model, optimizer, average, own=norm_affine(model), moving=batchnorm_statistics(model))

    def bank(self, classes: int) -> Balanced:
        """The bank, whose rows lie in `carry`."""
        return Balanced(self.capacity, "bank", classes, self.timeliness, self.uncertainty)

    def adapt(self, batch: Batch) -> Tensor:
        check_pixels(batch.x)  # type: ignore[arg-type]
        x: Tensor = batch.x  # type: ignore[assignment]
        logits = self.teacher_says(x)
        labels, entropy = logits.argmax(1), softmax_entropy(logits)
        bank, start = self.bank(logits.shape[1]), 0
        while start < len(x):
            room = self.frequency - bank.seen(self.carry) % self.frequency
            rows = slice(start, min(start + room, len(x)))
            bank.add(self.carry, {"x": x[rows]}, labels[rows], entropy[rows])
            start = rows.stop
            if bank.seen(self.carry) % self.frequency == 0:
                self._step(bank.rows(self.carry))
        return logits

    def view_of(self, x: Tensor, step: int) -> Tensor:
        """The view of the bank's images at a step."""
        return self.augment(x, generator(self.seed, "RoTTA.view", step))

    def _step(self, rows: dict[str, Tensor]) -> None:
        x, student = rows["x"], self.student()
        weight = torch.sigmoid(-rows["age"].double() / self.capacity).to(x)
        with moving_statistics(self.model, self.momentum):
            taught = self.teacher_says(x)
            logits = self.student_says(student, self.view_of(x, self.step))
        self.learn_from((soft_cross_entropy(taught, logits) * weight).mean(), student)


@dataclass(frozen=True)
class RoTTA(Remedy):
    """Robust test-time adaptation on correlated streams.

    Attributes:
        optimizer: of the student's scales and shifts.
        average: how much of the teacher stays at each step.
        capacity: samples in the bank.
        frequency: samples seen between steps.
        momentum: how far statistics move in a step.
        timeliness, uncertainty: weights of age and entropy in what leaves the bank first.
        augment: how the student's view is made; images in 0..1.
    """

    optimizer: Optimizer = Adam(lr=1e-3)
    average: Fraction = 0.999
    capacity: Count = 64
    frequency: Count = 64
    momentum: Fraction = 0.05
    timeliness: NonNegative = 1.0
    uncertainty: NonNegative = 1.0
    augment: RandomViews = RandomViews()

    card: ClassVar[Card] = Card(
        paper="Yuan et al., Robust Test-Time Adaptation in Dynamic Scenarios, CVPR 2023",
        handles=frozenset({"covariate", "correlated"}),
        needs=frozenset({"model.norm"}),
        passes=5.0,
    )

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        some = any(isinstance(m, BATCHNORMS) for m in model.modules())
        return RoTTAOnline(
            blend_batchnorm(model, blend=1.0) if some else fork(model), self.optimizer, self.average, self.capacity,
            self.frequency, self.momentum, self.timeliness, self.uncertainty, self.augment, run.seed,
        )  # fmt: skip
