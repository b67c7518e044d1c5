"""The worst point nearby: how a loss looks where a small step makes it largest.

Minima that are flat survive noise in the gradient; sharp ones do not. Sharpness-aware methods go from the weights w a
step of length `radius` up the gradient g, find the gradient there, and come back to use it at w:

    e = radius g / |g|,      gradient = that of the loss at w + e,

where |g| is the norm over all weights together; at g = 0 there is nowhere to go and e = 0.

>>> w = torch.tensor([1.0, 2.0])
>>> with worst_nearby([w], [torch.tensor([0.0, 3.0])], radius=0.5):
...     w.tolist()
[1.0, 2.5]
>>> w.tolist()
[1.0, 2.0]

Reference: Foret et al., Sharpness-aware minimization for efficiently improving generalization, ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def worst_nearby(parameters: Sequence[Tensor], gradients: Sequence[Tensor], radius: float) -> Iterator[None]:
    """Inside, the parameters lie `radius` up the gradient; afterwards they are what they were, bit for bit.

    Args:
        parameters: changed in place and put back, also when something is raised inside.
        gradients: of the loss at the parameters, in their order.
        radius: length of the step over all parameters together.
    """
    live, saved = list(parameters), [p.detach().clone() for p in parameters]
    norms = torch.stack(torch._foreach_norm(list(gradients)))
    # Not clamped as a tensor: the least number that half precision has is larger than this.
    length = max(float(torch.linalg.vector_norm(norms.to(torch.promote_types(norms.dtype, torch.float32)))), 1e-12)
    with torch.no_grad():
        torch._foreach_add_(live, torch._foreach_mul(list(gradients), radius / length))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(live, saved)
