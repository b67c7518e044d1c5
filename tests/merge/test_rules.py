"""Merging methods by hand, and what holds for all of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from homeostat.core.errors import InputError, NonFiniteError
from homeostat.core.run import Run
from homeostat.core.spec import registered
from homeostat.merge import (
    DARE,
    DELLA,
    SLERP,
    TIES,
    Average,
    Breadcrumbs,
    Merge,
    ModelStock,
    TaskArithmetic,
    merge_weights,
)

METHODS = [cls() for cls in registered(Merge) if not getattr(cls, "__abstractmethods__", None)]
RANDOM = (DARE, DELLA)


def case(donors: int = 2, size: float = 0.1, dtype: torch.dtype = torch.float64) -> tuple[dict, list[dict]]:
    draws = torch.Generator().manual_seed(donors)
    base = {"a.weight": torch.randn(6, 5, generator=draws), "a.bias": torch.randn(6, generator=draws)}
    made = [{n: t + size * torch.randn(t.shape, generator=draws) for n, t in base.items()} for _ in range(donors)]
    cast = lambda tensors: {n: t.to(dtype) for n, t in tensors.items()}  # noqa: E731
    return cast(base), [cast(donor) for donor in made]


def one(method: Merge, base: list[float], *donors: list[float]) -> list[float]:
    pack = lambda row: {"w": torch.tensor(row)}  # noqa: E731
    return merge_weights(method, pack(base), [pack(donor) for donor in donors])["w"].tolist()


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_no_change_of_any_donor_is_no_change(method):
    base, _ = case(1)
    merged = merge_weights(method, base, [base, base])
    assert all(torch.allclose(merged[name], base[name]) for name in base)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_neither_the_base_nor_a_donor_changes(method):
    base, donors = case()
    kept = [{n: t.clone() for n, t in tensors.items()} for tensors in (base, *donors)]
    merge_weights(method, base, donors)
    for before, after in zip(kept, (base, *donors), strict=True):
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_nan_and_infinity_are_found_wherever_they_lie_and_named(method, where, wrong):
    if isinstance(method, Average) and where == 0:
        pytest.skip("an average takes nothing of the base")
    base, donors = case(dtype=torch.float32)
    spoilt = (base, *donors)[where]
    spoilt["a.weight"][2, 3] = wrong
    with pytest.raises(NonFiniteError, match=r"1 tensors .*a\.weight \(" + ("the base", "donor 1", "donor 2")[where]):
        merge_weights(method, base, donors)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_computed_in_float32_or_wider_and_written_in_the_dtype_of_the_base(method, dtype):
    base, donors = case(dtype=dtype)
    merged = merge_weights(method, base, donors)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    widened = merge_weights(
        method, *[{n: t.to(wide) for n, t in base.items()}, [{n: t.to(wide) for n, t in d.items()} for d in donors]]
    )
    for name in base:
        assert merged[name].dtype == dtype and torch.equal(merged[name], widened[name].to(dtype))


@pytest.mark.parametrize(
    "method", [m for m in METHODS if not isinstance(m, (*RANDOM, SLERP))], ids=lambda m: type(m).__name__
)
def test_the_order_of_donors_does_not_matter(method):
    base, donors = case(3)
    forth, back = merge_weights(method, base, donors), merge_weights(method, base, donors[::-1])
    assert all(torch.allclose(forth[name], back[name], atol=1e-12) for name in base)


@pytest.mark.parametrize(
    "method", [DARE(density=1.0), Breadcrumbs(density=1.0, scale=1.0), DELLA(density=1.0, elect=False)]
)
def test_at_density_one_they_are_task_arithmetic(method):
    base, donors = case(3)
    plain = merge_weights(TaskArithmetic(scale=1.0), base, donors)
    merged = merge_weights(method, base, donors)
    assert all(torch.allclose(merged[name], plain[name], atol=1e-12) for name in base)


@pytest.mark.parametrize(
    "method", [DARE(density=1.0, elect=True), DELLA(density=1.0), Breadcrumbs(density=1.0, scale=1.0, elect=True)]
)
def test_with_election_at_density_one_they_are_ties(method):
    base, donors = case(3)
    ties = merge_weights(TIES(density=1.0), base, donors)
    merged = merge_weights(method, base, donors)
    assert all(torch.allclose(merged[name], ties[name], atol=1e-12) for name in base)


@pytest.mark.parametrize(
    "method",
    [Average(), TaskArithmetic(scale=1.0), TIES(density=1.0), DARE(density=1.0), SLERP(t=1.0)],
    ids=lambda m: type(m).__name__,
)
def test_one_donor_alone_is_itself(method):
    base, donors = case(1)
    merged = merge_weights(method, base, donors)
    assert all(torch.allclose(merged[name], donors[0][name], atol=1e-12) for name in base)


numbers = st.lists(st.floats(-4, 4, width=32), min_size=4, max_size=4)


@settings(max_examples=40)
@given(st.lists(numbers, min_size=2, max_size=4), st.floats(-2, 2))
def test_task_arithmetic_is_linear_in_its_scale(rows, scale):
    base, donors = rows[0], rows[1:]
    full = torch.tensor(one(TaskArithmetic(scale=1.0), base, *donors))
    part = torch.tensor(one(TaskArithmetic(scale=scale), base, *donors))
    start = torch.tensor(base)
    assert torch.allclose(part - start, scale * (full - start), atol=1e-4)


def test_averages_and_task_vectors_by_hand():
    assert one(Average(), [9.0, 9.0], [1.0, 2.0], [3.0, 6.0]) == [2.0, 4.0]
    assert one(Average(weights=(3.0, 1.0)), [9.0], [1.0], [5.0]) == [2.0]
    assert one(Average(weights=(3.0, 1.0), normalize=False), [9.0], [1.0], [5.0]) == [8.0]
    assert one(TaskArithmetic(scale=0.5, weights=(1.0, -2.0)), [1.0], [3.0], [4.0]) == [-1.0]
    assert one(TaskArithmetic(scale=1.0, weights=(1.0, 3.0), normalize=True), [1.0], [3.0], [5.0]) == [4.5]
    with pytest.raises(InputError, match="add up to 0"):
        one(Average(weights=(1.0, -1.0)), [0.0], [1.0], [2.0])
    with pytest.raises(InputError, match="1 weights for 2 donors"):
        one(TaskArithmetic(weights=(1.0,)), [0.0], [1.0], [2.0])


def test_slerp_keeps_the_length_and_goes_by_the_angle():
    found = torch.tensor(one(SLERP(t=1 / 3), [2.0, 0.0], [0.0, 2.0]))
    assert torch.allclose(found, 2 * torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6)]))
    # Nearly parallel: the line.
    assert one(SLERP(t=0.25), [1.0, 0.0], [2.0, 0.0]) == [1.25, 0.0]
    # Of two donors the task vectors (2, 0) and (0, 2) are rotated into each other.
    assert one(SLERP(), [1.0, 1.0], [3.0, 1.0], [1.0, 3.0]) == pytest.approx([1 + 2**0.5, 1 + 2**0.5])
    with pytest.raises(InputError, match="there are 3"):
        one(SLERP(), [1.0], [2.0], [3.0], [4.0])


def test_model_stock_by_hand():
    """Cosines of 0, 1 and -1 between two task vectors of one length."""
    assert one(ModelStock(), [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]) == [0.0, 0.0]
    assert one(ModelStock(), [1.0, 1.0], [3.0, 1.0], [3.0, 1.0]) == [3.0, 1.0]
    assert one(ModelStock(), [5.0, 5.0], [6.0, 5.0], [4.0, 5.0]) == [5.0, 5.0]
    with pytest.raises(InputError, match="two or more"):
        one(ModelStock(), [0.0], [1.0])


def plain_breadcrumbs(delta: Tensor, keep: int, drop: int) -> Tensor:
    """Row by row, sorted."""
    made = torch.zeros_like(delta)
    for row, values in enumerate(delta.tolist()):
        order = sorted(range(len(values)), key=lambda i: -abs(values[i]))
        for i in order[drop : drop + keep]:
            made[row, i] = values[i]
    return made


@pytest.mark.exact("S206")
def test_breadcrumbs_equals_the_definition_row_by_row():
    draws = torch.Generator().manual_seed(3)
    base = torch.randn(40, 50, generator=draws, dtype=torch.float64)
    donors = [base + torch.randn(40, 50, generator=draws, dtype=torch.float64) for _ in range(3)]
    found = merge_weights(Breadcrumbs(density=0.2, outliers=0.1, scale=0.4), {"w": base}, [{"w": d} for d in donors])
    wanted = base + 0.4 * sum(plain_breadcrumbs(d - base, 10, 5) for d in donors)
    assert torch.allclose(found["w"], wanted, atol=1e-12)
    # A convolution's row is a filter.
    shaped = merge_weights(
        Breadcrumbs(density=0.2, outliers=0.1, scale=0.4),
        {"w": base.view(40, 2, 5, 5)},
        [{"w": d.view(40, 2, 5, 5)} for d in donors],
    )
    assert torch.equal(shaped["w"].view(40, 50), found["w"])


@pytest.mark.exact("S206")
def test_breadcrumbs_over_a_tensor_and_where_shares_round_to_nothing():
    delta = torch.tensor([[1.0, -9.0, 3.0], [8.0, 2.0, -7.0]])
    for count in (1, 100_000):
        # The second is too large to be held, and is cut by selection.
        base = torch.zeros(2, 3).repeat(count, 1)
        donor = (
            delta.repeat(count, 1)
            if count == 1
            else torch.randn(2 * count, 3, generator=torch.Generator().manual_seed(0))
        )
        found = merge_weights(
            Breadcrumbs(density=0.5, outliers=0.2, scale=1.0, axis="tensor"), {"w": base}, [{"w": donor}]
        )["w"]
        wanted = plain_breadcrumbs(donor.view(1, -1), 3 * count, int(0.2 * 6 * count)).view_as(donor)
        assert torch.equal(found, wanted)
    # One of two entries is kept at least, and no outlier is dropped of so few.
    assert one(Breadcrumbs(density=0.1, outliers=0.3, scale=1.0), [0.0, 0.0], [1.0, -2.0]) == [0.0, -2.0]
    # 64 entries: one outlier at most is dropped, never all.
    row = torch.arange(1.0, 65).tolist()
    kept = one(Breadcrumbs(density=0.8, outliers=0.01, scale=1.0, axis="tensor"), [0.0] * 64, row)
    assert sum(v != 0 for v in kept) == 51 and kept[-1] == 64


def test_dare_keeps_its_share_and_its_sum_in_expectation():
    base, donor = torch.zeros(400, 500), torch.ones(400, 500)
    for seed in range(3):
        found = merge_weights(DARE(density=0.1), {"w": base}, [{"w": donor}], run=Run(seed=seed))["w"]
        assert set(found.unique().tolist()) == {0.0, 10.0}
        # 200,000 draws: five standard errors are 0.034.
        assert float(found.mean()) == pytest.approx(1.0, abs=0.034)
    plain = merge_weights(DARE(density=0.1, rescale=False), {"w": base}, [{"w": donor}])["w"]
    assert float(plain.max()) == 1.0


def test_what_dare_drops_depends_on_seed_tensor_and_donor_alone():
    draws = torch.Generator().manual_seed(0)
    base = {"a": torch.zeros(90_000), "b": torch.zeros(90_000)}
    donors = [{n: torch.randn(90_000, generator=draws) for n in base} for _ in range(2)]
    again = [merge_weights(DARE(), base, donors, run=Run(seed=seed)) for seed in (1, 1, 2)]
    assert torch.equal(again[0]["a"], again[1]["a"]) and not torch.equal(again[0]["a"], again[2]["a"])
    dropped = [merge_weights(DARE(), base, [donor], run=Run(seed=1)) for donor in donors]
    assert not torch.equal(dropped[0]["a"] == 0, dropped[0]["b"] == 0)
    alone = merge_weights(DARE(), {"b": base["b"]}, donors[:1], run=Run(seed=1))
    assert torch.equal(alone["b"], dropped[0]["b"])


def test_della_keeps_large_changes_oftener_and_rescales_by_the_probability():
    width, rows = 101, 4000
    row = torch.linspace(0.01, 1.0, width)[torch.randperm(width, generator=torch.Generator().manual_seed(0))]
    found = merge_weights(
        DELLA(density=0.4, spread=0.3, elect=False), {"w": torch.zeros(rows, width)}, [{"w": row.repeat(rows, 1)}]
    )["w"]
    stayed = (found != 0).double().mean(0)[row.argsort()]
    wanted = torch.linspace(0.1, 0.7, width, dtype=torch.float64)
    # 4,000 rows: a standard error of 0.008 at most.
    assert float((stayed - wanted).abs().max()) < 0.04 and float((found.mean(0) - row).abs().max()) < 0.15
    with pytest.raises(InputError, match="must lie above 0 and below 1"):
        one(DELLA(density=0.9, spread=0.2), [0.0], [1.0])


@pytest.mark.parametrize("axis", ["row", "tensor"])
def test_each_donor_is_thinned_by_its_own_shares(axis):
    """Two donors together are what each is alone, added."""
    draws = torch.Generator().manual_seed(5)
    base, a, b = ({"w": torch.randn(8, 50, generator=draws)} for _ in range(3))
    both = Breadcrumbs(density=(0.2, 0.5), outliers=(0.1, 0.0), weights=(1.0, 2.0), scale=1.0, axis=axis)
    apart = [
        merge_weights(Breadcrumbs(density=0.2, outliers=0.1, scale=1.0, axis=axis), base, [a]),
        merge_weights(Breadcrumbs(density=0.5, outliers=0.0, scale=2.0, axis=axis), base, [b]),
    ]
    wanted = apart[0]["w"] + apart[1]["w"] - base["w"]
    assert torch.allclose(merge_weights(both, base, [a, b])["w"], wanted, atol=1e-5)
    with pytest.raises(InputError, match="3 shares of outliers for 2 donors"):
        merge_weights(both.replace(outliers=(0.1, 0.1, 0.1)), base, [a, b])


def test_della_has_a_spread_for_each_donor():
    """The smaller changes of the first donor stay as often as its large ones, of the second far less often."""
    rows = torch.linspace(0.01, 1.0, 100).repeat(2000, 1)
    base = {"w": torch.zeros(2000, 200)}
    a, b = torch.zeros(2000, 200), torch.zeros(2000, 200)
    a[:, :100], b[:, 100:] = rows, rows
    method = DELLA(density=0.5, spread=(0.0, 0.4), elect=False)
    stayed = (merge_weights(method, base, [{"w": a}, {"w": b}])["w"] != 0).double().mean(0)
    # 20,000 draws in ten columns: five standard errors are below 0.018. The upper half of ranks are the donor's own.
    assert float(stayed[:10].mean()) == pytest.approx(0.5, abs=0.018)
    assert float(stayed[90:100].mean()) == pytest.approx(0.5, abs=0.018)
    steps = torch.linspace(0.1, 0.9, 200)
    assert float(stayed[100:110].mean()) == pytest.approx(float(steps[100:110].mean()), abs=0.018)
    assert float(stayed[190:].mean()) == pytest.approx(float(steps[190:].mean()), abs=0.018)
    with pytest.raises(InputError, match=r"density 0\.5 \+- spread 0\.6"):
        merge_weights(method.replace(spread=(0.0, 0.6)), base, [{"w": a}, {"w": b}])
