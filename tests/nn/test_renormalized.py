from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from homeostat.core.errors import ModelError
from homeostat.core.save import load, save
from homeostat.nn import (
    BlendedBatchNorm,
    RenormalizedBatchNorm,
    batch_statistics,
    following_statistics,
    norm_state,
    renormalize_batchnorm,
)


def layer(seed: int = 0) -> nn.BatchNorm2d:
    made, draws = nn.BatchNorm2d(3, eps=1e-3).double().eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (made.weight, made.bias, made.running_mean, made.running_var):
            tensor.copy_(torch.rand(3, generator=draws, dtype=torch.float64) + 0.2)
    return made


def images(count: int = 5) -> Tensor:
    return torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 + 1


def by_the_formula(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    var, mean = torch.var_mean(x, (0, 2, 3), keepdim=True)
    m0, v0, w, b = (t.view(1, 3, 1, 1) for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    s, s0 = (var + norm.eps).sqrt(), (v0 + norm.eps).sqrt()
    r, d = s.detach() / s0, (mean.detach() - m0) / s0
    return w * ((x - mean) / s * r + d) + b


def test_output_and_every_gradient_are_those_of_the_formula():
    norm, x = layer(), images()
    ours, target = renormalize_batchnorm(norm), torch.sin(torch.arange(x.numel()).view_as(x) * 0.7)
    found = []
    for call, module in ((ours, ours), (lambda v: by_the_formula(v, norm), norm)):
        v = x.clone().requires_grad_(True)
        out = call(v)
        found.append((out, *torch.autograd.grad((out * target).sum(), (v, module.weight, module.bias))))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_forward_is_evaluation_mode_and_backward_is_that_of_the_batch():
    norm, x = layer(), images().requires_grad_(True)
    ours = renormalize_batchnorm(norm)
    assert torch.allclose(ours(x), norm(x), rtol=0, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(ours(x), norm(x), rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(ours(x).pow(3).sum(), x)
    assert float(gradient.sum((0, 2, 3)).abs().max()) < 1e-10, "a batch norm does not see a constant that is added"
    (plain,) = torch.autograd.grad(norm(x).pow(3).sum(), x)
    assert float(plain.sum((0, 2, 3)).abs().max()) > 1


@pytest.mark.parametrize("learns", [True, False])
def test_statistics_move_only_when_asked_and_after_they_were_used(learns):
    norm, x = layer(), images()
    ours = renormalize_batchnorm(norm)
    before, state = ours(x).detach(), {n: b.clone() for n, b in ours.named_buffers()}
    assert all(torch.equal(b, state[n]) for n, b in ours.named_buffers())
    with torch.set_grad_enabled(learns), following_statistics(ours, "follow"):
        assert torch.allclose(ours(x).detach(), before, rtol=0, atol=1e-12)
    for name, now in (("running_mean", x.mean((0, 2, 3))), ("running_var", x.var((0, 2, 3), unbiased=True))):
        expected = 0.9 * state[name] + 0.1 * now
        assert torch.allclose(getattr(ours, name), expected, rtol=0, atol=1e-12)
    with torch.set_grad_enabled(learns), following_statistics(ours, "start"):
        started = ours(x).detach()
    whole = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), keepdim=True) + norm.eps).sqrt()
    expected = whole * norm.weight.view(1, 3, 1, 1) + norm.bias.view(1, 3, 1, 1)
    assert torch.allclose(started, expected.detach(), rtol=0, atol=1e-12)


def test_one_value_a_channel_is_normalised_by_what_is_there():
    ours = renormalize_batchnorm(nn.BatchNorm1d(2).eval())
    x = torch.tensor([[4.0, -2.0]])
    with following_statistics(ours, "start"):
        out = ours(x)
    assert torch.allclose(out, x, atol=1e-4) and torch.equal(ours.running_mean, torch.zeros(2))


def test_a_network_is_forked_saved_and_named(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Sequential(nn.GroupNorm(1, 3))).eval()
    ours = renormalize_batchnorm(net)
    assert type(net[1]) is nn.BatchNorm2d and isinstance(ours[1], RenormalizedBatchNorm)
    assert norm_state(ours) == (
        "1.weight", "1.bias", "2.0.weight", "2.0.bias", "1.running_mean", "1.running_var",
    )  # fmt: skip
    save(ours, tmp_path / "net")
    x = torch.rand(4, 1, 6, 6)
    assert torch.equal(load(tmp_path / "net")(x), ours(x))
    again = batch_statistics(ours)
    assert type(again[1]) is BlendedBatchNorm, "other methods can take it from there"


def test_layers_without_statistics_or_no_layers_at_all_are_refused():
    with pytest.raises(ModelError, match="stored statistics"):
        renormalize_batchnorm(nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(ModelError, match="no normalisation layer"):
        norm_state(nn.Linear(2, 2))
