from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.adapt import CoTTA, CoTTAOnline
from homeostat.core.errors import InputError, ModelError
from homeostat.core.run import Run
from homeostat.core.weights import weights
from homeostat.nn.optimizers import SGD, Adam


class Slow:
    """CoTTA with three whole networks and one loop a rule; views and masks are handed in."""

    def __init__(self, net: nn.Module, optimizer, remedy: CoTTA):
        self.student = net
        self.teacher, self.anchor = copy.deepcopy(net), copy.deepcopy(net)
        self.optimizer = optimizer(self.student.parameters())
        self.remedy = remedy
        self.asked = 0

    def observe(self, x: Tensor, views: list[Tensor], masks: dict[str, Tensor]) -> Tensor:
        z = self.student(x)
        with torch.no_grad():
            confidence = float(F.softmax(self.anchor(x), 1).max(1).values.mean())
            if confidence < self.remedy.threshold:
                self.asked += 1
                target = torch.stack([self.teacher(view) for view in views]).mean(0)
            else:
                target = self.teacher(x)
        loss = F.cross_entropy(z, F.softmax(target, 1))
        if self.remedy.symmetric:
            loss = 0.5 * loss - 0.5 * (F.softmax(z, 1) * F.log_softmax(target, 1)).sum(1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            keep = self.remedy.average
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.copy_(keep * slow + (1 - keep) * fast)
            first = dict(self.anchor.named_parameters())
            for name, p in self.student.named_parameters():
                p.copy_(torch.where(masks[name], first[name], p))
        return target


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("kind", ["batch", "group"])
@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({"threshold": 1.1}, lambda p: torch.optim.Adam(p, 1e-3)),
        ({"threshold": 1.1, "symmetric": True, "optimizer": SGD(lr=0.01)}, lambda p: torch.optim.SGD(p, 0.01, 0.9)),
        ({"threshold": "median", "optimizer": SGD(lr=0.01)}, lambda p: torch.optim.SGD(p, 0.01, 0.9)),
    ],
)
@pytest.mark.exact("S094")
def test_equals_three_networks_and_plain_loops(network, stream, batch_mode, kind, options, theirs, dtype, tolerance):
    net, batches = network(kind, dtype), stream(6, dtype=dtype)
    slow_net = batch_mode(copy.deepcopy(net))
    sure = sorted(float(slow_net(x).detach().softmax(1).amax(1).mean()) for x in batches)
    if options["threshold"] == "median":
        options = options | {"threshold": (sure[2] + sure[3]) / 2}
    remedy = CoTTA(views=3, average=0.9, restore=0.2, **options)
    ours, slow = remedy(net, run=Run(seed=5)), Slow(slow_net, theirs, remedy)
    for step, x in enumerate(batches):
        views, masks = list(ours.views_of(x, step)), ours.masks(step)
        assert torch.allclose(ours.observe(x), slow.observe(x, views, masks), rtol=0, atol=tolerance)
    assert slow.asked == sum(c < remedy.threshold for c in sure)
    student = ours.carry.under("student")
    for copies, expected in ((student, slow.student), (ours.owned(), slow.teacher)):
        for name, p in expected.named_parameters():
            assert torch.allclose(copies[name], p, rtol=0, atol=tolerance)
    assert slow.asked == 0 or not torch.equal(student["0.weight"], ours.owned()["0.weight"])


def test_what_is_served_is_the_teacher_without_views(network, stream):
    net, x = network(), stream(1)[0]
    cotta = CoTTA(views=2, average=0.5, optimizer=Adam(lr=0.01))(net)
    before = {name: t.clone() for name, t in weights(cotta).items()}
    cotta.observe(x)
    student = cotta.carry.under("student")
    moved = weights(cotta)["model.0.weight"] - before["model.0.weight"]
    assert float(moved.abs().max()) > 0
    fresh = copy.deepcopy(cotta.model)
    assert torch.equal(cotta(x), fresh(x))
    assert not any("student" in name for name in weights(cotta))
    assert not torch.equal(student["0.weight"], weights(cotta)["model.0.weight"])


def test_restoring_spares_the_teacher_and_brings_the_student_home(network, stream):
    cotta = CoTTA(views=1, restore=1.0, average=0.5, optimizer=Adam(lr=0.01))(network())
    cotta.observe(stream(1)[0])
    anchor = cotta.anchor()
    assert all(torch.equal(t, anchor[name]) for name, t in cotta.carry.under("student").items())
    assert any(not torch.equal(t, anchor[name]) for name, t in cotta.owned().items())


def test_the_share_restored_is_the_rate(network):
    cotta = CoTTA(restore=0.25)(network(), run=Run(seed=1))
    chosen = torch.cat([m.flatten() for step in range(40) for m in cotta.masks(step).values()]).double()
    assert abs(float(chosen.mean()) - 0.25) < 4 * (0.25 * 0.75 / len(chosen)) ** 0.5
    assert not torch.equal(cotta.masks(0)["0.weight"], cotta.masks(1)["0.weight"])


def test_an_anchor_that_is_always_sure_teaches_nothing(network, stream):
    """Student and teacher start equal, and only views tell them apart."""
    cotta = CoTTA(threshold=0.0, optimizer=SGD(lr=0.1))(network())
    for x in stream(3):
        cotta.observe(x)
    anchor = cotta.anchor()
    assert all(torch.allclose(t, anchor[name], rtol=0, atol=1e-14) for name, t in cotta.owned().items())


def test_what_is_restored_does_not_depend_on_the_order_of_the_carry(network):
    cotta = CoTTA(restore=0.5)(network())
    before = cotta.masks(3)
    for name, t in reversed(list(cotta.anchor().items())):
        del cotta.carry[f"anchor.{name}"]
        cotta.carry[f"anchor.{name}"] = t
    after = cotta.masks(3)
    assert list(cotta.anchor()) != list(before) and all(torch.equal(after[name], m) for name, m in before.items())


class Counting(CoTTAOnline, register=False):
    made = 0

    def views_of(self, x, step):
        for view in super().views_of(x, step):
            self.made += 1
            yield view


@pytest.mark.parametrize(("threshold", "made"), [(1.1, 12), (0.0, 0)])
def test_views_are_made_only_when_the_anchor_is_unsure(network, stream, threshold, made):
    cotta = Counting(network(), threshold=threshold, views=4)
    for x in stream(3):
        cotta.observe(x)
    assert cotta.made == made


def test_views_have_statistics_of_their_own(network, stream):
    """The answer is the mean of the teacher on one view at a time, which one big batch of views would not give."""
    cotta, x = CoTTA(views=3, threshold=1.1)(network()), stream(1)[0]
    views = list(cotta.views_of(x, 0))
    apart = sum(cotta(view) for view in views) / 3
    together = cotta(torch.cat(views)).view(3, len(x), -1).mean(0)
    assert torch.allclose(cotta.observe(x), apart, atol=1e-12)
    assert not torch.allclose(apart, together, atol=1e-3)


class Token(nn.Module):
    def __init__(self):
        super().__init__()
        self.class_token = nn.Parameter(torch.ones(4))
        self.inner = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(1)) + self.class_token


def test_only_weights_and_biases_learn(stream):
    net = Token().double()
    cotta = CoTTA(views=1, average=0.0, optimizer=Adam(lr=0.1))(net)
    cotta.observe(stream(1)[0][:, :, :2, :2])
    assert set(cotta.anchor()) == {"inner.weight", "inner.bias"}
    assert torch.equal(cotta.model.class_token, net.class_token)
    assert not torch.equal(cotta.model.inner.weight, net.inner.weight)


def test_learn_norm_changes_scales_and_shifts_only(network, stream):
    cotta = CoTTA(views=1, learn="norm")(network())
    cotta.observe(stream(1)[0])
    assert set(cotta.anchor()) == {"1.weight", "1.bias", "4.weight", "4.bias"}


def test_tied_weights_stay_tied(stream):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x.mean((1, 2))))

    cotta = CoTTA(views=1, average=0.0, optimizer=Adam(lr=0.1))(Tied().double())
    cotta.observe(stream(1)[0])
    assert cotta.model.a.weight is cotta.model.b.weight
    assert not torch.equal(cotta.model.a.weight, cotta.anchor()["a.weight"])


def test_views_of_something_else_than_images_in_0_to_1_are_refused(network, stream):
    cotta, x = CoTTA(views=1, threshold=1.1)(network()), stream(1)[0]
    with pytest.raises(InputError, match=r"0\.\.1; these span"):
        cotta.observe(x * 255)
    start = cotta.anchor()
    assert all(torch.equal(t, start[name]) for name, t in cotta.carry.under("student").items())


def test_a_model_that_cannot_learn_is_refused():
    with pytest.raises(ModelError):
        CoTTA()(nn.Flatten())
