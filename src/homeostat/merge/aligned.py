"""KnOTS: task vectors of low rank, brought into one space before they are merged.

Fine-tuned by LoRA, networks change along few directions, and each along others, so that entry by entry their changes
have nothing to do with each other, and rules that compare signs and sizes (TIES, DARE) see noise. Stacked side by side
and decomposed,

    [Delta_1 ... Delta_T] = U S [V_1^T ... V_T^T],     Delta_t = U S V_t^T

all share the directions U and the lengths S, and differ in V_t `[in, r]` alone. These are merged by any `method`, and
the merged change is U S V^T. With plain averages nothing changes: they are linear.

>>> base = {"w": torch.zeros(2, 2)}
>>> donors = [{"w": torch.tensor([[2.0, 0.0], [0.0, 0.0]])}, {"w": torch.tensor([[0.0, 2.0], [0.0, 0.0]])}]
>>> merge_weights(KnOTS(TaskArithmetic(scale=1.0)), base, donors)["w"].round(decimals=4).abs()
tensor([[2., 2.],
        [0., 0.]])

Reference: Stoica et al., Model merging with SVD to tie the KnOTS, ICLR 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from homeostat.core.method import Card
from homeostat.core.run import Run
from homeostat.merge.arithmetic import TaskArithmetic as TaskArithmetic  # for the doctest
from homeostat.merge.engine import merge_weights
from homeostat.merge.merging import Block, Each, Grain, Group, Merge
from homeostat.merge.spectral import HANDLES, NEEDS, directions
from homeostat.merge.ties import TIES


@dataclass(frozen=True)
class KnOTS(Merge):
    """Merges matrices' changes in the space that they share, by another method; all else by that method as it is.

    Attributes:
        method: merges what the tasks differ in, tensor by tensor.
        skip: globs of tensors that stay the base's.
    """

    method: Merge = TIES(scope="tensor")
    skip: tuple[str, ...] = ()

    card: ClassVar[Card] = Card(
        paper="Stoica et al., Model merging with SVD to tie the KnOTS, ICLR 2025", handles=HANDLES, needs=NEEDS,
        passes=0.0,
    )  # fmt: skip
    grain: ClassVar[Grain] = "tensor"

    def check(self, donors: int) -> None:
        self.method.check(donors)

    def survey(self, groups: Sequence[Group], each: Each[Any], run: Run) -> Run:
        return run

    def constants(self, group: Group, survey: Run) -> Run:
        return survey

    def combine(self, block: Block, constants: Run) -> Tensor:
        changes, back = list(block.deltas()), None
        if not all(bool(torch.isfinite(change).all()) for change in changes):
            return torch.full_like(block.base, torch.nan)  # no decomposition takes them; the engine finds which
        if block.base.dim() == 2:
            u, s, v = directions(torch.cat(changes, 1).double())
            # Transposed, so that a row is an input's, as in the changes.
            changes = [part.T.to(block.base).contiguous() for part in v.split(block.base.shape[1])]
            back = (u * s).to(block.base)
        names = {block.group.name: torch.zeros_like(changes[0])}
        merged = merge_weights(self.method, names, [{block.group.name: change} for change in changes], run=constants)[
            block.group.name
        ]
        return block.base + (merged if back is None else back @ merged)
