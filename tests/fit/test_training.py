from __future__ import annotations

import os
from dataclasses import dataclass, replace

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from homeostat.core.check import check_remedy
from homeostat.core.data import Tensors
from homeostat.core.errors import InputError, MissingPart, ModelError, NonFiniteError
from homeostat.core.online import Bag
from homeostat.core.run import Budget, Run
from homeostat.core.world import World
from homeostat.fit import SAM, Cosine, Fit, Objective, PCGrad, Recipe, Steps, Supervised, Weighted, ZerothOrder
from homeostat.nn.optimizers import SGD, Adam


def problem(seed: int = 0) -> World:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(50, 4, generator=generator)
    return World(source=Tensors(x, (x[:, 0] + x[:, 1] > 0).long()))


def network(seed: int = 1, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


OPTIMIZERS = [
    (SGD(weight_decay=0.01, nesterov=True), lambda p: torch.optim.SGD(p, 0.1, 0.9, 0, 0.01, True)),
    (SGD(lr=0.1, momentum=0.0), lambda p: torch.optim.SGD(p, 0.1)),
    (Adam(lr=0.01, weight_decay=0.1), lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1)),
    (Adam(lr=0.01, weight_decay=0.1, decoupled=True), lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1)),
    (Adam(lr=0.01, amsgrad=True), lambda p: torch.optim.Adam(p, 0.01, amsgrad=True)),
]


@pytest.mark.parametrize(("ours", "theirs"), OPTIMIZERS)
def test_optimisers_equal_pytorchs_bit_for_bit(ours, theirs):
    generator = torch.Generator().manual_seed(0)
    mine = {"a": torch.ones(3, 2), "b": torch.ones(4)}
    other = {n: nn.Parameter(p.clone()) for n, p in mine.items()}
    state, optimizer = Bag(), theirs(list(other.values()))
    ours.begin(mine, state)
    for _ in range(6):
        grads = {n: torch.randn(p.shape, generator=generator) for n, p in mine.items()}
        ours.update(mine, grads, state)
        for name, parameter in other.items():
            parameter.grad = grads[name].clone()
        optimizer.step()
    assert all(torch.equal(mine[n], other[n].data) for n in mine)


def test_one_epoch_equals_a_loop_written_out():
    world, net = problem(), network()
    recipe = Recipe(optimizer=SGD(lr=0.05), schedule=Cosine(warmup=2), epochs=2, batch=16)
    made = Fit(recipe=recipe)(net, world, run=Run(seed=3))
    twin = network().train()
    optimizer = torch.optim.SGD(twin.parameters(), 0.05, 0.9)
    data, step = world.source.load(), 0  # type: ignore[union-attr]
    for epoch in range(2):
        order = torch.randperm(50, generator=Run(seed=3).rng("epoch", "source", epoch, 0))
        for low in range(0, 50, 16):
            rows = order[low : low + 16]
            optimizer.param_groups[0]["lr"] = 0.05 * recipe.schedule.factor(step, 8)
            optimizer.zero_grad()
            F.cross_entropy(twin(data.x[rows]), data.labels[rows]).backward()  # type: ignore[index]
            optimizer.step()
            step += 1
    for p, q in zip(made.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(tmp_path):
    world, net = problem(), network(dropout=0.3)
    fit = Fit(recipe=Recipe(optimizer=Adam(), epochs=4, batch=16, schedule=Cosine()))
    straight = fit(net, world, run=Run(seed=2))
    stopped = Run(seed=2, scratch=tmp_path, budget=Budget(seconds=0.0))
    for _ in range(3):
        assert not same(fit(net, world, run=stopped), straight)
    assert same(fit(net, world, run=stopped), straight)


def test_a_finished_run_is_cached_by_its_recipe_weights_data_and_seed(tmp_path):
    steps = []
    run = Run(scratch=tmp_path, watch=lambda e: steps.append(e.step))
    fit, net, world = Fit(recipe=Recipe(batch=25)), network(), problem()
    first = fit(net, world, run=run)
    assert len(steps) == 2 and same(fit(net, world, run=run), first) and len(steps) == 2
    fit(net, world, run=run.replace(seed=1))
    fit(net, problem(5), run=run)
    fit(network(7), world, run=run)
    fit.replace(own="4.*")(net, world, run=run)
    assert len(steps) == 10


def test_only_what_is_owned_changes():
    net, world = network(), problem()
    made = Fit(own="4.*", freeze_stats=True, recipe=Recipe(epochs=2))(net, world)
    changed = {n for n, p in net.state_dict().items() if not torch.equal(p, made.state_dict()[n])}
    assert changed == {"4.weight", "4.bias"}
    assert made[0].weight.data_ptr() == net[0].weight.data_ptr()
    with pytest.raises(ModelError, match=r"matches 'head\.\*'"):
        Fit(own="head.*")(net, world)


def test_fit_keeps_all_promises_of_a_remedy():
    check_remedy(Fit(recipe=Recipe(batch=16)))


def test_a_loss_that_is_not_finite_stops_with_its_name_and_step():
    with pytest.raises(NonFiniteError, match=r"loss is (nan|inf) at step \d+"):
        Fit(recipe=Recipe(optimizer=SGD(lr=1e30), epochs=20))(network(), problem())


def test_labels_outside_the_models_width_and_missing_labels_are_refused():
    x = torch.zeros(6, 4)
    with pytest.raises(InputError, match=r"outside 0\.\.1: \[5\]"):
        Fit()(network(), World(source=(x, torch.tensor([0, 1, 0, 1, 0, 5]))))
    with pytest.raises(MissingPart, match=r"source\.y"):
        Fit()(network(), World(source=x))


def test_sam_takes_the_gradient_at_the_worst_point_nearby():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    found, (gradient,) = SAM(radius=0.5).gradients(
        lambda: {"l": weight.square().sum() / 2}, [weight], Recipe().combine, torch.Generator()
    )
    assert torch.allclose(gradient, torch.tensor([3.3, 4.4])) and weight.tolist() == [3.0, 4.0]
    assert float(found["l"].detach()) == 12.5


def test_zeroth_order_gradients_are_right_on_average():
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    _, (gradient,) = ZerothOrder(directions=4000).gradients(
        lambda: {"l": weight.square().sum() / 2}, [weight], Recipe().combine, torch.Generator().manual_seed(0)
    )
    assert torch.allclose(gradient, weight.data, atol=0.15)


def test_conflicting_gradients_are_projected_by_hand():
    weight = nn.Parameter(torch.zeros(2))
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    (merged,) = PCGrad().gradients({"a": weight @ a, "b": weight @ b}, [weight], torch.Generator())
    assert torch.allclose(merged, (a + 0.5 * b) + (b + a))


def test_weighted_objectives_add_up():
    world, net = problem(), network().eval()
    batch = {"source": world.source.load()}  # type: ignore[union-attr]
    one = Supervised().losses(net, batch, world.task, None, Run())["loss"]
    both = Weighted((Supervised(), Supervised()), (2.0, 0.5)).losses(net, batch, world.task, None, Run())
    assert torch.allclose(torch.stack(list(both.values())).sum(), 2.5 * one)


def test_unknown_labels_do_not_count():
    world, net = problem(), network().eval()
    batch = world.source.load()  # type: ignore[union-attr]
    y = batch.labels.clone()
    y[10:] = -100
    some = Supervised().losses(net, {"source": batch.replace(y=y)}, world.task, None, Run())["loss"]
    assert torch.allclose(some, F.cross_entropy(net(batch.x)[:10], batch.labels[:10]))


def test_schedules_by_hand():
    assert [round(Steps((0.5,), 0.1).factor(s, 4), 3) for s in range(4)] == [1, 1, 0.1, 0.1]
    assert [round(Cosine().factor(s, 4), 3) for s in range(4)] == [1, 0.854, 0.5, 0.146]


@dataclass(frozen=True)
class Plain(Objective, register=False):
    """Mean squared output, whose gradient over two equal shares averages to that over all."""

    def losses(self, model, batches, task, kit, run):
        return {"l": model(batches["source"].x).square().mean()}


def _work(rank: int, port: int, queue) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(1)
    net = nn.Linear(4, 2)
    made = Fit(objective=Plain(), recipe=Recipe(epochs=2, batch=10, optimizer=Adam(lr=0.01)))(net, problem())
    queue.put([p.tolist() for p in made.parameters()])
    torch.distributed.destroy_process_group()


def test_two_processes_give_what_one_gives():
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    with __import__("socket").socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [context.Process(target=_work, args=(rank, port, queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = [queue.get() for _ in workers]
    for worker in workers:
        worker.join()
    torch.manual_seed(1)
    one = Fit(objective=Plain(), recipe=Recipe(epochs=2, batch=10, optimizer=Adam(lr=0.01)))(nn.Linear(4, 2), problem())
    assert found[0] == found[1]
    for ours, alone in zip(found[0], one.parameters(), strict=True):
        assert torch.allclose(torch.tensor(ours), alone, atol=1e-6)


def test_a_recipe_can_be_replaced_in_part():
    assert replace(Recipe(), epochs=3).epochs == 3


def test_samples_without_a_label_are_left_out_of_supervised_training_and_some_label_is_wanted():
    x, y = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    shown = torch.where(torch.arange(40) % 5 == 0, y, -100)
    fit, net = Fit(recipe=Recipe(epochs=3, batch=4)), nn.Linear(3, 2)
    with torch.no_grad():
        partly, alone = (fit(net, World(source=source))(x) for source in ((x, shown), (x[::5], y[::5])))
    assert not torch.equal(alone, net(x)) and torch.allclose(partly, alone, atol=1e-6)
    with pytest.raises(MissingPart, match="no label of source is known"):
        fit(net, World(source=(x, torch.full((40,), -100))))
