"""RCT: the soft sort against the projection it stands for, the loss against loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from scipy.stats import norm
from torch import nn

from homeostat.core.check import check_remedy
from homeostat.core.data import Batch
from homeostat.core.errors import InputError, ModelError
from homeostat.core.method import Chain
from homeostat.core.run import Run
from homeostat.core.task import Classify
from homeostat.core.world import World
from homeostat.fit import Fit, Recipe
from homeostat.nn import SGD
from homeostat.trust import RCT, FreshHead, soft_sort


def projection(point: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The nearest point to `point` among all mixtures of orderings of `values`, by non-negative least squares."""
    corners = np.array(list(itertools.permutations(values))).T
    heavy = 1e4
    share, _ = nnls(np.vstack([corners, heavy * np.ones(corners.shape[1])]), np.append(point, heavy), maxiter=10_000)
    return corners @ share


@pytest.mark.parametrize("strength", [0.1, 0.7, 3.0])
@pytest.mark.exact("S110")
def test_soft_sort_is_the_projection_on_the_permutahedron(strength):
    draw = torch.Generator().manual_seed(0)
    for _ in range(8):
        values = 4 * torch.randn(4, generator=draw, dtype=torch.float64)
        weights = np.arange(4, 0, -1) / strength
        wanted = -projection(weights, -values.numpy())
        assert np.abs(soft_sort(values, strength).numpy() - wanted).max() < 1e-4


def test_soft_sort_goes_from_the_sorted_values_to_their_mean():
    values = torch.tensor([0.3, -2.0, 5.0, 1.0, 0.9], dtype=torch.float64)
    assert torch.allclose(soft_sort(values, 1e-6), values.sort().values, atol=1e-9)
    assert torch.allclose(soft_sort(values, 1e6), values.mean().expand(5), atol=1e-5)
    for strength in (0.1, 1.0, 10.0):
        found = soft_sort(values, strength)
        assert float(found.sum()) == pytest.approx(float(values.sum()))
        assert bool((found.diff() >= -1e-12).all())


@pytest.mark.parametrize("strength", [0.1, 0.5, 5.0])
def test_the_gradient_of_the_soft_sort_is_that_of_finite_differences(strength):
    values = (3 * torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: soft_sort(v, strength), (values,))


@pytest.mark.exact("S110")
def test_the_loss_equals_loops_over_samples_draws_and_classes():
    draw = torch.Generator().manual_seed(2)
    net = nn.Linear(3, 4, dtype=torch.float64)
    x, y = torch.randn(41, 3, generator=draw, dtype=torch.float64), torch.randint(4, (41,), generator=draw)
    method = RCT(alpha=0.23, delta=0.2, sigma=0.5, draws=3, temperature=0.3, size=0.5, weight=0.7)
    batch, run = Batch(x, y, torch.arange(100, 141)), Run(seed=6)
    found = method.losses(net, {"source": batch}, Classify(), None, run)["loss"].detach()

    noise = run.draw(batch.id, "rct").normal(3, 3).double().numpy()
    weight, bias = net.weight.detach().numpy(), net.bias.detach().numpy()
    q = np.zeros((41, 4))
    for i in range(41):
        for e in noise[i]:
            z = np.exp(weight @ (x[i].numpy() + 0.5 * e) + bias)
            q[i] += z / z.sum() / 3
    q = norm.ppf(q + 1e-7)
    first = sorted(q[i, y[i]] for i in range(20))
    tau = first[math.floor(0.23 * 21) - 1] - 0.2 / 0.5
    sets = 1 / (1 + np.exp(-(q - tau) / 0.3))
    missed = np.mean([1 - sets[i, y[i]] for i in range(20, 41)])
    excess = np.mean([max(sets[i].sum() - 0.5, 0) for i in range(20, 41)])
    assert float(found) == pytest.approx(math.log(missed + 0.7 * excess + 1e-8), abs=1e-9)


def test_unknown_labels_are_left_out_of_the_loss():
    draw = torch.Generator().manual_seed(3)
    net, x = nn.Linear(3, 4), torch.randn(12, 3, generator=draw)
    y, hidden = torch.randint(4, (12,), generator=draw), torch.arange(12) % 3 == 0
    batch = Batch(x, y.masked_fill(hidden, -100))
    losses = [RCT().losses(net, {"source": b}, Classify(), None, Run())["loss"] for b in (batch, batch[~hidden])]
    assert torch.equal(*losses)
    with pytest.raises(InputError, match="too few"):
        RCT().losses(net, {"source": batch[:2]}, Classify(), None, Run())


def blobs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(5, (count,), generator=draw)
    angle = 2 * math.pi * y / 5
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.35 * torch.randn(count, 2, generator=draw), y


def test_training_the_last_layer_shrinks_held_out_soft_sets_and_leaves_the_rest():
    draw = torch.Generator().manual_seed(4)
    net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 5))
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.5)
    recipe = Recipe(optimizer=SGD(lr=0.05, nesterov=True), epochs=25, batch=100)
    fit = Chain((FreshHead(), Fit(objective=RCT(draws=4), own="2.*", freeze_stats=True, recipe=recipe)))
    trained = fit(net, World(source=blobs(600, 5)))
    assert torch.equal(trained[0].weight, net[0].weight)
    x, y = blobs(400, 6)
    with torch.no_grad():
        losses = [RCT().losses(n, {"source": Batch(x, y)}, Classify(), None, Run())["loss"] for n in (net, trained)]
    assert float(losses[1]) < float(losses[0]) - 0.3


def test_a_fresh_head_is_new_within_its_bounds_and_the_rest_is_shared():
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))
    one, two = (FreshHead()(net, run=Run(seed=s)) for s in (0, 1))
    assert one[0].weight.data_ptr() == net[0].weight.data_ptr()
    for tensor, other, old in zip(one[2].parameters(), two[2].parameters(), net[2].parameters(), strict=True):
        assert float(tensor.detach().abs().max()) <= 8**-0.5
        assert not torch.equal(tensor, old) and not torch.equal(tensor, other)
    with pytest.raises(ModelError, match="no linear layer '1'"):
        FreshHead(layer="1")(net)
    assert FreshHead()(nn.Linear(3, 2)).weight.shape == (2, 3)


@pytest.mark.parametrize(
    "remedy",
    [FreshHead(), Fit(objective=RCT(draws=2), own="5.*", freeze_stats=True, recipe=Recipe(batch=32))],
    ids=["head", "fit"],
)
def test_rct_keeps_the_promises_of_a_remedy(remedy):
    check_remedy(remedy)
