from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from homeostat.core.errors import CheckpointError, InputError, ModelError, NonFiniteError, SpecError
from homeostat.core.fork import fork, versions
from homeostat.core.save import save
from homeostat.core.weights import Weights, weights
from homeostat.core.world import World
from homeostat.merge import Combination, TaskArithmetic, agreeing, task_vectors, with_head


def added(base, donors, scale: float):
    return TaskArithmetic(scale=scale)(base, World(models=donors))


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(27, 3), nn.LayerNorm(3), nn.Linear(3, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return net.to(dtype)


def donors_of(net: nn.Module, count: int = 3) -> dict[str, nn.Module]:
    made = {}
    for i in range(count):
        generator = torch.Generator().manual_seed(i)
        made[f"donor{i}"] = fork(net, own="*")
        with torch.no_grad():
            for parameter in made[f"donor{i}"].parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return made


def spread_out(combination: Combination, coefficients: Tensor, name: str, shape: torch.Size) -> Tensor:
    """For each entry of a tensor its coefficients, `[donors, *shape]`, found by writing each column alone."""
    columns = [i for i, block in enumerate(combination.blocks) if block in ("model", name) or f"{name}[" in block]
    count = combination.tasks
    if len(columns) == 1:
        return coefficients[:, columns[0]].view(count, *[1] * len(shape)).expand(count, *shape)
    member = combination._masks[shape].view(shape)
    return torch.stack([coefficients[:, column] for column in columns], 1)[:, member]


@pytest.mark.exact("S312")
@pytest.mark.exact("S036")
@pytest.mark.parametrize(("per", "groups"), [("tensor", 1), ("model", 1), ("tensor", 3)])
def test_weights_and_gradient_equal_those_of_a_graph_through_the_merge(per, groups):
    net = network()
    vectors = task_vectors(net, donors_of(net))
    combination = Combination(net, vectors, per, groups, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    shape = (3, len(combination.blocks))
    coefficients = torch.rand(shape, generator=generator, dtype=torch.float64).requires_grad_()
    x, y = torch.randn(5, 1, 4, 4, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    merged = {
        name: net.get_parameter(name).detach()
        + (stack * spread_out(combination, coefficients, name, stack[0].shape)).sum(0)
        for name, stack in vectors.items()
    }
    loss = nn.functional.cross_entropy(functional_call(net, merged, (x,)), y)
    (expected,) = torch.autograd.grad(2 * loss, coefficients)

    combination.write(coefficients.detach())
    for name, tensor in merged.items():
        assert torch.allclose(combination.network.get_parameter(name), tensor, atol=1e-14)
    with combination.gradient() as found:
        for _ in range(2):
            nn.functional.cross_entropy(combination.network(x), y).backward()
    assert torch.allclose(found, expected, atol=1e-13)
    assert all(parameter.grad is None for parameter in combination.network.parameters())


def test_no_gradient_of_a_weight_outlives_the_moment_it_is_used():
    net = network()
    combination = Combination(net, task_vectors(net, donors_of(net)))
    combination.write(combination.constant(0.3))
    alive = []
    with combination.gradient():
        for parameter in combination.network.parameters():
            # This hook comes after the one that takes the gradient.
            parameter.register_post_accumulate_grad_hook(
                lambda p: alive.append(sum(q.grad is not None for q in combination.network.parameters()))
            )
        combination.network(torch.zeros(1, 1, 4, 4, dtype=torch.float64)).sum().backward()
    assert len(alive) == len(list(net.parameters())) and set(alive) == {0}


def test_vectors_in_a_file_and_of_less_precision_serve_too(tmp_path):
    net = network(torch.float32)
    vectors = task_vectors(net, donors_of(net))
    from safetensors.torch import save_file

    save_file(task_vectors(net, donors_of(net), dtype=torch.bfloat16), tmp_path / "vectors.safetensors")
    lazy = Combination(net, Weights(tmp_path / "vectors.safetensors"))
    exact = Combination(net, {name: stack.bfloat16().float() for name, stack in vectors.items()})
    coefficients = torch.rand(3, len(vectors), generator=torch.Generator().manual_seed(0))
    # A file lists its tensors in an order of its own.
    order = [exact.blocks.index(block) for block in lazy.blocks]
    x, found = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(2)), []
    for combination, some in ((exact, coefficients), (lazy, coefficients[:, order])):
        combination.write(some)
        with combination.gradient() as gradient:
            combination.network(x).square().sum().backward()
        found.append(gradient)
    assert torch.allclose(found[0][:, order], found[1], rtol=1e-4, atol=1e-4)
    for name in vectors:
        both = [c.network.get_parameter(name) for c in (exact, lazy)]
        assert torch.allclose(*both, atol=1e-6)


def test_half_precision_networks_are_merged_in_float32_and_keep_their_dtype():
    net = network(torch.bfloat16)
    donors = donors_of(net)
    made = Combination(net, task_vectors(net, donors)).result(torch.full((3, len(list(net.parameters()))), 0.4))
    wide = added(net.float(), {n: d.float() for n, d in donors.items()}, 0.4)
    for a, b in zip(made.parameters(), wide.parameters(), strict=True):
        assert a.dtype == torch.bfloat16 and torch.equal(a, b.bfloat16())


def test_parameters_that_no_donor_changed_are_left_out_and_flags_stay():
    net = network()
    net[5].weight.requires_grad_(False)
    donors = {"a": fork(net, own="3.*")}
    with torch.no_grad():
        donors["a"][3].bias += 1.0
    assert list(task_vectors(net, donors)) == ["3.bias"]
    made = added(net, donors, 1.0)
    assert [p.requires_grad for p in made.parameters()] == [p.requires_grad for p in net.parameters()]
    with pytest.raises(ModelError, match="equal the base"):
        Combination(net, task_vectors(net, {"a": fork(net)}))


def plain_agreeing(rows: list[list[float]], density: float) -> list[list[float]]:
    keep = max(1, round(density * len(rows[0])))
    trimmed = []
    for row in rows:
        cut = sorted((abs(v) for v in row), reverse=True)[keep - 1]
        trimmed.append([v if abs(v) >= cut else 0.0 for v in row])
    sums = [sum(column) for column in zip(*trimmed, strict=True)]
    majority = sum((s > 0) - (s < 0) for s in sums)
    signs = [s or majority for s in sums]
    return [[v if v * s > 0 else 0.0 for v, s in zip(row, signs, strict=True)] for row in trimmed]


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(-4, 4), min_size=6, max_size=6), min_size=1, max_size=4),
    st.sampled_from([0.2, 0.5, 1.0]),
)
@pytest.mark.exact("S312")
def test_agreeing_entries_equal_the_definition_entry_by_entry(rows, density):
    stack = torch.tensor(rows, dtype=torch.float64)
    found = agreeing({"a": stack[:, :4].view(-1, 2, 2), "b": stack[:, 4:]}, density)
    flat = torch.cat([found["a"].flatten(1), found["b"]], 1)
    assert flat.tolist() == plain_agreeing([[float(v) for v in row] for row in rows], density)


def test_donors_that_do_not_fit_are_refused_with_their_names():
    net = network()
    donors = donors_of(net, 2)
    with torch.no_grad():
        donors["donor1"][3].bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"donor1\.3\.bias"):
        task_vectors(net, donors)
    with pytest.raises(CheckpointError, match=r"other lacks 0\.weight"):
        task_vectors(net, {"other": nn.Linear(2, 2)})
    with pytest.raises(InputError, match="no donors"):
        task_vectors(net, {})
    combination = Combination(net, task_vectors(net, donors_of(net)))
    with pytest.raises(InputError, match="donors, blocks"):
        combination.write(torch.zeros(3, 2))
    with pytest.raises(SpecError, match="groups"):
        Combination(net, task_vectors(net, donors_of(net)), "model", 2)


def test_a_head_of_other_classes_goes_over_the_merged_trunk_from_a_network_or_a_file(tmp_path):
    trunk = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))
    whole = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    donor = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 7)).eval()
    with torch.no_grad():
        whole[1].running_mean += 3.0
    x, before = torch.randn(3, 4), versions(donor)
    save(donor, tmp_path / "donor")
    wanted = donor[2](whole[1].eval()(whole[0](x)))
    for head in (donor, weights(donor), tmp_path / "donor"):
        made = with_head(whole, head, heads=("2.*",))
        assert torch.allclose(made(x), wanted) and made[2].out_features == 7
        assert made[0].weight is whole[0].weight and not made.training
    assert with_head(trunk, donor)(x).shape == (3, 7) and versions(donor) == before
    with pytest.raises(CheckpointError, match=r"heads=\('head"):
        with_head(whole, donor)
    with pytest.raises(CheckpointError, match=r"lacks 2\.weight"):
        with_head(whole, weights(trunk), heads=("2.*",))
