from __future__ import annotations

import math

import torch
import torch.distributions as D

from homeostat.nn import ChunkVAE, clip_loss


def test_losses_are_the_squared_error_of_a_draw_and_the_divergence_from_the_standard_normal():
    net = ChunkVAE(size=4, chunks=3, latent=2, width=8).double()
    x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    error, divergence = net.losses(x, torch.Generator().manual_seed(1))
    mean, spread = net.encode(x)
    q = D.Normal(mean, (0.5 * spread).exp())
    assert torch.allclose(divergence, D.kl_divergence(q, D.Normal(0.0, 1.0)).mean())
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(error, (net.decode(mean + q.stddev * noise) - x).square().mean())


def test_chunks_are_told_apart_by_their_number_and_read_by_themselves():
    net = ChunkVAE(size=4, chunks=2, latent=2, width=8)
    x = torch.ones(1, 2, 4)
    mean = net.encode(x)[0]
    assert not torch.allclose(mean[:, 0], mean[:, 1])
    changed = x.clone()
    changed[:, 1] = 5.0
    assert torch.equal(net.encode(changed)[0][:, 0], mean[:, 0])


def test_the_loss_of_pairs_by_hand():
    a, b = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    h = math.sqrt(0.5)
    scores = [[1 / 0.5, h / 0.5], [0.0, h / 0.5]]
    rows = -sum(scores[i][i] - math.log(sum(map(math.exp, scores[i]))) for i in range(2)) / 2
    columns = -sum(scores[i][i] - math.log(math.exp(scores[0][i]) + math.exp(scores[1][i])) for i in range(2)) / 2
    assert math.isclose(float(clip_loss(a, b, 0.5)), (rows + columns) / 2, rel_tol=1e-6)
