"""Exponential moving averages of weights, over many tensors in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def average_into(teacher: Sequence[Tensor], student: Sequence[Tensor], keep: float) -> None:
    """`teacher <- keep * teacher + (1 - keep) * student`, in place.

    Args:
        teacher, student: tensors of the same shapes, in the same order.
        keep: weight of the old average, in 0..1.

    >>> slow = [torch.zeros(2)]
    >>> average_into(slow, [torch.ones(2)], keep=0.75)
    >>> slow[0]
    tensor([0.2500, 0.2500])
    """
    # Not `alpha=1 - keep`, which is fused: rounded as it is written, the result is the usual code's bit for bit.
    torch._foreach_mul_(list(teacher), keep)
    torch._foreach_add_(list(teacher), torch._foreach_mul(list(student), 1 - keep))
