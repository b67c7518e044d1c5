"""Liquid networks: recurrent cells whose time constants depend on what comes in, at any spacing in time.

A state h `[batch, n]` and an input x `[batch, m]` that comes dt after the one before give the next state.

`LTC`, a liquid time-constant cell: membrane voltages v with leaks and synapses, solved by implicit Euler in `unfolds`
sub-steps of D = dt / unfolds,

    v_i <- [ C_i / D v_i + g_i l_i + sum_j w_ji s(a_ji (v_j - m_ji)) E_ji + the same over inputs ]
           / [ C_i / D + g_i + sum_j w_ji s(a_ji (v_j - m_ji)) + the same over inputs + 1e-8 ]

with s the logistic function; softplus keeps C, g and w positive. Inputs go through a scale and shift of their own.

`CfC`, the closed form of such a cell, with a backbone b of `backbone` units:

    b = 1.7159 tanh(0.666 (W [x, h] + c)),    t = s(T_a b dt + T_b b)
    h <- tanh(A b) (1 - t) + tanh(B b) t

Everything that depends on inputs alone is computed for all times at once (`scan`), and what a step needs of the state
is one product in CfC; so a sequence takes a part of the time that cells one after another take. Arithmetic is that of
the authors' package ncps for fully connected wiring. One thing differs: its CfC multiplies time spans `[batch]` with
`[batch, n]` as they are, which mixes samples up when batch = n and fails otherwise; here each sample has its own.

`Recurrent` makes a network of a cell (or of PyTorch's GRU or LSTM) and a linear layer on the last state.

An LTC cell is dear, unfolds x n x n numbers a sample and step; a CfC cell cheap. Neither of them forgets exactly:
what was learnt for spacings dt that never came in training is a guess.

>>> net = Recurrent(inputs=3, outputs=2, units=8, cell="cfc")
>>> net({"series": torch.rand(4, 10, 3), "dt": torch.rand(4, 10)}).shape
torch.Size([4, 2])

References: Hasani et al., Liquid time-constant networks, AAAI 2021; Hasani et al., Closed-form continuous-time neural
networks, Nature Machine Intelligence 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from homeostat.core.errors import DtypeError, InputError, SpecError, nearest
from homeostat.core.part import Part
from homeostat.core.random import generator
from homeostat.nn.blocks import at_least_one

Cell = Literal["cfc", "ltc", "gru", "lstm"]
_EPS = 1e-8


class LTC(Part):
    """A liquid time-constant cell with all connections; see the module's docstring.

    Args:
        inputs: numbers m that come in.
        units: neurons n.
        unfolds: sub-steps of the solver.
        seed: of the starting weights, drawn from the ranges of the authors' package.
    """

    def __init__(self, inputs: int, units: int, unfolds: int = 6, seed: int = 0):
        super().__init__()
        at_least_one(inputs=inputs, units=units, unfolds=unfolds)
        self.inputs, self.units, self.unfolds, self.seed = inputs, units, unfolds, seed
        draws = generator(seed, "LTC")

        def uniform(low: float, high: float, *shape: int) -> nn.Parameter:
            return nn.Parameter(low + (high - low) * torch.rand(shape, generator=draws))

        def signs(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.where(torch.rand(shape, generator=draws) < 1 / 3, -1.0, 1.0))

        self.leak, self.rest = uniform(0.001, 1.0, units), uniform(-0.2, 0.2, units)
        self.capacity = uniform(0.4, 0.6, units)
        for prefix, sources in (("", units), ("input_", inputs)):
            setattr(self, f"{prefix}steepness", uniform(3.0, 8.0, sources, units))
            setattr(self, f"{prefix}middle", uniform(0.3, 0.8, sources, units))
            setattr(self, f"{prefix}weight", uniform(0.001, 1.0, sources, units))
            setattr(self, f"{prefix}reversal", signs(sources, units))
        self.input_scale, self.input_shift = nn.Parameter(torch.ones(inputs)), nn.Parameter(torch.zeros(inputs))

    def forward(
        self, x: Float[Tensor, "batch inputs"], state: Float[Tensor, "batch units"], dt: Any = 1.0
    ) -> Float[Tensor, "batch units"]:
        """The next state, `dt` after the last."""
        return self.scan(x[:, None], state, _column(dt, x))[:, 0]

    def scan(
        self,
        series: Float[Tensor, "batch time inputs"],
        state: Float[Tensor, "batch units"] | None = None,
        dt: Float[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time units"]:
        """The states after each input of a series; starts at 0 where no state is given."""
        time, n = series.shape[1], self.units
        gates = self._synapses("input_")
        x = (series * self.input_scale + self.input_shift).transpose(0, 1).flatten(0, 1)
        driven, conducted = (made.view(time, len(series), n) for made in _currents(x, *gates))
        leak, capacity = F.softplus(self.leak), F.softplus(self.capacity) * self.unfolds
        pull = (driven + leak * self.rest).unbind()
        drag = (conducted + leak + _EPS).unbind()
        inertia: Any = [capacity] * time if dt is None else (capacity / dt.transpose(0, 1)[..., None]).unbind()
        v = series.new_zeros(len(series), n) if state is None else state
        gates = self._synapses("")
        found = []
        for held, pulled, dragged in zip(inertia, pull, drag, strict=True):
            below = dragged + held
            for _ in range(self.unfolds):
                driven, conducted = _currents(v, *gates)
                v = (torch.addcmul(pulled, held, v) + driven) / (below + conducted)
            found.append(v)
        return torch.stack(found, 1)

    def _synapses(self, prefix: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`(steepness, -steepness x middle, weight x reversal, weight)`, each `[sources, n]`."""
        steepness, middle = getattr(self, f"{prefix}steepness"), getattr(self, f"{prefix}middle")
        weight = F.softplus(getattr(self, f"{prefix}weight"))
        return steepness, -steepness * middle, weight * getattr(self, f"{prefix}reversal"), weight


def _currents(v: Tensor, steepness: Tensor, offset: Tensor, reversal: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """What all sources together drive into each neuron, and with what conductance, both `[batch, n]`."""
    return _Currents.apply(v, steepness, offset, reversal, weight)[:2]  # type: ignore[return-value]


class _Currents(torch.autograd.Function):
    """The synapses with a backward pass by hand: the automatic one takes four times as long."""

    @staticmethod
    def forward(v: Tensor, steepness: Tensor, offset: Tensor, reversal: Tensor, weight: Tensor) -> Any:  # type: ignore[override]
        gates = torch.addcmul(offset, v[:, :, None], steepness).sigmoid_()
        # A product with ones adds up the sources in less time than a sum over a middle dimension does.
        ones = gates.new_ones(1, len(steepness))
        return (ones @ (gates * reversal))[:, 0], (ones @ (gates * weight))[:, 0], gates

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        v, steepness, _, reversal, weight = inputs
        ctx.save_for_backward(v, steepness, reversal, weight, output[2])
        ctx.mark_non_differentiable(output[2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, driven: Tensor, conducted: Tensor, _: Any) -> Any:  # type: ignore[override]
        v, steepness, reversal, weight, gates = ctx.saved_tensors
        driven, conducted = driven[:, None], conducted[:, None]
        moved = torch.addcmul(driven * reversal, conducted, weight)
        moved = torch.ops.aten.sigmoid_backward(moved, gates)
        return (
            (moved * steepness).sum(2), _over_batch(moved * v[:, :, None]), _over_batch(moved),
            _over_batch(gates * driven), _over_batch(gates * conducted),
        )  # fmt: skip


def _over_batch(each: Tensor) -> Tensor:
    return (each.new_ones(1, len(each)) @ each.flatten(1)).view(each.shape[1:])


class CfC(Part):
    """A closed-form continuous-time cell; see the module's docstring.

    Args:
        inputs: numbers m that come in.
        units: size n of the state.
        backbone: units of the backbone.
        seed: of the starting weights, Glorot-uniform; biases are 0.
    """

    def __init__(self, inputs: int, units: int, backbone: int = 128, seed: int = 0):
        super().__init__()
        at_least_one(inputs=inputs, units=units, backbone=backbone)
        self.inputs, self.units, self.backbone, self.seed = inputs, units, backbone, seed
        self.mix = nn.Linear(inputs + units, backbone)
        self.first, self.second = nn.Linear(backbone, units), nn.Linear(backbone, units)
        self.rate, self.phase = nn.Linear(backbone, units), nn.Linear(backbone, units)
        draws = generator(seed, "CfC")
        with torch.no_grad():
            for layer in (self.mix, self.first, self.second, self.rate, self.phase):
                bound = (6 / sum(layer.weight.shape)) ** 0.5
                layer.weight.copy_(bound * (2 * torch.rand(layer.weight.shape, generator=draws) - 1))
                layer.bias.zero_()

    def forward(
        self, x: Float[Tensor, "batch inputs"], state: Float[Tensor, "batch units"], dt: Any = 1.0
    ) -> Float[Tensor, "batch units"]:
        """The next state, `dt` after the last."""
        return self.scan(x[:, None], state, _column(dt, x))[:, 0]

    def scan(
        self,
        series: Float[Tensor, "batch time inputs"],
        state: Float[Tensor, "batch units"] | None = None,
        dt: Float[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time units"]:
        """The states after each input of a series; starts at 0 where no state is given."""
        n = self.units
        # The slopes 0.666 and 1.7159 go into the weights once instead of into every step.
        ahead = (0.666 * F.linear(series, self.mix.weight[:, : self.inputs], self.mix.bias)).unbind(1)
        back = (0.666 * self.mix.weight[:, self.inputs :]).T.contiguous()
        if dt is None:
            heads = (self.first, self.second)
            gate_weight, gate_bias = self.rate.weight + self.phase.weight, self.rate.bias + self.phase.bias
            weight = torch.cat([*(h.weight for h in heads), gate_weight])
            bias = torch.cat([*(h.bias for h in heads), gate_bias])
            spans: Any = [None] * series.shape[1]
        else:
            layers = (self.first, self.second, self.phase, self.rate)
            weight, bias = torch.cat([h.weight for h in layers]), torch.cat([h.bias for h in layers])
            spans = dt[..., None].unbind(1)
        weight = (1.7159 * weight).T.contiguous()
        h = series.new_zeros(len(series), n) if state is None else state
        found = []
        for x, span in zip(ahead, spans, strict=True):
            made = torch.addmm(bias, torch.addmm(x, h, back).tanh(), weight)
            ends, gate = made[:, : 2 * n].tanh(), made[:, 2 * n : 3 * n]
            gate = gate if span is None else torch.addcmul(gate, made[:, 3 * n :], span)
            h = torch.lerp(ends[:, :n], ends[:, n:], gate.sigmoid())
            found.append(h)
        return torch.stack(found, 1)


def _column(dt: Any, x: Tensor) -> Tensor:
    return torch.as_tensor(dt, dtype=x.dtype, device=x.device).expand(len(x))[:, None]


class Recurrent(Part):
    """A recurrent network for series: a cell, and a linear layer on the last state.

    Args:
        inputs: numbers at each time.
        outputs: how many numbers are predicted.
        units: size of the state.
        cell: `"cfc"`, `"ltc"`, `"gru"` or `"lstm"`; the last two know no time spans.
        residual: predict the change from the last input's first `outputs` numbers.
        seed: of the starting weights.
    """

    def __init__(
        self, inputs: int, outputs: int, units: int = 32, cell: str = "cfc", residual: bool = False, seed: int = 0
    ):
        super().__init__()
        self.inputs, self.outputs, self.units = inputs, outputs, units
        self.cell, self.residual, self.seed = cell, residual, seed
        at_least_one(inputs=inputs, outputs=outputs, units=units)
        kinds = {"cfc": CfC, "ltc": LTC, "gru": nn.GRU, "lstm": nn.LSTM}
        if cell not in kinds:
            raise SpecError(f"cell = {cell!r}, but it must be one of {', '.join(kinds)}.{nearest(cell, kinds)}")
        if residual and outputs > inputs:
            raise SpecError(f"residual needs the {outputs} predicted numbers among the {inputs} inputs")
        self.core: Any
        if cell in ("cfc", "ltc"):
            self.core = kinds[cell](inputs, units, seed=seed)
        else:
            self.core = kinds[cell](inputs, units, batch_first=True)
        self.linear = nn.Linear(units, outputs)
        draws, bound = generator(seed, "Recurrent"), units**-0.5
        drawn = [self.linear, *([self.core] if cell in ("gru", "lstm") else [])]
        with torch.no_grad():
            for layer in drawn:
                for parameter in layer.parameters():
                    parameter.copy_(bound * (2 * torch.rand(parameter.shape, generator=draws) - 1))

    def forward(self, x: Any) -> Float[Tensor, "batch outputs"]:
        """Predictions for series `[batch, time, inputs]`, or for `series` and `dt` `[batch, time]`, the time since the
        last input (since the start, for the first)."""
        series, dt = _series(x, self.inputs)
        if self.cell in ("gru", "lstm"):
            if dt is not None:
                raise InputError(f"a {self.cell} knows no time spans, and dt came; take cfc or ltc, or leave it out")
            last = self.core(series)[0][:, -1]
        else:
            last = self.core.scan(series, None, dt)[:, -1]
        made = self.linear(last)
        return made + series[:, -1, : self.outputs] if self.residual else made


def _series(x: Any, inputs: int) -> tuple[Tensor, Tensor | None]:
    """Series and time spans, checked."""
    series, dt = (x.get("series"), x.get("dt")) if isinstance(x, Mapping) else (x, None)
    if not isinstance(series, Tensor) or not series.is_floating_point():
        found = series.dtype if isinstance(series, Tensor) else f"a {type(series).__name__}"
        raise DtypeError(f"a series is a float tensor [batch, time, inputs]; got {found}")
    if series.ndim != 3 or 0 in series.shape or series.shape[2] != inputs:
        raise InputError(f"a series has shape {tuple(series.shape)}; [batch, time, {inputs}] is wanted")
    if dt is not None:
        if dt.shape != series.shape[:2]:
            raise InputError(
                f"dt has shape {tuple(dt.shape)}; one time span a step is wanted, {tuple(series.shape[:2])}"
            )
        if not bool((dt > 0).all()):
            raise InputError("time spans dt are above 0; some are not")
    return series, dt
