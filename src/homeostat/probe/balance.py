"""Which classes the network predicts, and how far that is from what it used to predict.

With `h_k` the share of samples predicted as class `k` and `r` a reference balance:

    value = TV(h, r) = 1/2 sum over classes of |h_k - r_k|,      between 0 (the same) and 1

The reference is uniform, or (`against="source"`) the predicted balance on `source.x`, kept in the kit. The shares, the
reference and the entropy of `h` in nats are in `arrays`. A value near `1 - 1/K` against uniform is a collapse onto one
class.

The plug-in distance of small windows is too large: 100 samples of a balanced ten-class problem read about 0.12. The
interval is for the distance between the balances behind the samples, allows for that, and covers at least as often as
stated (`probe.intervals.absolute_sum`); the source's own sampling noise is in it.

>>> import torch
>>> from torch import nn
>>> ClassBalance()(nn.Identity(), torch.eye(2)[[0, 0, 0, 1]]).value
0.25
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from homeostat.core.data import Data
from homeostat.core.errors import MissingPart
from homeostat.core.method import Card
from homeostat.core.online import Bag
from homeostat.core.probe import Outputs, Probe, outputs as pass_over
from homeostat.core.reading import Interval, Reading
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.probe.checks import logits, same_width
from homeostat.probe.intervals import Level, absolute_sum, grouped_noise


@dataclass(frozen=True)
class ClassBalance(Probe):
    """Distance of the predicted class balance from a reference balance."""

    card: ClassVar[Card] = Card(handles=frozenset({"label"}), prepares=frozenset({"source.x?"}))

    against: Literal["uniform", "source"] = "uniform"
    """The reference: all classes alike, or the predictions on the source."""
    level: Level = 0.95
    """Stated coverage of the interval."""

    def prepares(self) -> frozenset[str]:
        return frozenset({"source.x"} if self.against == "source" else ())

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> Bag | None:
        return Bag({"count": source_predictions(model, world.source, world)}) if self.against == "source" else None

    def measure(self, outputs: Outputs, world: World, kit: Any, run: Run) -> Reading:
        out = logits(outputs, "ClassBalance", least=2)
        classes = out.shape[1]
        share = torch.bincount(out.argmax(1).cpu(), minlength=classes).double() / len(out)
        noise = grouped_noise(share, share, len(out), run.rng("ClassBalance", "window"))
        reference = torch.full_like(share, 1 / classes)
        if self.against == "source":
            same_width(classes, len(kit["count"]), "ClassBalance", "classes")
            total = int(kit["count"].sum())
            reference = kit["count"].double().cpu() / total
            noise = noise - grouped_noise(reference, reference, total, run.rng("ClassBalance", "source"))
        doubled = absolute_sum(share - reference, noise, len(out), self.level)
        value = float((share - reference).abs().sum()) / 2
        interval = Interval(doubled.low / 2, min(1.0, doubled.high / 2), self.level)
        arrays = {"share": share, "reference": reference, "entropy": torch.special.entr(share).sum()}
        return Reading("class_balance", value, interval, "total variation", arrays=arrays)


def source_predictions(model: nn.Module | None, source: Data | None, world: World) -> Tensor:
    """How often each class is predicted on the source, int64 `[classes]`."""
    if model is None or source is None:
        raise MissingPart("ClassBalance counts a model's predictions on source.x; give a model and World(source=x)")
    out = logits(pass_over(model, source, task=world.task), "ClassBalance")
    return torch.bincount(out.argmax(1).cpu(), minlength=out.shape[1])
