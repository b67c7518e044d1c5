"""The class balance now, from how often each class is predicted: black-box shift estimation.

With the joint confusion `C_ij = P(predicted i, true j)` on labelled source data, the source prior `p`, and the share
`mu_i` of the window predicted as `i`, label shift (only the class balance changed) implies

    C w = mu,      new prior = p * w

With `soft=True` predicted probabilities take the place of predictions in both. When the solution has negative
entries, the nearest non-negative one by least squares is taken, with the prior adding up to 1.

There is a finding when the chi-square test of the predicted classes, window against source, has `p <= level` and the
total variation between the new and the source prior is at least `min_effect`. Classes with fewer than 5 expected
predictions in the window are pooled for the test. `min_effect = 0.05` is ours. A covariate shift also moves
predictions: the test says that something moved, the estimate what it would be if it were the balance alone.

It needs every class in the source labels and a network that tells classes apart: a confusion matrix with condition
number above 1000 is refused. The noise of the estimate grows with that number; see `SaerensEM` for a more efficient
estimate with a calibrated network.

>>> import torch
>>> from torch import nn
>>> y = torch.arange(100) % 2
>>> world = World(source=(torch.eye(2)[y] * 9, y), target=torch.eye(2)[[0] * 80 + [1] * 20] * 9)
>>> BBSE()(nn.Identity(), world).arrays["prior"]
tensor([0.8000, 0.2000], dtype=torch.float64)

Reference: Lipton, Wang and Smola, Detecting and correcting for label shift with black box predictors, ICML 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import one_hot

from homeostat.core.errors import InputError
from homeostat.core.method import Card
from homeostat.core.online import Bag
from homeostat.core.probe import Outputs, Probe
from homeostat.core.reading import Reading
from homeostat.core.run import Run
from homeostat.core.spec import Fraction
from homeostat.core.world import World
from homeostat.probe.checks import labelled, logits, same_width
from homeostat.probe.intervals import Level
from homeostat.probe.label_shift import histogram_test, known_balance, label_reading
from homeostat.probe.labelled_source import Split, parts_of, seen_before

_WORST_CONDITION = 1e3


@dataclass(frozen=True)
class BBSE(Probe):
    """Total variation between the source's class balance and the one estimated now from predictions."""

    card: ClassVar[Card] = Card(
        paper="Lipton, Wang and Smola, Detecting and correcting for label shift with black box predictors, ICML 2018",
        handles=frozenset({"label"}),
        prepares=parts_of("source"),
    )

    soft: bool = False
    """Use predicted probabilities instead of predictions."""
    split: Split = "source"
    """Which labelled data stand for the time before."""
    level: Level = 0.05
    """False alarms per window without shift."""
    min_effect: Fraction = 0.05
    """Smallest change of the balance that counts, in total variation."""

    def prepares(self) -> frozenset[str]:
        return parts_of(self.split)

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> Bag:
        before = seen_before(model, world, self.split, "BBSE")
        out, y = labelled(before, "BBSE", 10, f"labelled samples of the {self.split}")
        prior = known_balance(y, out.shape[1], "BBSE", self.split)
        confusion = (self._predicted(out).T @ one_hot(y, out.shape[1]).double() / len(y)).cpu()
        condition = float(torch.linalg.cond(confusion))
        if not condition < _WORST_CONDITION:
            raise InputError(
                f"BBSE: predictions on the {self.split} do not tell the classes apart (the condition number of the "
                f"confusion matrix is {condition:.3g}, at most {_WORST_CONDITION:.0f} is usable). Give more labelled "
                "samples, try soft=True, or use SaerensEM"
            )
        counts = torch.bincount(out.argmax(1).cpu(), minlength=out.shape[1])
        return Bag({"confusion": confusion, "prior": prior, "counts": counts})

    def measure(self, outputs: Outputs, world: World, kit: Any, run: Run) -> Reading:
        out = logits(outputs, "BBSE", least=10)
        old = kit["prior"].cpu()
        same_width(out.shape[1], len(old), "BBSE", "classes")
        prior = old * bbse_weights(kit["confusion"].cpu(), self._predicted(out).mean(0).cpu())
        p_value = histogram_test(torch.bincount(out.argmax(1).cpu(), minlength=len(old)), kit["counts"].cpu())
        return label_reading("bbse", old, prior, p_value, self.level, self.min_effect)

    def _predicted(self, out: Tensor) -> Tensor:
        p = out.double().softmax(1)
        return p if self.soft else one_hot(p.argmax(1), p.shape[1]).double()


def bbse_weights(
    confusion: Float[Tensor, "classes classes"], predicted: Float[Tensor, " classes"]
) -> Float[Tensor, " classes"]:
    """Class weights `w >= 0` with `C w = mu`, or the nearest by least squares; `p * w` adds up to 1.

    Args:
        confusion: `P(predicted i, true j)`.
        predicted: share of the window predicted as `i`; adds up to 1.
    """
    exact = torch.linalg.solve(confusion, predicted)
    if bool((exact >= 0).all()):
        return exact
    from scipy.optimize import nnls

    # In the prior q = p w the constraint is sum q = 1; a heavy extra row holds it.
    prior = confusion.sum(0)
    heavy = 1e4
    rows = torch.cat([confusion / prior, torch.full((1, len(prior)), heavy, dtype=confusion.dtype)])
    aim = torch.cat([predicted, predicted.new_tensor([heavy])])
    found = torch.from_numpy(np.asarray(nnls(rows.numpy(), aim.numpy())[0])).to(confusion)
    return found / found.sum() / prior
