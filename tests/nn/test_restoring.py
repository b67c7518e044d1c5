from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st

from homeostat.nn.restoring import random_masks, restore_into, smallest_masks


def some(dtype=torch.float64, seed=0) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=draws, dtype=dtype) for name, shape in (("b", (3, 4)), ("a", (7,)))}


def test_random_masks_do_not_depend_on_the_order_of_names():
    forth = random_masks(some(), 0.5, torch.Generator().manual_seed(1))
    back = random_masks(dict(reversed(some().items())), 0.5, torch.Generator().manual_seed(1))
    assert all(torch.equal(forth[name], back[name]) for name in forth)
    assert forth["b"].shape == (3, 4)


def test_random_masks_hold_the_share_asked_for():
    mask = random_masks({"w": torch.zeros(100_000)}, 0.01, torch.Generator().manual_seed(2))["w"]
    assert abs(float(mask.double().mean()) - 0.01) < 4 * (0.01 * 0.99 / 100_000) ** 0.5


@given(st.floats(0, 1), st.integers(0, 5))
def test_the_smallest_are_those_below_the_quantile_of_all(share, seed):
    values = some(seed=seed)
    flat = torch.cat([t.flatten() for t in values.values()])
    limit = torch.quantile(flat, share)
    chosen = smallest_masks(values, share)
    assert all(torch.equal(chosen[name], t < limit) for name, t in values.items())


def test_nothing_is_smallest_at_share_0_and_ties_are_kept():
    assert not any(bool(m.any()) for m in smallest_masks(some(), 0.0).values())
    assert not bool(smallest_masks({"w": torch.zeros(10)}, 0.5)["w"].any())


def test_the_limit_is_not_rounded_to_the_values_own_type():
    """Half-way between two neighbours in bfloat16, of which the limit would become the lower, and nothing is below."""
    values = {"w": torch.tensor([1.0, 1.0078125], dtype=torch.bfloat16)}
    assert smallest_masks(values, 0.5)["w"].tolist() == [True, False]


def test_more_elements_than_torch_quantile_takes():
    values = {"w": torch.arange(17_000_000, dtype=torch.float32)}
    with pytest.raises(RuntimeError):
        torch.quantile(values["w"], 0.03)
    assert int(smallest_masks(values, 0.03)["w"].sum()) == pytest.approx(510_000, abs=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_chosen_goes_back_and_nothing_else(dtype):
    tensors, start = some(dtype, 1), some(dtype, 2)
    kept, chosen = {n: t.clone() for n, t in tensors.items()}, smallest_masks(some(seed=3), 0.4)
    restore_into(tensors, start, chosen)
    for name, mask in chosen.items():
        assert bool(mask.any()) and torch.equal(tensors[name][mask], start[name][mask])
        assert torch.equal(tensors[name][~mask], kept[name][~mask])
