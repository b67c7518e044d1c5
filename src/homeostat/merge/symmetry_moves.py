"""A network on its way along its symmetries: how it is moved and how far, and how sharply its path bends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from homeostat.core.errors import ModelError, NonFiniteError
from homeostat.core.task import Task
from homeostat.core.tree import Tree
from homeostat.nn.linear_pairs import LinearPair, find_linear_pairs, linear_inputs

HALVINGS = 10


class Moving:
    """A network on its way, in double precision."""

    def __init__(self, net: nn.Module, x: Tree, y: Tree, task: Task):
        self.net, self.x, self.y, self.task = net, x, y, task
        self.pairs = find_linear_pairs(net, x)
        if not self.pairs:
            raise ModelError(f"{type(net).__name__} has no two linear layers with only a non-linearity between them")
        self.trained = [name for name, p in net.named_parameters() if p.requires_grad]
        self.start = {name: p.detach().clone() for name, p in net.named_parameters()}
        self.loss_at_start = self.loss().item()

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone().requires_grad_() for name, p in self.net.named_parameters()}

    def size(self, pair: LinearPair) -> int:
        return len(self.start[pair.first])

    def loss(self, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Mean loss of the batch."""
        if weights is None:
            with torch.no_grad():
                loss = self.task.loss(self.net(self.x), self.y).mean()
        else:
            loss = self.task.loss(functional_call(self.net, dict(weights), (self.x,)), self.y).mean()
        if not bool(torch.isfinite(loss)):
            raise NonFiniteError(f"the loss is {loss.item()}; teleportation needs finite inputs and weights")
        return loss

    def raw(self) -> float:
        """The loss, finite or not."""
        with torch.no_grad():
            return self.task.loss(self.net(self.x), self.y).mean().item()

    def set(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.net.named_parameters():
                parameter.copy_(weights[name])

    def go(self, paths: list[Callable[[float], Tensor]], tolerance: float) -> bool:
        """Move every pair along its path as far as the loss allows; whether it moved at all."""
        before, loss = {n: p.detach().clone() for n, p in self.net.named_parameters()}, self.loss().item()
        for halving in range(HALVINGS + 1):
            for pair, path in zip(self.pairs, paths, strict=True):
                weights = {n: p.detach().clone() for n, p in self.net.named_parameters()}
                h = linear_inputs(self.net, self.x)[pair.first]
                self.set(put(weights, pair, pair.moved(path(0.5**halving), take(weights, pair), h)))
            if abs(self.raw() - loss) <= tolerance * abs(loss):  # NaN is not
                return True
            self.set(before)
        return False


def bend(moving: Moving, sign: float, tolerance: float, generator: torch.Generator) -> float:
    """One step of each pair along a random path, towards more (or less) of its curvature; the mean curvature."""
    found = []
    paths: list[Callable[[float], Tensor]] = []
    inputs, weights = linear_inputs(moving.net, moving.x), moving.weights()
    for pair in moving.pairs:
        size = moving.size(pair)
        m = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
        tensors = tuple(None if t is None else t.detach() for t in take(weights, pair))
        value, slope = curvature(pair, m, tensors, inputs[pair.first])  # type: ignore[arg-type]
        found.append(value.item())
        paths.append(lambda s, m=m, slope=slope: torch.linalg.matrix_exp(s * sign * slope * m))
    moving.go(paths, tolerance)
    return sum(found) / len(found)


def curvature(
    pair: LinearPair, m: Tensor, weights: tuple[Tensor, Tensor | None, Tensor], h: Tensor
) -> tuple[Tensor, Tensor]:
    """The curvature at s = 0 of the path `s -> exp(s m)` of a pair's weights, and its derivative."""
    powers = (m, m @ m / 2, m @ m @ m / 6)  # three derivatives are asked for, so three terms of exp are exact

    def path(s: Tensor) -> Tensor:
        g = identity(m) + sum(power * s ** (i + 1) for i, power in enumerate(powers))
        return torch.cat([t.flatten() for t in pair.moved(g, weights, h) if t is not None])

    def derivative(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda s: jvp(function, (s,), (torch.ones_like(s),))[1]

    first = derivative(path)
    second = derivative(first)

    def bent(s: Tensor) -> Tensor:
        a, b = first(s), second(s)
        area = a.square().sum() * b.square().sum() - (a * b).sum().square()
        return area.clamp(min=1e-300).sqrt() / a.square().sum() ** 1.5

    found: Any = jvp(bent, (h.new_zeros(()),), (h.new_ones(()),))
    return found


def take(weights: Mapping[str, Tensor], pair: LinearPair) -> tuple[Tensor, Tensor | None, Tensor]:
    """A pair's tensors."""
    return weights[pair.first], None if pair.bias is None else weights[pair.bias], weights[pair.second]


def put(
    weights: dict[str, Tensor], pair: LinearPair, tensors: tuple[Tensor, Tensor | None, Tensor]
) -> dict[str, Tensor]:
    """The weights with a pair's tensors in place of its old ones."""
    weights[pair.first], weights[pair.second] = tensors[0], tensors[2]
    if pair.bias is not None and tensors[1] is not None:
        weights[pair.bias] = tensors[1]
    return weights


def identity(like: Tensor) -> Tensor:
    """The identity matrix of a matrix's size."""
    return torch.eye(len(like), dtype=like.dtype)
