from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from homeostat.adapt import Tent
from homeostat.core.errors import ModelError, NonFiniteError
from homeostat.core.weights import weights
from homeostat.nn.losses import softmax_entropy
from homeostat.nn.optimizers import SGD, Adam


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Adam(lr=1e-2), lambda p: torch.optim.Adam(p, 1e-2)),
        (SGD(lr=1e-2, momentum=0.9), lambda p: torch.optim.SGD(p, 1e-2, 0.9)),
    ],
)
@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_equals_entropy_descent_written_out(network, stream, batch_mode, kind, dtype, tolerance, ours, theirs):
    net = network(kind, dtype)
    slow = batch_mode(copy.deepcopy(net)).requires_grad_(False)
    norms = [m for m in slow.modules() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm))]
    affine = [p.requires_grad_(True) for m in norms for p in (m.weight, m.bias)]
    optimizer = theirs(affine)
    tent = Tent(optimizer=ours)(net)
    for x in stream(6, dtype=dtype):
        logits = slow(x)
        p = F.softmax(logits, 1)
        loss = sum(-(row * row.log()).sum() for row in p) / len(x)
        assert torch.allclose(tent.observe(x), logits, rtol=0, atol=tolerance)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_only_scales_and_shifts_of_norm_layers_change(network, stream):
    net = network()
    tent = Tent()(net)
    for x in stream(2):
        tent.observe(x)
    changed = {name for name, t in weights(tent.model).items() if not torch.equal(t, net.state_dict()[name])}
    assert changed == {"1.weight", "1.bias", "4.weight", "4.bias"}


def test_the_answer_is_from_before_the_step(network, stream):
    tent, x = Tent(optimizer=Adam(lr=0.1))(network()), stream(1)[0]
    before = tent(x)
    assert torch.equal(tent.observe(x), before) and not torch.equal(tent(x), before)


def test_entropy_at_its_limits():
    assert float(softmax_entropy(torch.zeros(1, 8))) == pytest.approx(2.0794, abs=1e-4)
    assert float(softmax_entropy(torch.tensor([[100.0, 0.0]]))) == pytest.approx(0.0, abs=1e-6)


def test_a_model_without_norm_layers_is_refused():
    with pytest.raises(ModelError, match="normalisation layers"):
        Tent()(nn.Linear(2, 2))


def test_norm_layers_without_scale_and_shift_are_refused():
    with pytest.raises(ModelError, match="scale and a shift"):
        Tent()(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False)))


def test_outputs_that_are_no_logits_are_refused(network, stream):
    with pytest.raises(ModelError, match="batch, classes"):
        Tent()(network()[:5]).observe(stream(1)[0])


def test_an_exploding_network_learns_nothing(network, stream):
    net = network(dtype=torch.float32)
    with torch.no_grad():
        net[8].weight.mul_(1e38)
        net[8].bias.fill_(3e38)
    tent = Tent()(net)
    with pytest.raises(NonFiniteError, match="no step was made"):
        tent.observe(stream(1, dtype=torch.float32)[0])
    assert all(torch.equal(t, tent.anchor()[name]) for name, t in tent.owned().items())
