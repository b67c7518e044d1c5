from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.adapt import EATA, ROID, PriorCorrection, Tent, correct_prior
from homeostat.core.errors import InputError
from homeostat.core.run import Run
from homeostat.nn.optimizers import SGD, Adam


def entropy(z: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=z).entropy()


class Slow:
    """ROID sample by sample over a whole second network; the view is handed in as a function."""

    def __init__(self, net: nn.Module, optimizer: Any, remedy: ROID):
        self.net, self.remedy = net.requires_grad_(False), remedy
        norms = [m for m in net.modules() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm))]
        self.affine = [p.requires_grad_(True) for m in norms for p in (m.weight, m.bias)]
        self.source = [p.detach().clone() for p in self.affine]
        self.optimizer = optimizer(self.affine)
        self.mean: list[float] | None = None

    def observe(self, x: Tensor, view: Any) -> Tensor:
        z, r = self.net(x), self.remedy
        p = z.detach().softmax(1)
        mean = p.new_full((p.shape[1],), 1 / p.shape[1]) if self.mean is None else p.new_tensor(self.mean)
        far = [1 - float(mean @ row / (mean.norm() * row.norm())) for row in p]
        sure = [-float(h) for h in entropy(z.detach())]
        far, sure = ([(v - min(vs)) / (max(vs) - min(vs)) for v in vs] for vs in (far, sure))
        kept = [n for n in range(len(x)) if far[n] >= sum(far) / len(far)]
        self.mean = [r.momentum * float(a) + (1 - r.momentum) * float(b) for a, b in zip(mean, p.mean(0), strict=True)]
        moved = self.net(view(x[kept]))
        loss: Any = 0
        for row, n in enumerate(kept):
            w = z.new_tensor(far[n] * sure[n] / r.temperature).exp()
            clipped = z[n].softmax(0).clamp(max=0.99)
            ratio = -sum(q * torch.log(q / (1 - q) + 1e-5) for q in clipped)
            a, b = z[n].softmax(0), moved[row].softmax(0)
            both = -0.5 * (a * b.log()).sum() - 0.5 * (b * a.log()).sum()
            loss = loss + w * (ratio + both) / len(x)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for q, start in zip(self.affine, self.source, strict=True):
                q.copy_(r.keep * q + (1 - r.keep) * start)
            prior = p.mean(0)
            s = max(1 / len(x), 1 / p.shape[1]) / prior.max()
            return z.detach() * (prior + s) / (1 + s * p.shape[1])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
@pytest.mark.parametrize(
    ("optimizer", "theirs"),
    [
        (Adam(lr=1e-3), lambda p: torch.optim.Adam(p, 1e-3)),
        (SGD(lr=1e-2, momentum=0.9), lambda p: torch.optim.SGD(p, 1e-2, 0.9)),
    ],
)
def test_equals_roid_written_out_sample_by_sample(
    network, stream, batch_mode, kind, dtype, tolerance, optimizer, theirs
):
    net = network(kind, dtype)
    remedy = ROID(optimizer=optimizer, keep=0.9)
    ours, slow = remedy(net, run=Run(seed=3)), Slow(batch_mode(copy.deepcopy(net)), theirs, remedy)
    for step, x in enumerate(stream(6, dtype=dtype)):
        view = lambda kept, step=step: ours.view_of(kept, step)  # noqa: E731
        assert torch.allclose(ours.observe(x), slow.observe(x, view), rtol=0, atol=tolerance)
    assert all(
        torch.allclose(a, b, rtol=0, atol=tolerance) for a, b in zip(ours.owned().values(), slow.affine, strict=True)
    )
    assert any(not torch.equal(a, b) for a, b in zip(ours.owned().values(), slow.source, strict=True))


def test_weights_by_hand(network):
    """Two samples: the one like the running mean gets no weight, the other has the largest of its own scale."""
    roid = ROID(temperature=0.5)(network())
    roid.carry["probabilities"] = torch.tensor([1.0, 0.0], dtype=torch.float64)
    z = torch.tensor([[5.0, 0.0], [0.0, 9.0]], dtype=torch.float64)
    kept, weight = roid._weights(z)
    assert kept.tolist() == [1]
    assert torch.allclose(weight, torch.tensor([2.0]).double().exp())  # diversity 1 x certainty 1 / 0.5
    expected = 0.9 * torch.tensor([1.0, 0.0]).double() + 0.1 * z.softmax(1).mean(0)
    assert torch.allclose(roid.carry["probabilities"], expected)


def test_keep_0_serves_the_source_under_batch_statistics_with_a_corrected_prior(network, stream):
    net = network("group")
    roid, plain = ROID(keep=0.0)(net), PriorCorrection()(net)
    for x in stream(3):
        assert torch.equal(roid.observe(x), plain(x))
    assert all(torch.equal(t, roid.anchor()[name]) for name, t in roid.owned().items())


def test_forward_is_what_observe_answers_from_the_same_state(network, stream):
    roid = ROID()(network())
    for x in stream(3):
        assert torch.equal(roid(x), roid.observe(x))


def test_answers_can_be_left_as_they_are(network, stream):
    net, x = network(), stream(1)[0]
    plain = Tent()(net).observe(x)
    assert torch.equal(ROID(prior="none")(net).observe(x), plain)
    assert torch.equal(ROID(prior="add")(net).observe(x), correct_prior(plain, "add"))


def _first_step(network, x: Tensor, **options: Any) -> Tensor:
    roid = ROID(optimizer=SGD(lr=1e-3, momentum=0.0), keep=1.0, **options)(network())
    roid.observe(x)
    return torch.cat([(t - roid.anchor()[n]).detach().flatten() for n, t in roid.owned().items()])


def test_a_short_batch_steps_as_far_as_it_says(network, stream):
    """Divided by its own size it counts in full; by a configured size for its share."""
    x = stream(1, 10)[0]
    own, share = _first_step(network, x), _first_step(network, x, batch=40)
    assert torch.allclose(share, own * 10 / 40, atol=1e-12) and float(own.norm()) > 0


def test_a_batch_of_one_has_weight_one(network, stream):
    x = stream(1, 1)[0]
    weighted, plain = _first_step(network, x), _first_step(network, x, weighting=False)
    assert torch.equal(weighted, plain) and float(plain.norm()) > 0


def test_without_consistency_inputs_need_not_be_images():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = 100 * torch.randn(20, 3)
    roid = ROID()(net)
    before = {name: t.clone() for name, t in roid.state_dict().items()}
    for unfit in (x, torch.rand(4, 1, 8, 8) * 255):
        with pytest.raises(InputError, match="views are made of"):
            roid.observe(unfit)
    assert all(torch.equal(t, before[name]) for name, t in roid.state_dict().items()) and len(before) == len(
        roid.state_dict()
    )
    assert ROID(consistency=False)(net).observe(x).shape == (20, 3)


def test_as_documented_noise_moves_it_and_does_not_move_eata(network, stream):
    net = network("group")
    with torch.no_grad():
        net[8].weight.mul_(1e-3)
        net[8].bias.zero_()
    x = stream(1)[0]
    assert float(entropy(net(x).detach()).min()) > 0.99 * torch.tensor(4.0).log()  # sure of nothing
    served = [ROID()(net), EATA(fisher_alpha=0.0)(net)]
    for one in served:
        one.observe(x)
    moved = [any(not torch.equal(t, one.anchor()[n]) for n, t in one.owned().items()) for one in served]
    assert moved == [True, False]


def test_as_documented_a_sorted_stream_defeats_it_with_batchnorm_and_not_with_layernorm():
    """Each batch holds one class, and what tells classes apart is just what batch statistics take away."""

    def accuracy(norm: nn.Module, x: Tensor, sign: int) -> float:
        net = nn.Sequential(norm, nn.Linear(2, 2, bias=False)).double().eval()
        with torch.no_grad():
            net[1].weight.copy_(torch.eye(2))
        roid = ROID(consistency=False)(net)
        assert bool((net(x).argmax(1) == sign).all())
        return float((roid.observe(x).argmax(1) == sign).double().mean())

    draws = torch.Generator().manual_seed(0)
    for sign in (0, 1):
        direction = F.one_hot(torch.tensor(sign), 2).double()
        x = 4 * direction + 0.5 * torch.randn(40, 2, generator=draws, dtype=torch.float64)
        assert accuracy(nn.BatchNorm1d(2), x, sign) < 0.7
        assert accuracy(nn.LayerNorm(2), x, sign) == 1.0
