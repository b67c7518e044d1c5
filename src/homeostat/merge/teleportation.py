"""Teleportation: move a network's weights to where training is faster or flatter, without changing what it computes.

The hidden neurons of two linear layers can be mixed by any invertible matrix if the second layer undoes it
(`nn.linear_pairs`): the loss stays, the gradient does not. Teleportation looks for the mixture at which an objective is
largest (or, with `maximize=False`, smallest), then training goes on from there. With g_i = 1 + T_i for each pair i,
W `g` the weights, a batch of labelled samples and T = 0,

    grad_norm    sum_i ||dL / d(g W)_i||^2, the speed at which a gradient step lowers the loss
    sharpness    mean of L(g W + t d) over random directions d of length 1 and lengths t in `lengths`
    T_i         <-  +- lr d(objective) / dT_i;     W <- g W;     again, `steps` times

    curvature    of the path s -> exp(s M) W at s = 0 for a random matrix M a pair, by its derivatives w', w'':
                 sqrt(|w'|^2 |w''|^2 - (w' . w'')^2) / |w'|^3;   s <- +- lr d(curvature) / ds;   W <- exp(s M) W

What is undone is exact for at most as many samples as the hidden layer has neurons, and approximate beyond; hence a
step that changes the batch's loss by more than `tolerance` of itself is halved until it does not, and after ten times
left out. All pairs move in order, each with the hidden activations that those before it left.

Defaults are those of the official experiments with momentum and Adam: lr 0.05, 10 steps, 200 samples, no further once
the gradient norm is above 100 (for SGD and AdaGrad lr 1e-4, at the start of the third epoch); lengths 0.1 to 0.9, 100
directions, no further above 2. That code draws directions from the positive orthant, does not limit the change of the
loss, and keeps hidden activations of before for later pairs. Optimisers start anew after a teleport, as `Teleporting`
sees to; their moments belong to other weights.

It helps at the start of training of perceptrons; an optimiser that divides each gradient by its own size, as Adam does,
may gain nothing. It finds nothing in networks without a pair (a norm layer between the linear layers, convolutions) and
refuses them. With far more samples than neurons a large lr is all halved away.

>>> x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
>>> net = nn.Sequential(nn.Linear(5, 8), nn.LeakyReLU(0.1), nn.Linear(8, 3))
>>> moved = teleport(net, x, (x[:, 0] > 0).long(), lr=0.5)
>>> moved.values[-1] > moved.values[0], abs(moved.losses[1] / moved.losses[0] - 1) < 0.05
(True, True)

Reference: Zhao, Gower, Walters, Yu, Improving convergence and generalization using parameter symmetries, ICLR 2024.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from homeostat.core.data import Data, check_finite
from homeostat.core.errors import MissingPart
from homeostat.core.fork import fork
from homeostat.core.intake import as_data
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Bag
from homeostat.core.place import HOME, home
from homeostat.core.run import Run
from homeostat.core.spec import Count, NonNegative, Positive
from homeostat.core.task import Classify, Task
from homeostat.core.tree import Tree, map_tree
from homeostat.core.world import World
from homeostat.merge.symmetry_moves import Moving, bend, identity, put, take
from homeostat.nn.linear_pairs import LinearPair, linear_inputs
from homeostat.nn.optimizers import Optimizer

CAPS = {"grad_norm": 100.0, "sharpness": 2.0, "curvature": float("inf")}


class Teleported(NamedTuple):
    """Where a network was moved to.

    Attributes:
        model: the network there.
        losses: on the batch before and after.
        values: of the objective before each step, and after the last but for `"curvature"`, whose paths are drawn anew.
    """

    model: nn.Module
    losses: tuple[float, float]
    values: list[float]


@dataclass(frozen=True)
class Teleport(Remedy):
    """Moves a network with linear layers along its symmetries, on samples of `world.source`.

    Attributes:
        objective: `"grad_norm"`, `"sharpness"` or `"curvature"`.
        maximize: raise the objective, or lower it.
        lr: size of a step along the gradient of the objective.
        steps: how many.
        samples: of the batch.
        cap: no step is made from a larger value; None: 100, 2 and none for the three. Only when raising.
        tolerance: largest change of the batch's loss in a step, as a share of it.
        lengths: of the perturbations for `"sharpness"`.
        directions: how many random ones for it.
    """

    objective: Literal["grad_norm", "sharpness", "curvature"] = "grad_norm"
    maximize: bool = True
    lr: Positive = 5e-2
    steps: Count = 10
    samples: Count = 200
    cap: float | None = None
    tolerance: NonNegative = 0.01
    lengths: tuple[Positive, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    directions: Count = 100

    card: ClassVar[Card] = Card(
        id="S283", paper="Zhao et al., Improving Convergence and Generalization Using Parameter Symmetries, ICLR 2024",
        handles=frozenset({"none"}), needs=frozenset({"source.x", "source.y", "model.linear"}), passes=6.0,
    )  # fmt: skip

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        assert world.source is not None
        found = self.on(model, world.source, world.task, run.rng("teleport"))
        run.emit("teleport", before=found.losses[0], after=found.losses[1], value=found.values[-1])
        return found.model

    def on(self, model: nn.Module, data: Data, task: Task, generator: torch.Generator) -> Teleported:
        """Move a network on a random batch of labelled data; the given one is not changed."""
        known = task.known(data.all_labels())
        rows = known.nonzero().flatten()
        if len(rows) == 0:
            raise MissingPart("teleportation looks at the loss of labelled samples; no label is known")
        batch = data.fetch(rows[torch.randperm(len(rows), generator=generator)[: self.samples]])
        check_finite(batch.x, "x")
        net = fork(model, own="*").to(HOME).double().eval()
        x = map_tree(lambda t: t.double() if t.is_floating_point() else t, home(batch.x))
        y: Any = map_tree(lambda t: t.double() if t.is_floating_point() else t, home(batch.y))  # type: ignore[arg-type]
        task.check(net(x), y)
        moving = Moving(net, x, y, task)
        values = [self._step(moving, generator) for _ in range(self.steps)]
        values = [value for value in values if value is not None]
        if self.objective != "curvature":
            values.append(self._value(moving, moving.weights(), generator).item())
        made = fork(model, own={name for pair in moving.pairs for name in _names(pair)})
        with torch.no_grad():
            for name, tensor in moving.weights().items():
                if not torch.equal(tensor, moving.start[name]):
                    made.get_parameter(name).copy_(tensor)
        return Teleported(made, (moving.loss_at_start, moving.loss().item()), values)

    def _value(self, moving: Moving, weights: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        if self.objective == "grad_norm":
            wanted = [weights[name] for name in moving.trained]
            grads = torch.autograd.grad(moving.loss(weights), wanted, create_graph=True, materialize_grads=True)
            return torch.stack([grad.square().sum() for grad in grads]).sum()
        total = torch.zeros((), dtype=torch.float64)
        for length in self.lengths:
            for _ in range(self.directions):
                noise = {n: torch.randn(w.shape, generator=generator, dtype=w.dtype) for n, w in weights.items()}
                size = torch.stack([e.square().sum() for e in noise.values()]).sum().sqrt()
                total = total + moving.loss({n: w + length / size * noise[n] for n, w in weights.items()})
        return total / (len(self.lengths) * self.directions)

    def _step(self, moving: Moving, generator: torch.Generator) -> float | None:
        sign = self.lr if self.maximize else -self.lr
        if self.objective == "curvature":
            return bend(moving, sign, self.tolerance, generator)
        shifts = [torch.zeros(moving.size(pair), moving.size(pair)).double().requires_grad_() for pair in moving.pairs]
        inputs, weights = linear_inputs(moving.net, moving.x), moving.weights()
        for pair, shift in zip(moving.pairs, shifts, strict=True):
            put(weights, pair, pair.moved(identity(shift) + shift, take(weights, pair), inputs[pair.first], fixed=True))
        value = self._value(moving, weights, generator)
        cap = CAPS[self.objective] if self.cap is None else self.cap
        if self.maximize and value.item() > cap:
            return None
        gradients = torch.autograd.grad(value, shifts)
        moving.go([lambda s, g=g: identity(g) + s * sign * g for g in gradients], self.tolerance)
        return value.item()


def teleport(
    model: nn.Module, x: Tree, y: Tree, *, task: Task = Classify(), seed: int = 0, **settings: Any
) -> Teleported:
    """Move a network on these samples.

    Args:
        model: the network; it is not changed.
        x, y: inputs and labels.
        task: what labels mean.
        seed: of what is drawn.
        settings: fields of `Teleport`.

    Raises:
        ModelError: there is no pair of linear layers. NonFiniteError: the loss is not finite.
    """
    data = as_data((x, y))
    method = Teleport(**{"samples": len(data), **settings})
    return method.on(model, data, task, Run(seed=seed).rng("teleport"))


class Teleporting:
    """Teleports while `fit.train` trains: hand it over as `after`.

    Args:
        model: the network in training; its weights are moved in place.
        data: labelled data that batches for teleporting are drawn from.
        optimizer, carry: of the training; its state starts anew after each teleport.
        teleport: how.
        at: after which steps; default the first eight.
        parameters: what `fit.train` was given; default all that require a gradient.
        run: seed of the batches.
        task: what labels mean.

    Attributes:
        losses: on the batch before and after, for each teleport.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data | Any,
        optimizer: Optimizer,
        carry: Bag,
        teleport: Teleport = Teleport(),
        at: Iterable[int] = range(8),
        parameters: Mapping[str, Tensor] | None = None,
        run: Run = Run(),
        task: Task = Classify(),
    ):
        self.model, self.data, self.optimizer, self.carry = model, as_data(data), optimizer, carry
        self.teleport, self.at, self.run, self.task = teleport, frozenset(at), run, task
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters = dict(trained if parameters is None else parameters)
        self.losses: list[tuple[float, float]] = []

    def __call__(self, step: int, per_epoch: int) -> None:
        if step not in self.at:
            return
        found = self.teleport.on(self.model, self.data, self.task, self.run.rng("teleport", step))
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(found.model.get_parameter(name))
        self.optimizer.begin(self.parameters, self.carry)
        self.losses.append(found.losses)


def _names(pair: LinearPair) -> tuple[str, ...]:
    return tuple(name for name in (pair.first, pair.bias, pair.second) if name is not None)
