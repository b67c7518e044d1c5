"""PETAL: CoTTA with a posterior over the source's weights, and with the least important weights restored.

Student, teacher, anchor, views and averaging are CoTTA's (see there). Two things differ. The student is drawn to the
mean of a Gaussian over weights, the stronger the surer the source was of a weight; and what goes back to the start is
not drawn by chance, but what mattered least for this batch:

    loss = CE(softmax(z') -> softmax(z)) + prior_weight 1/2 sum_j (theta_j - mean_j)^2 / (var_j + 1e-6)
    F_j = (d loss / d theta_j)^2,    delta = the `quantile` of all F_j, interpolated linearly
    optimiser step, teacher step, then theta_j <- start_j where F_j < delta

F is the square of the batch's gradient, prior included, taken before the step; the comparison is strict, so at quantile
0 nothing is restored. mean and var are only the centre and width of the penalty: student, teacher and anchor start from
the network as it was given, and restoring goes back to it. `prepare` fits them by going on with training on the
labelled source (`fit.SWAG`: diagonal, clamped at 0 from below). `restore="random"` is CoTTA's mask at `restore_rate`;
with it and `prior_weight=0` this is CoTTA, bit for bit, and needs no source.

Defaults are the paper's for CIFAR-10: prior_weight 1e-9, quantile 0.03, and CoTTA's. ImageNet: prior_weight 1e-11,
quantile 0.003, `SGD(lr=0.01)`, `symmetric=True`. prior_weight is small because 1 / (var + 1e-6) is large, and must be
tuned again when the network or its posterior changes. It costs what CoTTA costs, and the quantile of as many numbers
as there are weights.

It fails where CoTTA does. Where a larger share than `quantile` of the gradients is exactly 0 (units that are dead for
the batch), delta is 0, nothing lies below it, and nothing is restored. With a prior_weight that is too large the
student cannot leave the mean, and a posterior from badly tuned training draws it to a worse network than the given one.

>>> import torch
>>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
>>> x, y = torch.rand(32, 1, 8, 8), torch.arange(32) % 3
>>> petal = PETAL(views=2)(net, World(source=(x, y)))
>>> petal.observe(x[:16]).shape, bool((petal.carry["fixed.precision.4.weight"] > 0).all())
(torch.Size([16, 3]), True)

Reference: Brahma, Rai, A probabilistic framework for lifelong test-time adaptation, CVPR 2023 (S144).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from homeostat.adapt.cotta import CoTTAOnline
from homeostat.adapt.learner import Learn, learnable
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Bag
from homeostat.core.run import Run
from homeostat.core.spec import Count, Fraction, NonNegative
from homeostat.core.world import World
from homeostat.fit.posterior import SWAG
from homeostat.nn.augment import RandomViews
from homeostat.nn.fisher import weighted_distance
from homeostat.nn.norms import batch_statistics
from homeostat.nn.optimizers import Adam, Optimizer
from homeostat.nn.restoring import smallest_masks

Restore = Literal["fisher", "random"]
_DAMP = 1e-6  # added to every variance


class PETALOnline(CoTTAOnline):
    """CoTTA whose student is drawn to a posterior's mean; mean and precision lie in `carry`, below `fixed`.

    Args:
        model: the starting network, BatchNorm already set to the batch's statistics; it becomes the teacher.
        optimizer, average, threshold, views, augment, symmetric, learn, seed: see `CoTTAOnline`.
        restoring: the share restored when `restore_by` is `"random"`.
        prior_weight, restore_by, quantile: see `PETAL` (`restore` there).
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
        prior_weight: float = 1e-9,
        restore_by: Restore = "fisher",
        quantile: float = 0.03,
    ):
        self.prior_weight, self.restore_by, self.quantile = prior_weight, restore_by, quantile
        super().__init__(model, optimizer, average, restoring, threshold, views, augment, symmetric, learn, seed)

    def drawn(self, loss: Tensor, student: Mapping[str, Tensor]) -> Tensor:
        if self.prior_weight == 0:
            return loss
        mean, precision = self.carry.under("fixed.mean"), self.carry.under("fixed.precision")
        return loss + self.prior_weight * 0.5 * weighted_distance(student, mean, precision)

    def restored(self, step: int, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.restore_by == "random":
            return self.masks(step)
        return smallest_masks({name: gradient.square() for name, gradient in gradients.items()}, self.quantile)


@dataclass(frozen=True)
class PETAL(Remedy):
    """Lifelong test-time adaptation with a source posterior and data-driven restoring.

    Attributes:
        optimizer: of the student.
        average: how much of the teacher stays at each step.
        prior_weight: weight of the pull to the posterior's mean; 0 needs no source.
        restore: `"fisher"`, the elements of the smallest squared gradient; `"random"`, as CoTTA.
        quantile: the share of elements that goes back, by Fisher information.
        restore_rate: the share that goes back, at random.
        threshold: views are made when the anchor's mean confidence is below it; 0 never, above 1 always.
        views: how many.
        augment: how a view is made; images in 0..1.
        symmetric: half of the cross-entropy in each direction, as on ImageNet.
        learn: `"all"`, or `"norm"` for scales and shifts only.
        posterior: how the source's posterior is fitted.
    """

    optimizer: Optimizer = Adam(lr=1e-3)
    average: Fraction = 0.999
    prior_weight: NonNegative = 1e-9
    restore: Restore = "fisher"
    quantile: Fraction = 0.03
    restore_rate: Fraction = 0.01
    threshold: float = 0.92
    views: Count = 32
    augment: RandomViews = RandomViews()
    symmetric: bool = False
    learn: Learn = "all"
    posterior: SWAG = SWAG()

    card: ClassVar[Card] = Card(
        id="S144",
        paper="Brahma and Rai, A Probabilistic Framework for Lifelong Test-Time Adaptation, CVPR 2023",
        handles=frozenset({"covariate"}),
        needs=frozenset({"model.parameters"}),
        prepares=frozenset({"source.x", "source.y"}),
        passes=36.0,
        batch_coupled=True,
    )

    def prepares(self) -> frozenset[str]:
        fitted_on = self.posterior.objective
        return fitted_on.needs() | fitted_on.prepares() if self.prior_weight > 0 else frozenset()

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> nn.Module | None:
        if self.prior_weight == 0 or model is None:
            return None
        found = self.posterior.fit(model, world, learnable(model, self.learn), run.replace(seed=run.seed_for("PETAL")))
        kit = Bag()
        kit.put("mean", found.mean)
        kit.put("precision", {name: 1 / (variance + _DAMP) for name, variance in found.variance.items()})
        return kit

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        made = PETALOnline(
            batch_statistics(model), self.optimizer, self.average, self.restore_rate, self.threshold, self.views,
            self.augment, self.symmetric, self.learn, run.seed, self.prior_weight, self.restore, self.quantile,
        )  # fmt: skip
        if self.prior_weight > 0:
            for name in kit:
                made.carry[f"fixed.{name}"] = kit[name].clone()
        return made
