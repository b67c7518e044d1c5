"""Pairs of linear layers with one non-linearity between them and nothing else: where a network has continuous symmetry.

For such a pair, z = V h + b and the outputs U sigma(z), and an invertible matrix g of the hidden layer's size k,

    V' = g V,    b' = g b,    U' = U + U (S - S') S'^+,      S = sigma(z),  S' = sigma(g z)   `[k, samples]`

give the same outputs for the samples in S, exactly if there are at most k of them and S' has full rank, and as nearly
as least squares can otherwise. Of all such U' it is the one nearest to U, so that g = 1 changes nothing; where S' has
rank k, it is U S S'^+. Behind ReLU a diagonal g > 0 keeps the function for all inputs.

`find_linear_pairs` finds pairs by watching a forward pass: two-dimensional inputs, each layer used once, and what lies
between used nowhere else. Networks that normalise, add or reshape between the layers have no such pair there.

>>> net, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), torch.rand(5, 4)
>>> [(pair.first, pair.bias, pair.second) for pair in find_linear_pairs(net, x)]
[('0.weight', '0.bias', '2.weight')]

Reference: Zhao, Gower, Walters, Yu, Improving convergence and generalization using parameter symmetries, ICLR 2024 (the
group action; U' there is U S S'^+).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from homeostat.core.tree import Tree, leaves

ACTIVATIONS = frozenset((
    "celu", "elu", "erf", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "relu", "selu",
    "sigmoid", "silu", "softplus", "tanh",
))  # fmt: skip


@dataclass(frozen=True)
class LinearPair:
    """Two linear layers with a non-linearity between them.

    Attributes:
        first, bias: names of the first layer's weight `[k, in]` and bias `[k]`, if it has one.
        second: of the second layer's weight `[out, k]`.
        activation: what lies between, element by element.
    """

    first: str
    bias: str | None
    second: str
    activation: Callable[[Tensor], Tensor]

    def moved(
        self,
        g: Float[Tensor, "k k"],
        weights: tuple[Float[Tensor, "k inputs"], Float[Tensor, " k"] | None, Float[Tensor, "out k"]],
        h: Float[Tensor, "samples inputs"],
        fixed: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """First weight, bias and second weight under g.

        Args:
            g: of the hidden layer's size.
            weights: as they are.
            h: inputs of the first layer.
            fixed: take S'^+ as a constant for gradients; at g = 1 that is exact, as S - S' is 0.
        """
        first, bias, second = weights
        z = h @ first.T if bias is None else h @ first.T + bias
        before, after = self.activation(z), self.activation(z @ g.T)
        inverse = torch.linalg.pinv(after.detach() if fixed else after, rtol=1e-6)
        change = second @ (before - after).T @ inverse.T
        return g @ first, None if bias is None else g @ bias, second + change


def find_linear_pairs(model: nn.Module, example: Tree) -> list[LinearPair]:
    """The pairs of a network, in order; there may be none.

    Args:
        model: one's own, in evaluation mode.
        example: a few inputs.
    """
    return _recorded(model, example).pairs()


def linear_inputs(model: nn.Module, x: Tree) -> dict[str, Tensor]:
    """What goes into each linear layer, by the name of its weight."""
    return {call.weight: call.x for call in _recorded(model, x).linear}


@dataclass(frozen=True)
class _Linear:
    weight: str
    bias: str | None
    x: Tensor
    out: Tensor


def _recorded(model: nn.Module, x: Tree) -> _Recorder:
    recorder = _Recorder({id(p): name for name, p in model.named_parameters()})
    with torch.no_grad(), recorder:
        out = model(x)
    recorder.kept += leaves(out)
    for leaf in leaves(out):
        recorder.users[id(leaf)].append(-1)
    return recorder


class _Recorder(TorchDispatchMode):
    """Notes linear layers, element-wise operations, and who uses which tensor."""

    def __init__(self, named: dict[int, str]):
        super().__init__()
        self.named, self.turned = named, dict[int, int]()
        self.users: defaultdict[int, list[int]] = defaultdict(list)
        self.linear: list[_Linear] = []
        self.calls: list[Any] = []
        self.kept: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        number = len(self.calls)
        made: Any = None
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.kept += [leaf for leaf in (*given, *tree_leaves(out)) if isinstance(leaf, Tensor)]
        for leaf in given:
            self.users[id(leaf)].append(number)
        if name == "t":
            self.turned[id(out)] = id(args[0])
        elif name in ("addmm", "mm"):
            bias, x, weight = args if name == "addmm" else (None, *args)
            source = self.named.get(self.turned.get(id(weight), 0))
            if source is not None and not kwargs and (bias is None or id(bias) in self.named):
                made = _Linear(source, None if bias is None else self.named[id(bias)], x, out)
                self.linear.append(made)
        elif name.removesuffix("_") in ACTIVATIONS:
            plain = getattr(torch.ops.aten, name.removesuffix("_"))
            made = (out, partial(_called, plain, args[1:], kwargs))
        self.calls.append(made)
        return out

    def pairs(self) -> list[LinearPair]:
        """Linear layers whose outputs only a non-linearity uses, whose outputs only a linear layer uses."""
        used = [name for call in self.linear for name in (call.weight, call.bias)]
        at = {number: call for number, call in enumerate(self.calls) if isinstance(call, _Linear)}
        found = []
        for call in self.linear:
            users = self.users[id(call.out)]
            act = self.calls[users[0]] if users and users[0] >= 0 else None
            if not isinstance(act, tuple):
                continue
            inplace = act[0] is call.out
            after = users[1:] if inplace else self.users[id(act[0])] if len(users) == 1 else []
            second = at.get(after[0]) if len(after) == 1 else None
            if second is None or used.count(call.weight) + used.count(second.weight) != 2:
                continue
            if call.bias is None or used.count(call.bias) == 1:
                found.append(LinearPair(call.weight, call.bias, second.weight, act[1]))
        return found


def _called(operation: Any, rest: tuple[Any, ...], kwargs: dict[str, Any], z: Tensor) -> Tensor:
    return operation(z, *rest, **kwargs)
