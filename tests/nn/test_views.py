from __future__ import annotations

import pytest
import torch
from torch import nn

from homeostat.core.data import Tensors
from homeostat.core.errors import InputError
from homeostat.nn.norms import blend_batchnorm, grouped_statistics
from homeostat.nn.prototypes import class_means, class_prototypes
from homeostat.nn.views import view_outputs


def network(**options) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).double()
    return blend_batchnorm(net, **options)


def images(count: int, seed: int) -> torch.Tensor:
    return seed + torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, {"blend": 0.3}, {"prior": 16.0}, {"blend": 1.0}])
@pytest.mark.parametrize(("batch", "most"), [(1, 64), (5, 12), (5, 1), (9, 64)])
def test_views_together_are_views_one_by_one(options, batch, most):
    net, views = network(**options), [images(batch, seed) for seed in range(5)]
    with torch.no_grad():
        together, apart = view_outputs(net, views, most=most), torch.stack([net(view) for view in views])
        mixed = net(torch.cat(views)).view_as(apart)
    assert torch.allclose(together, apart, rtol=0, atol=1e-12)
    assert options == {"blend": 1.0} or not torch.allclose(mixed, apart, atol=1e-3)


def test_gradients_pass_through_views_that_went_together():
    net, views = network(), [images(3, seed) for seed in range(4)]
    names, parameters = zip(*net.named_parameters(), strict=True)
    one = torch.autograd.grad(view_outputs(net, views).square().sum(), parameters)
    other = torch.autograd.grad(sum(net(view).square().sum() for view in views), parameters)
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(one, other, strict=True)), names


def test_groups_end_with_the_block_also_after_an_error():
    net, x = network(), images(6, 1)
    whole = net(x)
    with pytest.raises(InputError, match="4 groups"), grouped_statistics(net, 4):
        net(x)
    assert torch.equal(net(x), whole)
    with grouped_statistics(net, 2):
        halves = net(x)
    assert torch.allclose(halves, torch.cat([net(x[:3]), net(x[3:])])) and not torch.allclose(halves, whole)


def test_prototypes_are_the_mean_features_of_classes_by_hand():
    x, y = torch.tensor([[0.0, 0.0], [2.0, 4.0], [1.0, 1.0], [9.0, 9.0]]), torch.tensor([0, 0, 1, -100])
    assert class_means(x, y, 2).tolist() == [[1.0, 2.0], [1.0, 1.0]]
    with pytest.raises(InputError, match="no sample of class 2"):
        class_means(x, y, 3)
    with pytest.raises(InputError, match="label of 1"):
        class_means(x, y, 1)
    head = nn.Sequential(nn.Identity(), nn.Linear(2, 2))
    for batch in (1, 3):
        assert class_prototypes(head, Tensors(x, y), batch=batch).tolist() == [[1.0, 2.0], [1.0, 1.0]]
    with pytest.raises(InputError, match="there were none"):
        class_prototypes(head, Tensors(x, y)[:0])
