from __future__ import annotations

import pytest
import torch

from homeostat.nn.norms import blend_batchnorm
from homeostat.nn.sharpness import worst_nearby


def test_the_step_has_the_length_of_the_radius_over_all_tensors_and_is_undone_exactly():
    draws = torch.Generator().manual_seed(0)
    weights = [torch.randn(3, 4, generator=draws).requires_grad_(), torch.randn(7, generator=draws).requires_grad_()]
    gradients = [torch.randn(3, 4, generator=draws), torch.randn(7, generator=draws)]
    before = [w.detach().clone() for w in weights]
    flat = torch.cat([g.flatten() for g in gradients])
    with worst_nearby(weights, gradients, 0.25):
        moved = torch.cat([(w.detach() - b).flatten() for w, b in zip(weights, before, strict=True)])
        assert torch.allclose(moved, 0.25 * flat / flat.norm(), atol=1e-6)
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))


def test_it_comes_back_when_something_is_raised_inside():
    weight = torch.ones(2)
    with pytest.raises(RuntimeError, match="inside"), worst_nearby([weight], [torch.ones(2)], 1.0):
        raise RuntimeError("inside")
    assert torch.equal(weight, torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_without_a_gradient_nothing_moves(dtype):
    weight = torch.ones(2, dtype=dtype)
    with worst_nearby([weight], [torch.zeros(2, dtype=dtype)], 1.0):
        assert torch.equal(weight, torch.ones(2, dtype=dtype))


@pytest.mark.parametrize("grad", [False, True])
def test_a_blend_takes_one_value_a_channel_with_or_without_gradients(grad):
    """Its variance is 0; PyTorch's kernel would refuse it."""
    net = blend_batchnorm(torch.nn.BatchNorm1d(2).double().eval(), blend=0.75)
    x = torch.tensor([[4.0, -8.0]], dtype=torch.float64).requires_grad_(grad)
    expected = (x - 0.25 * x) / (0.75 + 1e-5) ** 0.5
    assert torch.allclose(net(x), expected, atol=1e-12)
