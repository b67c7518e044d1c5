"""Merging predictions that come with their uncertainty: the surer counts more.

Of paths k with predictions mu_k and deviations sigma_k, weights are proportional to 1 / sigma_k^2, which gives the
smallest variance where errors are independent; that of the merged prediction takes their correlation into account.

>>> mu, sigma = torch.tensor([[[0.0]], [[3.0]]]), torch.tensor([[[1.0]], [[2.0]]])
>>> found = merge_paths(mu, sigma, torch.eye(2))
>>> found.weights.flatten(), found.mean, found.variance
(tensor([0.8000, 0.2000]), tensor([[0.6000]]), tensor([[0.8000]]))
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Merged:
    """A merged prediction.

    Attributes:
        mean: the prediction.
        variance: of the merged prediction.
        epistemic: variance between paths.
        weights: what each path counted.
    """

    mean: Tensor
    variance: Tensor
    epistemic: Tensor
    weights: Tensor


def merge_paths(
    mu: Float[Tensor, "paths batch outputs *rest"],
    sigma: Float[Tensor, "paths batch outputs *rest"],
    correlation: Float[Tensor, "paths paths"],
    alike: bool = False,
) -> Merged:
    """Inverse-variance merge; the outputs of a place share their weights.

    Args:
        mu, sigma: predictions and their deviations.
        correlation: of the paths' errors.
        alike: weigh all paths alike.
    """
    inverse = torch.ones_like(sigma[:, :, :1]) if alike else sigma.pow(-2).sum(2, keepdim=True)
    weights = inverse / inverse.sum(0)
    scaled = weights * sigma
    variance = torch.einsum("i...,ij,j...->...", scaled, correlation.to(sigma), scaled).clamp(min=0)
    epistemic = mu.var(0, correction=min(1, len(mu) - 1))
    return Merged((weights * mu).sum(0), variance, epistemic, weights)
