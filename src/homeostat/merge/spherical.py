"""SLERP: from one network to another along the arc between their weights.

On the straight line between two long vectors the norm sinks in the middle, the more the wider their angle; an arc keeps
it. For each tensor, flat, with angle omega between a and b,

    theta = sin((1 - t) omega) / sin(omega) a + sin(t omega) / sin(omega) b

With one donor, a is the base and b the donor. With two, a and b are what they learnt, and the arc is added to the base.
Where they are nearly parallel (|cos omega| > 0.9995) or one of them is 0, it is the line (1 - t) a + t b.

Networks far apart meet a barrier on either path. Angles of task vectors are near 90 degrees, so that there the arc is
mostly longer than the line by up to a root of two: a larger scale.

>>> a, b = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}
>>> merge_weights(SLERP(), a, [b])["w"]
tensor([0.7071, 0.7071])

Reference: Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from homeostat.core.errors import InputError
from homeostat.core.method import Card
from homeostat.core.spec import Fraction
from homeostat.merge.engine import merge_weights as merge_weights  # for the doctest
from homeostat.merge.merging import Block, Group, Merge

PARALLEL = 0.9995
"""The cosine above which an arc is a line."""


@dataclass(frozen=True)
class SLERP(Merge):
    """The arc from the base to a donor, or between the task vectors of two.

    Attributes:
        t: how far along the arc: 0 is its beginning, 1 its end.
        skip: globs of tensors that stay the base's.
    """

    t: Fraction = 0.5
    skip: tuple[str, ...] = ()

    card: ClassVar[Card] = Card(
        paper="Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985",
        handles=frozenset({"tasks", "covariate"}), needs=frozenset({"models.*", "model.parameters"}), passes=0.0,
    )  # fmt: skip

    def check(self, donors: int) -> None:
        if donors > 2:
            raise InputError(f"SLERP goes from the base to one donor, or between two; there are {donors}")

    def constants(self, group: Group, survey: Any) -> tuple[float, float]:
        squares, product = [0.0, 0.0], 0.0
        for block in group.blocks():
            a, b = _ends(block)
            squares[0] += float(a.square().sum(dtype=torch.float64))
            squares[1] += float(b.square().sum(dtype=torch.float64))
            product += float((a * b).sum(dtype=torch.float64))
        length = math.sqrt(squares[0] * squares[1])
        cosine = max(-1.0, min(1.0, product / length)) if length > 0 else 1.0
        if not abs(cosine) <= PARALLEL:
            return 1 - self.t, self.t
        omega = math.acos(cosine)
        return math.sin((1 - self.t) * omega) / math.sin(omega), math.sin(self.t * omega) / math.sin(omega)

    def combine(self, block: Block, constants: tuple[float, float]) -> Tensor:
        a, b = _ends(block)
        made = (a * constants[0]).add_(b, alpha=constants[1])
        return made if len(block.donors) == 1 else made.add_(block.base)


def _ends(block: Block) -> tuple[Tensor, Tensor]:
    if len(block.donors) == 1:
        return block.base, block.donors[0].to(block.base)
    first, second = block.deltas()
    return first, second
