"""Refits on the last window against a plain loop."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from homeostat.adapt import IncrementalForecaster
from homeostat.core.data import Batch
from homeostat.core.errors import InputError
from homeostat.core.run import Run
from homeostat.core.task import Regress
from homeostat.core.world import World
from homeostat.fit import Recipe
from homeostat.nn.optimizers import SGD

WORLD = World(task=Regress())


def series(count: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=draws, dtype=torch.float64).to(dtype)
    return x, torch.stack([x.sum(1), x[:, 0] - x[:, 2]], 1)


def linear(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2).to(dtype)


@pytest.mark.exact("S040")
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_equals_gradient_descent_on_the_last_rows(fresh, dtype, tolerance):
    """A refit whose batch is the whole window does not depend on order, so a closed formula of its steps is enough."""
    remedy = IncrementalForecaster(8, 20, fresh, Recipe(optimizer=SGD(lr=0.1, momentum=0.0), epochs=3, batch=100))
    ours, (x, y) = remedy(linear(dtype), WORLD, run=Run(seed=3)), series(60, dtype)
    w0, b0 = (p.detach().clone() for p in linear(dtype).parameters())
    w, b = w0.clone(), b0.clone()
    since = 0
    for low in range(0, 60, 6):
        said = ours.observe(Batch(x[low : low + 6], y[low : low + 6]))
        assert torch.allclose(said, x[low : low + 6] @ w.T + b, rtol=0, atol=tolerance)
        for now in range(low, low + 6):
            since += 1
            if since == 8:
                since = 0
                rows, wanted = x[max(0, now - 19) : now + 1], y[max(0, now - 19) : now + 1]
                w, b = (w0.clone(), b0.clone()) if fresh else (w, b)
                for _ in range(3):
                    error = (rows @ w.T + b - wanted) / len(rows)  # of (out - y)^2 averaged over two outputs
                    w, b = w - 0.1 * error.T @ rows, b - 0.1 * error.sum(0)
    assert ours.refits == 7


def test_unknown_targets_are_predicted_and_not_learnt_from():
    ours, (x, y) = IncrementalForecaster(4, 8)(linear(torch.float32), WORLD), series(12, torch.float32)
    ours.observe(Batch(x))
    ours.observe(Batch(x, torch.full_like(y, math.nan)))
    assert ours.refits == 0 and int(ours.carry["waiting"]) == 0
    y[1] = math.nan
    ours.observe(Batch(x[:5], y[:5]))
    assert ours.refits == 1 and bool(torch.isfinite(ours(x)).all())
    assert torch.equal(ours.carry["bank.row.x.x"][:4], x[[0, 2, 3, 4]])


def test_stored_trees_come_back_whole():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            return self.linear(x["a"] * x["b"])

    x, y = series(8, torch.float32)
    ours = IncrementalForecaster(8, 8)(Both(), WORLD)
    before = copy.deepcopy(ours.model.state_dict())
    ours.observe(Batch({"a": x, "b": torch.ones(8, 1)}, y))
    assert ours.refits == 1 and not torch.equal(before["linear.weight"], ours.model.linear.weight)


def test_continues_after_a_snapshot_with_labels():
    x, y = series(64, torch.float32)
    ours = IncrementalForecaster(8, 16, recipe=Recipe(epochs=2, batch=4))(linear(torch.float32), WORLD)
    for low in range(0, 30, 5):
        ours.observe(Batch(x[low : low + 5], y[low : low + 5]))
    saved = ours.snapshot()
    first = [ours.observe(Batch(x[i : i + 5], y[i : i + 5])) for i in (30, 40, 50)]
    ours.restore(saved)
    assert all(
        torch.equal(a, ours.observe(Batch(x[i : i + 5], y[i : i + 5])))
        for a, i in zip(first, (30, 40, 50), strict=True)
    )


def test_failure_between_a_shift_and_the_next_refit_it_is_wrong_and_the_first_refit_learns_the_past_too():
    recipe = Recipe(optimizer=SGD(lr=0.1), epochs=20, batch=16)
    ours = IncrementalForecaster(32, 64, recipe=recipe)(linear(torch.float64), WORLD)
    x, y = series(32 * 8, torch.float64)
    y[32 * 4 :] *= -1
    errors = [
        float((ours.observe(Batch(a, b)) - b).square().mean()) for a, b in zip(x.split(32), y.split(32), strict=True)
    ]
    assert errors[3] < 0.01 < errors[4]  # the shift
    assert errors[5] > 0.3  # half of the window is the past
    assert errors[7] < 0.01


def test_targets_of_another_shape_are_refused():
    ours, (x, y) = IncrementalForecaster()(linear(torch.float32), WORLD), series(4, torch.float32)
    with pytest.raises(InputError, match="shape"):
        ours.observe(Batch(x, y[:, :1]))


def test_the_card_s_passes_are_those_of_its_defaults():
    """A pass a sample to predict, and three for each that a refit learns from: forwards, and twice that backwards."""
    seen = {"free": 0, "learnt": 0}
    net = nn.Sequential(nn.Linear(2, 1))
    made = IncrementalForecaster()(net, World(task=Regress()))
    made.model[0].register_forward_pre_hook(
        lambda _, x: seen.update({(k := "learnt" if made.model.training else "free"): seen[k] + len(x[0])})
    )
    x = torch.randn(6 * 96, 2)
    for part in x.split(32):
        made.observe(Batch(part, part.sum(1, keepdim=True)))
    assert made.refits == 6 and seen["free"] == len(x)
    later = (seen["learnt"] - 5 * 96) / (len(x) - 96)  # the first window is half as long
    assert IncrementalForecaster().card.passes == 1 + 3 * later
