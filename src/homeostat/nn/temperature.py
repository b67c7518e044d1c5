"""Making logits honest: the inverse temperature at which their probabilities fit labels best.

>>> logits, labels = torch.tensor([[2.0, 0.0]]).expand(4, 2), torch.tensor([0, 0, 0, 1])
>>> round(honest_scale(logits, labels), 3)  # 3 of 4 are right: log(3) / 2
0.549

Reference: Guo et al., On calibration of modern neural networks, ICML 2017 (temperature scaling).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def honest_scale(
    logits: Float[Tensor, "batch classes"], labels: Tensor, low: float = 0.05, high: float = 20.0
) -> float:
    """The factor of logits with the lowest cross-entropy, within bounds. Its slope grows, so bounds are halved."""

    def slope(scale: float) -> float:
        expected = ((logits * scale).softmax(1) * logits).sum(1)
        return float((expected - logits[torch.arange(len(labels)), labels]).mean())

    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return (low * high) ** 0.5
