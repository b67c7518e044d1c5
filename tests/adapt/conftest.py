"""A small network and a drifting stream, and the slow way to write a network that uses its batch's statistics."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from homeostat.core.check import small_network
from homeostat.core.data import Batch, Tensors
from homeostat.core.fork import fork
from homeostat.core.probe import prequential
from homeostat.core.world import World
from homeostat.fit import Fit, Recipe
from homeostat.nn.optimizers import Adam


def _network(kind: str = "batch", dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    norm: dict[str, Callable[[], nn.Module]] = {
        "batch": lambda: nn.BatchNorm2d(6),
        "group": lambda: nn.GroupNorm(2, 6),
        "layer": lambda: nn.LayerNorm([6, 6, 6]),
    }
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), norm[kind](), nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, bias=False), norm[kind](), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    return net.to(dtype).eval()


def _stream(steps: int = 6, size: int = 20, dtype: torch.dtype = torch.float64, seed: int = 1) -> list[Tensor]:
    """Coloured noise in 0..1, darker from batch to batch."""
    draws = torch.Generator().manual_seed(seed)

    def images(power: float) -> Tensor:
        color = torch.rand(size, 3, 1, 1, generator=draws, dtype=torch.float64)
        return (color * torch.rand(size, 3, 8, 8, generator=draws, dtype=torch.float64)).pow(power).to(dtype)

    return [images(1 + 0.3 * step) for step in range(steps)]


def _batch_mode(net: nn.Module) -> nn.Module:
    """PyTorch's own way to the batch's statistics: training mode without stored ones. Changes `net`."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    return net


class Noted(Tensors):
    """Data that note which rows were fetched."""

    def __init__(self, x: Tensor, y: Tensor):
        super().__init__(x, y)
        self.asked: list[Tensor] = []

    def fetch(self, positions: Tensor) -> Batch:
        self.asked.append(positions)
        return super().fetch(positions)

    def batches_asked(self) -> list[Batch]:
        """All that was fetched but single rows, in order."""
        return [super(Noted, self).fetch(rows) for rows in self.asked if len(rows) > 1]


@pytest.fixture
def source() -> Callable[..., Noted]:
    def make(dtype: torch.dtype = torch.float64, count: int = 30) -> Noted:
        return Noted(_stream(1, count, dtype, seed=8)[0], torch.arange(count) % 4)

    return make


@pytest.fixture
def network() -> Callable[..., nn.Module]:
    return _network


@pytest.fixture
def stream() -> Callable[..., list[Tensor]]:
    return _stream


@pytest.fixture
def batch_mode() -> Callable[[nn.Module], nn.Module]:
    return _batch_mode


def _shades(count: int, seed: int, sort: bool = False, haze: float = 0.0) -> Tensors:
    """Noisy images `[count, 1, 8, 8]` of three classes, dark, middle and bright; mixed or sorted by class."""
    draws = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    y = y.sort().values if sort else y[torch.randperm(count, generator=draws)]
    x = 0.25 * y[:, None, None, None] + 0.5 * torch.rand(count, 1, 8, 8, generator=draws)
    return Tensors((1 - haze) * x + haze, y)


@pytest.fixture(scope="session")
def trained() -> nn.Module:
    """A small network that knows shades."""
    recipe = Recipe(epochs=15, batch=32, optimizer=Adam(lr=0.02))
    made = Fit(recipe=recipe)(fork(small_network(), own="*"), World(source=_shades(384, seed=0)))
    assert _right(made, _shades(200, seed=9), 50) > 0.9
    return made


def _right(net: nn.Module, data: Tensors, batch: int) -> float:
    """Accuracy of what a network says before it learns."""
    seen = prequential(net, data, batch=batch)
    return float((seen.logits.argmax(1) == seen.labels).double().mean())


@pytest.fixture
def shades() -> Callable[..., Tensors]:
    return _shades


@pytest.fixture
def right() -> Callable[[nn.Module, Tensors, int], float]:
    return _right
