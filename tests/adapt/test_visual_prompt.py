from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.adapt import VisualDomainPrompt
from homeostat.core.errors import InputError
from homeostat.nn.optimizers import SGD, Adam


class Slow:
    """Prompts as parameters of torch.optim; views are handed in, and domains are told, not found."""

    def __init__(self, net: nn.Module, optimizers, remedy: VisualDomainPrompt, like: Tensor):
        self.net, self.optimizers, self.remedy = net, optimizers, remedy
        self.shared = nn.Parameter(torch.zeros_like(like))
        self.slow = [torch.zeros_like(like), torch.zeros_like(like)]
        self.fast = optimizers[0]([self.shared])
        self.hold, self.pulls = torch.zeros_like(like), []
        self.enter()

    def enter(self) -> None:
        if self.pulls:
            self.hold = self.hold + torch.stack(self.pulls).mean(0)
        self.pulls, self.before = [], self.shared.detach().clone()
        self.own = nn.Parameter(torch.zeros_like(self.shared))
        self.slow[1] = torch.zeros_like(self.shared)
        self.faster = self.optimizers[1]([self.own])

    def observe(self, x: Tensor, view_of) -> Tensor:
        with torch.no_grad():
            target = F.softmax(self.net(view_of(torch.clip(x + self.slow[1] + self.slow[0], 0, 1))), 1)
        z = self.net(torch.clip(x + self.own + self.shared, 0, 1))
        loss = -(target * F.log_softmax(z, 1)).sum(1).mean()
        self.pulls.append(torch.autograd.grad(loss, self.shared, retain_graph=True)[0].abs())
        loss = loss + self.remedy.homeostasis * (self.hold * (self.shared - self.before) ** 2).sum()
        self.fast.zero_grad()
        self.faster.zero_grad()
        loss.backward()
        self.fast.step()
        self.faster.step()
        keep = self.remedy.average
        self.slow = [
            keep * q + (1 - keep) * p.detach() for q, p in zip(self.slow, (self.shared, self.own), strict=True)
        ]
        return z.detach()


ADAM = (Adam(lr=1e-2), Adam(lr=3e-2)), (lambda p: torch.optim.Adam(p, 1e-2), lambda p: torch.optim.Adam(p, 3e-2))
MOMENTUM = (SGD(lr=0.1), SGD(lr=0.5)), (lambda p: torch.optim.SGD(p, 0.1, 0.9), lambda p: torch.optim.SGD(p, 0.5, 0.9))


def domains(stream, dtype: torch.dtype) -> list[Tensor]:
    """Seven batches of three domains; the second is brighter."""
    bright = [0, 0, 1, 1, 1, 0, 0]
    return [x * 0.7 + 0.3 * up for x, up in zip(stream(7, dtype=dtype, seed=4), bright, strict=True)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
@pytest.mark.parametrize(
    ("kind", "pair", "options"),
    [
        ("batch", MOMENTUM, {"homeostasis": 3.0}),
        ("batch", ADAM, {"statistics": "batch"}),
        ("group", MOMENTUM, {"homeostasis": 0.0}),
        ("layer", ADAM, {}),
    ],
)
@pytest.mark.exact("S116")
def test_equals_prompts_as_parameters(network, stream, batch_mode, kind, pair, options, dtype, tolerance):
    net, batches = network(kind, dtype), domains(stream, dtype)
    remedy = VisualDomainPrompt(*pair[0], average=0.8, jump=0.15, **options)
    ours = remedy(net)
    own = copy.deepcopy(net)
    slow = Slow(batch_mode(own) if remedy.statistics == "batch" else own, pair[1], remedy, batches[0][0])
    for step, x in enumerate(batches):
        if step in (2, 5):
            slow.enter()
        view_of = lambda images, step=step: ours.view_of(images, step)  # noqa: E731
        assert torch.allclose(ours.observe(x), slow.observe(x, view_of), rtol=0, atol=tolerance)
    assert int(ours.carry["domains"]) == 3
    student, teacher = ours.carry.under("student"), ours.carry.under("teacher")
    pairs = [(student["agnostic"], slow.shared), (student["specific"], slow.own), (ours.carry["importance"], slow.hold)]
    for mine, other in [*pairs, (teacher["agnostic"], slow.slow[0]), (teacher["specific"], slow.slow[1])]:
        assert torch.allclose(mine, other, rtol=0, atol=tolerance) and float(mine.abs().max()) > 0


@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
def test_without_prompts_it_is_the_given_network_bit_for_bit_whatever_was_seen(network, stream, kind):
    net = network(kind)
    prompted = VisualDomainPrompt(SGD(lr=1.0), SGD(lr=1.0))(net)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    for x in stream(4):
        prompted.observe(x)
        assert torch.equal(prompted.bare(x), net(x)) and not torch.equal(prompted(x), net(x))
    assert all(torch.equal(t, before[name]) for name, t in prompted.model.state_dict().items())
    assert prompted.owned() == {}
    prompted.reset()
    assert torch.equal(prompted(x), net(x))


def test_outputs_do_not_depend_on_the_batch_unless_statistics_do(network, stream):
    x = stream(1)[0]
    for statistics in ("stored", "batch"):
        remedy = VisualDomainPrompt(statistics=statistics)
        prompted = remedy(network())
        prompted.observe(x)
        alike = torch.allclose(prompted(x[:5]), prompted(x)[:5], rtol=0, atol=1e-12)
        assert alike == (not remedy.batch_coupled()) == (statistics == "stored")


def test_a_new_domain_clears_the_prompt_of_the_old_one_and_keeps_the_shared_one(network, stream):
    first, *_, bright = domains(stream, torch.float64)[:3]
    prompted = VisualDomainPrompt(jump=0.15)(network("group"))
    prompted.observe(first)
    kept = prompted.carry["student.agnostic"].clone()
    assert float(prompted.carry["importance"].abs().max()) == 0
    prompted._look(bright)
    assert float(prompted.carry["student.specific"].abs().max()) == 0
    assert torch.equal(prompted.carry["student.agnostic"], kept) and torch.equal(prompted.carry["previous"], kept)
    assert float(prompted.carry["importance"].min()) >= 0 < float(prompted.carry["importance"].max())


def test_what_the_network_is_wrong_and_sure_of_is_confirmed(trained, shades, right):
    """As the docstring says: in thick haze all looks bright to the network, and prompts do not help."""
    hazy = shades(300, seed=2, haze=0.6)
    assert right(trained, hazy, 30) < 0.5
    assert right(VisualDomainPrompt()(trained), hazy, 30) < 0.5


def test_images_that_the_network_cannot_take_do_not_give_the_prompts_their_shape(network, stream):
    prompted, x = VisualDomainPrompt()(network("batch")), stream(1)[0]
    before = prompted.snapshot()
    with pytest.raises(RuntimeError, match="channels"):
        prompted.observe(x[:, :1])
    assert prompted.snapshot().keys() == before.keys() and int(prompted.carry["domains"]) == 0
    assert prompted.observe(x).shape == (20, 4)


def test_images_of_another_shape_or_range_are_refused(network, stream):
    prompted, x = VisualDomainPrompt()(network("group")), stream(1)[0]
    with pytest.raises(InputError, match=r"0\.\.1; these span"):
        prompted.observe(x * 255)
    prompted.observe(x)
    before = {name: t.clone() for name, t in prompted.state_dict().items()}
    with pytest.raises(InputError, match="reset"):
        prompted.observe(F.pad(x, (1, 1, 1, 1)))
    assert all(torch.equal(t, before[name]) for name, t in prompted.state_dict().items())
