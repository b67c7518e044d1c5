"""Conditional unrolled reconstruction against a plain loop, and its dial."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from homeostat.adapt import ConditionalUnrolled, total_variation
from homeostat.core.errors import DtypeError, InputError, ModelError
from homeostat.core.task import Regress
from homeostat.core.world import World
from homeostat.fit import Recipe
from homeostat.nn.optimizers import Adam
from homeostat.nn.unrolled import Denoiser, Unrolled
from homeostat.shift import Undersample


def blobs(count: int, size: int = 12, seed: int = 0) -> torch.Tensor:
    """Bright rectangles on black."""
    draws = torch.Generator().manual_seed(seed)
    made = torch.zeros(count, 1, size, size)
    for image in made:
        for _ in range(2):
            a, b = torch.randint(0, size - 4, (2,), generator=draws).tolist()
            image[0, a : a + 4, b : b + 4] = float(0.4 + 0.6 * torch.rand((), generator=draws))
    return made


def matrix(n: int) -> torch.Tensor:
    k = torch.arange(n, dtype=torch.float64) - n // 2
    return torch.polar(torch.full((n, n), n**-0.5, dtype=torch.float64), -2 * math.pi * k[:, None] * k / n)


@pytest.mark.exact("S301")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_the_network_is_the_equations_with_matrices(dtype, tolerance):
    draws = torch.Generator().manual_seed(0)
    net = Unrolled(Denoiser(width=3, depth=2), iterations=3, hidden=4).to(dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=draws).to(dtype)
    kspace = torch.randn(2, 2, 5, 6, generator=draws, dtype=torch.float64).to(dtype)
    mask = torch.tensor([[1, 0, 0, 1, 1, 0], [0, 1, 1, 1, 0, 0]]).bool()
    condition = torch.tensor([0.2, 0.9], dtype=dtype)
    got = net({"kspace": kspace, "mask": mask, "condition": condition})
    rows, columns = matrix(5), matrix(6)
    for b in range(2):
        measured = torch.complex(kspace[b, 0], kspace[b, 1]).to(torch.complex128)
        x = rows.conj().T @ (measured * mask[b]) @ columns.conj()
        a = condition[b : b + 1, None]
        for layer in (net.hyper.layers.linear0, net.hyper.layers.linear1):
            a = F.relu(a @ layer.weight.T + layer.bias)
        doubt = torch.log1p((a @ net.hyper.linear.weight.T + net.hyper.linear.bias - 2).exp())[0].double()
        for t in range(3):
            z = torch.stack([x.real, x.imag])[None].to(dtype)
            z = (z - net.denoiser(z))[0].double()
            own = rows @ torch.complex(z[0], z[1]) @ columns.T
            own = torch.where(mask[b], (doubt[t] * own + measured) / (doubt[t] + 1), own)
            x = rows.conj().T @ own @ columns.conj()
        assert torch.allclose(got[b].double(), torch.stack([x.real, x.imag]), rtol=0, atol=tolerance)


def test_the_condition_is_read_from_the_table_in_straight_lines():
    net = Unrolled(Denoiser(width=2, depth=1), levels=3)
    net.noise.copy_(torch.tensor([0.1, 0.2, 0.4]))
    net.conditions.copy_(torch.tensor([0.0, 0.5, 1.0]))
    noise = torch.tensor([0.0, 0.1, 0.15, 0.3, 9.0])
    assert torch.allclose(net.condition_of(noise), torch.tensor([0.0, 0.0, 0.25, 0.75, 1.0]))


def test_total_variation_by_hand():
    image = torch.tensor([[[[0.0, 1.0], [3.0, 3.0]]]])
    assert float(total_variation(image)) == (3 + 2) / 2 + (1 + 0) / 2


@pytest.fixture(scope="module")
def trained():
    images = blobs(300)
    world = World(source=Undersample(acceleration=2.0)((images, images)), task=Regress())
    recipe = Recipe(optimizer=Adam(lr=3e-3), epochs=12, batch=30, clip=1.0)
    return {
        name: ConditionalUnrolled(iterations=3, conditional=name == "dial", recipe=recipe, levels=5, strength=0.5)(
            Denoiser(width=12, depth=3), world
        )
        for name in ("dial", "fixed")
    }


def error(net: torch.nn.Module, noise: float, **extra) -> float:
    test = blobs(100, seed=9)
    batch = Undersample(acceleration=2.0, noise=noise)((test, test)).load()
    with torch.no_grad():
        return float((net({**batch.x, **extra}) - batch.y).square().mean())


def test_it_reconstructs_better_than_filling_with_zeros(trained):
    zeros = Unrolled(Denoiser(width=2, depth=1), conditional=False)
    assert error(trained["fixed"], 0.0) < 0.6 * error(zeros, 0.0)
    assert error(trained["dial"], 0.0) < 0.6 * error(zeros, 0.0)


def test_more_noise_asks_for_more_doubt_and_the_dial_helps(trained):
    net = trained["dial"]
    assert bool((net.conditions.diff() >= 0).all()) and float(net.conditions[-1]) > float(net.conditions[0])
    assert bool((net.noise.diff() >= 0).all())
    low, high = (error(net, 0.15, condition=torch.full((100,), h)) for h in (0.0, 1.0))
    assert error(net, 0.15) < low and high < low


def test_failure_detail_is_taken_for_noise(trained):
    """A rough image without any noise is given a large condition, as the docstring says."""
    net = trained["dial"]
    rough = torch.rand(20, 1, 12, 12, generator=torch.Generator().manual_seed(3))
    seen = []
    net.condition_of, asked = (lambda noise: seen.append(asked(noise)) or seen[-1]), net.condition_of
    for images in (blobs(20, seed=4), rough):
        with torch.no_grad():
            net(Undersample(acceleration=2.0)((images, images)).load().x)
    del net.condition_of
    assert float(seen[1].mean()) > float(seen[0].mean()) + 0.2


def test_what_does_not_fit_is_refused():
    images = blobs(4)
    scans = Undersample(acceleration=2.0)((images, images))
    with pytest.raises(ModelError, match="Regress"):
        ConditionalUnrolled()(Denoiser(width=2), World(source=scans))
    with pytest.raises(InputError, match="kspace"):
        ConditionalUnrolled()(Denoiser(width=2), World(source=(images, images), task=Regress()))
    net = Unrolled(Denoiser(width=2))
    kspace = torch.zeros(1, 2, 4, 4)
    with pytest.raises(DtypeError, match="booleans"):
        net({"kspace": kspace, "mask": torch.ones(1, 4)})
    with pytest.raises(InputError, match="mask has shape"):
        net({"kspace": kspace, "mask": torch.ones(1, 3, dtype=torch.bool)})
