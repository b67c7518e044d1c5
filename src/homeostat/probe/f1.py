"""F1 averaged over classes, so that rare classes count as much as frequent ones.

With `t_k` right predictions of class `k`, `r_k` labels and `c_k` predictions of it:

    F_k = 2 t_k / (r_k + c_k),      macro-F1 = mean of F_k over the classes among labels or predictions

Classes that occur in neither have no F1 and are left out, as scikit-learn does.

The interval comes from the delta method: a sample with label `i` and prediction `j` moves macro-F1 by `(2 [i = j] / d_i
- F_i / d_i - F_j / d_j) / (n K)` with `d_k = (r_k + c_k) / n`. The variance `V` of this influence gives an effective
sample size `F (1 - F) / V`, at which Wilson's interval is taken; so it stays in 0..1 and keeps a width when all is
right. It needs some ten samples of every class that matters.

>>> import torch
>>> from torch import nn
>>> logits = torch.eye(3)[[0, 1, 1, 2]]
>>> round(MacroF1()(nn.Identity(), (logits, torch.tensor([0, 0, 1, 2]))).value, 4)
0.7778

Reference: Takahashi et al., Confidence interval for micro-averaged F1 and macro-averaged F1 scores, Applied
Intelligence 2022 (the delta method).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from homeostat.core.method import Card
from homeostat.core.probe import Outputs, Probe
from homeostat.core.reading import Interval, Reading
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.probe.checks import labelled
from homeostat.probe.intervals import Level, wilson


@dataclass(frozen=True)
class MacroF1(Probe):
    """Unweighted mean of the classes' F1 scores."""

    card: ClassVar[Card] = Card()
    reads: ClassVar[frozenset[str]] = frozenset({"out", "y"})

    level: Level = 0.95
    """Stated coverage of the interval."""

    def measure(self, outputs: Outputs, world: World, kit: Any, run: Run) -> Reading:
        logits, y = labelled(outputs, "MacroF1")
        predicted, classes = logits.argmax(1), logits.shape[1]
        f1 = class_f1(y, predicted, classes)
        seen = ~f1.isnan()
        arrays = {"f1": f1.nan_to_num(), "count": torch.bincount(y, minlength=classes)}
        value = float(f1[seen].mean())
        interval = _interval(value, f1, y, predicted, self.level)
        return Reading("macro_f1", value, interval, "fraction", "higher", arrays=arrays)


def class_f1(y: Int[Tensor, " samples"], predicted: Int[Tensor, " samples"], classes: int) -> Float[Tensor, " classes"]:
    """F1 of every class, float64; NaN where a class is neither a label nor a prediction."""
    right = torch.bincount(y[y == predicted], minlength=classes).double()
    return 2 * right / (torch.bincount(y, minlength=classes) + torch.bincount(predicted, minlength=classes))


def _interval(value: float, f1: Tensor, y: Tensor, predicted: Tensor, level: float) -> Interval:
    count, classes = len(y), int((~f1.isnan()).sum())
    mass = (torch.bincount(y, minlength=len(f1)) + torch.bincount(predicted, minlength=len(f1))).double() / count
    influence = 2 * (y == predicted) / mass[y] - f1[y] / mass[y] - f1[predicted] / mass[predicted]
    variance = float(influence.square().mean()) / classes**2
    if variance > 0:
        size = count * value * (1 - value) / variance
    else:
        # All right: the size at which a mean of separate proportions, one a class, has a single proportion's variance.
        each = torch.bincount(y, minlength=len(f1))
        size = classes**2 / float((1 / each[each > 0].double()).sum())
    return wilson(value * max(size, 1.0), max(size, 1.0), level)
