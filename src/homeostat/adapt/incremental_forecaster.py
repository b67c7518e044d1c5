"""Incremental forecaster: refit a network every so many samples on the last window of what came.

The plain way to keep a forecaster up to date, and the baseline of the study on liquid networks for link loads: predict,
store the truth when it arrives, and every P samples train the network on the last `window` of them. Targets come in
`batch.y`; a sample whose target is not known (NaN, or -100 for classes) is predicted and not stored. A prediction costs
a pass, and learning `epochs` passes and backward passes over the window every P samples: by default 30 passes a sample.

    window <- last `window` labelled samples
    when P labelled samples have come since the last refit:  theta <- train(theta, window)

`fresh=True` begins each refit at the first weights instead of the present ones. Refits run through `fit`, on all
parameters, with layers in training mode; the seed of a refit is that of the run and its number, so that a saved and
loaded forecaster continues as if it had not stopped. The task is the world's: `Regress` for forecasts, any other works.

Defaults are ours: P = 96 samples, a window of 192, five epochs of Adam.

It fails between a sudden shift and the next refit, when it predicts what no longer holds; and a refit soon after the
shift learns from a window most of which is the past. A small P follows faster, on less data and at a higher cost. A
recurrent network with input-dependent time constants (`homeostat.nn.Recurrent`, cells `cfc` and `ltc`) is what the
study sets against it.

>>> import torch
>>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
>>> made = IncrementalForecaster(every=32, window=64)(nn.Linear(2, 1), World(task=Regress()))
>>> pairs = [(part, part.sum(1, keepdim=True)) for part in x.split(16)]
>>> errors = [(made.observe(Batch(part, y)) - y).abs().mean() for part, y in pairs]
>>> bool(errors[3] < errors[1])
True

Reference: the study of liquid networks against incremental learning for link-load prediction (S040); cells in
`homeostat.nn.liquid`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from homeostat.core.data import Batch, Tensors
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Online
from homeostat.core.place import device_of
from homeostat.core.random import seed_for
from homeostat.core.run import Run
from homeostat.core.spec import Count
from homeostat.core.task import Classify, Regress as Regress, Task
from homeostat.core.tree import Tree
from homeostat.core.world import World
from homeostat.fit.objective import Supervised
from homeostat.fit.training import Recipe, train
from homeostat.nn.banks import Ring, as_rows, as_tree
from homeostat.nn.optimizers import Adam


class IncrementalOnline(Online):
    """A network that is refitted on a window while it serves.

    Args:
        model: the network; all of it may change.
        task: what outputs and targets mean.
        every, window, fresh, recipe: see `IncrementalForecaster`.
        seed: of the order of training.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task = Classify(),
        every: int = 96,
        window: int = 192,
        fresh: bool = False,
        recipe: Recipe = Recipe(optimizer=Adam(), epochs=5, batch=32),
        seed: int = 0,
    ):
        super().__init__(model, own="*")
        self.task, self.every, self.window, self.fresh = task, every, window, fresh
        self.recipe, self.seed = recipe, seed
        self.begin()

    def begin(self) -> None:
        self.carry["waiting"], self.carry["refits"] = torch.tensor(0), torch.tensor(0)

    @property
    def refits(self) -> int:
        """How often it was refitted."""
        return int(self.carry["refits"])

    def adapt(self, batch: Batch) -> Tree:
        with torch.no_grad():
            out = self.model(batch.x)
        self.task.check(out, batch.y)
        if batch.y is None:
            return out
        known = self.task.known(batch.y)
        left = batch[known]
        while len(left):
            # A large batch may pass the time of a refit, which then sees what had come by then.
            room = self.every - int(self.carry["waiting"])
            now, left = left[:room], left[room:]
            Ring(self.window).add(self.carry, as_rows(now.x, "x") | as_rows(now.y, "y"))  # type: ignore[arg-type]
            self.carry["waiting"] += len(now)
            if int(self.carry["waiting"]) >= self.every:
                self._refit(batch)
        return out

    def _refit(self, like: Batch) -> None:
        rows = Ring(self.window).rows(self.carry)
        x, y = (as_tree(tree, name, rows) for name, tree in (("x", like.x), ("y", like.y)))  # type: ignore[arg-type]
        if self.fresh:
            with torch.no_grad():
                anchor = self.anchor()
                for name, tensor in self.owned().items():
                    tensor.copy_(anchor[name])
        objective, device = Supervised(), device_of(self.model)
        self.model.train()

        def losses(batches: Mapping[str, Batch], now: Run) -> Mapping[str, Tensor]:
            moved = {name: part.to(device) for name, part in batches.items()}
            return objective.losses(self.model, moved, self.task, None, now)

        parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        run = Run(seed=seed_for(self.seed, "IncrementalForecaster", self.refits))
        train(self.model, losses, {"source": Tensors(x, y)}, parameters, self.recipe, run=run)
        self.model.eval()
        self.carry["waiting"], self.carry["refits"] = torch.tensor(0), self.carry["refits"] + 1


@dataclass(frozen=True)
class IncrementalForecaster(Remedy):
    """Refits on the last window, every so many samples.

    Attributes:
        every: labelled samples between refits, P.
        window: labelled samples that are kept and trained on.
        fresh: begin each refit at the first weights.
        recipe: how a refit trains.
    """

    every: Count = 96
    window: Count = 192
    fresh: bool = False
    recipe: Recipe = Recipe(optimizer=Adam(), epochs=5, batch=32)

    card: ClassVar[Card] = Card(
        id="S040",
        paper="Liquid networks against incremental learning for link-load prediction",
        handles=frozenset({"covariate", "concept"}),
        needs=frozenset({"model.parameters"}),
        passes=31.0,
    )

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        made = IncrementalOnline(model, world.task, self.every, self.window, self.fresh, self.recipe, run.seed)
        for name, parameter in made.model.named_parameters():
            parameter.requires_grad_(model.get_parameter(name).requires_grad)
        return made
