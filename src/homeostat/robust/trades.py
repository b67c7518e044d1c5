"""TRADES: train a network that keeps its prediction under attack, at a stated price in clean accuracy.

The loss splits the robust error into the natural error and the nearness of the boundary, and weighs the two:

    loss = CE(f(x), y) + beta * KL(p(x) || p(x')),      x' = argmax_{|x' - x| <= eps} KL(p(x) || p(x'))

with p = softmax(f) `[batch, classes]`. x' is found by projected gradient ascent from x + 0.001 N(0, I) (the KL's
gradient is 0 at x itself), with BatchNorm in evaluation mode; then both terms are taken in training mode, and
gradients flow through both p(x) and p(x').

Defaults are the official code's for CIFAR-10: eps 8/255, 10 steps of 2/255, beta 6. More beta buys robustness and
costs clean accuracy; on easy data a few epochs at small eps show the trade already.

>>> from homeostat import World
>>> from homeostat.fit import Fit
>>> fit = Fit(objective=TRADES(eps=0.1, steps=2))
>>> net = fit(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), World(source=(torch.rand(8, 1, 2, 2), torch.arange(8) % 2)))

Reference: Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, ICML 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.core.data import Batch, floating
from homeostat.core.fork import evaluating
from homeostat.core.method import Card
from homeostat.core.run import Run
from homeostat.core.spec import Count, NonNegative, Positive
from homeostat.core.task import Task
from homeostat.fit.objective import Objective
from homeostat.robust.pgd import Norm, ascend


def divergence(clean: Tensor, other: Tensor) -> Tensor:
    """`KL(softmax(clean) || softmax(other))` per sample, of logits `[batch, classes]`."""
    return F.kl_div(other.log_softmax(1), clean.softmax(1), reduction="none").sum(1)


@dataclass(frozen=True)
class TRADES(Objective):
    """Natural loss plus beta times the divergence under attack.

    Attributes:
        beta: weight of the divergence, 1 / lambda of the paper.
        eps: radius of the ball.
        step: size of a step.
        steps: of the inner ascent.
        norm: `"inf"` or `"2"`.
        on: which labelled data: `"source"` or `"target"`.
    """

    beta: NonNegative = 6.0
    eps: Positive = 8 / 255
    step: Positive = 2 / 255
    steps: Count = 10
    norm: Norm = "inf"
    on: str = "source"

    card: ClassVar[Card] = Card(paper="Zhang et al., TRADES, ICML 2019", handles=frozenset({"adversarial"}))

    def inputs(self) -> tuple[str, ...]:
        return (self.on,)

    def losses(
        self, model: nn.Module, batches: Mapping[str, Batch], task: Task, kit: Any, run: Run
    ) -> dict[str, Tensor]:
        batch = batches[self.on]
        x = floating(batch.x, "TRADES")
        with evaluating(model):
            with torch.no_grad():
                center = model(x)
            start = x + 0.001 * run.draw(batch.id, "trades").normal(*x.shape[1:]).to(x)
            worst = ascend(
                lambda moved: divergence(center, model(moved)), x, start, self.eps, self.step, self.steps, self.norm
            )
        clean = model(x)
        natural = task.loss(clean, batch.labels).mean()
        return {"natural": natural, "robust": self.beta * divergence(clean, model(worst)).mean()}
