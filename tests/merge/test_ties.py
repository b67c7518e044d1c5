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
from homeostat.merge import TIES, merge_ties


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
    found = merge_ties(split(base), [split(d) for d in donors], density, 1.5, "model", "all" if keep_all else "index")
    flat = torch.cat([found["a"].flatten(), found["b"]])
    assert torch.allclose(flat, plain_ties(base, donors, density, 1.5, keep_all))


def test_trimming_by_tensor_keeps_the_share_in_each():
    base = {"a": torch.zeros(4), "b": torch.zeros(4)}
    donor = {"a": torch.tensor([10.0, 9, 8, 7]), "b": torch.tensor([1.0, 2, 3, 4])}
    by_model = merge_ties(base, [donor], 0.5, scope="model")
    by_tensor = merge_ties(base, [donor], 0.5, scope="tensor")
    assert by_model["b"].abs().sum() == 0 and by_model["a"].tolist() == [10, 9, 8, 7]
    assert by_tensor["a"].tolist() == [10, 9, 0, 0] and by_tensor["b"].tolist() == [0, 0, 3, 4]


def test_one_donor_at_full_density_is_itself_and_donors_may_be_permuted():
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(30, generator=generator)}
    donors = [{"w": torch.randn(30, generator=generator)} for _ in range(3)]
    assert torch.allclose(merge_ties(base, donors[:1], 1.0)["w"], donors[0]["w"], atol=1e-6)
    assert torch.allclose(merge_ties(base, donors)["w"], merge_ties(base, donors[::-1])["w"])


def test_half_precision_is_merged_in_float32_and_keeps_its_dtype():
    generator = torch.Generator().manual_seed(1)
    base = {"w": torch.randn(50, generator=generator).bfloat16()}
    donors = [{"w": (base["w"].float() + 0.1 * torch.randn(50, generator=generator)).bfloat16()} for _ in range(2)]
    found = merge_ties(base, donors, 0.3)
    wide = merge_ties({"w": base["w"].float()}, [{"w": d["w"].float()} for d in donors], 0.3)
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
    with pytest.raises(NonFiniteError, match=r"donor1\.5\.bias"):
        TIES()(net, World(models={**donors, "donor1": spoilt}))
    with pytest.raises(CheckpointError, match=r"donor1\.0\.weight is .*donor1 lacks 1\.weight"):
        TIES()(net, World(models={**donors, "donor1": nn.Sequential(nn.Conv2d(1, 2, 3))}))
    with pytest.raises(MissingPart, match=r"models\.\*"):
        TIES()(net, World())
    with pytest.raises(InputError, match="no donors"):
        merge_donors_none()
    with pytest.raises(SpecError, match="density"):
        TIES(density=1.5)


def merge_donors_none() -> None:
    from homeostat.merge import check_donors

    check_donors({}, {})
