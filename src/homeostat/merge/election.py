"""Signs by majority, and the mean of what agrees with them: sums that do not grow with the donors.

For values d_t of weights w_t at one place let

    T = sum_t d_t    A = sum_t |d_t|    S = sum_t w_t sign(d_t)    Q = sum_t w_t sign(d_t)^2

The elected sign is e = sign(T). What agrees with it adds up to (T + e A) / 2, and has the weight (Q + e S) / 2, so that
four tensors hold all that is wanted, whatever the number of donors.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Vote = Literal["mass", "count"]


class Election:
    """Adds up one block of every donor; its result can be taken once.

    Args:
        like: a tensor of the block's shape and dtype.
        vote: by `"mass"`, the sum of the values (the paper), or by `"count"` of signs.

    Attributes:
        cast, agreed: weights of the values that are not 0 and of those that agree with the elected sign, added up over
            the block; `result` with `mean` sets them.
    """

    cast: float = 0.0
    agreed: float = 0.0

    def __init__(self, like: Tensor, vote: Vote = "mass"):
        self.mass, self.size, self.signs, self.weight = (torch.zeros_like(like) for _ in range(4))
        self.vote = vote
        self._heads: Tensor | None = torch.zeros_like(like) if vote == "count" else None

    def add(self, values: Tensor, weight: float = 1.0) -> None:
        """A donor's values, weighted already; they are overwritten."""
        self.mass += values
        sign = values.sign()
        self.signs.add_(sign, alpha=weight)
        if self._heads is not None:
            self._heads += sign
        self.size += values.abs_()
        self.weight.add_(sign.mul_(sign), alpha=weight)

    def result(self, even: float = 1.0, mean: bool = True) -> tuple[Tensor, int, bool]:
        """What agrees with the elected sign, merged.

        Args:
            even: the sign of places whose vote is even: 1, -1, or 0 for no change there.
            mean: divide by the weight of those that agree; else their sum.

        Returns:
            The merged values; the sum of the elected signs; whether a vote was even although there were values.
        """
        elected = (self.mass if self._heads is None else self._heads).sign()
        votes = int(elected.sum())  # of a block's ones and zeros, exact
        # Comparisons are NumPy's, which are several times as fast on a CPU.
        tied = elected.numpy() == 0
        open_ = bool((tied & (self.size.numpy() != 0)).any())
        if open_:
            elected.masked_fill_(torch.from_numpy(tied), even)
        agreed = self.mass.addcmul_(elected, self.size).mul_(0.5)
        if mean:
            self.cast = float(self.weight.sum())
            self.weight.addcmul_(elected, self.signs).mul_(0.5)
            self.agreed = float(self.weight.sum())
            weight = self.weight.numpy()
            weight[weight == 0] = 1.0
            agreed /= self.weight
        if open_ and even == 0:
            agreed.masked_fill_(torch.from_numpy(tied), 0.0)
        return agreed, votes, open_
