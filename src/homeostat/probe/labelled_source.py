"""Labelled data from before, as the probes that estimate accuracy or class balance without labels use them.

>>> sorted(parts_of("calibration"))
['calibration.x', 'calibration.y']
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from homeostat.core.data import Data
from homeostat.core.errors import MissingPart
from homeostat.core.probe import Outputs, outputs as pass_over
from homeostat.core.world import World
from homeostat.probe.checks import labelled

Split = Literal["source", "calibration"]
"""Which labelled data are used; they must not be the samples the network was trained on."""


def parts_of(split: Split) -> frozenset[str]:
    """The parts of the world behind a split."""
    return frozenset({f"{split}.x", f"{split}.y"})


def seen_before(model: nn.Module | None, world: World, split: Split, who: str) -> Outputs:
    """One pass of the model over the split."""
    data: Data | None = getattr(world, split)
    if model is None or data is None:
        raise MissingPart(f"{who} needs a model and labelled {split} data: give World({split}=(x, y))")
    return pass_over(model, data, task=world.task)


def judged(model: nn.Module | None, world: World, split: Split, who: str, least: int = 10) -> tuple[Tensor, Tensor]:
    """Probabilities `[samples, classes]`, float64, and which predictions are right, on the split's labelled samples."""
    out, y = labelled(seen_before(model, world, split, who), who, least, f"labelled samples of the {split}")
    p = out.double().softmax(1)
    return p.cpu(), (p.argmax(1) == y).cpu()
