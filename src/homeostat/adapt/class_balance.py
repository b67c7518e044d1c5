"""Class balances: an estimate from predictions, and the way from a source's balance over uniform to the reversed one.

>>> source = torch.tensor([0.7, 0.2, 0.1])
>>> path_prior(torch.tensor([1.0, -1.0]), source)
tensor([[0.7000, 0.2000, 0.1000],
        [0.1000, 0.2000, 0.7000]])
>>> degree_of(torch.full((3,), 1 / 3), source).abs() < 1e-6
tensor(True)
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Prior = Float[Tensor, " classes"]


def estimate_prior(probabilities: Float[Tensor, "batch classes"]) -> Prior:
    """The class balance that a batch of predictions speaks of, smoothed the more the smaller the batch."""
    count, classes = probabilities.shape
    return (probabilities.mean(0) + 1 / count) / (1 + classes / count)


def degree_of(prior: Prior, source: Prior) -> Float[Tensor, ""]:
    """How much a prior is like the source's: 1 at it, 0 at uniform, -1 at the reversed one; kept within -1..1."""
    way = source - 1 / len(source)
    along = (prior - 1 / len(source)) @ way
    back = -((reversed_prior(source) - 1 / len(source)) @ way)
    # A source that is quite balanced has no way to go.
    return (along / torch.where(along >= 0, way @ way, back).clamp(min=1e-12)).clamp(-1, 1)


def reversed_prior(source: Prior) -> Prior:
    """The prior in which the most common class is the rarest, and so on."""
    order = source.argsort(stable=True)
    made = torch.empty_like(source)
    made[order] = source[order.flip(0)]
    return made


def path_prior(degree: Float[Tensor, " n"], source: Prior) -> Float[Tensor, "n classes"]:
    """The priors on the path at these degrees."""
    end = torch.where(degree[:, None] >= 0, source, reversed_prior(source))
    part = degree.abs()[:, None]
    return part * end + (1 - part) / len(source)
