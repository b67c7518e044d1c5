"""A small network and a drifting stream, and the slow way to write a network that uses its batch's statistics."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


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


@pytest.fixture
def network() -> Callable[..., nn.Module]:
    return _network


@pytest.fixture
def stream() -> Callable[..., list[Tensor]]:
    return _stream


@pytest.fixture
def batch_mode() -> Callable[[nn.Module], nn.Module]:
    return _batch_mode
