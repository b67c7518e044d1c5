"""A variational autoencoder of vectors that come in numbered chunks, and the contrastive loss of pairs.

A long vector is cut into `chunks` pieces of `size` numbers. One encoder and one decoder serve all pieces; which piece
it is they are told by a learned vector that is added in their hidden layers. With q(z | x) = N(m(x), diag s(x)^2),

    L = |x - decode(z)|^2 / numbers + beta KL(q(z | x) || N(0, I)) / latents,    z = m(x) + s(x) eps

`clip_loss` pulls a_i and b_i together and pushes a_i and b_j apart: with unit vectors and a temperature t,
1/2 CE(softmax_j(a_i b_j / t)) + 1/2 CE(softmax_j(b_i a_j / t)) towards j = i.

>>> net = ChunkVAE(size=4, chunks=3, latent=2, width=8)
>>> x = torch.rand(5, 3, 4)
>>> net.encode(x)[0].shape, net.decode(net.encode(x)[0]).shape
(torch.Size([5, 3, 2]), torch.Size([5, 3, 4]))

References: Kingma, Welling, Auto-Encoding Variational Bayes, ICLR 2014; Radford et al., Learning Transferable Visual
Models From Natural Language Supervision, ICML 2021 (the loss of pairs).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.core.part import Part
from homeostat.nn.blocks import at_least_one, start

Pieces = Float[Tensor, "batch chunks size"]
Latents = Float[Tensor, "batch chunks latent"]


class ChunkVAE(Part):
    """See the module's docstring.

    Args:
        size: numbers of a chunk.
        chunks: how many there are.
        latent: numbers that stand for a chunk.
        width: of the hidden layers.
        seed: of the starting weights.
    """

    def __init__(self, size: int, chunks: int, latent: int = 32, width: int = 256, seed: int = 0):
        super().__init__()
        self.size, self.chunks, self.latent, self.width, self.seed = size, chunks, latent, width, seed
        at_least_one(size=size, chunks=chunks, latent=latent, width=width)
        self.into, self.middle, self.code = (
            nn.Linear(size, width),
            nn.Linear(width, width),
            nn.Linear(width, 2 * latent),
        )
        self.back, self.out, self.last = nn.Linear(latent, width), nn.Linear(width, width), nn.Linear(width, size)
        self.place = nn.Embedding(chunks, width)
        start(self, seed, gain=1.0)

    def encode(self, x: Pieces) -> tuple[Latents, Latents]:
        """Mean and log-variance of q(z | x)."""
        h = F.silu(self.into(x) + self.place.weight)
        mean, spread = self.code(F.silu(self.middle(h))).chunk(2, -1)
        return mean, spread.clamp(-20, 10)

    def decode(self, z: Latents) -> Pieces:
        """The chunks of some latents."""
        return self.last(F.silu(self.out(F.silu(self.back(z) + self.place.weight))))

    def losses(self, x: Pieces, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Squared error and divergence, each a mean over its numbers; `generator` is on the CPU."""
        mean, spread = self.encode(x)
        z = mean + (0.5 * spread).exp() * torch.randn(mean.shape, generator=generator).to(x)
        divergence = 0.5 * (mean.square() + spread.exp() - 1 - spread)
        return (self.decode(z) - x).square().mean(), divergence.mean()


def clip_loss(
    a: Float[Tensor, "batch numbers"], b: Float[Tensor, "batch numbers"], temperature: float | Tensor = 0.07
) -> Float[Tensor, ""]:
    """The contrastive loss of pairs (a_i, b_i), in both directions.

    >>> a = torch.eye(3)
    >>> float(clip_loss(a, a, 0.01)), round(float(clip_loss(a, a[[1, 2, 0]], 1.0)), 4)
    (0.0, 1.5514)
    """
    scores = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / temperature
    same = torch.arange(len(a), device=a.device)
    return 0.5 * (F.cross_entropy(scores, same) + F.cross_entropy(scores.T, same))
