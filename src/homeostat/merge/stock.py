"""Model Stock: how near to the average to go, told by the angle between donors.

Networks fine-tuned from one base with different seeds lie on a thin shell around a centre that is better than each, and
the base lies off it. The angle at the base between two of them tells where on the line from the base to their average
the centre's nearest point is. For each tensor, with the mean cosine c over pairs of the N task vectors,

    t = N c / (1 + (N - 1) c),      theta = t mean_t(theta_t) + (1 - t) theta_0

The more they agree (c to 1), the nearer to the average; task vectors at right angles leave the base. It is for networks
of one task: fine-tuned on several, they stand at right angles, and Model Stock gives the base.

>>> base, a, b = {"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([1.0, 1.0])}
>>> t = 2 * 0.5**0.5 / (1 + 0.5**0.5)
>>> merge_weights(ModelStock(), base, [a, b])["w"], round(t, 4), round(t / 2, 4)
(tensor([0.8284, 0.4142]), 0.8284, 0.4142)

Reference: Jang, Yun and Han, Model Stock: All we need is just a few fine-tuned models, ECCV 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from homeostat.core.errors import InputError
from homeostat.core.method import Card
from homeostat.merge.engine import merge_weights as merge_weights  # for the doctest
from homeostat.merge.merging import Block, Group, Merge


@dataclass(frozen=True)
class ModelStock(Merge):
    """Between the base and the average of its donors, by their angles.

    Attributes:
        skip: globs of tensors that stay the base's.
    """

    skip: tuple[str, ...] = ()

    card: ClassVar[Card] = Card(
        paper="Jang, Yun and Han, Model Stock, ECCV 2024", handles=frozenset({"covariate"}),
        needs=frozenset({"models.*", "model.parameters"}), passes=0.0,
    )  # fmt: skip

    def check(self, donors: int) -> None:
        if donors < 2:
            raise InputError("Model Stock reads the angle between donors; give it two or more")

    def constants(self, group: Group, survey: Any) -> float:
        count = len(group.donors)
        products = torch.zeros(count, count, dtype=torch.float64)
        for block in group.blocks():
            changes = torch.stack(list(block.deltas()))
            products += (changes @ changes.T).double()
        lengths = products.diagonal().sqrt()
        cosines = products / (lengths[:, None] * lengths).clamp(min=1e-12)
        cosine = float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1)))
        below = 1 + (count - 1) * cosine
        # Task vectors that cancel have no centre; the base stays.
        return count * cosine / below if abs(below) > 1e-6 else 0.0

    def combine(self, block: Block, constants: float) -> Tensor:
        made = block.base * (1 - constants)
        for donor in block.donors:
            made.add_(donor.to(made), alpha=constants / len(block.donors))
        return made
