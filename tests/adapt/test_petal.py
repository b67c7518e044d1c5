from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.adapt import PETAL, CoTTA
from homeostat.core.data import UNKNOWN, Tensors
from homeostat.core.errors import InputError, MissingPart, ModelError
from homeostat.core.run import Budget, Run
from homeostat.core.world import World
from homeostat.fit import SWAG, Ramp, Recipe, Supervised
from homeostat.nn.optimizers import SGD, Adam


class Slow:
    """PETAL with three whole networks, loops over parameters and a sorted list of all squared gradients."""

    def __init__(self, net: nn.Module, optimizer, remedy: PETAL, mean: dict[str, Tensor], var: dict[str, Tensor]):
        self.student, self.teacher, self.anchor = net, copy.deepcopy(net), copy.deepcopy(net)
        self.optimizer, self.remedy, self.mean, self.var = optimizer(net.parameters()), remedy, mean, var
        self.gone = 0

    def observe(self, x: Tensor, views: list[Tensor], masks: dict[str, Tensor]) -> Tensor:
        z = self.student(x)
        with torch.no_grad():
            unsure = float(self.anchor(x).softmax(1).amax(1).mean()) < self.remedy.threshold
            target = torch.stack([self.teacher(v) for v in views]).mean(0) if unsure else self.teacher(x)
        loss = -(F.softmax(target, 1) * F.log_softmax(z, 1)).sum() / len(x)
        if self.remedy.prior_weight:
            for name, p in self.student.named_parameters():
                loss = (
                    loss + self.remedy.prior_weight / 2 * ((p - self.mean[name]) ** 2 / (self.var[name] + 1e-6)).sum()
                )
        self.optimizer.zero_grad()
        loss.backward()
        fisher = {name: p.grad.clone() ** 2 for name, p in self.student.named_parameters()}
        if self.remedy.restore == "fisher":
            ordered = sorted(value for tensor in fisher.values() for value in tensor.flatten().tolist())
            place = self.remedy.quantile * (len(ordered) - 1)
            low = ordered[int(place)]
            high = ordered[min(int(place) + 1, len(ordered) - 1)]
            limit = low + (high - low) * (place - int(place))
            masks = {name: tensor < limit for name, tensor in fisher.items()}
        self.optimizer.step()
        self.gone += sum(int(mask.sum()) for mask in masks.values())
        first, keep = dict(self.anchor.named_parameters()), self.remedy.average
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.copy_(keep * slow + (1 - keep) * fast)
            for name, p in self.student.named_parameters():
                p[masks[name]] = first[name][masks[name]]
        return target


ADAM = (Adam(lr=1e-3), lambda p: torch.optim.Adam(p, 1e-3))
MOMENTUM = (SGD(lr=0.01), lambda p: torch.optim.SGD(p, 0.01, 0.9))
POSTERIOR = SWAG(recipe=Recipe(SGD(lr=0.01), epochs=3, batch=10), looks=6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize(
    ("kind", "pair", "options"),
    [
        ("batch", MOMENTUM, {"prior_weight": 1e-5, "quantile": 0.3}),
        ("batch", ADAM, {"prior_weight": 1e-6, "quantile": 0.1, "threshold": 0.0}),
        ("group", MOMENTUM, {"prior_weight": 1e-5, "restore": "random", "restore_rate": 0.2}),
        ("layer", MOMENTUM, {"prior_weight": 0.0, "quantile": 0.5}),
    ],
)
@pytest.mark.exact("S144")
def test_equals_three_networks_and_loops(network, stream, batch_mode, source, kind, pair, options, dtype, tolerance):
    net, run = network(kind, dtype), Run(seed=5)
    remedy = PETAL(pair[0], average=0.9, views=2, posterior=POSTERIOR, **{"threshold": 1.1} | options)
    kit = remedy.kit(net, World(source=source(dtype)), run=run)
    ours = remedy(net, kit=kit, run=run)
    mean = {} if kit is None else kit.under("mean")
    var = {} if kit is None else {name: 1 / t - 1e-6 for name, t in kit.under("precision").items()}
    slow = Slow(batch_mode(copy.deepcopy(net)), pair[1], remedy, mean, var)
    for step, x in enumerate(stream(6, dtype=dtype)):
        views, masks = list(ours.views_of(x, step)), ours.masks(step)
        assert torch.allclose(ours.observe(x), slow.observe(x, views, masks), rtol=0, atol=tolerance)
    assert slow.gone > 0
    for copies, expected in ((ours.carry.under("student"), slow.student), (ours.owned(), slow.teacher)):
        for name, p in expected.named_parameters():
            assert torch.allclose(copies[name], p, rtol=0, atol=tolerance)


@pytest.mark.exact("S144")
def test_the_posterior_is_mean_and_variance_of_weights_along_plain_sgd(network, source):
    net, data = network("batch"), source()
    swag = SWAG(Recipe(SGD(lr=0.02, momentum=0.9, weight_decay=5e-4), Ramp(0.1, 0.5), epochs=3, batch=10), looks=2)
    found = swag.fit(net, World(source=data), tuple(name for name, _ in net.named_parameters()))
    batches = data.batches_asked()[-9:]
    own = copy.deepcopy(net).train()
    optimizer = torch.optim.SGD(own.parameters(), 0.02, 0.9, weight_decay=5e-4)
    looks = []
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 0.02 * (0.1 + 0.9 * min(1.0, step / 4.5))
        optimizer.zero_grad()
        F.cross_entropy(own(batch.x), batch.labels).backward()
        optimizer.step()
        if step in (5, 8):  # at the ends of the second and third epoch
            looks.append({name: p.detach().clone() for name, p in own.named_parameters()})
    for name in found.mean:
        both = torch.stack([look[name] for look in looks])
        assert torch.allclose(found.mean[name], both.mean(0), rtol=0, atol=1e-10)
        assert torch.allclose(found.variance[name], both.var(0, correction=0), rtol=0, atol=1e-12)
    assert max(float(v.max()) for v in found.variance.values()) > 1e-6


@pytest.mark.parametrize("kind", ["batch", "group"])
def test_without_prior_and_with_random_restoring_it_is_cotta_bit_for_bit(network, stream, kind):
    cotta = CoTTA(views=3, threshold=1.1, restore=0.1)(network(kind, torch.float32), run=Run(seed=2))
    petal = PETAL(views=3, threshold=1.1, restore="random", restore_rate=0.1, prior_weight=0.0)(
        network(kind, torch.float32), World(), run=Run(seed=2)
    )
    for x in stream(4, dtype=torch.float32):
        assert torch.equal(cotta.observe(x), petal.observe(x))
    theirs = cotta.state_dict()
    assert all(torch.equal(t, theirs[name]) for name, t in petal.state_dict().items())


def test_a_strong_prior_holds_the_student_at_the_mean_and_restoring_goes_to_the_start(network, stream, source):
    world = World(source=source())
    tight = PETAL(SGD(lr=1e-6), prior_weight=0.5, quantile=0.0, views=1, posterior=POSTERIOR)
    petal = tight(network(), world)
    mean = petal.carry.under("fixed.mean")
    away = {name: float((t - mean[name]).abs().mean()) for name, t in petal.carry.under("student").items()}
    for x in stream(4):
        petal.observe(x)
    nearer = [float((t - mean[n]).abs().mean()) <= away[n] for n, t in petal.carry.under("student").items()]
    assert all(nearer)
    petal = tight.replace(quantile=1.0)(network(), world)
    petal.observe(stream(1)[0])
    start, student = petal.anchor(), petal.carry.under("student")
    left = sum(int((student[name] != start[name]).sum()) for name in start)
    assert left == 1  # the largest of all is not below itself
    assert any(not torch.equal(start[name], mean[name]) for name in start)


def test_at_quantile_0_nothing_is_restored(network, stream):
    petal = PETAL(prior_weight=0.0, quantile=0.0, views=1, optimizer=SGD(lr=0.1), threshold=1.1)(network())
    petal.observe(stream(1)[0])
    gradients = {name: torch.randn(t.shape) for name, t in petal.anchor().items()}
    assert not any(bool(mask.any()) for mask in petal.restored(0, gradients).values())


def test_dead_units_keep_anything_from_being_restored(stream):
    """As the docstring says: the quantile of gradients that are mostly 0 is 0, and nothing is below it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.ReLU(), nn.Linear(12, 4)).double()
    with torch.no_grad():
        net[1].bias[:3] = -100.0
    petal = PETAL(SGD(lr=0.1), prior_weight=0.0, quantile=0.1, views=1, threshold=1.1)(net)
    seen = []
    petal.restored = lambda step, gradients: seen.append(gradients) or type(petal).restored(petal, step, gradients)
    petal.observe(stream(1)[0])
    flat = torch.cat([g.flatten() for g in seen[0].values()])
    assert float((flat == 0).double().mean()) > 0.2
    assert not any(bool(mask.any()) for mask in petal.restored(0, seen[0]).values())


def test_the_prior_needs_the_labelled_source_and_nothing_else_does(network, source):
    assert PETAL().prepares() == {"source.x", "source.y"} and PETAL(prior_weight=0.0).prepares() == frozenset()
    with pytest.raises(MissingPart):
        PETAL()(network())
    kit = PETAL(posterior=POSTERIOR).kit(network(), World(source=source()))
    PETAL(posterior=POSTERIOR)(network(), World(), kit=kit)


def test_a_variance_never_comes_out_negative_and_the_given_network_stays(network, source):
    net, data = network("batch", torch.float32), source(torch.float32)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    still = SWAG(Recipe(SGD(lr=1e-7, momentum=0.0), epochs=2, batch=10), looks=3)  # float32 cannot see it move
    found = still.fit(net, World(source=data), ("0.weight", "8.bias"))
    assert set(found.mean) == {"0.weight", "8.bias"}
    assert all(bool((v >= 0).all()) and float(v.max()) < 1e-9 for v in found.variance.values())
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_a_budget_that_ends_before_the_first_look_is_an_error_and_no_posterior_around_0(network, source):
    with pytest.raises(InputError, match="budget"):
        POSTERIOR.fit(network(), World(source=source()), ("0.weight",), Run(budget=Budget(seconds=0.0)))
    unknown = Tensors(source().load().x, torch.full((30,), UNKNOWN))
    with pytest.raises(MissingPart, match="no label of source is known"):
        POSTERIOR.fit(network(), World(source=unknown), ("0.weight",))


def test_the_posterior_is_fitted_on_what_its_objective_asks_for(network, source):
    remedy = PETAL(posterior=POSTERIOR.replace(objective=Supervised(on="parts.old")))
    assert remedy.prepares() == {"parts.old.x", "parts.old.y"}
    kit = remedy.kit(network(), World(parts={"old": source()}))
    same = PETAL(posterior=POSTERIOR).kit(network(), World(source=source()))
    assert kit.under("mean").keys() == same.under("mean").keys()


def test_a_model_that_cannot_learn_is_refused():
    with pytest.raises(ModelError):
        PETAL(prior_weight=0.0)(nn.Flatten())
