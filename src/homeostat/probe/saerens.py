"""The class balance now, from the predicted probabilities: maximum likelihood by expectation-maximisation.

With the source prior `p`, the window's predicted probabilities `f_k(x)`, and the new prior `q` (from `q = p`):

    posterior_k(x)  proportional to  f_k(x) q_k / p_k           q_k = mean over the window of posterior_k(x)

until `q` moves by less than `tolerance`. Each round raises the likelihood `mean log sum_k f_k(x) q_k / p_k`, which has
one maximum. There is a finding when the chi-square test of the predicted classes, window against source, has `p <=
level` and the total variation between `q` and `p` is at least `min_effect`. (The likelihood ratio is no test here: it
takes the source prior as known, and alarms in a quarter of windows as large as the source.)

It is more efficient than `BBSE` and keeps priors non-negative, but takes the probabilities at their word: with an
overconfident network the estimate is wrong, so calibrate first. The source prior is that of the labelled source data; a
class without any is refused. `min_effect = 0.05`, 1000 rounds and `tolerance = 1e-6` are ours.

>>> import torch
>>> from torch import nn
>>> y = torch.arange(100) % 2
>>> world = World(source=(torch.eye(2)[y] * 9, y), target=torch.eye(2)[[0] * 80 + [1] * 20] * 9)
>>> SaerensEM()(nn.Identity(), world).arrays["prior"].round(decimals=2)
tensor([0.8000, 0.2000], dtype=torch.float64)

References: Saerens, Latinne and Decaestecker, Neural Computation 2002; Alexandari, Kundaje and Shrikumar, ICML 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.core.method import Card
from homeostat.core.online import Bag
from homeostat.core.probe import Outputs, Probe
from homeostat.core.reading import Reading
from homeostat.core.run import Run
from homeostat.core.spec import Count, Fraction, Positive
from homeostat.core.world import World
from homeostat.probe.checks import labelled, logits, same_width
from homeostat.probe.intervals import Level
from homeostat.probe.label_shift import histogram_test, known_balance, label_reading
from homeostat.probe.labelled_source import Split, parts_of, seen_before


@dataclass(frozen=True)
class SaerensEM(Probe):
    """Total variation between the source's class balance and the most likely one now."""

    card: ClassVar[Card] = Card(
        paper="Saerens, Latinne and Decaestecker, Adjusting the outputs of a classifier to new a priori probabilities, "
        "Neural Computation 2002",
        handles=frozenset({"label"}),
        prepares=parts_of("source"),
    )

    split: Split = "source"
    """Which labelled data stand for the time before."""
    rounds: Count = 1000
    """Largest number of rounds."""
    tolerance: Positive = 1e-6
    """Change of the prior, summed over classes, at which the rounds end."""
    level: Level = 0.05
    """False alarms per window without shift."""
    min_effect: Fraction = 0.05
    """Smallest change of the balance that counts, in total variation."""

    def prepares(self) -> frozenset[str]:
        return parts_of(self.split)

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> Bag:
        before = seen_before(model, world, self.split, "SaerensEM")
        out, y = labelled(before, "SaerensEM", 10, f"labelled samples of the {self.split}")
        prior = known_balance(y, out.shape[1], "SaerensEM", self.split)
        return Bag({"prior": prior, "counts": torch.bincount(out.argmax(1).cpu(), minlength=out.shape[1])})

    def measure(self, outputs: Outputs, world: World, kit: Any, run: Run) -> Reading:
        p, old = logits(outputs, "SaerensEM", least=10).double().softmax(1).cpu(), kit["prior"].cpu()
        same_width(p.shape[1], len(old), "SaerensEM", "classes")
        prior = em_prior(p, old, self.rounds, self.tolerance)
        p_value = histogram_test(torch.bincount(p.argmax(1), minlength=len(old)), kit["counts"].cpu())
        return label_reading("saerens_em", old, prior, p_value, self.level, self.min_effect)


def em_prior(
    p: Float[Tensor, "samples classes"], prior: Float[Tensor, " classes"], rounds: int = 1000, tolerance: float = 1e-6
) -> Float[Tensor, " classes"]:
    """The most likely class balance of samples with predicted probabilities `p`, made under the balance `prior`."""
    likelihood, q = p / prior, prior.clone()
    for _ in range(rounds):
        joint = likelihood * q
        new = (joint / joint.sum(1, keepdim=True)).mean(0)
        moved = float((new - q).abs().sum())
        q = new
        if moved < tolerance:
            break
    return q
