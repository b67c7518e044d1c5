"""What training lowers: named losses from named data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.core.data import UNKNOWN, Batch
from homeostat.core.run import Run
from homeostat.core.spec import Fraction, Spec
from homeostat.core.task import Task
from homeostat.core.world import World


class Objective(Spec, abstract=True):
    """Named losses from batches of named data (`"source"`, `"target"`, `"parts.retain"`)."""

    def inputs(self) -> tuple[str, ...]:
        """Which data it takes; an epoch is one pass over the first, the others repeat."""
        return ("source",)

    def needs(self) -> frozenset[str]:
        """What it reads of the world; default inputs and labels of every input."""
        return frozenset(f"{name}.{leaf}" for name in self.inputs() for leaf in "xy")

    def prepares(self) -> frozenset[str]:
        """What `prepare` reads."""
        return frozenset()

    def prepare(self, model: nn.Module, world: World, run: Run) -> nn.Module | None:
        """What must be fitted before training; it is handed to `losses` as `kit`."""
        return None

    @abstractmethod
    def losses(
        self, model: nn.Module, batches: Mapping[str, Batch], task: Task, kit: Any, run: Run
    ) -> dict[str, Tensor]:
        """Scalar losses by name; `run` is this step's, so that draws from it are the same after a resume."""


@dataclass(frozen=True)
class Supervised(Objective):
    """The task's own loss on labelled data, averaged over the samples whose label is known.

    Attributes:
        on: which data: `"source"`, `"target"` or `"parts.<name>"`.
        smoothing: share of the label spread over all classes (classification only).
    """

    on: str = "source"
    smoothing: Fraction = 0.0

    def inputs(self) -> tuple[str, ...]:
        return (self.on,)

    def losses(
        self, model: nn.Module, batches: Mapping[str, Batch], task: Task, kit: Any, run: Run
    ) -> dict[str, Tensor]:
        batch = batches[self.on]
        out, y = model(batch.x), batch.y
        if self.smoothing and isinstance(out, Tensor) and isinstance(y, Tensor):
            return {"loss": F.cross_entropy(out, y, label_smoothing=self.smoothing, ignore_index=UNKNOWN)}
        known = task.known(y).sum().clamp(min=1)  # type: ignore[arg-type]
        return {"loss": task.loss(out, y).sum() / known}  # type: ignore[arg-type]


@dataclass(frozen=True)
class Weighted(Objective):
    """Several objectives at once, each loss times its weight.

    Attributes:
        terms: the objectives; their losses keep their names, with the position in front.
        weights: one per objective; default all 1.
    """

    terms: tuple[Objective, ...] = (Supervised(),)
    weights: tuple[float, ...] = ()

    def inputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for term in self.terms for name in term.inputs()))

    def needs(self) -> frozenset[str]:
        return frozenset().union(*(term.needs() for term in self.terms))

    def prepares(self) -> frozenset[str]:
        return frozenset().union(*(term.prepares() for term in self.terms))

    def prepare(self, model: nn.Module, world: World, run: Run) -> nn.Module | None:
        kits = [term.prepare(model, world.only(term.prepares()), run) for term in self.terms]
        if all(kit is None for kit in kits):
            return None
        return nn.Sequential(*(nn.Identity() if kit is None else kit for kit in kits))

    def losses(
        self, model: nn.Module, batches: Mapping[str, Batch], task: Task, kit: Any, run: Run
    ) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        weights = self.weights or (1.0,) * len(self.terms)
        for i, (term, weight) in enumerate(zip(self.terms, weights, strict=True)):
            for name, loss in term.losses(model, batches, task, None if kit is None else kit[i], run).items():
                found[f"{i}.{name}"] = weight * loss
        return found


def total(losses: Mapping[str, Tensor]) -> Tensor:
    """The sum of named losses."""
    return torch.stack(list(losses.values())).sum()
