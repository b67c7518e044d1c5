from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from homeostat.adapt import LAME, CoTTA, Tent
from homeostat.core.layout import LEAST, Layout, channels_last, laid_as
from homeostat.nn.augment import RandomViews


class Viewing(nn.Module):
    """A network that takes its feature maps apart with `view`, as much code does."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), norm(4) if norm is nn.BatchNorm2d else nn.GroupNorm(2, 4)
        self.linear = nn.Linear(4 * 30 * 30, 5)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.stride())
        return self.linear(self.norm(self.conv(x)).view(len(x), -1))


class Flattening(Viewing):
    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.stride())
        return self.linear(self.norm(self.conv(x)).flatten(1))


def images(count: int = 16, **options) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(**options)


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (4, 1, 5, 6), (1, 3, 5, 6), (1, 1, 5, 6)])
def test_channels_lie_side_by_side_and_nothing_else_changes(shape):
    x = torch.rand(shape)
    laid = channels_last(x)
    assert laid.stride() == (shape[1] * 30, 1, 6 * shape[1], shape[1]) and torch.equal(laid, x)
    assert channels_last(laid) is laid and laid_as(x, laid).stride() == laid.stride() and laid_as(x, x) is x


def test_images_are_laid_out_for_a_network_that_takes_it():
    torch.manual_seed(0)
    x, layout = images(), Layout()
    assert x.numel() >= LEAST and layout(Flattening().eval(), x).stride(1) == 1


@pytest.mark.parametrize(
    ("net", "x"),
    [
        (Viewing(), images()), (Flattening(nn.GroupNorm), images()), (Flattening(), images(2)),
        (Flattening().double(), images(dtype=torch.float64)), (nn.BatchNorm1d(5), torch.rand(9000, 5)),
    ],
)  # fmt: skip
def test_anything_else_stays_as_it_is(net, x):
    assert Layout()(net.eval(), x) is x


def test_whether_a_network_takes_it_is_found_out_once():
    net, layout = Viewing().eval(), Layout()
    for _ in range(3):
        layout(net, images())
    assert len(net.seen) == 1


@pytest.mark.parametrize("remedy", [Tent(), LAME(), CoTTA(views=2, threshold=1.1)])
def test_a_method_gives_the_same_for_a_network_that_takes_it_and_one_that_does_not(remedy):
    torch.manual_seed(0)
    net = Viewing().eval()
    other = Flattening().eval()
    other.load_state_dict(net.state_dict())
    first, second = remedy(net), remedy(other)
    for _ in range(2):
        assert torch.allclose(first.observe(images()), second.observe(images()), atol=1e-4)
    assert all(s[1] > 1 for s in first.model.seen[1:]) and all(s[1] == 1 for s in second.model.seen[1:])


def test_a_view_lies_as_the_images_it_was_made_of():
    x = images(2)
    draws = [torch.Generator().manual_seed(0) for _ in range(2)]
    plain, laid = RandomViews()(x, draws[0]), RandomViews()(channels_last(x), draws[1])
    assert laid.stride(1) == 1 and plain.stride(1) > 1 and torch.allclose(plain, laid, atol=1e-6)
