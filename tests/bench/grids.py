"""A grid that takes a second or two: a linear network on scikit-learn's digits."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from homeostat.adapt import BatchNormBlend, Source, Tent
from homeostat.bench import Continual, Setting, Stream, Suite
from homeostat.core.data import Batch
from homeostat.core.method import Remedy
from homeostat.core.online import Online
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.data import Digits
from homeostat.fit import Recipe
from homeostat.loop import Network
from homeostat.nn.optimizers import SGD
from homeostat.shift import Clean, Corrupt

NOISE = Corrupt("gaussian_noise", 3)
NET = Network(
    {"ResNet": {"depth": 8, "in_channels": 1, "width": 4}}, data=Digits(shuffle=0, stop=600),
    recipe=Recipe(epochs=1, batch=50, optimizer=SGD(lr=0.05)),
)  # fmt: skip
SETTING = Setting("digits", NET, Digits(shuffle=0, start=600, stop=900), Digits(shuffle=0, start=900))
STREAM = Stream("noise", (Clean(), NOISE), each=60)


def tiny(**changes: Any) -> Suite:
    """A suite of six cells, with some fields changed."""
    made = Suite(
        "tiny", settings=(SETTING,), streams=(STREAM,), entrants=(Source(), BatchNormBlend(), Tent()),
        protocols=(Continual(batch=20),), seeds=2,
    )  # fmt: skip
    return replace(made, **changes)


class Counting(Online):
    """Answers the number of samples that it saw before, as a logit of class 0."""

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.begin()

    def begin(self) -> None:
        self.carry["seen"] = torch.zeros(())

    def adapt(self, batch: Batch) -> torch.Tensor:
        out = torch.zeros(len(batch), 10)
        out[:, 0] = self.carry["seen"]
        self.carry["seen"] = self.carry["seen"] + len(batch)
        return out


@dataclass(frozen=True)
class Counter(Remedy):
    """Makes a `Counting`."""

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return Counting(model)


@dataclass(frozen=True)
class Raises(Remedy):
    """Fails where it is applied."""

    why: str = "no reason"

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        raise RuntimeError(self.why)


@dataclass(frozen=True)
class Dies(Remedy):
    """Takes its process down."""

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        os._exit(9)
