from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from homeostat.adapt import DeYO, Tent
from homeostat.core.errors import InputError
from homeostat.core.run import Run
from homeostat.nn.destroy import Occluded, ShuffledPatches, ShuffledPixels
from homeostat.nn.optimizers import SGD, Adam


class Slow:
    """DeYO sample by sample; the view is handed in as a function."""

    def __init__(self, net: nn.Module, optimizer: Any, remedy: DeYO):
        self.net, self.remedy = net, remedy
        norms = [m for m in net.modules() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm))]
        self.affine = [p for m in norms for p in (m.weight, m.bias)]
        self.optimizer = optimizer(self.affine)
        self.counts = [0, 0, 0]

    def observe(self, x: Tensor, view: Any) -> Tensor:
        z, r = self.net(x), self.remedy
        unit = math.log(z.shape[1])
        entropy = [-(row.softmax(0) * row.log_softmax(0)).sum() for row in z]
        sure = [n for n, h in enumerate(entropy) if h.detach() < r.margin * unit]
        losses = []
        if sure:
            with torch.no_grad():
                other = self.net(view(x[sure]))
            for row, n in enumerate(sure):
                label = int(z[n].argmax())
                lost = float(z[n].detach().softmax(0)[label] - other[row].softmax(0)[label])
                if lost > r.threshold:
                    weight = math.exp(r.reference * unit - float(entropy[n].detach())) + math.exp(lost)
                    losses.append(weight * entropy[n])
        for i, count in enumerate((len(x), len(sure), len(losses))):
            self.counts[i] += count
        if losses:
            self.optimizer.zero_grad()
            (sum(losses) / len(losses)).backward()
            self.optimizer.step()
        return z.detach()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
@pytest.mark.parametrize(
    ("optimizer", "theirs"),
    [
        (SGD(lr=1e-2, momentum=0.9), lambda p: torch.optim.SGD(p, 1e-2, 0.9)),
        (Adam(lr=1e-3), lambda p: torch.optim.Adam(p, 1e-3)),
    ],
)
def test_equals_deyo_written_out_sample_by_sample(
    network, stream, batch_mode, kind, dtype, tolerance, optimizer, theirs
):
    net, batches = network(kind, dtype), stream(6, dtype=dtype)
    slow_net = batch_mode(copy.deepcopy(net))
    entropy = torch.distributions.Categorical(logits=torch.cat([slow_net(x).detach() for x in batches])).entropy()
    remedy = DeYO(margin=float(entropy.quantile(0.72)) / math.log(4), threshold=0.0, optimizer=optimizer)
    ours, slow = remedy(net, run=Run(seed=2)), Slow(slow_net, theirs, remedy)
    for step, x in enumerate(batches):
        view = lambda kept, step=step: ours.view_of(kept, step)  # noqa: E731
        assert torch.allclose(ours.observe(x), slow.observe(x, view), rtol=0, atol=tolerance)
    for mine, other in zip(ours.owned().values(), slow.affine, strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=tolerance)
    counts = [int(ours.carry[name]) for name in ("seen", "sure", "used")]
    assert counts == slow.counts and counts[0] > counts[1] > counts[2] > 0


def test_the_weight_by_hand(network, stream):
    """One sample, whose view is made to lose a known share; the step is the plain gradient times its weight."""
    x = stream(1, 1)[0]
    remedy = DeYO(margin=1.01, reference=0.7, threshold=-1.0, optimizer=SGD(lr=0.1, momentum=0.0))
    deyo, tent = remedy(network("group")), Tent(SGD(lr=0.1, momentum=0.0))(network("group"))
    deyo._lost = lambda logits, view: torch.tensor([0.25], dtype=torch.float64)
    logits = deyo.observe(x)
    tent.observe(x)
    entropy = float(torch.distributions.Categorical(logits=logits).entropy())
    weight = math.exp(0.7 * math.log(4) - entropy) + math.exp(0.25)
    for name, t in deyo.owned().items():
        start = deyo.anchor()[name]
        assert torch.allclose(t - start, weight * (tent.owned()[name] - start), rtol=0, atol=1e-12)


def test_nothing_used_changes_nothing(network, stream):
    for remedy in (DeYO(margin=1e-9), DeYO(margin=1.01, threshold=1.0)):
        deyo = remedy(network())
        deyo.observe(stream(1)[0])
        assert all(torch.equal(t, deyo.anchor()[n]) for n, t in deyo.owned().items())
        assert int(deyo.carry["used"]) == 0 and int(deyo.carry["seen"]) == 20


def test_views_change_from_step_to_step_and_come_again_with_the_seed(network, stream):
    x = stream(1)[0]
    deyo = DeYO()(network(), run=Run(seed=1))
    assert not torch.equal(deyo.view_of(x, 0), deyo.view_of(x, 1))
    assert torch.equal(deyo.view_of(x, 0), DeYO()(network(), run=Run(seed=1)).view_of(x, 0))


@pytest.mark.parametrize("margin", [1.01, 1e-9])
def test_inputs_that_are_no_images_are_refused_whether_or_not_a_sample_is_sure(margin, network, stream):
    net = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 3)).eval()
    for unfit in (torch.randn(4, 3), {"image": stream(1)[0]}):
        deyo = DeYO(margin=margin)(net)
        with pytest.raises(InputError, match="float images"):
            deyo.observe(unfit)
        assert int(deyo.carry["seen"]) == 0
    with pytest.raises(InputError, match="ask for fewer"):
        DeYO(margin=margin, destroy=ShuffledPatches(9))(network()).observe(stream(1)[0])


class ByColor(nn.Module):
    """Tells classes apart by the mean of each channel."""

    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(1, 3)
        self.linear = nn.Linear(3, 3)
        with torch.no_grad():
            self.linear.weight.copy_(4 * torch.eye(3))
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x).mean((2, 3)))


def test_as_documented_classes_that_are_colors_teach_nothing_unless_the_window_hides_them():
    draws = torch.Generator().manual_seed(0)
    x = 0.3 * torch.rand(30, 3, 8, 8, generator=draws)
    x[torch.arange(30), torch.arange(30) % 3, 1:7, 1:7] += 0.7
    used = {}
    for view in (DeYO().destroy, ShuffledPixels(), Occluded(size=0.75, top=0.125, left=0.125)):
        deyo = DeYO(destroy=view, threshold=1e-4, leave_out=())(ByColor())
        right = deyo.observe(x).argmax(1) == torch.arange(30) % 3
        assert bool(right.all()) and int(deyo.carry["sure"]) == 30
        used[type(view).__name__] = int(deyo.carry["used"])
    assert used["ShuffledPatches"] == used["ShuffledPixels"] == 0 and used["Occluded"] > 15
