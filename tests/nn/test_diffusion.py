from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from homeostat.core.errors import InputError
from homeostat.nn import DDPM, VectorDenoiser, kept_signal


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Optimal(nn.Module):
    """The best there is for data N(mean, deviation^2): E[eps | x_t], in closed form."""

    numbers = 2

    def __init__(self, mean: float, deviation: float, steps: int):
        super().__init__()
        self.mean, self.deviation, self.kept = mean, deviation, kept_signal(steps)

    def forward(self, x: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        kept = self.kept[step, None]
        mean = self.mean * condition[:, :1]
        return (1 - kept).sqrt() * (x - kept.sqrt() * mean) / (kept * self.deviation**2 + 1 - kept)


def test_the_levels_are_the_papers_at_a_thousand_steps_and_end_at_the_same_place_with_fewer():
    kept, before = kept_signal(1000), 1.0
    for step, value in enumerate(kept.tolist()):
        assert math.isclose(1 - value / before, 1e-4 + (0.02 - 1e-4) * step / 999, rel_tol=1e-6)
        before = value
    assert all(0.3 < float(kept_signal(steps)[-1] / kept[-1]) < 1.1 for steps in (100, 200, 500))


def test_noising_at_once_has_the_moments_of_noising_step_by_step():
    net, x = DDPM(Optimal(0.0, 1.0, 20), steps=20), torch.tensor([[2.0, -1.0]]).double()
    mean, variance, before = x, 0.0, 1.0
    for step, kept in enumerate(kept_signal(20).tolist()):
        alpha = kept / before
        mean, variance, before = math.sqrt(alpha) * mean, alpha * variance + 1 - alpha, kept
        at = torch.tensor([step])
        assert torch.allclose(net.noised(x, at, torch.zeros_like(x)), mean)
        spread = net.noised(x, at, torch.ones_like(x)) - mean
        assert torch.allclose(spread, torch.full_like(x, math.sqrt(variance)))


@pytest.mark.exact("S012")
def test_with_the_best_denoiser_samples_have_the_distribution_of_the_data_under_the_condition():
    net = DDPM(Optimal(1.5, 0.5, 300), steps=300)
    condition = torch.tensor([[1.0], [-2.0]], dtype=torch.float64).repeat_interleave(8000, 0)
    made = net.sample(condition, generator())
    for part, mean in zip(made.split(8000), (1.5, -3.0), strict=True):
        assert torch.allclose(part.mean(0), torch.full((2,), mean).double(), atol=0.03)
        assert torch.allclose(part.std(0), torch.full((2,), 0.5).double(), atol=0.03)
        assert abs(float(torch.corrcoef(part.T)[0, 1])) < 0.05


def test_the_loss_of_the_best_denoiser_is_what_is_left_and_of_a_perfect_one_nothing():
    net = DDPM(Optimal(0.0, 1.0, 50), steps=50)
    x = torch.randn(20_000, 2, generator=generator(1), dtype=torch.float64)
    # For N(0, 1) data the noise explains 1 - abar of x_t's variance, and abar is left.
    left = float(net.loss(x, torch.ones(20_000, 1).double(), generator(2)).mean())
    assert abs(left - float(kept_signal(50).mean())) < 0.02

    class Told(nn.Module):
        numbers = 2

        def forward(self, x: Tensor, step: Tensor, condition: Tensor) -> Tensor:
            kept = kept_signal(50)[step, None]
            return (x - kept.sqrt() * condition) / (1 - kept).sqrt()

    assert float(DDPM(Told(), 50).loss(x, x, generator(2)).max()) < 1e-9


def test_a_small_denoiser_learns_which_vectors_go_with_which_condition():
    condition = torch.eye(2).repeat(64, 1)
    x = torch.where(condition[:, :1] > 0, 1.0, -1.0) * torch.tensor([[1.0, -1.0]])
    net = DDPM(VectorDenoiser(2, 2, width=32, depth=1), steps=20)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(300):
        optimizer.zero_grad()
        net.loss(x, condition, generator(step)).mean().backward()
        optimizer.step()
    made = net.sample(condition, generator(1))
    assert float((made - x).norm(dim=1).median()) < 0.3
    assert torch.equal(made, net.sample(condition, generator(1)))


def test_a_condition_without_rows_is_refused():
    net = DDPM(VectorDenoiser(2, 3, width=8), steps=2)
    with pytest.raises(InputError, match="condition has shape"):
        net.sample(torch.zeros(0, 3), generator())
