"""Linear merges: the average of networks, and the base plus a sum of task vectors.

Networks fine-tuned from one base mostly lie in one basin of the loss, so that their average is a network, too, and
often a better one than each (a *model soup*). What a donor learnt is its *task vector* tau_t = theta_t - theta_0: added
it teaches its task, subtracted it makes forget it, and several may be added:

    Average          theta = sum_t w_t theta_t / sum_t w_t
    TaskArithmetic   theta = theta_0 + scale sum_t w_t tau_t                           (normalize: / sum_t w_t)

The average takes no weight of the base; give it as a donor, too, to mix it in. Donors that were trained from different
beginnings do not average: bring them together by `ReBasin` first. Many task vectors cancel where they disagree; see
`TIES`. The scale wants choosing on held-out data: 0.3 did well for eight tasks in the paper, 0.4 for fewer.

>>> base, a, b = {"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 4.0])}
>>> merge_weights(Average(), base, [a, b])["w"], merge_weights(TaskArithmetic(scale=0.5), base, [a, b])["w"]
(tensor([0.5000, 2.0000]), tensor([0.5000, 2.0000]))

Reference: Wortsman et al., Model soups, ICML 2022; Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from homeostat.core.errors import InputError
from homeostat.core.method import Card
from homeostat.merge.engine import merge_weights as merge_weights  # for the doctest
from homeostat.merge.merging import Block, Merge, Numbers, one_each


@dataclass(frozen=True)
class Average(Merge):
    """The weighted mean of the donors, of their BatchNorm statistics too; the base lends what is skipped.

    Attributes:
        weights: of the donors; one for all, or one each.
        normalize: divide by the sum of the weights.
        skip: globs of tensors that stay the base's.
    """

    weights: Numbers = 1.0
    normalize: bool = True
    skip: tuple[str, ...] = ()

    reads_base: ClassVar[bool] = False
    card: ClassVar[Card] = Card(
        paper="Wortsman et al., Model soups, ICML 2022", handles=frozenset({"tasks", "covariate"}),
        needs=frozenset({"models.*", "model.parameters"}), passes=0.0,
    )  # fmt: skip

    buffers: ClassVar[bool] = True

    def check(self, donors: int) -> None:
        weights = one_each(self.weights, donors)
        if self.normalize and sum(weights) == 0:
            raise InputError("the weights add up to 0, so that they cannot be normalized; change one, or do not")

    def combine(self, block: Block, constants: Any) -> Tensor:
        weights = one_each(self.weights, len(block.donors))
        total = sum(weights) if self.normalize else 1.0
        made = torch.zeros_like(block.base)
        for weight, donor in zip(weights, block.donors, strict=True):
            made.add_(donor.to(made), alpha=weight / total)
        return made


@dataclass(frozen=True)
class TaskArithmetic(Merge):
    """The base plus a weighted sum of what the donors learnt.

    Attributes:
        weights: of the donors; one for all, or one each. A negative one takes away.
        scale: of the sum, the paper's lambda.
        normalize: divide the sum by that of the weights.
        skip: globs of tensors that stay the base's.
    """

    weights: Numbers = 1.0
    scale: float = 0.3
    normalize: bool = False
    skip: tuple[str, ...] = ()

    card: ClassVar[Card] = Card(
        paper="Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023",
        handles=frozenset({"tasks", "covariate", "forget"}), needs=frozenset({"models.*", "model.parameters"}),
        passes=0.0,
    )  # fmt: skip

    def check(self, donors: int) -> None:
        one_each(self.weights, donors)

    def combine(self, block: Block, constants: Any) -> Tensor:
        weights = one_each(self.weights, len(block.donors))
        total = sum(weights) if self.normalize else 1.0
        # theta_0 (1 - scale sum w / total) + scale sum w theta_t / total: no task vector need be made.
        shares = [self.scale * weight / (total if abs(total) > 1e-8 else 1.0) for weight in weights]
        made = block.base * (1.0 - sum(shares))
        for share, donor in zip(shares, block.donors, strict=True):
            made.add_(donor.to(made), alpha=share)
        return made
