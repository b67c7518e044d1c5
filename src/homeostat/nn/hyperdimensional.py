"""Hyperdimensional computing: long vectors of signs that can be added up and compared.

A feature phi `[d]` becomes a hypervector v = sign(R (phi - mean)) `[D]` of +1 and -1, R fixed random normal; near
features agree in most signs (with probability 1 - angle / pi), unrelated ones in half of them. Adding up the vectors
of a group, a *bundle*, gives a vector that is near each of them; the cosine of v and a bundle B is v . B / (sqrt(D)
|B|). Signs take a bit each when they are packed.

>>> v = torch.tensor([[1, -1, -1, 1, 1, 1, 1, 1, -1]], dtype=torch.int8)
>>> pack_signs(v).tolist(), bool((unpack_signs(pack_signs(v), 9) == v).all())
([[159, 0]], True)

Reference: Kanerva, Hyperdimensional computing, 2009; Charikar, Similarity estimation techniques from rounding
algorithms, 2002 (agreement of signs and angles).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int8, Num, UInt8
from torch import Tensor

from homeostat.core.random import generator


def projection(dimension: int, features: int, seed: int) -> Float[Tensor, "dimension features"]:
    """The fixed random matrix R, float32; the same for the same seed."""
    return torch.randn(dimension, features, generator=generator(seed, "hyperdimensional.projection"))


def hypervectors(
    features: Float[Tensor, "batch features"],
    mean: Float[Tensor, " features"],
    matrix: Float[Tensor, "dimension features"],
) -> Int8[Tensor, "batch dimension"]:
    """Signs of the projected centred features; 0 counts as +1."""
    exact = matrix.dtype
    positive = (features.to(exact) - mean.to(exact)) @ matrix.T >= 0
    return positive.to(torch.int8).mul_(2).sub_(1)


def similarity(
    vectors: Int8[Tensor, "batch dimension"], bundles: Num[Tensor, "groups dimension"]
) -> Float[Tensor, "batch groups"]:
    """Cosine of each hypervector with each bundle, float32; an empty bundle has similarity 0."""
    unit = bundles.float()
    unit = unit / torch.linalg.vector_norm(unit, dim=1, keepdim=True).clamp(min=1e-12)
    return vectors.float() @ unit.T / vectors.shape[1] ** 0.5


def pack_signs(vectors: Int8[Tensor, "batch dimension"]) -> UInt8[Tensor, "batch bytes"]:
    """Eight signs a byte, the first in the highest bit; what is missing at the end is -1."""
    count, dimension = vectors.shape
    bits = torch.zeros(count, -(-dimension // 8) * 8, dtype=torch.uint8, device=vectors.device)
    bits[:, :dimension] = vectors > 0
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=vectors.device)
    return (bits.view(count, -1, 8) * weights).sum(2, dtype=torch.uint8)


def unpack_signs(packed: UInt8[Tensor, "batch bytes"], dimension: int) -> Int8[Tensor, "batch dimension"]:
    """The signs of packed vectors."""
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=packed.device)
    on = (packed[:, :, None].bitwise_and(weights) > 0).flatten(1)[:, :dimension]
    return on.to(torch.int8).mul_(2).sub_(1)


def bundled(
    vectors: Int8[Tensor, "n dimension"],
    labels: Tensor,
    quantile: float,
    bits: bool = False,
    elsewhere: Float[Tensor, " n"] | None = None,
) -> tuple[Tensor, Tensor]:
    """A bundle for each class that has samples, and a quantile of the samples' scores, each left out of its own.

    With `bits` a bundle is stored by its signs alone, and the scores are those of the signs. The quantile is of the
    samples that score at least as high as `elsewhere`, in the domains before; of all, if none does.
    """

    def limit(scores: Tensor) -> Tensor:
        best = scores.amax(1)
        mine = best if elsewhere is None else best[best >= elsewhere]
        return (mine if len(mine) else best).quantile(quantile)

    present = labels.unique()
    own = (labels[:, None] == present).int()
    # Sums of signs are whole numbers far below 2^24, so float products are exact.
    bundle = own.float().T @ vectors.float()
    dimension = vectors.shape[1]
    if bits:
        signs = torch.where(bundle >= 0, 1.0, -1.0)
        # Without its own vector a sum of +1 or 0 that the vector had a part in may change its sign.
        held, sign = bundle[own.argmax(1)], vectors.float()
        left = (sign * torch.where(held - sign >= 0, 1.0, -1.0)).sum(1, keepdim=True) / dimension
        scores = torch.where(own.bool(), left, sign @ signs.T / dimension)
        return pack_signs(signs.to(torch.int8)), limit(scores)
    dots = vectors.float() @ bundle.T
    squared = bundle.square().sum(1) - own * (2 * dots - dimension)
    scores = (dots - own * dimension) / (dimension * squared.clamp(min=1.0)).sqrt()
    return bundle.to(torch.int32), limit(scores)
