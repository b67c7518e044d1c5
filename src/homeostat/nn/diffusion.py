"""Denoising diffusion of vectors, with a condition: noise is taken back step by step until a sample is left.

With noise levels beta_1..beta_T, alpha_t = 1 - beta_t and abar_t = alpha_1 .. alpha_t, a vector x_0 is noised to

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps,     eps ~ N(0, I)

A network eps_theta(x_t, t, c) learns the noise, by E |eps - eps_theta|^2 over t uniform. Sampling starts from
x_T ~ N(0, I) and goes back by

    x_{t-1} = (x_t - beta_t / sqrt(1 - abar_t) eps_theta) / sqrt(alpha_t) + sigma_t z,
    sigma_t^2 = beta_t (1 - abar_{t-1}) / (1 - abar_t),     z ~ N(0, I), and 0 at the last step

The levels are the first paper's, beta from 1e-4 to 0.02 in equal steps for T = 1000, and 1000 / T times as large for
another T (at most 0.999), so that abar_T is 4e-5 whatever T is. Data should have mean 0 and variance 1. For vectors of
some hundred numbers 100 to 200 steps do; below 50 the first steps back magnify what the network gets wrong.

>>> net = DDPM(VectorDenoiser(numbers=3, condition=2, width=16), steps=10)
>>> made = net.sample(torch.zeros(4, 2), torch.Generator().manual_seed(0))
>>> made.shape, net.loss(made, torch.zeros(4, 2), torch.Generator().manual_seed(0)).shape
(torch.Size([4, 3]), torch.Size([4]))

Reference: Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, NeurIPS 2020.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from homeostat.core.errors import InputError
from homeostat.core.part import Part
from homeostat.core.place import HOME
from homeostat.nn.blocks import at_least_one, start

Vectors = Float[Tensor, "batch numbers"]
Condition = Float[Tensor, "batch condition"]


class VectorDenoiser(Part):
    """eps_theta: a residual perceptron of the noisy vector, the step and the condition.

    Args:
        numbers: of a vector.
        condition: numbers of the condition.
        width: of the hidden layers.
        depth: residual layers.
        seed: of the starting weights.
    """

    def __init__(self, numbers: int, condition: int, width: int = 256, depth: int = 3, seed: int = 0):
        super().__init__()
        self.numbers, self.condition, self.width, self.depth, self.seed = numbers, condition, width, depth, seed
        at_least_one(numbers=numbers, condition=condition, width=width, depth=depth)
        self.first, self.time, self.about = nn.Linear(numbers, width), nn.Linear(64, width), nn.Linear(condition, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.ups = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.downs = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(depth))
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, numbers)
        start(self, seed, gain=1.0)

    def forward(self, x: Vectors, step: Int[Tensor, " batch"], condition: Condition) -> Vectors:
        """The noise in `x`."""
        about = self.time(_waves(step, x)) + self.about(condition)
        h = self.first(x) + about
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            h = h + down(nn.functional.silu(up(norm(h) + about)))
        return self.last(self.norm(h))


class DDPM(Part):
    """Diffusion with a network that finds the noise; see the module's docstring.

    Args:
        denoiser: called as `denoiser(x, step, condition)` with steps from 0; has `numbers`.
        steps: T.
    """

    def __init__(self, denoiser: nn.Module, steps: int = 200):
        super().__init__()
        self.denoiser, self.steps = denoiser, steps
        at_least_one(steps=steps)
        self._kept = kept_signal(steps)

    def noised(self, x: Vectors, step: Int[Tensor, " batch"], noise: Vectors) -> Vectors:
        """x_t of x_0; steps count from 0."""
        kept = self._kept[step.to(HOME), None].to(x)
        return kept.sqrt() * x + (1 - kept).sqrt() * noise

    def loss(self, x: Vectors, condition: Condition, generator: torch.Generator) -> Float[Tensor, " batch"]:
        """Mean squared error of the noise, at a random step for each vector; `generator` is on the CPU."""
        step = torch.randint(self.steps, (len(x),), generator=generator).to(x.device)
        noise = torch.randn(x.shape, generator=generator).to(x)
        return (self.denoiser(self.noised(x, step, noise), step, condition) - noise).square().mean(1)

    @torch.no_grad()
    def sample(self, condition: Condition | Any, generator: torch.Generator) -> Vectors:
        """One vector for each row of the condition; `generator` is on the CPU."""
        if condition.ndim != 2 or len(condition) == 0:
            raise InputError(f"the condition has shape {tuple(condition.shape)}; [samples, numbers] is wanted")
        shape = (len(condition), int(self.denoiser.numbers))  # type: ignore[arg-type]
        x = torch.randn(shape, generator=generator).to(condition)
        kept = self._kept.tolist()
        for step in reversed(range(self.steps)):
            before = kept[step - 1] if step else 1.0
            alpha = kept[step] / before
            noise = self.denoiser(x, torch.full((len(x),), step, device=x.device), condition)
            x = (x - (1 - alpha) / math.sqrt(1 - kept[step]) * noise) / math.sqrt(alpha)
            if step:
                deviation = math.sqrt((1 - alpha) * (1 - before) / (1 - kept[step]))
                x = x + deviation * torch.randn(shape, generator=generator).to(x)
        return x


def kept_signal(steps: int) -> Float[Tensor, " steps"]:
    """abar_1..abar_T, in double precision."""
    levels = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * (1000 / steps)
    return (1 - levels.clamp(max=0.999)).cumprod(0)


def _waves(step: Tensor, like: Tensor) -> Tensor:
    """Sines and cosines of the step, `[batch, 64]`."""
    rates = torch.exp(torch.arange(32, device=step.device) * (-math.log(10_000) / 32))
    angles = step[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1).to(like)
