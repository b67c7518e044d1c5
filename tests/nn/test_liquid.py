"""Liquid cells against one neuron and one synapse at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from homeostat.core.errors import DtypeError, InputError, SpecError
from homeostat.core.save import load, save
from homeostat.nn.liquid import LTC, CfC, Recurrent


def logistic(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def softplus(z: float) -> float:
    return math.log1p(math.exp(z))


def slow_ltc(cell: LTC, x: list[float], v: list[float], dt: float) -> list[float]:
    """One sample, one synapse at a time, as the equations are written."""
    p = {name: t.detach().double().tolist() for name, t in cell.named_parameters()}
    x = [a * value + b for a, value, b in zip(p["input_scale"], x, p["input_shift"], strict=True)]
    for _ in range(cell.unfolds):
        new = []
        for i in range(cell.units):
            inertia, leak = softplus(p["capacity"][i]) * cell.unfolds / dt, softplus(p["leak"][i])
            top, below = inertia * v[i] + leak * p["rest"][i], inertia + leak + 1e-8
            for prefix, sources in (("input_", x), ("", v)):
                for j, source in enumerate(sources):
                    gate = logistic(p[f"{prefix}steepness"][j][i] * (source - p[f"{prefix}middle"][j][i]))
                    open_ = softplus(p[f"{prefix}weight"][j][i]) * gate
                    top += open_ * p[f"{prefix}reversal"][j][i]
                    below += open_
            new.append(top / below)
        v = new
    return v


def slow_cfc(cell: CfC, x: list[float], h: list[float], dt: float) -> list[float]:
    def linear(layer: nn.Linear, inputs: list[float]) -> list[float]:
        w, b = layer.weight.detach().double().tolist(), layer.bias.detach().double().tolist()
        return [sum(a * c for a, c in zip(row, inputs, strict=True)) + bias for row, bias in zip(w, b, strict=True)]

    back = [1.7159 * math.tanh(0.666 * a) for a in linear(cell.mix, [*x, *h])]
    ends = [[math.tanh(a) for a in linear(layer, back)] for layer in (cell.first, cell.second)]
    gates = [logistic(a * dt + b) for a, b in zip(linear(cell.rate, back), linear(cell.phase, back), strict=True)]
    return [a * (1 - t) + b * t for a, b, t in zip(*ends, gates, strict=True)]


@pytest.mark.exact("S040")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("kind", "slow"), [(LTC, slow_ltc), (CfC, slow_cfc)])
@pytest.mark.parametrize("regular", [True, False])
def test_a_sequence_equals_the_equations_one_number_at_a_time(kind, slow, regular, dtype, tolerance):
    draws = torch.Generator().manual_seed(0)
    cell = kind(3, 4, seed=1).to(dtype)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draws).to(dtype)
    series = torch.rand(2, 7, 3, generator=draws, dtype=torch.float64).to(dtype)
    dt = None if regular else (0.2 + torch.rand(2, 7, generator=draws, dtype=torch.float64)).to(dtype)
    states, h = cell.scan(series, None, dt), torch.zeros(2, 4, dtype=dtype)
    for row in range(2):
        state = [0.0] * 4
        for t in range(7):
            state = slow(cell, series[row, t].tolist(), state, 1.0 if dt is None else float(dt[row, t]))
            assert torch.allclose(
                states[row, t].double(), torch.tensor(state, dtype=torch.float64), rtol=0, atol=tolerance
            )
    for t in range(7):
        h = cell(series[:, t], h, 1.0 if dt is None else dt[:, t])
        assert torch.allclose(h, states[:, t], rtol=0, atol=tolerance)


@pytest.mark.exact("S040")
@pytest.mark.parametrize("kind", [LTC, CfC])
def test_gradients_are_those_of_small_changes(kind):
    cell = kind(2, 3, seed=0).double()
    draws = torch.Generator().manual_seed(1)
    series = torch.rand(2, 3, 2, generator=draws, dtype=torch.float64, requires_grad=True)
    state = torch.rand(2, 3, generator=draws, dtype=torch.float64, requires_grad=True)
    dt = (0.5 + torch.rand(2, 3, generator=draws, dtype=torch.float64)).requires_grad_()
    names, values = zip(*cell.named_parameters(), strict=True)

    def call(series, state, dt, *parameters):
        given = {f"model.{n}": p for n, p in zip(names, parameters, strict=True)}
        return torch.func.functional_call(Scanned(cell), given, (series, state, dt))

    assert torch.autograd.gradcheck(call, (series, state, dt, *values), atol=1e-6)


class Scanned(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, series, state, dt):
        return self.model.scan(series, state, dt)


@pytest.mark.parametrize("kind", [LTC, CfC])
def test_a_series_in_two_pieces_is_the_series_when_the_state_is_handed_on(kind):
    cell, series = kind(3, 5).double(), torch.rand(2, 8, 3, dtype=torch.float64)
    whole = cell.scan(series)
    first = cell.scan(series[:, :5])
    assert torch.allclose(torch.cat([first, cell.scan(series[:, 5:], first[:, -1])], 1), whole, atol=1e-14)


def test_an_ltc_without_synapses_decays_to_rest_at_its_time_constant():
    cell = LTC(1, 1, unfolds=400).double()
    with torch.no_grad():
        for name in ("weight", "input_weight"):
            getattr(cell, name).fill_(-800.0)
    capacity, leak = (float(torch.nn.functional.softplus(p.detach())) for p in (cell.capacity, cell.leak))
    rest = float(cell.rest.detach())
    one = torch.ones(1, 1, dtype=torch.float64)
    got = float(cell(0 * one, one, 0.7).detach())
    assert got == pytest.approx(rest + (1 - rest) * math.exp(-leak / capacity * 0.7), abs=1e-3)


@pytest.mark.parametrize("cell", ["cfc", "ltc", "gru", "lstm"])
def test_a_recurrent_network_is_seeded_saved_and_reads_the_last_state(cell, tmp_path):
    net, x = Recurrent(3, 2, 4, cell, residual=True, seed=5), torch.rand(6, 5, 3)
    assert torch.equal(net(x), Recurrent(3, 2, 4, cell, residual=True, seed=5)(x))
    assert not torch.equal(net(x), Recurrent(3, 2, 4, cell, residual=True, seed=6)(x))
    with torch.no_grad():
        net.linear.weight.zero_()
        net.linear.bias.zero_()
    assert torch.equal(net(x), x[:, -1, :2])
    save(net, tmp_path / "net")
    assert torch.equal(load(tmp_path / "net")(x), net(x))


def test_time_spans_count_and_one_is_the_default():
    net, x = Recurrent(3, 2, 8, "cfc"), torch.rand(4, 6, 3)
    assert torch.allclose(net({"series": x, "dt": torch.ones(4, 6)}), net(x), atol=1e-6)
    assert not torch.allclose(net({"series": x, "dt": torch.full((4, 6), 3.0)}), net(x), atol=1e-3)


def test_refusals():
    net, x = Recurrent(3, 2, 8, "cfc"), torch.rand(4, 6, 3)
    with pytest.raises(InputError, match=r"\[batch, time, 3\]"):
        net(x[..., :2])
    with pytest.raises(DtypeError, match="float"):
        net((x * 10).long())
    with pytest.raises(InputError, match="above 0"):
        net({"series": x, "dt": torch.zeros(4, 6)})
    with pytest.raises(InputError, match="one time span"):
        net({"series": x, "dt": torch.ones(4, 5)})
    with pytest.raises(InputError, match="no time spans"):
        Recurrent(3, 2, 8, "gru")({"series": x, "dt": torch.ones(4, 6)})
    with pytest.raises(SpecError, match="Did you mean 'cfc'"):
        Recurrent(3, 2, 8, "cfcc")
