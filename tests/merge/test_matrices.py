"""Merges of whole matrices, against plain implementations of their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from homeostat.merge import TIES, TSVM, WUDI, IsoC, IsoCTS, KnOTS, TaskArithmetic, merge_weights
from homeostat.merge.spectral import directions, polar

SHAPES = {"tall": (40, 24), "wide": (24, 40), "square": (30, 30)}


def tasks(shape: tuple[int, int], count: int = 3, rank: int | None = None) -> tuple[Tensor, list[Tensor]]:
    draws = torch.Generator().manual_seed(shape[0])
    rand = lambda *size: torch.randn(*size, generator=draws, dtype=torch.float64)  # noqa: E731
    base = rand(*shape)
    made = [rand(*shape) if rank is None else rand(shape[0], rank) @ rand(rank, shape[1]) for _ in range(count)]
    return base, [0.1 * t for t in made]


def merged(method, base: Tensor, changes: list[Tensor]) -> Tensor:
    return merge_weights(method, {"w": base}, [{"w": base + change} for change in changes])["w"]


@pytest.mark.exact("S317")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_iso_c_gives_every_direction_of_the_sum_its_mean_length(shape):
    base, changes = tasks(shape)
    u, s, vh = torch.linalg.svd(sum(changes), full_matrices=False)
    assert torch.allclose(merged(IsoC(scale=1.3), base, changes), base + 1.3 * s.mean() * u @ vh, atol=1e-8)


@pytest.mark.exact("S317")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("common", [0.0, 0.5, 0.8, 1.0])
def test_iso_cts_equals_its_definition(shape, common):
    """Step by step by singular values, with the blocks put into one matrix."""
    base, changes = tasks(shape)
    small, count = min(shape), len(changes)
    each = round((small - int(common * small)) / count)
    shared = small - each * count
    u, s, vh = torch.linalg.svd(sum(changes), full_matrices=False)
    left, lengths, right = (
        torch.zeros(shape[0], small).double(),
        torch.zeros(small).double(),
        torch.zeros(small, shape[1]).double(),
    )
    for number, change in enumerate(changes):
        rest = change - u[:, :shared] @ (u[:, :shared].T @ change)
        a, b, c = torch.linalg.svd(rest, full_matrices=False)
        place = slice(number * each, (number + 1) * each)
        left[:, place], lengths[place], right[place] = a[:, :each], b[:each], c[:each]
    left[:, each * count :], lengths[each * count :], right[each * count :] = u[:, :shared], s[:shared], vh[:shared]
    a, _, c = torch.linalg.svd(left, full_matrices=False)
    d, _, f = torch.linalg.svd(right, full_matrices=False)
    wanted = base + 0.7 * lengths.mean() * (a @ c) @ (d @ f)
    assert torch.allclose(merged(IsoCTS(scale=0.7, common=common), base, changes), wanted, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_task_singular_vectors_equal_their_definition(shape):
    base, changes = tasks(shape)
    each = min(shape) // len(changes)
    parts = [torch.linalg.svd(change, full_matrices=False) for change in changes]
    u, s, vh = (torch.cat([p[0][:, :each] for p in parts], 1), torch.cat([p[1][:each] for p in parts]),
                torch.cat([p[2][:each] for p in parts]))  # fmt: skip
    a, _, c = torch.linalg.svd(u, full_matrices=False)
    d, _, f = torch.linalg.svd(vh, full_matrices=False)
    assert torch.allclose(merged(TSVM(), base, changes), base + (a @ c) * s @ (d @ f), atol=1e-8)


@pytest.mark.parametrize("method", [IsoC(), IsoCTS(common=0.5)])
def test_changes_of_low_rank_are_flattened_in_their_own_directions_alone(method):
    """Three tasks of rank 2: what is orthogonal to all of them stays as it was, and lengths are not spread over it."""
    base, changes = tasks((40, 24), rank=2)
    change = merged(method, base, changes) - base
    space = directions(torch.cat(changes, 1))[0]
    assert space.shape[1] == 6 and torch.allclose(space @ (space.T @ change), change, atol=1e-8)
    lengths = torch.linalg.svdvals(change)[:6]
    assert float(lengths.max() / lengths.min()) < 1.0001
    assert float(lengths[0]) >= float(torch.linalg.svdvals(sum(changes)).mean())


def test_in_half_precision_rounding_counts_as_directions():
    """The documented failure: what changed along six directions was also rounded, which leaves none as it was."""
    base, changes = tasks((40, 24), rank=2)
    stored = base.bfloat16()
    exact = merged(IsoC(), stored.double(), changes) - stored.double()
    rounded = merged(IsoC(), stored.double(), [(stored + c).bfloat16().double() - stored for c in changes])
    ranks = [int(torch.linalg.matrix_rank(change, rtol=1e-4)) for change in (exact, rounded - stored.double())]
    assert ranks == [6, 24]


@pytest.mark.parametrize("method", [IsoC(), IsoCTS(), TSVM(), WUDI()])
def test_what_is_no_matrix_is_averaged(method):
    base = {"b": torch.zeros(3), "conv": torch.zeros(2, 1, 2, 2)}
    donors = [{n: torch.full_like(t, v) for n, t in base.items()} for v in (1.0, 3.0)]
    found = merge_weights(method, base, donors)
    assert all(torch.equal(found[n], torch.full_like(t, 2.0)) for n, t in base.items())


def test_the_polar_factor_is_that_of_the_singular_values_also_of_nearly_flat_matrices():
    draws = torch.Generator().manual_seed(1)
    for shape, least in (((50, 20), 1e-3), ((20, 50), 1e-4), ((30, 30), 1e-3), ((4, 1), 1.0)):
        u, _ = torch.linalg.qr(torch.randn(shape[0], min(shape), generator=draws, dtype=torch.float64))
        v, _ = torch.linalg.qr(torch.randn(shape[1], min(shape), generator=draws, dtype=torch.float64))
        s = torch.logspace(0, float(torch.log10(torch.tensor(least))), min(shape), dtype=torch.float64)
        factor, lengths = polar(u * s @ v.T)
        assert torch.allclose(factor, u @ v.T, atol=1e-7) and torch.allclose(lengths, s, atol=1e-9)
    factor, lengths = polar(torch.zeros(4, 3, dtype=torch.float64))
    assert factor.abs().sum() == 0 and len(lengths) == 0


def test_wudi_takes_the_steps_of_adam_on_its_loss():
    """Against autograd and torch's own Adam on the loss as it is written."""
    base, changes = tasks((12, 9))
    changes = [0.01 * change for change in changes]
    tau = torch.nn.Parameter(sum(changes))  # type: ignore[arg-type]
    adam = torch.optim.Adam([tau], lr=1e-4)
    for _ in range(25):
        loss = sum(((tau - t) @ t.T).square().sum() / t.square().sum() for t in changes)
        adam.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        adam.step()
    assert torch.allclose(merged(WUDI(steps=25, lr=1e-4), base, changes), base + tau.detach(), atol=1e-10)


def test_wudi_does_not_disturb_tasks_that_speak_of_different_inputs():
    """Orthogonal inputs: the sum disturbs nobody, and stays."""
    base = torch.zeros(3, 4, dtype=torch.float64)
    one, two = base.clone(), base.clone()
    one[:, :2], two[:, 2:] = 1e-3, -1e-3
    assert torch.allclose(merged(WUDI(), base, [one, two]), one + two, atol=1e-9)


def test_knots_compares_low_rank_changes_in_the_space_they_share():
    """Linear rules are not moved; what TIES then trims and elects are the coordinates of the common directions."""
    base, changes = tasks((40, 24), rank=2)
    plain = merged(TaskArithmetic(scale=0.4), base, changes)
    assert torch.allclose(merged(KnOTS(TaskArithmetic(scale=0.4)), base, changes), plain, atol=1e-8)
    u, s, vh = torch.linalg.svd(torch.cat(changes, 1), full_matrices=False)
    u, s, vh = u[:, :6], s[:6], vh[:6]
    parts = vh.split(24, 1)
    inner = merge_weights(
        TIES(density=0.5, scope="tensor"), {"w": torch.zeros(6, 24).double()}, [{"w": p.contiguous()} for p in parts]
    )
    wanted = base + u * s @ inner["w"]
    assert torch.allclose(merged(KnOTS(TIES(density=0.5, scope="tensor")), base, changes), wanted, atol=1e-8)
