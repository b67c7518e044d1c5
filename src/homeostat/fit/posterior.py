"""What training leaves undecided: a Gaussian over weights, from where they wander when training goes on.

A network that is trained on with a large, constant learning rate moves among weights that are about equally good. SWAG
looks at it now and then, theta_1 .. theta_S, and takes mean and variance of each weight by itself:

    mean = 1/S sum_s theta_s,      variance = 1/S sum_s theta_s^2 - mean^2,      not below 0

in float64, for the two terms of the variance are nearly equal. The first epoch is not looked at; over the rest the
looks are spread evenly, and the last is at the end.

Defaults are those of PETAL's code for CIFAR-10, five epochs of 200 samples a step with momentum 0.9, weight decay 5e-4
and a look after each epoch but the first, except for the learning rate: here it rises from 8e-4 to 0.01 in a straight
line over the first three epochs; there it stays at 8e-4 for two, and is 0.0039, 0.0069 and 0.01 in the others. Four
looks are few: a variance has a relative error of about 80 %. When a budget ends training before the first look there is
nothing to go by, and that is an error.

>>> from homeostat.core.world import World
>>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
>>> world = World(source=(x, (x[:, 0] > 0).long()))
>>> found = SWAG().fit(nn.Linear(2, 2), world, ("weight",))
>>> found.mean["weight"].shape, bool((found.variance["weight"] >= 0).all())
(torch.Size([2, 2]), True)

Reference: Maddox et al., A simple baseline for Bayesian uncertainty in deep learning, NeurIPS 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from homeostat.core.data import Batch
from homeostat.core.errors import InputError, MissingPart
from homeostat.core.fork import fork
from homeostat.core.place import device_of
from homeostat.core.run import Run
from homeostat.core.spec import Count, Spec
from homeostat.core.world import World
from homeostat.fit.fit import part_of
from homeostat.fit.objective import Objective, Supervised
from homeostat.fit.training import Ramp, Recipe, train
from homeostat.nn.optimizers import SGD


@dataclass(frozen=True)
class Posterior:
    """A Gaussian with a diagonal covariance.

    Attributes:
        mean, variance: by the weights' names.
    """

    mean: Mapping[str, Tensor]
    variance: Mapping[str, Tensor]


@dataclass(frozen=True)
class SWAG(Spec):
    """Mean and variance of weights while training goes on (diagonal SWAG).

    Attributes:
        recipe: how it goes on.
        looks: how often the weights are taken.
        objective: what it is trained on.
    """

    recipe: Recipe = Recipe(
        optimizer=SGD(lr=0.01, momentum=0.9, weight_decay=5e-4), schedule=Ramp(0.08, 0.6), epochs=5, batch=200
    )
    looks: Count = 4
    objective: Objective = Supervised()

    def fit(self, model: nn.Module, world: World, names: Sequence[str], run: Run = Run()) -> Posterior:
        """The Gaussian around a trained network's weights.

        Args:
            model: a trained network; it is not changed, all its parameters are trained on in a fork.
            world: with what the objective needs.
            names: of the parameters wanted.
            run: seed and watcher.
        """
        own = fork(model, own="*").train()
        parameters = {name: parameter.requires_grad_(True) for name, parameter in own.named_parameters()}
        moments = Moments({name: parameters[name] for name in names})
        data, kit = {}, self.objective.prepare(model, world, run)
        for name in self.objective.inputs():
            part = part_of(world, name)
            known = world.task.known(part.all_labels())
            if not bool(known.any()):
                raise MissingPart(f"no label of {name} is known; the posterior is fitted on labelled samples")
            data[name] = part if bool(known.all()) else part[known]

        def losses(batches: Mapping[str, Batch], now: Run) -> Mapping[str, Tensor]:
            moved = {name: batch.to(device_of(own)) for name, batch in batches.items()}
            return self.objective.losses(own, moved, world.task, kit, now)

        def look(step: int, per_epoch: int) -> None:
            steps, first = self.recipe.epochs * per_epoch, per_epoch if self.recipe.epochs > 1 else 0
            if step >= first and _passed(step + 1 - first, steps - first, self.looks):
                moments.add(parameters)

        train(own, losses, data, parameters, self.recipe, run=run, after=look)
        if not moments.count:
            raise InputError(
                "the run's budget ended training before weights were looked at for the first time, so there is no "
                "posterior; give more seconds, or train on for fewer epochs"
            )
        return moments.posterior()


def _passed(done: int, all_: int, looks: int) -> bool:
    """Whether one of `looks` evenly spread points, the last of which is the end, lies in this step."""
    return done * looks // all_ > (done - 1) * looks // all_


class Moments:
    """Running means of tensors and of their squares, in float64 where there is such.

    >>> seen = Moments({"w": torch.zeros(1)})
    >>> for value in (1.0, 3.0):
    ...     seen.add({"w": torch.tensor([value])})
    >>> seen.posterior()
    Posterior(mean={'w': tensor([2.])}, variance={'w': tensor([1.])})
    """

    def __init__(self, like: Mapping[str, Tensor]):
        self.like, self.count = {name: t.detach() for name, t in like.items()}, 0
        # Apple's processors have no float64.
        dtype = torch.float32 if any(t.device.type == "mps" for t in like.values()) else torch.float64
        self.first, self.second = ({n: torch.zeros_like(t, dtype=dtype) for n, t in self.like.items()} for _ in "12")

    @torch.no_grad()
    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Take one more look."""
        self.count += 1
        for name in self.like:
            new = tensors[name].to(self.first[name])
            self.first[name] += (new - self.first[name]) / self.count
            self.second[name] += (new.square() - self.second[name]) / self.count

    def posterior(self) -> Posterior:
        """Mean and variance of what was seen, in the tensors' own dtype."""
        variance = {n: (self.second[n] - self.first[n].square()).clamp(min=0).to(t) for n, t in self.like.items()}
        return Posterior({n: self.first[n].to(t) for n, t in self.like.items()}, variance)
