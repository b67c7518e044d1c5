from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from homeostat.core.check import check_remedy, small_network, small_world
from homeostat.core.data import UNKNOWN, Tensors
from homeostat.core.errors import InputError, MissingPart, ModelError, SpecError
from homeostat.core.fork import fork
from homeostat.core.run import Event, Run
from homeostat.core.world import World
from homeostat.merge import ATLAS, TaskArithmetic, task_vectors
from homeostat.merge.atlas import _rows
from homeostat.nn.augment import RandomViews
from homeostat.nn.optimizers import SGD, Adam
from tests.merge.test_coefficients import donors_of


def added(base, donors, scale: float):
    return TaskArithmetic(scale=scale)(base, World(models=donors))


def plain_atlas(base: nn.Module, vectors: dict[str, Tensor], x: Tensor, y: Tensor, batches: list[Tensor]) -> Tensor:
    """The definition for few labels: a graph through the merge, PyTorch's AdamW and clipping, half a cosine."""
    count = len(next(iter(vectors.values())))
    coefficients = nn.Parameter(torch.zeros(count, len(vectors), dtype=torch.float64))
    optimizer = torch.optim.AdamW([coefficients], lr=0.1, weight_decay=0.1)
    for step, rows in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * 0.5 * (1 + math.cos(math.pi * step / len(batches)))
        merged = {
            name: base.get_parameter(name).detach() + torch.tensordot(coefficients[:, i], stack, 1)
            for i, (name, stack) in enumerate(vectors.items())
        }
        loss = nn.functional.cross_entropy(functional_call(base, merged, (x[rows],)), y[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([coefficients], 1.0)
        optimizer.step()
    return coefficients.detach()


def points(count: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    return torch.randn(count, 4, generator=generator, dtype=torch.float64) + 2 * nn.functional.one_hot(y, 4), y


def small() -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return net


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((net(x).argmax(1) == y).double().mean())


@pytest.mark.exact("S036")
def test_coefficients_from_few_labels_equal_those_of_the_definition():
    net, run = small(), Run(seed=2)
    donors = donors_of(net)
    x, y = points()
    unknown = torch.cat([y, torch.full((9,), UNKNOWN)])
    world = World(models=donors, target=(torch.cat([x, x[:9]]), unknown))
    learned = ATLAS(epochs=3, batch=16).learn(net, world, run=run)
    batches = [rows for epoch in range(3) for rows in _rows(40, 16, run.rng("ATLAS", epoch))]
    expected = plain_atlas(net, task_vectors(net, donors), x, y, batches)
    assert torch.allclose(learned.coefficients, expected, atol=1e-9) and expected.abs().max() > 0.3
    assert learned.steps == len(batches) and learned.blocks == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert accuracy(learned.model, x, y) > accuracy(net, x, y)


def test_few_samples_come_so_often_that_an_epoch_has_ten_batches_and_many_come_once():
    few = list(_rows(7, 4, torch.Generator().manual_seed(0)))
    counts = torch.cat(few).bincount(minlength=7)
    assert len(few) >= 10 and int(counts.min()) == int(counts.max()) == 6
    many = list(_rows(50, 4, torch.Generator().manual_seed(0)))
    assert len(many) == 13 and torch.cat(many).sort().values.tolist() == list(range(50))


@pytest.mark.exact("S036")
def test_one_group_equals_a_coefficient_a_tensor_and_more_groups_fit_no_worse():
    net = small()
    x, y = points()
    world = World(models=donors_of(net), target=(x, y))
    plain = ATLAS(epochs=2).learn(net, world)
    grouped = ATLAS(epochs=2, groups=5).learn(net, world)
    assert ATLAS(epochs=2, groups=1).learn(net, world).coefficients.equal(plain.coefficients)
    assert grouped.coefficients.shape == (3, 12), "five groups of each matrix, biases whole"
    fits = [nn.functional.cross_entropy(learned.model(x), y) for learned in (grouped, plain)]
    assert fits[0] < fits[1]
    again = ATLAS(epochs=2, groups=5).learn(net, world, run=Run(seed=1))
    assert not torch.equal(again.coefficients, grouped.coefficients), "the groups are drawn by the seed"


def test_labels_for_calibration_choose_the_epoch_and_the_base_when_none_is_better():
    net = small()
    x, y = points()
    learned = ATLAS(epochs=4).learn(net, World(models=donors_of(net), target=(x, y)))
    wrong = World(models=donors_of(net), target=(x, y), calibration=(x, net(x).argmax(1)))
    kept = ATLAS(epochs=4).learn(net, wrong)
    assert kept.coefficients.abs().max() == 0 < learned.coefficients.abs().max()
    assert all(torch.equal(a, b) for a, b in zip(kept.model.parameters(), net.parameters(), strict=True))
    events: list[Event] = []
    right = wrong.replace(calibration=(x, y))
    chosen = ATLAS(epochs=4).learn(net, right, run=Run(watch=events.append))
    seen = [event.values["calibration"] for event in events if event.name == "ATLAS"]
    assert len(seen) == 4 and accuracy(chosen.model, x, y) == pytest.approx(max(seen))
    unlabelled = ATLAS(epochs=4).learn(net, wrong.replace(calibration=x))
    assert torch.equal(unlabelled.coefficients, learned.coefficients)


def unlearnable() -> tuple[nn.Module, World]:
    """Two tasks in inputs of their own: the donor knows both, the base knows both somewhat."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 2
    x = torch.zeros(2, 120, 4)
    signs = 2.0 * y - 1
    for task in range(2):
        x[task, :, 2 * task] = signs + 0.3 * torch.randn(120, generator=generator)
    base, donor = nn.Linear(4, 2), nn.Linear(4, 2)
    with torch.no_grad():
        base.weight.copy_(torch.tensor([[-1.0, 0, -1, 0], [1, 0, 1, 0]]))
        donor.weight.copy_(torch.tensor([[-2.0, 0, -1.2, 0], [2, 0, 1.2, 0]]))
        donor.bias.copy_(base.bias.zero_())
    return base, World(models={"first": donor}, target=(x[0], y), source=(x[1], y))


def test_negation_unlearns_the_target_and_stops_before_the_source_is_lost():
    base, world = unlearnable()
    target, source = world.target.load(), world.source.load()
    events: list[Event] = []
    learned = ATLAS("negation").learn(base, world, run=Run(watch=events.append))
    assert learned.coefficients.item() < -1.0, "the task vector is subtracted"
    assert accuracy(learned.model, target.x, target.y) < 0.05
    assert accuracy(learned.model, source.x, source.y) > 0.95 * accuracy(base, source.x, source.y)
    greedy = ATLAS("negation", optimizer=SGD(lr=20.0), clip=100.0, epochs=3)
    spoilt = greedy.learn(base, world, run=Run(watch=events.append))
    assert "source fell below" in spoilt.stopped and any(event.name == "ATLAS stopped" for event in events)
    assert accuracy(spoilt.model, source.x, source.y) == accuracy(base, source.x, source.y), "the base's are kept"


def test_own_labels_lower_the_error_where_the_base_is_mostly_right_and_entropy_alone_may_collapse():
    base = nn.Linear(3, 3)
    good, bad = fork(base, own="*"), fork(base, own="*")
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    y = torch.arange(300) % 3
    x += 1.5 * nn.functional.one_hot(y, 3)
    with torch.no_grad():
        for net, weight, bias in ((base, 0.3, 0.5), (good, 1.3, 0.0), (bad, 0.3, 9.0)):
            net.weight.copy_(weight * torch.eye(3))
            net.bias.copy_(torch.tensor([bias, 0.0, 0.0]))
    world = World(models={"good": good, "bad": bad}, target=x)
    start = accuracy(base, x, y)
    found = ATLAS("pseudo", epochs=4).learn(base, world)
    assert accuracy(found.model, x, y) > start + 0.03 and found.coefficients[0].abs().max() > 0.3
    collapsed = ATLAS("entropy", optimizer=Adam(lr=0.3)).learn(base, world.replace(models={"bad": bad}))
    assert accuracy(collapsed.model, x, y) < 0.36 < start
    guarded = world.replace(models={"bad": bad}, calibration=(x, y))
    assert accuracy(ATLAS("entropy", optimizer=Adam(lr=0.3))(base, guarded), x, y) >= start


@pytest.mark.parametrize(
    "remedy",
    [
        ATLAS(epochs=1, groups=2),
        ATLAS("entropy", granularity="task", epochs=1),
        ATLAS("pseudo", views=RandomViews(), epochs=1, skip=("5.*",)),
        ATLAS("negation", epochs=1, batch=16),
    ],
)
def test_keeps_all_promises_of_a_remedy(remedy):
    net = small_network()
    check_remedy(remedy, net, small_world().replace(models=donors_of(net, 2)))


def test_skipped_parameters_and_buffers_stay_the_bases():
    net = small_network()
    world = small_world().replace(models=donors_of(net, 2), calibration=None)
    made = ATLAS(epochs=1, skip=("5.*",))(net, world)
    assert torch.equal(made[5].weight, net[5].weight) and not torch.equal(made[0].weight, net[0].weight)
    assert torch.equal(made[1].running_mean, net[1].running_mean)
    still = ATLAS(epochs=1, optimizer=SGD(lr=1e-30))(net, world)
    for a, b in zip(still.parameters(), added(net, donors_of(net, 2), 0.0).parameters(), strict=True):
        assert torch.equal(a, b)


def test_worlds_that_do_not_fit_are_refused_with_what_to_do():
    net = small_network()
    donors = donors_of(net, 2)
    world = small_world().replace(models=donors)
    x = world.target.load().x
    with pytest.raises(MissingPart, match=r"target\.y"):
        ATLAS()(net, world.replace(target=x))
    with pytest.raises(MissingPart, match=r"source\.x.*source\.y"):
        ATLAS("negation")(net, world.replace(source=None))
    with pytest.raises(MissingPart, match="no label of target is known"):
        ATLAS()(net, world.replace(target=(x, torch.full((48,), UNKNOWN))))
    with pytest.raises(InputError, match=r"outside 0\.\.2"):
        ATLAS()(net, world.replace(target=(x, torch.full((48,), 7))))
    with pytest.raises(InputError, match="empty"):
        ATLAS("entropy")(net, world.replace(target=Tensors(torch.zeros(0, 1, 8, 8))))
    with pytest.raises(ModelError, match="equal the base"):
        ATLAS()(net, world.replace(models={"same": fork(net)}))
    with pytest.raises(SpecError, match="groups"):
        ATLAS(groups=2, granularity="task")(net, world)
