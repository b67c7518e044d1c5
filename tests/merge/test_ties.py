from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from homeostat.core.check import check_remedy, small_network, small_world
from homeostat.core.errors import CheckpointError, InputError, MissingPart, NonFiniteError, SpecError
from homeostat.core.fork import fork
from homeostat.core.save import save
from homeostat.core.world import World
from homeostat.merge import TIES, merge_weights


def plain_ties(base: Tensor, donors: list[Tensor], density: float, scale: float, keep_all: bool) -> Tensor:
    """TIES of one flat vector, entry by entry."""
    vectors = []
    for donor in donors:
        vector = (donor - base).tolist()
        keep = max(1, round(density * len(vector)))
        order = sorted(range(len(vector)), key=lambda i: (-abs(vector[i]), i))
        kept = set(order[:keep])
        if keep_all:
            cut = abs(vector[order[keep - 1]])
            kept = {i for i in range(len(vector)) if abs(vector[i]) >= cut}
        vectors.append([v if i in kept else 0.0 for i, v in enumerate(vector)])
    sums = [sum(column) for column in zip(*vectors, strict=True)]
    signs = [(s > 0) - (s < 0) for s in sums]
    total = sum(signs)
    majority = (total > 0) - (total < 0)
    merged = []
    for i, column in enumerate(zip(*vectors, strict=True)):
        sign = signs[i] or majority
        agree = [v for v in column if v != 0 and (v > 0) - (v < 0) == sign]
        merged.append(float(base[i]) + scale * (sum(agree) / len(agree) if agree else 0.0))
    return torch.tensor(merged, dtype=base.dtype)


integers = st.lists(st.integers(-4, 4), min_size=6, max_size=6)


@settings(max_examples=60)
@given(st.lists(integers, min_size=1, max_size=4), st.sampled_from([0.2, 0.5, 0.7, 1.0]), st.booleans())
@pytest.mark.exact("S022")
def test_equals_the_definition_entry_by_entry_with_many_equal_sizes(rows, density, keep_all):
    base = torch.zeros(6, dtype=torch.float64)
    donors = [torch.tensor(row, dtype=torch.float64) for row in rows]
    split = lambda t: {"a": t[:4].view(2, 2), "b": t[4:]}  # noqa: E731
    found = merge_weights(
        TIES(density=density, scale=1.5, ties="all" if keep_all else "index"), split(base), [split(d) for d in donors]
    )
    flat = torch.cat([found["a"].flatten(), found["b"]])
    assert torch.allclose(flat, plain_ties(base, donors, density, 1.5, keep_all))


def test_trimming_by_tensor_keeps_the_share_in_each():
    base = {"a": torch.zeros(4), "b": torch.zeros(4)}
    donor = {"a": torch.tensor([10.0, 9, 8, 7]), "b": torch.tensor([1.0, 2, 3, 4])}
    by_model = merge_weights(TIES(density=0.5), base, [donor])
    by_tensor = merge_weights(TIES(density=0.5, scope="tensor"), base, [donor])
    assert by_model["b"].abs().sum() == 0 and by_model["a"].tolist() == [10, 9, 8, 7]
    assert by_tensor["a"].tolist() == [10, 9, 0, 0] and by_tensor["b"].tolist() == [0, 0, 3, 4]


def test_one_donor_at_full_density_is_itself_and_donors_may_be_permuted():
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(30, generator=generator)}
    donors = [{"w": torch.randn(30, generator=generator)} for _ in range(3)]
    assert torch.allclose(merge_weights(TIES(density=1.0), base, donors[:1])["w"], donors[0]["w"], atol=1e-6)
    assert torch.allclose(merge_weights(TIES(), base, donors)["w"], merge_weights(TIES(), base, donors[::-1])["w"])


def test_half_precision_is_merged_in_float32_and_keeps_its_dtype():
    generator = torch.Generator().manual_seed(1)
    base = {"w": torch.randn(50, generator=generator).bfloat16()}
    donors = [{"w": (base["w"].float() + 0.1 * torch.randn(50, generator=generator)).bfloat16()} for _ in range(2)]
    found = merge_weights(TIES(density=0.3), base, donors)
    wide = merge_weights(TIES(density=0.3), {"w": base["w"].float()}, [{"w": d["w"].float()} for d in donors])
    assert found["w"].dtype == torch.bfloat16 and torch.equal(found["w"], wide["w"].bfloat16())


def donors_of(net: nn.Module, count: int = 2) -> dict[str, nn.Module]:
    made = {}
    for i in range(count):
        other = fork(net, own="*")
        with torch.no_grad():
            for p in other.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).to(p.dtype), alpha=0.1)
        made[f"donor{i}"] = other
    return made


def test_keeps_all_promises_of_a_remedy():
    net = small_network()
    check_remedy(TIES(), net, small_world().replace(models=donors_of(net)))


def test_donors_read_lazily_from_files_merge_as_donors_in_memory(tmp_path):
    net = small_network()
    donors = donors_of(net)
    for name, donor in donors.items():
        save(donor, tmp_path / name)
    lazy = TIES()(net, World(models={name: tmp_path / name for name in donors}))
    direct = TIES()(net, World(models=donors))
    assert all(torch.equal(a, b) for a, b in zip(lazy.parameters(), direct.parameters(), strict=True))


def test_skipped_parameters_and_buffers_stay_the_bases():
    net = small_network()
    merged = TIES(skip=("5.*",))(net, World(models=donors_of(net)))
    assert torch.equal(merged[5].weight, net[5].weight) and not torch.equal(merged[0].weight, net[0].weight)
    assert torch.equal(merged[1].running_mean, net[1].running_mean)


def test_all_misfitting_donors_are_found_before_anything_is_merged():
    net = small_network()
    donors = donors_of(net)
    spoilt = fork(donors["donor1"], own="*")
    with torch.no_grad():
        spoilt[5].bias[0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"5\.bias \(donor1\)"):
        TIES()(net, World(models={**donors, "donor1": spoilt}))
    with pytest.raises(CheckpointError, match=r"donor1\.0\.weight is .*donor1 lacks 1\.weight"):
        TIES()(net, World(models={**donors, "donor1": nn.Sequential(nn.Conv2d(1, 2, 3))}))
    with pytest.raises(MissingPart, match=r"models\.\*"):
        TIES()(net, World())
    with pytest.raises(InputError, match="no donors"):
        merge_weights(TIES(), {}, {})
    with pytest.raises(InputError, match="3 weights for 2 donors"):
        TIES(weights=(1.0, 2.0, 3.0))(net, World(models=donors))
    with pytest.raises(InputError, match="1 densities for 2 donors"):
        TIES(density=(0.5,))(net, World(models=donors))
    with pytest.raises(SpecError, match="density"):
        TIES(density=1.5)


def test_even_votes_go_to_the_majority_of_the_model_or_to_the_positive_ones():
    """In `a` the votes are even; `b` votes twice negative."""
    base = {"a": torch.zeros(2), "b": torch.zeros(2)}
    donors = [
        {"a": torch.tensor([2.0, 3.0]), "b": -torch.ones(2)},
        {"a": torch.tensor([-2.0, 5.0]), "b": -torch.ones(2)},
    ]
    for scope in ("model", "tensor"):
        majority = merge_weights(TIES(density=1.0, scope=scope), base, donors)
        positive = merge_weights(TIES(density=1.0, scope=scope, even="positive"), base, donors)
        assert majority["a"].tolist() == [-2.0, 4.0] and positive["a"].tolist() == [2.0, 4.0]
    level = [{"a": torch.tensor([2.0, 3.0])}, {"a": torch.tensor([-2.0, -5.0])}, {"a": torch.tensor([0.0, 9.0])}]
    level[2]["a"][1] = 2.0
    base = {"a": torch.zeros(2)}
    assert merge_weights(TIES(density=1.0), base, level)["a"].tolist() == [0.0, 0.0], "no majority, no change"


def test_weights_densities_sums_and_counts_by_hand():
    base = {"w": torch.zeros(3)}
    a, b, c = ({"w": torch.tensor(row)} for row in ([4.0, 1.0, 0.5], [-1.0, 2.0, -3.0], [-1.0, -0.5, 0.0]))
    full = {"density": 1.0, "even": "positive"}
    assert merge_weights(TIES(**full), base, [a, b, c])["w"].tolist() == [4.0, 1.5, -3.0]
    assert merge_weights(TIES(**full, mean=False), base, [a, b, c])["w"].tolist() == [4.0, 3.0, -3.0]
    assert merge_weights(TIES(**full, vote="count"), base, [a, b, c])["w"].tolist() == [-1.0, 1.5, 0.5]
    # 3 a wins the first two places: (3 * 4) / 3, (3 * 1 + 2) / (3 + 1).
    weighted = merge_weights(TIES(**full, weights=(3.0, 1.0, 1.0)), base, [a, b, c])["w"]
    assert weighted.tolist() == [4.0, 1.25, -3.0]
    apart = merge_weights(TIES(density=(1 / 3, 1.0), even="positive"), base, [a, b])["w"]
    assert apart.tolist() == [4.0, 2.0, -3.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_large_tensors_are_trimmed_by_selection_as_small_ones_by_ranking(dtype, scope):
    """More entries than are held: exactly the share is kept, and nothing larger is dropped."""
    draws = torch.Generator().manual_seed(4)
    shapes = {"a": (700, 500), "b": (90_001,), "c": (3,)}
    base = {name: torch.randn(shape, generator=draws).to(dtype) for name, shape in shapes.items()}
    donor = {name: (t + 0.1 * torch.randn(t.shape, generator=draws)).to(dtype) for name, t in base.items()}
    # One donor alone: what is trimmed is what the merged network lacks.
    merged = merge_weights(TIES(density=0.3, scope=scope), base, [donor])
    for names in (list(shapes),) if scope == "model" else ([n] for n in shapes):
        wide = torch.cat([(donor[n].double() - base[n].double()).abs().float().flatten() for n in names])
        kept = torch.cat([(merged[n] == donor[n]).flatten() & (donor[n] != base[n]).flatten() for n in names])
        assert int(kept.sum()) == pytest.approx(
            max(1, round(0.3 * len(wide))), abs=0 if dtype != torch.bfloat16 else 40
        )
        assert float(wide[kept].min()) >= float(wide[~kept].max()) - 1e-6


def test_threads_change_nothing():
    draws = torch.Generator().manual_seed(4)
    base = {f"{i}": torch.randn(70_000, generator=draws).bfloat16() for i in range(5)}
    donors = [
        {n: (t + 0.1 * torch.randn(t.shape, generator=draws)).bfloat16() for n, t in base.items()} for _ in range(3)
    ]
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(merge_weights(TIES(), base, donors))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0][name], found[1][name]) for name in base)
