"""PriorCorrection: lean towards the classes that are common in the batch at hand.

Networks are trained on balanced classes and served on whatever comes. For a batch of N predictions over K classes,
p = softmax(z), the batch's prior is estimated, smoothed towards uniform the more the smaller the batch or the rarer its
classes, and multiplied onto the logits z `[N, K]`:

    prior = mean_n p_n,    s = max(1/N, 1/K) / max_k prior_k,    prior' = (prior + s) / (1 + s K),    z <- z * prior'.

It is the last step of ROID, used as in its code: it multiplies logits, although Bayes' rule would add log prior'
(`rule="add"`). Multiplying shrinks all logits by about K and lets large ones of common classes win; it depends on where
the zero of the logits is, so with it the network must return logits and not log-probabilities. Adding works with both.

Nothing is learnt or remembered. It helps when some classes dominate the batch, and costs accuracy when a batch only
looks so because the network errs in one direction.

>>> import torch
>>> logits = torch.tensor([[4.0, 0.0], [3.0, 0.0], [1.0, 1.1]])
>>> correct_prior(logits).argmax(1)
tensor([0, 0, 0])

Reference: Marsden, Döbler, Yang, Universal test-time adaptation through weight ensembling, diversity weighting, and
prior correction, WACV 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.core.data import Batch
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Online
from homeostat.core.run import Run
from homeostat.core.task import Classify
from homeostat.core.tree import Tree
from homeostat.core.world import World

Rule = Literal["multiply", "add"]


def correct_prior(logits: Float[Tensor, "batch classes"], rule: Rule = "multiply") -> Float[Tensor, "batch classes"]:
    """Logits with the batch's smoothed class prior multiplied (or its logarithm added) to them."""
    count, classes = logits.shape
    prior = logits.softmax(1).mean(0)
    smooth = max(1 / count, 1 / classes) / prior.max()
    prior = (prior + smooth) / (1 + smooth * classes)
    return logits * prior if rule == "multiply" else logits + prior.log()


class PriorCorrected(Online):
    """A network whose predictions lean towards the classes that are common in their batch; its weights never change.

    Args:
        model: a classifier.
        rule: see `PriorCorrection`.
    """

    def __init__(self, model: nn.Module, rule: Rule = "multiply"):
        super().__init__(model)
        self.rule: Rule = rule

    def forward(self, x: Tree) -> Tensor:
        """Corrected logits of the batch."""
        logits = self.model(x)
        Classify().check(logits, None)
        return correct_prior(logits, self.rule)

    def adapt(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return self(batch.x)


@dataclass(frozen=True)
class PriorCorrection(Remedy):
    """Correction of a batch's predictions by their own class prior.

    Attributes:
        rule: `"multiply"` the prior onto logits, as ROID's code does, or `"add"` its logarithm, as Bayes' rule says.
    """

    rule: Rule = "multiply"

    card: ClassVar[Card] = Card(
        paper="Marsden et al., Universal Test-Time Adaptation (ROID), WACV 2024",
        handles=frozenset({"label"}),
        batch_coupled=True,
    )

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return PriorCorrected(model, self.rule)
