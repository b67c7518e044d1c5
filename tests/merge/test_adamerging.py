from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from homeostat.core.check import check_remedy, small_network, small_world
from homeostat.core.data import Data, Tensors
from homeostat.core.errors import InputError, MissingPart, NonFiniteError, SpecError
from homeostat.core.fork import fork
from homeostat.core.run import Event, Run
from homeostat.core.save import save
from homeostat.core.world import World
from homeostat.merge import AdaMerging, TaskArithmetic, agreeing, task_vectors, with_head
from homeostat.nn.optimizers import Adam
from tests.merge.test_coefficients import donors_of


def added(base, donors, scale: float):
    return TaskArithmetic(scale=scale)(base, World(models=donors))


def plain_adamerging(
    base: dict[str, Tensor], vectors: list[dict[str, Tensor]], calls: list, batches: list, prior: float, lr: float,
    tensorwise: bool,
) -> Tensor:  # fmt: skip
    """The definition, with a graph through the merge and PyTorch's own Adam; `batches[step][stream]`."""
    coefficients = nn.Parameter(torch.full((len(vectors), len(base) if tensorwise else 1), prior, dtype=torch.float64))
    optimizer = torch.optim.Adam([coefficients], lr=lr)
    for batch in batches:
        clamped = coefficients.clamp(0, 1)
        merged = {}
        for i, (name, start) in enumerate(base.items()):
            merged[name] = start + sum(
                c[i if tensorwise else 0] * v[name] for c, v in zip(clamped, vectors, strict=True)
            )
        loss = torch.tensor(0.0, dtype=torch.float64)
        for call, x in zip(calls, batch, strict=True):
            p = call(merged, x).softmax(1)
            loss = loss - (p * p.log()).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return coefficients.detach().clamp(0, 1)


def drawn(data: Data, count: int, run: Run, name: str, step: int) -> Tensor:
    order = torch.randperm(len(data), generator=run.rng("AdaMerging", name, step))
    x = data.fetch(order[:count]).x
    assert isinstance(x, Tensor)
    return x


def trunk_and_donors() -> tuple[nn.Module, dict[str, nn.Module], dict[str, Tensors]]:
    """A trunk without a head, donors with heads of 3, 4 and 5 classes, and inputs of each."""
    generator = torch.Generator().manual_seed(0)
    trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    donors, parts = {}, {}
    for (name, tuned), classes in zip(donors_of(trunk).items(), (3, 4, 5), strict=True):
        head = nn.Linear(4, classes).double()
        with torch.no_grad():
            head.weight.copy_(torch.randn(classes, 4, generator=generator))
        donors[name] = nn.Sequential(*tuned.children(), head)
        parts[name] = Tensors(torch.randn(40, 6, generator=generator, dtype=torch.float64))
    return trunk, donors, parts


@pytest.mark.exact("S312")
@pytest.mark.parametrize("granularity", ["layer", "task"])
@pytest.mark.parametrize("density", [None, 0.5])
def test_coefficients_equal_those_of_the_definition_for_tasks_with_heads_of_their_own(granularity, density):
    trunk, donors, parts = trunk_and_donors()
    run, steps, lr = Run(seed=4), 25, 0.05
    learned = AdaMerging(
        granularity=granularity,
        density=density,
        streams="parts",
        steps=steps,
        batch=8,
        guard=0.0,
        optimizer=Adam(lr=lr),
    ).learn(trunk, World(models=donors, parts=parts), run=run)

    stacks = task_vectors(trunk, donors)
    stacks = stacks if density is None else agreeing(stacks, density)
    vectors = [{name: stack[t] for name, stack in stacks.items()} for t in range(3)]
    calls = [lambda merged, x, head=d[3]: head(functional_call(trunk, merged, (x,))) for d in donors.values()]
    batches = [[drawn(data, 8, run, name, step) for name, data in parts.items()] for step in range(steps)]
    base = {name: p.detach() for name, p in trunk.named_parameters()}
    expected = plain_adamerging(base, vectors, calls, batches, 0.3, lr, granularity == "layer")
    assert torch.allclose(learned.coefficients, expected, atol=1e-9)
    assert (learned.coefficients == 0).any() or (learned.coefficients - 0.3).abs().max() > 0.2, "it must have moved"
    assert learned.tasks == ("donor0", "donor1", "donor2") and learned.steps == steps and learned.stopped == ""
    for name, donor in donors.items():
        x = drawn(parts[name], 8, run, name, 0)
        merged = {n: s + sum(learned.coefficients[t, i if granularity == "layer" else 0] * vectors[t][n]
                             for t in range(3)) for i, (n, s) in enumerate(base.items())}  # fmt: skip
        wanted = donor[3](functional_call(trunk, merged, (x,)))
        assert torch.allclose(with_head(learned.model, donor)(x), wanted, atol=1e-9)


@pytest.mark.exact("S312")
def test_one_step_by_hand():
    """f = [0, c x] for x = 1 and c = lambda from 0.5: entropy falls as c grows, and Adam's first step is lr long."""
    base = nn.Linear(1, 2, bias=False)
    donor = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        base.weight.zero_()
        donor.weight.copy_(torch.tensor([[0.0], [1.0]]))
    world = World(models={"a": donor}, target=torch.ones(4, 1))
    learned = AdaMerging(prior=0.5, steps=1, optimizer=Adam(lr=0.1), guard=0.0).learn(base, world)
    assert learned.coefficients.item() == pytest.approx(0.6, abs=1e-6)
    long = AdaMerging(prior=0.5, steps=40, optimizer=Adam(lr=0.1), guard=0.0).learn(base, world)
    assert long.coefficients.item() == 1.0, "the clamp holds, and has no gradient beyond it"


def test_a_merge_that_does_not_learn_is_task_arithmetic():
    net = small_network()
    donors = donors_of(net)
    world = small_world().replace(models=donors)
    still = AdaMerging(prior=0.25, steps=1, optimizer=Adam(lr=1e-12))(net, world)
    for a, b in zip(still.parameters(), added(net, donors, 0.25).parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def collapsing() -> tuple[nn.Module, World, Tensors]:
    """A weak base, a donor that helps a little, and one whose change is a bias to one class."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 3
    x = torch.randn(300, 3, generator=generator) + 1.5 * nn.functional.one_hot(y, 3)
    base, good, bad = (nn.Linear(3, 3) for _ in range(3))
    with torch.no_grad():
        for net, weight, bias in ((base, 0.3, 0.0), (good, 0.8, 0.0), (bad, 0.3, 8.0)):
            net.weight.copy_(weight * torch.eye(3))
            net.bias.copy_(torch.tensor([bias, 0.0, 0.0]))
    return base, World(models={"good": good, "bad": bad}, target=x), Tensors(x, y)


def accuracy(net: nn.Module, data: Tensors) -> float:
    batch = data.load()
    return float((net(batch.x).argmax(1) == batch.y).float().mean())


def test_entropy_alone_collapses_and_the_guard_stops_it_takes_sound_coefficients_and_says_so():
    base, world, data = collapsing()
    events: list[Event] = []
    remedy = AdaMerging(prior=0.05, optimizer=Adam(lr=0.01), steps=150, guard_every=5)
    start = accuracy(added(base, world.models, 0.05), data)
    unguarded = remedy.replace(guard=0.0).learn(base, world)
    assert accuracy(unguarded.model, data) < 0.36 < start - 0.3, "one answer to everything"
    guarded = remedy.learn(base, world, run=Run(watch=events.append))
    assert accuracy(guarded.model, data) > start - 0.03
    assert 0 < guarded.steps < 150 and "fell from" in guarded.stopped
    told = [event for event in events if event.name == "AdaMerging stopped"]
    assert len(told) == 1 and told[0].values["why"] == guarded.stopped
    applied = remedy(base, world)
    assert all(torch.equal(a, b) for a, b in zip(applied.parameters(), guarded.model.parameters(), strict=True))


def test_the_guard_lets_a_sound_merge_learn_to_the_end():
    base, world, data = collapsing()
    sound = world.replace(models={"good": world.models["good"]})
    learned = AdaMerging(prior=0.05, optimizer=Adam(lr=0.01), steps=60).learn(base, sound)
    assert learned.stopped == "" and learned.steps == 60
    assert learned.coefficients.min() > 0.5 and accuracy(learned.model, data) > 0.6


def test_keeps_all_promises_of_a_remedy_also_with_heads_of_other_classes():
    net = small_network()
    donors = donors_of(net, 2)
    donors["donor1"][5] = nn.Linear(16, 4)
    world = small_world()
    world = world.replace(models=donors, parts={"donor0": world.source, "donor1": world.target})
    check_remedy(AdaMerging(streams="parts", heads=("5.*",), steps=12), net, world)
    check_remedy(AdaMerging(density=0.5, granularity="task", steps=12), net, world.replace(models=donors_of(net, 2)))


def test_donors_in_files_give_what_donors_in_memory_give(tmp_path):
    net = small_network()
    donors = donors_of(net, 2)
    parts = {name: small_world(seed=i).target for i, name in enumerate(donors)}
    for name, donor in donors.items():
        save(donor, tmp_path / name)
    remedy = AdaMerging(streams="parts", heads=("5.*",), steps=10)
    lazy = remedy.learn(net, World(models={name: tmp_path / name for name in donors}, parts=parts))
    direct = remedy.learn(net, World(models=donors, parts=parts))
    assert torch.equal(lazy.coefficients, direct.coefficients)
    assert torch.equal(direct.model[5].weight, net[5].weight), "heads stay the base's"


def test_worlds_that_do_not_fit_are_refused_with_what_to_do():
    net = small_network()
    donors = donors_of(net, 2)
    world = small_world().replace(models=donors)
    with pytest.raises(SpecError, match="streams='parts'"):
        AdaMerging(heads=("5.*",))
    with pytest.raises(MissingPart, match=r"none of donor0, donor1; parts are first, second"):
        AdaMerging(streams="parts")(net, world)
    with pytest.raises(MissingPart, match=r"target\.x"):
        AdaMerging()(net, World(models=donors))
    with pytest.raises(InputError, match="empty"):
        AdaMerging()(net, world.replace(target=Tensors(torch.zeros(0, 1, 8, 8))))
    with pytest.raises(NonFiniteError, match="x holds"):
        AdaMerging()(net, world.replace(target=Tensors(torch.full((4, 1, 8, 8), float("nan")))))
    spoilt = fork(donors["donor1"], own="*")
    with torch.no_grad():
        spoilt[0].weight[0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"donor1\.0\.weight"):
        AdaMerging()(net, world.replace(models={**donors, "donor1": spoilt}))


def test_the_guard_refuses_outputs_that_are_no_numbers_and_takes_one_sure_answer_for_no_entropy():
    base, donors = nn.Linear(2, 2).double(), {n: nn.Linear(2, 2).double() for n in "ab"}
    x = torch.ones(8, 2, dtype=torch.float64)
    with torch.no_grad():
        for donor in donors.values():
            donor.weight.fill_(1e308)
    with pytest.raises(NonFiniteError, match="outputs for target"):
        AdaMerging(prior=1.0, steps=1).learn(base, World(models=donors, target=x))

    class Sure(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mul(0) + torch.tensor([0.0, 35.0], dtype=x.dtype)

    nets = [Sure(2, 2).double() for _ in range(3)]
    world = World(models=dict(zip("ab", nets[1:], strict=True)), target=x)
    assert not AdaMerging(steps=1, guard=1.0).learn(nets[0], world).stopped
