from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.core.data import Tensors
from homeostat.core.errors import InputError, ModelError, NonFiniteError, SpecError
from homeostat.core.fork import fork, versions
from homeostat.nn import MLP, renormalize
from homeostat.nn.resnet import ResNet


def inputs(count: int = 60) -> Tensor:
    return torch.rand(count, 2, 6, 6, generator=torch.Generator().manual_seed(0)).double()


def plain(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)
    ).double()


def by_hand(nets: list[nn.Sequential], net: nn.Sequential, x: Tensor, mode: str, eps: float = 1e-5) -> Tensor:
    """Outputs with both convolutions renormalised in their order, without writing anything into weights."""
    hidden, references = x, [x for _ in nets]
    for at in (0, 2):
        references = [other[at](F.relu(h) if at else h) for other, h in zip(nets, references, strict=True)]
        hidden = net[at](F.relu(hidden) if at else hidden)
        mean = torch.stack([r.mean((0, 2, 3)) for r in references]).mean(0)[:, None, None]
        deviation = torch.stack([r.var((0, 2, 3), correction=0).sqrt() for r in references]).mean(0)[:, None, None]
        mu, var = hidden.mean((0, 2, 3), keepdim=True), hidden.var((0, 2, 3), correction=0, keepdim=True)
        hidden = {
            "repair": (hidden - mu) / (var + eps).sqrt() * deviation + mean,
            "rescale": hidden / (var + eps).sqrt() * deviation,
            "reshift": hidden - mu + mean,
        }[mode]
    return net[5](F.relu(hidden).flatten(1))


@pytest.mark.parametrize("mode", ["repair", "rescale", "reshift"])
@pytest.mark.exact("S293")
def test_equals_the_definition_written_out_layer_by_layer(mode):
    nets, x = [plain(1), plain(2)], inputs()
    merged = plain(3)
    made = renormalize(merged, nets, x, mode)
    with torch.no_grad():
        assert torch.allclose(made(x), by_hand(nets, merged, x, mode), atol=1e-9)


@pytest.mark.exact("S293")
def test_deviations_are_averaged_and_not_variances():
    one, three, net = (nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)).double() for _ in range(3))
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    with torch.no_grad():
        for other, weight, bias in ((one, 1.0, 4.0), (three, 3.0, 0.0), (net, 0.5, 9.0)):
            other[0].weight.fill_(weight)
            other[0].bias.fill_(bias)
    made = renormalize(net, [one, three], x, eps=0.0)
    # Deviations 1 and 3 make 2 (variances would make sqrt 5); means 4 and 0 make 2.
    assert made[0](x).flatten().tolist() == pytest.approx([0.0, 4.0])
    made = renormalize(net, [one, three], x, eps=0.0, weights=(0.75, 0.25))
    assert made[0](x).flatten().tolist() == pytest.approx([3.0 - 1.5, 3.0 + 1.5])
    rescaled = renormalize(net, [one, three], x, "rescale", eps=0.0)
    assert rescaled[0](x).flatten().tolist() == pytest.approx([(9 - 0.5) * 4, (9 + 0.5) * 4])


def test_a_network_that_is_its_own_reference_stays_as_it_is():
    for net in (plain(1), MLP(72, 3, (8, 8), norm="layer").double(), ResNet(8, 3, 2, 8, norm="group").double()):
        x = inputs()
        net.eval()
        for mode in ("repair", "rescale", "reshift"):
            with torch.no_grad():
                assert torch.allclose(renormalize(net, [net], x, mode, eps=0.0)(x), net(x), atol=1e-8), mode


def trained_like(seed: int) -> nn.Module:
    net = ResNet(8, 3, 2, 8, seed=seed).double()
    net.train()
    with torch.no_grad():
        for _ in range(30):
            net(inputs())
    return net.eval()


@pytest.mark.exact("S293")
def test_behind_batchnorm_the_outputs_of_batchnorm_are_meant_and_its_scale_and_shift_take_the_change():
    net = trained_like(0)
    pruned = fork(net, own="*")
    with torch.no_grad():
        for module in pruned.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(module.weight.abs() > module.weight.abs().median())
    seen: dict[nn.Module, Tensor] = {}
    made = renormalize(pruned, [net], inputs(), eps=0.0)
    norms = [n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)]
    for owner in (net, made):
        for name in norms:
            owner.get_submodule(name).register_forward_hook(lambda m, _, out: seen.__setitem__(m, out))
    with torch.no_grad():
        for owner in (net, made):
            owner(inputs())
    for name in norms:
        wanted, found = (seen[owner.get_submodule(name)] for owner in (net, made))
        assert torch.allclose(found.mean((0, 2, 3)), wanted.mean((0, 2, 3)), atol=1e-8)
        assert torch.allclose(found.std((0, 2, 3)), wanted.std((0, 2, 3)), atol=1e-8)
    assert torch.equal(made.conv1.weight, pruned.conv1.weight) and torch.equal(made.linear.weight, net.linear.weight)


@pytest.mark.exact("S293")
def test_reset_batchnorm_stores_the_statistics_of_the_samples_with_what_comes_before_renormalised():
    net = trained_like(1)
    other = fork(net, own="*")
    for name, buffer in other.named_buffers():
        if "running" in name:
            buffer.add_(0.3)
    x = inputs(40)
    made = renormalize(other, [], x, "reset_bn", samples=40)
    first = net.conv1(x)
    assert torch.allclose(made.bn1.running_mean, first.mean((0, 2, 3)))
    assert torch.allclose(made.bn1.running_var, first.var((0, 2, 3)))
    batch = fork(other, own="*").train()
    with torch.no_grad():
        count = 40 * 4  # values a channel behind two strides: the stored variance is the unbiased one
        assert torch.allclose(made(x), batch(x), rtol=3 / count, atol=3 / count)
    assert not any(module.training for module in made.modules()) and made.bn1.momentum == net.bn1.momentum


def test_samples_are_taken_evenly_and_the_network_is_not_changed():
    net = trained_like(0)
    before = versions(net)
    by_class = torch.cat([torch.zeros(50, 2, 6, 6), torch.ones(50, 2, 6, 6)]).double()
    made = renormalize(net, [], Tensors(by_class, torch.arange(100) // 50), "reset_bn", samples=10)
    assert torch.allclose(made.bn1.running_mean, net.conv1(by_class).mean((0, 2, 3)))
    assert versions(net) == before


def test_half_precision_is_measured_in_single():
    net = plain(1)
    shrunk = fork(net, own="*")
    shrunk[0].weight.data.mul_(0.3)
    exact = renormalize(shrunk, [net], inputs())[0].weight
    half = renormalize(shrunk.bfloat16(), [net.bfloat16()], inputs().bfloat16())[0].weight
    assert half.dtype == torch.bfloat16 and torch.allclose(half.double(), exact, rtol=0.05)


def test_what_renormalisation_cannot_bring_back():
    """A channel that was lost altogether has no variance left: its scale is large and the channel stays constant."""
    net, x = plain(1), inputs()
    dead = fork(net, own="*")
    dead[0].weight.data[0].zero_()
    made = renormalize(dead, [net], x)
    with torch.no_grad():
        assert made[0](x)[:, 0].std() < 1e-9 and net[0](x)[:, 0].std() > 0.01
        assert (made(x) - net(x)).abs().max() > 1e-3


def test_wrong_arguments_are_refused():
    net, x = plain(1), inputs()
    with pytest.raises(SpecError, match="mode = 'fix'"):
        renormalize(net, [net], x, "fix")
    with pytest.raises(InputError, match="no references"):
        renormalize(net, [], x)
    with pytest.raises(InputError, match="add up to 1"):
        renormalize(net, [net, net], x, weights=(0.5, 0.7))
    with pytest.raises(InputError, match="at least one sample"):
        renormalize(net, [net], x[:0])
    with pytest.raises(InputError, match="two samples"):
        renormalize(trained_like(0), [], x, "reset_bn", samples=1)
    with pytest.raises(ModelError, match="no BatchNorm"):
        renormalize(net, [], x, "reset_bn")
    with pytest.raises(ModelError, match="no hidden layer"):
        renormalize(nn.Sequential(nn.Flatten(), nn.Linear(72, 2)).double(), [net], x)
    with pytest.raises(ModelError, match=r"no layer '2'"):
        renormalize(net, [nn.Sequential(net[0], net[1])], x)
    with pytest.raises(NonFiniteError):
        renormalize(net, [net], x * float("nan"))
    bare = MLP(72, 3, (4,), bias=False).double()
    with pytest.raises(ModelError, match=r"layers\.linear0 have no bias.*'rescale'"):
        renormalize(bare, [bare], x)
    assert renormalize(bare, [bare], x, "rescale").linear.bias is None
    twice = nn.Linear(4, 4).double()
    with pytest.raises(ModelError, match="more than once"):
        renormalize(nn.Sequential(twice, twice, nn.Linear(4, 2).double()), [net], torch.rand(5, 4).double())


def test_a_norm_with_a_scale_for_each_position_is_left_alone():
    """Four channels on four by four positions: the scale of a channel would fit any of the axes."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.LayerNorm((4, 4, 4)), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    other = fork(net, own="*")
    with torch.no_grad():
        other[0].weight *= torch.tensor([0.2, 0.5, 1.0, 2.0], dtype=torch.float64).view(4, 1, 1, 1)
    made = renormalize(other, [net], inputs(), eps=0.0)
    with torch.no_grad():
        assert torch.allclose(made(inputs()), net(inputs()), atol=1e-9)
    assert torch.equal(made[1].weight, net[1].weight)


def test_a_norm_that_several_layers_share_is_refused():
    norm = nn.BatchNorm1d(4).double()
    net = nn.Sequential(
        nn.Linear(4, 4).double(), norm, nn.ReLU(), nn.Linear(4, 4).double(), norm, nn.ReLU(), nn.Linear(4, 2).double()
    )
    with pytest.raises(ModelError, match="more than once have no one statistic: 1"):
        renormalize(net, [net], torch.rand(9, 4).double())
