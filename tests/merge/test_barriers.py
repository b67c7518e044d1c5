from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from homeostat.core.errors import CheckpointError, InputError, MissingPart
from homeostat.core.fork import versions
from homeostat.core.task import Regress
from homeostat.core.weights import weights
from homeostat.merge import barrier, blend, weight_match
from homeostat.nn import MLP, permutation_spec


def linear(value: float) -> nn.Linear:
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(value)
    return net


@pytest.mark.exact("S293")
def test_on_a_parabola_the_losses_are_its_values():
    """Loss (w - 1)^2 / 2 from w = 0 to w = 4: 1/2 and 9/2 at the ends, 0 at t = 1/4, and no ridge."""
    x, y = torch.ones(5, 1), torch.ones(5, 1)
    found = barrier(linear(0.0), linear(4.0), (x, y), points=5, task=Regress())
    ratio = Regress().loss(torch.zeros(1, 1), torch.ones(1, 1)).item()  # the task's own factor before the square
    assert found.losses == pytest.approx([ratio * (4 * t - 1) ** 2 for t in found.at])
    assert found.loss == pytest.approx(ratio * (9 - 5.0)) and found.at == [0, 0.25, 0.5, 0.75, 1]
    with pytest.raises(MissingPart, match="no classes"):
        _ = found.accuracy


def two_orders() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    net = MLP(4, 3, (16, 16), seed=1).eval()
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    spec = permutation_spec(net, x[:2])
    return net, spec.permuted(net, spec.random(torch.Generator().manual_seed(2))), x, net(x).argmax(1)


@pytest.mark.exact("S293")
def test_between_orders_of_one_network_there_is_a_barrier_that_matching_takes_away():
    net, mixed, x, y = two_orders()
    before = versions(mixed)
    apart = barrier(net, mixed, (x, y), points=5)
    spec = permutation_spec(net, x[:2])
    together = barrier(net, spec.permuted(mixed, weight_match(net, mixed, spec)), (x, y), points=5)
    assert apart.accuracy > 0.1 and apart.loss > 0.1
    assert together.accuracy == 0 and together.loss == pytest.approx(0, abs=1e-6)
    assert versions(mixed) == before and apart.accuracies[0] == apart.accuracies[-1] == 1


def test_inner_points_are_renormalised_towards_their_ends():
    net, mixed, x, y = two_orders()
    plain, repaired = (barrier(net, mixed, (x, y), 3, mode=mode, statistics=x) for mode in (None, "repair"))
    assert plain.losses[0] == repaired.losses[0] and plain.losses[2] == repaired.losses[2]
    assert plain.losses[1] != repaired.losses[1]
    same = barrier(net, net, (x, y), 5, mode="repair")
    assert same.losses == pytest.approx([same.losses[0]] * 5, rel=1e-3)


@pytest.mark.exact("S293")
def test_a_blend_is_made_in_single_precision_and_keeps_dtypes():
    a = {"w": torch.tensor([1.0, 2.0]).bfloat16(), "n": torch.tensor(3)}
    b = {"w": torch.tensor([3.0, 8.0]).bfloat16(), "n": torch.tensor(9)}
    found = blend([a, b], (0.25, 0.75))
    assert found["w"].tolist() == [2.5, 6.5] and found["w"].dtype == torch.bfloat16 and int(found["n"]) == 3
    net = MLP(4, 3, (5,))
    assert all(torch.equal(t, weights(net)[n]) for n, t in blend([weights(net)] * 2, (0.5, 0.5)).items())


def test_wrong_arguments_are_refused():
    net, mixed, x, y = two_orders()
    with pytest.raises(InputError, match="two points"):
        barrier(net, mixed, (x, y), points=1)
    with pytest.raises(InputError, match="at least one sample"):
        barrier(net, mixed, (x[:0], y[:0]))
    with pytest.raises(MissingPart, match="labelled"):
        barrier(net, mixed, x)
    with pytest.raises(MissingPart, match="none of these labels"):
        barrier(net, mixed, (x, torch.full_like(y, -100)))
    with pytest.raises(CheckpointError, match=r"linear1\.weight is \(8, 16\) in one network"):
        barrier(net, MLP(4, 3, (16, 8)), (x, y))
