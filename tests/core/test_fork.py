from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from homeostat.core.errors import DtypeError, ModelError
from homeostat.core.fork import fork, targets, unwrap, versions


class Awkward(nn.Module):
    """Tied weights, a bound method and a list of modules as attributes, a buffer without a name in files."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.out = nn.Linear(3, 5, bias=False)
        self.out.weight = self.embed.weight
        self.blocks = nn.ModuleList([nn.Linear(3, 3) for _ in range(2)])
        self.order = [self.blocks[1], self.blocks[0]]
        self.call = self.mix
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def mix(self, h: torch.Tensor) -> torch.Tensor:
        for block in self.order:
            h = block(h) * self.scale
        return h

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.call(self.embed(x)))


def test_a_fork_computes_the_same_with_new_modules_over_the_same_tensors():
    net, x = Awkward(), torch.tensor([[0, 1], [2, 3]])
    made = fork(net)
    assert torch.equal(made(x), net(x))
    assert made.embed.weight is made.out.weight and made.embed.weight.data_ptr() == net.embed.weight.data_ptr()
    assert made.order[0] is made.blocks[1] and made.call.__self__ is made
    assert not {id(m) for m in net.modules()} & {id(m) for m in made.modules()}


def test_owned_tensors_are_copies_and_the_rest_is_not():
    net = Awkward()
    made = fork(net, own="blocks.0.*")
    with torch.no_grad():
        made.blocks[0].weight.zero_()
    assert net.blocks[0].weight.abs().sum() > 0
    assert made.blocks[1].weight.data_ptr() == net.blocks[1].weight.data_ptr()
    assert made.blocks[0].weight.requires_grad


def test_a_write_through_a_fork_shows_in_the_givers_versions():
    net = nn.Linear(2, 2)
    before, made = versions(net), fork(net)
    assert versions(net) == before
    with torch.no_grad():
        made.weight.add_(1)
    assert versions(net) != before


def test_train_flags_hooks_and_gradients_stay_with_the_giver():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    calls = []
    net[0].register_forward_hook(lambda *_: calls.append(1))
    made = fork(net).eval()
    made(torch.zeros(1, 2)).sum().backward()
    assert net.training and net[1].training and not made.training
    assert not calls and net[0].weight.grad is None


def test_weight_norm_keeps_computing_its_weight():
    net = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    made, x = fork(net, own="*"), torch.randn(4, 3)
    assert torch.equal(made(x), net(x))
    with torch.no_grad():
        made.parametrizations.weight.original0.mul_(2)
    assert torch.allclose(made(x) - made.bias, 2 * (net(x) - net.bias), atol=1e-6)


def test_recurrent_networks_fork_with_their_flat_weights():
    net, x = nn.LSTM(3, 4), torch.randn(5, 2, 3)
    made = fork(net, own="*")
    assert torch.equal(made(x)[0], net(x)[0])
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    assert made(x)[0].abs().max() == 0 and net(x)[0].abs().max() > 0


def test_a_fork_can_be_copied_deeply_and_moved_to_another_type():
    made = copy.deepcopy(fork(Awkward())).double()
    assert made(torch.tensor([[0]])).dtype == torch.float64


def test_targets_that_match_nothing_are_an_error_that_lists_what_there_is():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert list(targets(net, "*", nn.Linear)) == ["0"]
    with pytest.raises(ModelError, match=r"no Linear layer matches 'fc\.\*'.*Layers of that kind: 0"):
        targets(net, "fc.*", nn.Linear)


def test_wrappers_are_stripped_and_scripts_refused():
    net = nn.Linear(2, 2)
    assert unwrap(torch.compile(net)) is net and unwrap(nn.DataParallel(net)) is net
    with pytest.raises(DtypeError, match=r"nn\.Module is wanted"):
        unwrap("resnet")
    with pytest.raises(DtypeError, match="TorchScript"):
        unwrap(torch.jit.trace(net, torch.zeros(1, 2)))
