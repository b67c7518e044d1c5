"""Optimisers whose state is tensors one can store: moments live in a `Bag`, not in a Python object.

The arithmetic is PyTorch's own functional optimisers, so a step equals `torch.optim`'s bit for bit, and a model that
was saved in the middle of a run continues as if it had not stopped.

>>> weight, state = {"w": torch.ones(2)}, Bag()
>>> optimizer = SGD(lr=0.5)
>>> optimizer.begin(weight, state)
>>> optimizer.update(weight, {"w": torch.ones(2)}, state)
>>> weight["w"]
tensor([0.5000, 0.5000])
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import annotated_types as at
import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from homeostat.core.errors import NonFiniteError
from homeostat.core.online import Bag
from homeostat.core.place import HOME
from homeostat.core.spec import Fraction, NonNegative, Positive, Spec

Beta = Annotated[float, at.Ge(0), at.Lt(1)]


class Optimizer(Spec, abstract=True):
    """How gradients change parameters. State tensors are kept in a `Bag` below `prefix`."""

    lr: float

    @abstractmethod
    def begin(self, parameters: Mapping[str, Tensor], state: Bag, prefix: str = "optimizer") -> None:
        """Put the starting state of these parameters into the bag."""

    @abstractmethod
    def update(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        state: Bag,
        prefix: str = "optimizer",
        scale: float = 1.0,
    ) -> None:
        """One step in place, with the learning rate times `scale`."""

    def minimize(self, loss: Tensor, parameters: Mapping[str, Tensor], state: Bag, prefix: str = "optimizer") -> None:
        """One step down the gradient of a scalar loss; a parameter it does not depend on has the gradient 0.

        Raises:
            NonFiniteError: the loss is NaN or infinite; nothing is changed.
        """
        self.update(parameters, gradients_of(loss, parameters), state, prefix)


def gradients_of(loss: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of a scalar loss for each parameter, 0 for one that it does not depend on.

    Raises:
        NonFiniteError: the loss is NaN or infinite.
    """
    if not bool(torch.isfinite(loss)):
        raise NonFiniteError(f"the loss is {loss.item()}; no step was made. Look at the inputs and the learning rate")
    found = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return dict(zip(parameters, found, strict=True))


def _zeros(parameters: Mapping[str, Tensor], state: Bag, prefix: str, *kinds: str) -> None:
    for kind in kinds:
        state.put(
            f"{prefix}.{kind}",
            {n: torch.zeros_like(p, memory_format=torch.preserve_format) for n, p in parameters.items()},
        )
    state[f"{prefix}.step"] = torch.zeros(len(parameters))


def _steps(state: Bag, prefix: str) -> Tensor:
    """How many steps each parameter has made: on the CPU, as in PyTorch, where reading them waits for nothing."""
    name = f"{prefix}.step"
    state[name] = state[name].to(HOME)
    return state[name]


def _lists(parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    return list(parameters.values()), [gradients[name] for name in parameters]


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum (`torch.optim.SGD`).

    Attributes:
        lr: learning rate.
        momentum: of the velocity, which starts at the first gradient.
        weight_decay: L2 penalty added to the gradient.
        nesterov: look ahead.
    """

    lr: Positive = 0.1
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 0.0
    nesterov: bool = False

    def begin(self, parameters: Mapping[str, Tensor], state: Bag, prefix: str = "optimizer") -> None:
        _zeros(parameters, state, prefix, *(("velocity",) if self.momentum else ()))

    def update(self, parameters, gradients, state, prefix="optimizer", scale=1.0) -> None:
        params, grads = _lists(parameters, gradients)
        step = _steps(state, prefix)
        velocity = state.under(f"{prefix}.velocity")
        first = bool((step == 0).all())
        # PyTorch starts the velocity at the gradient itself; a None buffer tells it so.
        buffers: list[Tensor | None] = [None if first or not self.momentum else velocity[n] for n in parameters]
        with torch.no_grad():
            sgd(
                params, grads, buffers, foreach=len(params) > 1,
                weight_decay=self.weight_decay, momentum=self.momentum, lr=self.lr * scale, dampening=0.0,
                nesterov=self.nesterov, maximize=False,
            )  # fmt: skip
            if first and self.momentum:
                for name, buffer in zip(parameters, buffers, strict=True):
                    velocity[name].copy_(buffer)  # type: ignore[arg-type]
            step += 1


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (`torch.optim.Adam`; Kingma and Ba, 2015).

    Attributes:
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: L2 penalty added to the gradient, or decoupled when `decoupled`.
        decoupled: AdamW (Loshchilov and Hutter, 2019).
        amsgrad: keep the largest second moment.
    """

    lr: Positive = 1e-3
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    decoupled: bool = False
    amsgrad: bool = False

    def begin(self, parameters: Mapping[str, Tensor], state: Bag, prefix: str = "optimizer") -> None:
        kinds = ("mean", "square", "largest") if self.amsgrad else ("mean", "square")
        _zeros(parameters, state, prefix, *kinds)

    def update(self, parameters, gradients, state, prefix="optimizer", scale=1.0) -> None:
        params, grads = _lists(parameters, gradients)
        moments = [[state[f"{prefix}.{kind}.{name}"] for name in parameters] for kind in ("mean", "square")]
        largest = [state[f"{prefix}.largest.{name}"] for name in parameters] if self.amsgrad else []
        with torch.no_grad():
            step: Any = adamw if self.decoupled else adam
            step(
                params, grads, *moments, largest, list(_steps(state, prefix).unbind()), foreach=len(params) > 1,
                amsgrad=self.amsgrad, beta1=self.betas[0], beta2=self.betas[1], lr=self.lr * scale,
                weight_decay=self.weight_decay, eps=self.eps, maximize=False,
            )  # fmt: skip
