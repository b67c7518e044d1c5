"""ViDA: a narrow and a wide adapter beside each linear layer, weighed by how unsure the network is.

What domains share changes little and fits into few dimensions; what is new needs many. Beside a layer W `[out, in]`
stand two corrections, of low rank r (D `[r, in]`, U `[out, r]`) and of high rank R:

    y = W x + s_low U_low D_low x + s_high U_high D_high x

A teacher that averages a student serves, as in CoTTA. For a batch x `[N, ...]` with classes K:

    u = 0.1 mean over samples and classes of the variance of the teacher's logits over `views` views
    u >= threshold:  s_high = 1 + u, s_low = 1 - u;      else  s_high = 1 - u, s_low = 1 + u
    z' = teacher(x), z = student(x), both with the new scales; p' and p their softmax
    loss = mean 1/2 CE(p' -> p) + 1/2 CE(p -> p')                  or mean CE(p' -> p) when not `symmetric`
    a step on the student: `optimizer` for the network's own weights, `adapter_optimizer` for the adapters
    teacher <- average teacher + (1 - average) student, adapters with `adapter_average`
    student <- start where a draw from Bernoulli(restore) says so

z' is returned. Scales last until the next batch, and `forward` uses them. D starts normal with deviation 1 / r^2, U at
0; then `prepare` trains the adapters alone on the labelled source (`recipe`: cross-entropy, the network frozen). The
paper gives no recipe; three epochs of Adam are ours.

In the authors' code for both data sets the high-rank scale sits behind an `elif` that is never reached, so that s_high
stays 1; `compat=True` does the same. What is computed otherwise is the paper's rule.

Defaults are the authors' for CIFAR-10 on a ViT: ranks 1 and 128, Adam 1e-4 and 1e-5, averages 0.999, threshold 0.2, 10
views, batches of tens. They put adapters on attention layers only: `layers=("*attention*",)` for `SmallViT`. ImageNet:
SGD 5e-7 and 2e-7, adapters averaged at 0.8. Their CIFAR class restores at 0.1; ImageNet does not, and neither do we. A
rank above a layer's size is allowed and adds nothing. A step costs `views` + 2 passes and one backward.

The loss is that of their ImageNet code. On CIFAR they use `symmetric=False`, and that fails: no view enters the loss,
student and teacher start equal, so its gradient is 0 but for rounding, of which Adam makes steps and SGD none.

It fails, too, where logits have another size than the authors': u is a variance of logits, so a network whose logits
are ten times larger is a hundred times as unsure, the scale 1 - u becomes negative, and adapters act backwards. Set
`threshold` by `carry["uncertainty"]`; where that is above 1 this is the wrong method.

>>> net, x, y = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval(), torch.rand(32, 1, 8, 8), torch.arange(32) % 3
>>> vida = ViDA(rank_high=4, views=3)(net, World(source=(x, y)))
>>> vida.observe(x).shape, float(vida.carry["uncertainty"]) > 0
(torch.Size([32, 3]), True)

Reference: Liu et al., ViDA: Homeostatic visual domain adapter for continual test time adaptation, ICLR 2024 (S143).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import annotated_types as at
import torch
from torch import Tensor, nn

from homeostat.adapt.learner import MeanTeacher
from homeostat.core.data import Batch
from homeostat.core.errors import NonFiniteError
from homeostat.core.fork import fork, targets
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Bag
from homeostat.core.part import Part, replace
from homeostat.core.random import generator
from homeostat.core.run import Run
from homeostat.core.spec import Count, Fraction, NonNegative
from homeostat.core.tree import Tree
from homeostat.core.world import World
from homeostat.fit.fit import Fit
from homeostat.fit.training import Recipe
from homeostat.nn.augment import RandomViews
from homeostat.nn.losses import soft_cross_entropy, symmetric_cross_entropy
from homeostat.nn.low_rank_layers import low_rank, new_factors
from homeostat.nn.norms import batch_statistics
from homeostat.nn.optimizers import Adam, Optimizer
from homeostat.nn.restoring import random_masks, restore_into
from homeostat.nn.views import view_outputs

_ADAPTER, _SCALES = "vida_", ("low_scale", "high_scale")


class ViDALayer(Part):
    """A linear or convolution layer with a correction of low rank and one of high rank.

    Args:
        layer: `nn.Linear` or `nn.Conv1d/2d` with one group.
        rank_low, rank_high: of the corrections.
    """

    def __init__(self, layer: nn.Module, rank_low: int = 1, rank_high: int = 128):
        super().__init__()
        self.layer, self.rank_low, self.rank_high = layer, rank_low, rank_high
        self.vida_low_down, self.vida_low_up = (nn.Parameter(t) for t in new_factors(layer, rank_low))
        self.vida_high_down, self.vida_high_up = (nn.Parameter(t) for t in new_factors(layer, rank_high))
        self.low_scale: Tensor
        self.high_scale: Tensor
        self.register_buffer("low_scale", self.vida_low_up.new_ones(()))
        self.register_buffer("high_scale", self.vida_low_up.new_ones(()))

    def start(self, draws: torch.Generator) -> None:
        """Draw what goes down; what goes up is zero."""
        with torch.no_grad():
            for down, rank in ((self.vida_low_down, self.rank_low), (self.vida_high_down, self.rank_high)):
                down.copy_(torch.randn(down.shape, generator=draws, dtype=torch.float64) / rank**2)

    def forward(self, x: Tensor) -> Tensor:
        low = low_rank(self.layer, x, self.vida_low_down, self.vida_low_up)
        high = low_rank(self.layer, x, self.vida_high_down, self.vida_high_up)
        return self.layer(x) + self.low_scale * low + self.high_scale * high


class ViDAOnline(MeanTeacher):
    """A teacher with adapters that serves; the student is in `carry`, the scales are the layers' own.

    Args:
        model: a network with `ViDALayer`s, BatchNorm already set to the batch's statistics; it becomes the teacher.
        optimizer, adapter_optimizer, average, adapter_average, threshold, views, augment, symmetric, compat: see
            `ViDA`.
        restoring: share of the student's elements that go back at each step.
        seed: of views and of restored elements.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer = Adam(),
        adapter_optimizer: Optimizer = Adam(),
        average: float = 0.999,
        adapter_average: float = 0.999,
        threshold: float = 0.2,
        views: int = 10,
        augment: RandomViews = RandomViews(),
        restoring: float = 0.0,
        symmetric: bool = True,
        compat: bool = False,
        seed: int = 0,
    ):
        self.adapter_optimizer, self.adapter_average, self.threshold = adapter_optimizer, adapter_average, threshold
        self.views, self.augment, self.restoring, self.symmetric = views, augment, restoring, symmetric
        self.compat, self.seed = compat, seed
        scales = tuple(name for name, _ in model.named_buffers() if name.rpartition(".")[2] in _SCALES)
        super().__init__(model, optimizer, average, own=tuple(n for n, _ in model.named_parameters()), moving=scales)

    def begin(self) -> None:
        super().begin()
        self.carry["uncertainty"] = torch.zeros(())

    def begin_optimizer(self, student: Mapping[str, Tensor]) -> None:
        host, adapters = _apart(student)
        self.optimizer.begin(host, self.carry)
        self.adapter_optimizer.begin(adapters, self.carry, "adapters")

    def update(self, student: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        host, adapters = _apart(student)
        self.optimizer.update(host, gradients, self.carry)
        self.adapter_optimizer.update(adapters, gradients, self.carry, "adapters")

    def rates(self, student: Mapping[str, Tensor]) -> list[tuple[float, list[str]]]:
        host, adapters = _apart(student)
        return [(self.average, list(host)), (self.adapter_average, list(adapters))]

    def adapt(self, batch: Batch) -> Tensor:
        step = self.step
        self._weigh(self.uncertainty(batch.x, step))
        target, student = self.teacher_says(batch.x), self.student()
        logits = self.student_says(student, batch.x)
        each = symmetric_cross_entropy(target, logits) if self.symmetric else soft_cross_entropy(target, logits)
        self.learn_from(each.mean(), student)
        if self.restoring:
            restore_into(student, self.anchor(), self.masks(step))
        return target

    def views_of(self, x: Tree, step: int) -> Iterator[Tensor]:
        """The views of a batch at a step, one after another."""
        draws = generator(self.seed, "ViDA.views", step)
        for _ in range(self.views):
            yield self.augment(x, draws)  # type: ignore[arg-type]

    def masks(self, step: int) -> dict[str, Tensor]:
        """For each tensor that learns, random elements at the rate of `restoring`."""
        like = {name: t for name, t in self.anchor().items() if name not in self.moving}
        return random_masks(like, self.restoring, generator(self.seed, "ViDA.restore", step))

    @torch.no_grad()
    def uncertainty(self, x: Tree, step: int) -> Tensor:
        """u of a batch, under the scales as they are."""
        return 0.1 * view_outputs(self.model, self.views_of(x, step)).var(0).mean()

    @torch.no_grad()
    def _weigh(self, unsure: Tensor) -> None:
        if not bool(torch.isfinite(unsure)):
            raise NonFiniteError(
                f"the views' logits vary by {float(unsure)}; nothing was learnt. Look at the inputs and learning rates"
            )
        self.carry["uncertainty"] = unsure
        high = 1 + unsure if unsure >= self.threshold else 1 - unsure
        kept = {"low_scale": 2 - high, "high_scale": torch.ones_like(high) if self.compat else high}
        owned, student = self.owned(), self.carry.under("student")
        for name in self.moving:
            for tensors in (owned, student):
                tensors[name].copy_(kept[name.rpartition(".")[2]])


def _apart(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The network's own tensors, and the adapters'."""
    adapters = {name: t for name, t in tensors.items() if name.rpartition(".")[2].startswith(_ADAPTER)}
    return {name: t for name, t in tensors.items() if name not in adapters}, adapters


@dataclass(frozen=True)
class ViDA(Remedy):
    """Homeostatic visual domain adapter: low- and high-rank adapters whose scales follow uncertainty.

    Attributes:
        rank_low, rank_high: of the adapters.
        layers: glob of the layers that get adapters; an error lists the layers when none matches.
        convolutions: also beside convolutions.
        optimizer: of the network's own weights.
        adapter_optimizer: of the adapters.
        average, adapter_average: how much of the teacher stays at each step.
        threshold: uncertainty from which on the wide adapter counts more.
        views: views that uncertainty is taken from.
        augment: how a view is made; images in 0..1.
        restore: share of the student's elements that go back to the start at each step.
        symmetric: half of the cross-entropy in each direction, as on ImageNet; without it nothing is learnt.
        compat: leave the high-rank scale at 1, as the published code does.
        recipe: how adapters are trained on the source.
    """

    rank_low: Count = 1
    rank_high: Count = 128
    layers: tuple[str, ...] = ("*",)
    convolutions: bool = False
    optimizer: Optimizer = Adam(lr=1e-4)
    adapter_optimizer: Optimizer = Adam(lr=1e-5)
    average: Fraction = 0.999
    adapter_average: Fraction = 0.999
    threshold: NonNegative = 0.2
    views: Annotated[int, at.Ge(2)] = 10
    augment: RandomViews = RandomViews()
    restore: Fraction = 0.0
    symmetric: bool = True
    compat: bool = False
    recipe: Recipe = Recipe(optimizer=Adam(lr=1e-3), epochs=3, batch=128)

    card: ClassVar[Card] = Card(
        id="S143",
        paper="Liu et al., ViDA: Homeostatic Visual Domain Adapter, ICLR 2024",
        handles=frozenset({"covariate"}),
        needs=frozenset({"model.linear"}),
        prepares=frozenset({"source.x", "source.y"}),
        passes=14.0,
        batch_coupled=True,
    )

    def needs(self) -> frozenset[str]:
        return frozenset({"model.parameters"}) if self.convolutions else self.card.needs

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> nn.Module | None:
        if model is None:
            return None
        fit = Fit(recipe=self.recipe, own=f"*{_ADAPTER}*", freeze_stats=True)
        trained = fit.apply(self.inject(model, run), world, None, run.replace(scratch=None))
        return Bag(_apart(dict(trained.named_parameters()))[1])

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        made = self.inject(batch_statistics(model), run)
        adapters = _apart(dict(made.named_parameters()))[1]
        with torch.no_grad():
            for name, tensor in adapters.items():
                tensor.copy_(kit[name])
        return ViDAOnline(
            made, self.optimizer, self.adapter_optimizer, self.average, self.adapter_average, self.threshold,
            self.views, self.augment, self.restore, self.symmetric, self.compat, run.seed,
        )  # fmt: skip

    def inject(self, model: nn.Module, run: Run = Run()) -> nn.Module:
        """A fork with adapters that change nothing yet beside the layers."""
        made = fork(model)
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d) if self.convolutions else (nn.Linear,)
        found = {"": made} if isinstance(made, kinds) else targets(made, self.layers, kinds)
        for name, layer in found.items():
            adapted = ViDALayer(layer, self.rank_low, self.rank_high)
            adapted.start(run.rng("ViDA.adapters", name))
            if not name:
                return adapted
            replace(made, name, adapted)
        return made
