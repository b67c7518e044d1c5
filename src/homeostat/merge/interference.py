"""WUDI: the merged change that disturbs no task's layer on the inputs that its own change speaks of.

What a linear layer's task vector tau_t `[out, in]` changes are, by the way gradients are made, combinations of the
inputs that it was fine-tuned on. So the rows of tau_t stand in for these inputs, and the merged tau should act on them
as tau_t does. Beginning at tau = sum_t tau_t, Adam makes

    L(tau) = sum_t |(tau - tau_t) tau_t^T|_F^2 / |tau_t|_F^2

smaller. With A_t = tau_t^T tau_t / |tau_t|_F^2 its gradient is 2 (tau sum_t A_t - sum_t tau_t A_t), so that a step
takes one product of matrices, whatever the number of tasks. Only matrices are merged so; the rest is averaged. Data and
scales are not needed.

How far 300 steps of the stated length go depends on the size of the weights' changes: where these are much larger than
1e-3, as in small networks trained hard, little happens, and `lr` wants raising.

>>> base = {"w": torch.zeros(1, 2)}
>>> donors = [{"w": torch.tensor([[1e-3, 0.0]])}, {"w": torch.tensor([[1e-3, 1e-3]])}]
>>> [round(1e3 * v, 1) for v in merge_weights(WUDI(), base, donors)["w"][0].tolist()]  # [1, 1] satisfies both
[1.0, 1.0]

Reference: Cheng et al., Whoever Started the Interference Should End It, ICML 2025.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from homeostat.core.method import Card
from homeostat.core.online import Bag
from homeostat.core.spec import Count, Positive
from homeostat.merge.engine import merge_weights as merge_weights  # for the doctest
from homeostat.merge.spectral import HANDLES, NEEDS, MatrixMerge
from homeostat.nn.optimizers import Adam


@dataclass(frozen=True)
class WUDI(MatrixMerge):
    """Task vectors merged with the least interference on what stands in for their inputs.

    Attributes:
        steps: of Adam; the official code's 300.
        lr: of Adam; the official code's 1e-5.
        scale: of the merged change.
        skip: globs of tensors that stay the base's.
    """

    steps: Count = 300
    lr: Positive = 1e-5
    scale: float = 1.0
    skip: tuple[str, ...] = ()

    card: ClassVar[Card] = Card(
        paper="Cheng et al., Whoever Started the Interference Should End It, ICML 2025", handles=HANDLES, needs=NEEDS,
        passes=0.0,
    )  # fmt: skip

    def merged(self, changes: list[Tensor]) -> Tensor:
        stands = [c.T @ c / c.square().sum().clamp(min=1e-30) for c in changes]
        left, right = torch.stack(stands).sum(0), sum(c @ a for c, a in zip(changes, stands, strict=True))
        adam, tau, state = Adam(lr=self.lr), {"tau": torch.stack(changes).sum(0)}, Bag()
        adam.begin(tau, state)
        for _ in range(self.steps):
            adam.update(tau, {"tau": 2 * (tau["tau"] @ left - right)}, state)
        return tau["tau"]
