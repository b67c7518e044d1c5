"""Gaussian kernels and the kernel two-sample statistic (maximum mean discrepancy).

With `k(x, y) = exp(-|x - y|^2 / (2 sigma^2))`, a sample `X` of `n` rows and a sample `Y` of `m` rows:

    MMD^2 = mean over i != j of k(x_i, x_j)  +  mean over i != j of k(y_i, y_j)  -  2 mean over i, j of k(x_i, y_j)

This estimate is unbiased, so it is negative about half of the time when both samples come from one distribution. The
default width is the usual one, `sigma = sqrt(median |x - y|^2 / 2)`.

A permutation test needs the statistic for many divisions of the pooled rows. `mmd2_permutation` gets all of them from
one product of the kernel matrix with a 0/1 matrix of memberships.

>>> import torch
>>> x = torch.tensor([[0.0], [1.0]])
>>> pairwise_sq(x, x)
tensor([[0., 1.],
        [1., 0.]])
>>> round(median_bandwidth(x), 4)
0.7071

Reference: Gretton et al., A kernel two-sample test, JMLR 2012.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

_BANDWIDTH_ROWS = 2000  # the median of 2000 x 2000 distances no longer moves, and larger ones cost memory


def pairwise_sq(x: Float[Tensor, "n features"], y: Float[Tensor, "m features"]) -> Float[Tensor, "n m"]:
    """Squared Euclidean distances, by one matrix product; exactly 0 on the diagonal when both are one tensor."""
    middle = y.mean(0)  # distances do not change, and cancellation is smaller near the origin
    a, b = x - middle, y - middle
    distances = torch.addmm(b.square().sum(1)[None], a, b.T, alpha=-2).add_(a.square().sum(1)[:, None]).clamp_(min=0)
    return distances.fill_diagonal_(0) if x is y else distances


def median_bandwidth(x: Float[Tensor, "n features"], y: Float[Tensor, "m features"] | None = None) -> float:
    """`sqrt(median squared distance / 2)` between the rows of `x`, or between those of `x` and `y`.

    At most 2000 rows of each, evenly spaced, are looked at. When half of the distances are 0 the median of the others
    is taken; when all are, the width is 1.
    """
    x = _thinned(x)
    if y is None:
        distances = pairwise_sq(x, x)[*torch.triu_indices(len(x), len(x), 1)]
    else:
        distances = pairwise_sq(x, _thinned(y)).flatten()
    middle = distances.median() if len(distances) else distances.sum()
    if middle == 0:
        distances = distances[distances > 0]
        if len(distances) == 0:
            return 1.0
        middle = distances.median()
    return math.sqrt(float(middle) / 2)


def rbf(x: Float[Tensor, "n features"], y: Float[Tensor, "m features"], sigma: float) -> Float[Tensor, "n m"]:
    """`exp(-|x - y|^2 / (2 sigma^2))` for every pair of rows."""
    return pairwise_sq(x, y).mul_(-0.5 / sigma**2).exp_()


def off_diagonal_mean(kernel: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    """Mean of a square matrix without its diagonal."""
    n = len(kernel)
    return (kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1))


def mmd2(
    x: Float[Tensor, "n features"], y: Float[Tensor, "m features"], sigma: float, within_y: Tensor | None = None
) -> Float[Tensor, ""]:
    """Unbiased squared maximum mean discrepancy between two samples of at least two rows.

    Args:
        x, y: the samples.
        sigma: width of the kernel.
        within_y: `off_diagonal_mean(rbf(y, y, sigma))`, where it is at hand; it costs most when `y` is the larger.
    """
    within_y = off_diagonal_mean(rbf(y, y, sigma)) if within_y is None else within_y
    return off_diagonal_mean(rbf(x, x, sigma)) + within_y - 2 * rbf(x, y, sigma).mean()


def mmd2_memberships(
    kernel: Float[Tensor, "rows rows"], member: Float[Tensor, "rows divisions"]
) -> Float[Tensor, " divisions"]:
    """Unbiased MMD^2 for many divisions of the same rows into two samples.

    Args:
        kernel: symmetric, with a zero diagonal.
        member: 1 where a row is in the first sample, else 0. Every column has the same sum, between 2 and rows - 2.
    """
    n = int(member[:, 0].sum())
    m = len(kernel) - n
    product = kernel @ member
    within = (member * product).sum(0)
    between = product.sum(0) - within
    rest = kernel.sum() - within - 2 * between
    return within / (n * (n - 1)) + rest / (m * (m - 1)) - 2 * between / (n * m)


def mmd2_permutation(
    kernel: Float[Tensor, "rows rows"], n: int, permutations: int, generator: torch.Generator
) -> tuple[float, Float[Tensor, " permutations"]]:
    """MMD^2 of the first `n` rows against the others, and for random divisions into as many.

    The p-value is `(1 + how many of the second >= the first) / (permutations + 1)`: exact at any sample size when rows
    are exchangeable.

    Args:
        kernel: kernel of the pooled rows with itself, symmetric, with a zero diagonal.
        n: rows in the first sample; at least 2, and at least 2 are left.
        permutations: number of random divisions.
        generator: where they come from.
    """
    rows = len(kernel)
    chosen = torch.rand(permutations, rows, generator=generator).topk(n, dim=1).indices.to(kernel.device)
    member = torch.zeros(permutations + 1, rows, dtype=kernel.dtype, device=kernel.device)
    member[0, :n] = 1
    member[1:].scatter_(1, chosen, 1.0)
    values = mmd2_memberships(kernel, member.T)
    return float(values[0]), values[1:]


def _thinned(x: Tensor) -> Tensor:
    if len(x) <= _BANDWIDTH_ROWS:
        return x
    return x[torch.linspace(0, len(x) - 1, _BANDWIDTH_ROWS, device=x.device).long()]
