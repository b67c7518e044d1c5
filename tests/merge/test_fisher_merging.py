from __future__ import annotations

import pytest
import torch
from torch import nn

from homeostat.core.check import small_network, small_world
from homeostat.core.data import Batch, Tensors
from homeostat.core.errors import CheckpointError, InputError, MissingPart
from homeostat.core.fork import fork
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.merge import Average, FisherMerge, RegMean, fisher_merge
from homeostat.nn.sample_fisher import sample_fisher


def nets(count: int = 2, hidden: int = 6) -> list[nn.Module]:
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3)).double().eval())
    return made


def inputs(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.exact("S025")
def test_the_fisher_information_is_that_of_each_sample_and_class():
    (net,), x = nets(1), inputs(7)
    names = [name for name, _ in net.named_parameters()]
    wanted = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for row in x:
        for y in range(3):
            net.zero_grad()
            said = net(row[None]).log_softmax(1)[0, y]
            said.backward()
            for name, p in net.named_parameters():
                wanted[name] += said.exp().detach() * p.grad.square() / len(x)  # type: ignore[union-attr]
    net.zero_grad()
    found = sample_fisher(net, [Batch(x[:5]), Batch(x[5:])], names)
    assert all(torch.allclose(found[name], wanted[name], atol=1e-12) for name in names)
    # A batch's own gradient, squared, is something else: gradients cancel in it.
    loss = -net(x).log_softmax(1)[range(7), net(x).argmax(1)].mean()
    batch = torch.autograd.grad(loss, net[0].weight)[0].square()
    assert float(torch.corrcoef(torch.stack([batch.flatten(), wanted["0.weight"].flatten()]))[0, 1]) < 0.95


def test_chunks_and_names_do_not_change_it(monkeypatch):
    (net,), x = nets(1), inputs(9)
    whole = sample_fisher(net, [Batch(x)], ["0.weight", "2.bias"])
    monkeypatch.setattr("homeostat.nn.sample_fisher.ROOM", 60)
    parts = sample_fisher(net, [Batch(x)], ["2.bias"])
    assert torch.allclose(whole["2.bias"], parts["2.bias"])


def test_drawn_labels_give_the_same_in_expectation_and_given_ones_are_used():
    (net,), x = nets(1), inputs(3)
    many = Batch(x.repeat(3000, 1))
    exact = sample_fisher(net, [Batch(x)], ["2.bias"])["2.bias"]
    drawn = sample_fisher(net, [many], ["2.bias"], "sampled", torch.Generator().manual_seed(0))["2.bias"]
    assert torch.allclose(drawn, exact, rtol=0.08)
    y = torch.tensor([0, 1, 2])
    given = sample_fisher(net, [Batch(x, y)], ["2.bias"], "empirical")["2.bias"]
    # Of the bias of a softmax: (1[y = j] - p_j)^2.
    assert torch.allclose(given, (torch.eye(3)[y].double() - net(x).softmax(1)).square().mean(0), atol=1e-12)
    with pytest.raises(InputError, match="needs labels"):
        sample_fisher(net, [Batch(x)], ["2.bias"], "empirical")
    with pytest.raises(InputError, match="at least one sample"):
        sample_fisher(net, [], ["2.bias"])


@pytest.mark.exact("S025")
def test_each_weight_is_averaged_by_its_information():
    one = lambda *v: {"w": torch.tensor(v)}  # noqa: E731
    models, fishers = [one(0.0, 0.0), one(4.0, 4.0)], [one(1.0, 3.0), one(3.0, 0.0)]
    assert fisher_merge(models, fishers, normalize=False)["w"].tolist() == [3.0, 0.0]
    assert fisher_merge(models, fishers, (3.0, 1.0), normalize=False)["w"].tolist() == [2.0, 0.0]
    # Normalized: (1, 3) / sqrt(10) and (3, 0) / 3.
    found = fisher_merge(models, fishers)["w"][0]
    assert float(found) == pytest.approx(4 * 1.0 / (1.0 + 10**-0.5))
    # Where nobody knows anything the first stands; without its favour all count alike.
    nothing = [one(0.0, 0.0), one(0.0, 0.0)]
    assert fisher_merge(models, nothing)["w"].tolist() == [0.0, 0.0]
    assert fisher_merge(models, nothing, favor_first=False)["w"].tolist() == [2.0, 2.0]
    assert fisher_merge(models, [one(5.0, 5.0)] * 2)["w"].tolist() == [2.0, 2.0]
    with pytest.raises(InputError, match="2 networks and 1"):
        fisher_merge(models, fishers[:1])
    with pytest.raises(CheckpointError, match="information of network 2 lacks w"):
        fisher_merge(models, [fishers[0], {}])


def test_the_remedy_estimates_and_averages():
    base, a, b = nets(3)
    x = inputs(50)
    world = World(source=x, models={"a": a, "b": b})
    found = FisherMerge(samples=40)(base, world)
    names = [name for name, _ in base.named_parameters()]
    # Of 50 samples 40, evenly: of each five the fifth is left out.
    rows = [i for i in range(50) if i % 5 != 4]
    fishers = [sample_fisher(net, [Batch(x[rows])], names) for net in (a, b)]
    wanted = fisher_merge([dict(net.state_dict()) for net in (a, b)], fishers)
    assert all(torch.allclose(p, wanted[name]) for name, p in found.named_parameters())
    # Each on its own data, by name.
    parts = World(parts={"a": x[:20], "b": x[20:]}, models={"a": a, "b": b})
    apart = FisherMerge(streams="parts")(base, parts)
    own = [sample_fisher(net, [Batch(part)], names) for net, part in ((a, x[:20]), (b, x[20:]))]
    wanted = fisher_merge([dict(net.state_dict()) for net in (a, b)], own)
    assert all(torch.allclose(p, wanted[name]) for name, p in apart.named_parameters())
    with pytest.raises(MissingPart, match="none of b"):
        FisherMerge(streams="parts")(base, World(parts={"a": x}, models={"a": a, "b": b}))
    with pytest.raises(MissingPart, match=r"source\.x"):
        FisherMerge()(base, World(models={"a": a}))


def test_a_convolution_with_batchnorm_has_information_too():
    net = small_network()
    world = small_world()
    other = fork(net, own="*")
    with torch.no_grad():
        other[0].weight.add_(0.1)
    made = FisherMerge(samples=20, labels="sampled")(net, world.replace(models={"a": net, "b": other}), run=Run(seed=1))
    low, high = torch.minimum(net[0].weight, other[0].weight), torch.maximum(net[0].weight, other[0].weight)
    assert bool(((made[0].weight >= low - 1e-6) & (made[0].weight <= high + 1e-6)).all())


def test_regmean_is_the_regression_on_what_the_donors_give():
    base, a, b = nets(3)
    x, z = inputs(200, 1), inputs(200, 2) * torch.tensor([3.0, 0.1, 1.0, 1.0], dtype=torch.float64)
    world = World(parts={"a": x, "b": z}, models={"a": a, "b": b})
    found = RegMean(shrink=1.0, streams="parts")(base, world)
    # The first layer, by least squares over both sets of inputs.
    both = torch.cat([x @ a[0].weight.T, z @ b[0].weight.T])
    wanted = torch.linalg.lstsq(torch.cat([x, z]), both).solution.T
    assert torch.allclose(found[0].weight, wanted, atol=1e-8)
    # The second, on the inputs that it has in each donor.
    inside = torch.cat([a[:2](x), b[:2](z)])
    wanted = torch.linalg.lstsq(inside, torch.cat([a[:2](x) @ a[2].weight.T, b[:2](z) @ b[2].weight.T])).solution.T
    assert torch.allclose(found[2].weight, wanted, atol=1e-7)
    assert torch.allclose(found[0].bias, (a[0].bias + b[0].bias) / 2)


def test_regmean_without_correlations_weighs_by_the_inputs_sizes_and_averages_where_there_are_none():
    base, a, b = nets(3)
    x, z = inputs(100, 1), inputs(100, 2)
    x[:, 3], z[:, 3] = 0.0, 0.0
    found = RegMean(shrink=0.0, streams="parts")(base, World(parts={"a": x, "b": z}, models={"a": a, "b": b}))
    p, q = x.square().sum(0), z.square().sum(0)
    wanted = (a[0].weight * p + b[0].weight * q) / (p + q)
    assert torch.allclose(found[0].weight[:, :3], wanted[:, :3])
    assert torch.allclose(found[0].weight[:, 3], (a[0].weight + b[0].weight)[:, 3] / 2)


def test_regmean_reads_sequences_token_by_token():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 3).double() for _ in range(3)]
    tokens = inputs(30).view(10, 3, 4)
    world = World(source=Tensors(tokens), models={"a": layers[1], "b": layers[2]})
    flat = World(source=Tensors(tokens.flatten(0, 1)), models={"a": layers[1], "b": layers[2]})
    assert torch.allclose(RegMean()(layers[0], world).weight, RegMean()(layers[0], flat).weight)
    mean = Average()(layers[0], flat)
    assert torch.allclose(RegMean()(layers[0], flat).bias, mean.bias)


def test_samples_of_data_that_are_sorted_by_class_are_taken_of_all_classes():
    base, a, b = nets(3)
    x = torch.cat([inputs(30), inputs(30, 1) + 5])
    world = World(source=x, models={"a": a, "b": b})
    some = World(source=x[::10], models={"a": a, "b": b})
    for method in (FisherMerge(), RegMean()):
        found, wanted = method.replace(samples=6)(base, world), method(base, some)
        assert all(torch.allclose(p, q) for p, q in zip(found.parameters(), wanted.parameters(), strict=True))


def test_samples_of_unknown_label_do_not_count_and_labels_of_other_classes_are_refused():
    (net,), x = nets(1), inputs(4)
    some = sample_fisher(net, [Batch(x, torch.tensor([0, -100, 2, -100]))], ["2.bias"], "empirical")["2.bias"]
    wanted = sample_fisher(net, [Batch(x[[0, 2]], torch.tensor([0, 2]))], ["2.bias"], "empirical")["2.bias"]
    assert torch.equal(some, wanted)
    with pytest.raises(InputError, match=r"outside 0\.\.2"):
        sample_fisher(net, [Batch(x, torch.tensor([0, 1, 2, 3]))], ["2.bias"], "empirical")
    with pytest.raises(InputError, match="label is known"):
        sample_fisher(net, [Batch(x, torch.full((4,), -100))], ["2.bias"], "empirical")


def test_donors_in_training_mode_are_run_in_evaluation_mode():
    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).double().train()

    base, a, b = map(made, range(3))
    world = World(source=inputs(30), models={"a": a, "b": b})
    for method in (FisherMerge(), RegMean()):
        found = method(base, world)
        wanted = method(fork(base).eval(), world)
        assert all(torch.equal(p, q) for p, q in zip(found.parameters(), wanted.parameters(), strict=True))
    assert a.training and not bool(a[1].running_mean.any())


@pytest.mark.parametrize("method", [FisherMerge(skip=("2.*",)), RegMean(skip=("2.*",))])
def test_donors_are_run_with_heads_of_their_own_where_these_are_skipped(method):
    base, a, b = nets(3)
    a[2], b[2] = nn.Linear(6, 5).double(), nn.Linear(6, 2).double()
    found = method(base, World(source=inputs(30), models={"a": a, "b": b}))
    assert torch.equal(found[2].weight, base[2].weight)
    if isinstance(method, FisherMerge):
        fishers = [sample_fisher(net, [Batch(inputs(30))], ["0.weight", "0.bias"]) for net in (a, b)]
        wanted = fisher_merge([{n: net.state_dict()[n] for n in fishers[0]} for net in (a, b)], fishers)
        assert torch.allclose(found[0].weight, wanted["0.weight"])
    with pytest.raises(CheckpointError, match=r"b\.2\.weight is \(2, 6\)"):
        method.replace(skip=())(base, World(source=inputs(30), models={"a": base, "b": b}))


def test_regmean_averages_what_it_cannot_regress():
    class Net(nn.Module):
        def __init__(self, seed: int):
            super().__init__()
            torch.manual_seed(seed)
            self.embedding, self.attention = nn.Embedding(11, 8), nn.MultiheadAttention(8, 2, batch_first=True)
            self.used, self.never = nn.Linear(8, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 11, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.embedding(x)
            return self.head(self.used(self.attention(h, h, h, need_weights=False)[0]))

    base, a, b = map(Net, range(3))
    world = World(source=torch.randint(11, (20, 5)), models={"a": a, "b": b})
    found, mean = RegMean()(base, world), Average()(base, world)
    for name, parameter in found.named_parameters():
        assert torch.allclose(parameter, mean.get_parameter(name), atol=1e-6) == (name != "used.weight"), name
