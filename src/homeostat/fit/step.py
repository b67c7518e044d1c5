"""How named losses become gradients (`Combine`), and gradients an update (`Step`)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from homeostat.core.spec import Count, Positive, Spec
from homeostat.fit.objective import total
from homeostat.nn.sharpness import worst_nearby

Losses = Callable[[], Mapping[str, Tensor]]


class Combine(Spec, abstract=True):
    """Named losses to one gradient a parameter."""

    @abstractmethod
    def gradients(
        self, losses: Mapping[str, Tensor], parameters: Sequence[Tensor], generator: torch.Generator
    ) -> list[Tensor]: ...


def _grad(loss: Tensor, parameters: Sequence[Tensor], keep: bool = False) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(parameters), retain_graph=keep, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


@dataclass(frozen=True)
class Sum(Combine):
    """The gradient of the sum of the losses."""

    def gradients(self, losses, parameters, generator) -> list[Tensor]:
        return _grad(total(losses), parameters)


@dataclass(frozen=True)
class PCGrad(Combine):
    """Projects each loss's gradient off the others it conflicts with, in random order, and adds them up.

    For g_i and another g_j with g_i . g_j < 0: `g_i <- g_i - (g_i . g_j / |g_j|^2) g_j`.
    Reference: Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020.
    """

    def gradients(self, losses, parameters, generator) -> list[Tensor]:
        values = list(losses.values())
        each = [
            torch.cat([g.flatten() for g in _grad(value, parameters, keep=i + 1 < len(values))])
            for i, value in enumerate(values)
        ]
        merged = torch.zeros_like(each[0])
        for i, own in enumerate(each):
            projected = own.clone()
            for j in torch.randperm(len(each), generator=generator).tolist():
                overlap = projected @ each[j]
                if j != i and overlap < 0:
                    projected -= overlap / each[j].square().sum().clamp(min=torch.finfo(own.dtype).tiny) * each[j]
            merged += projected
        pieces = merged.split([p.numel() for p in parameters])
        return [piece.view_as(p) for piece, p in zip(pieces, parameters, strict=True)]


class Step(Spec, abstract=True):
    """Where losses are evaluated to find the gradient that the optimiser is given."""

    @abstractmethod
    def gradients(
        self, losses: Losses, parameters: Sequence[Tensor], combine: Combine, generator: torch.Generator
    ) -> tuple[Mapping[str, Tensor], list[Tensor]]:
        """The losses at the parameters, and the gradients; parameters are as before when it returns."""


@dataclass(frozen=True)
class Plain(Step):
    """The gradient at the parameters."""

    def gradients(self, losses, parameters, combine, generator):
        found = losses()
        return found, combine.gradients(found, parameters, generator)


@dataclass(frozen=True)
class SAM(Step):
    """The gradient at the worst point nearby: `e = radius * g / |g|`, then the gradient at `w + e`.

    Two passes a step; flatter minima. BatchNorm's running statistics see both passes.
    Reference: Foret et al., Sharpness-Aware Minimization, ICLR 2021 (radius 0.05).
    """

    radius: Positive = 0.05

    def gradients(self, losses, parameters, combine, generator):
        found = losses()
        ascent = combine.gradients(found, parameters, generator)
        with worst_nearby(parameters, ascent, self.radius):
            gradients = combine.gradients(losses(), parameters, generator)
        return found, gradients


@dataclass(frozen=True)
class ZerothOrder(Step):
    """Gradient without a backward pass, from differences along random directions.

    `g = mean_k (L(w + s z_k) - L(w - s z_k)) / (2 s) * z_k`, z_k standard normal. Memory of inference alone.
    Reference: Malladi et al., Fine-Tuning Language Models with Just Forward Passes, NeurIPS 2023 (s = 1e-3).
    """

    scale: Positive = 1e-3
    directions: Count = 1

    def gradients(self, losses, parameters, combine, generator):
        params = list(parameters)
        saved = [p.detach().clone() for p in params]
        sums = [torch.zeros_like(p) for p in params]
        with torch.no_grad():
            found = losses()
            for _ in range(self.directions):
                noise = [torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p in params]
                values = []
                for sign in (1, -1):
                    torch._foreach_copy_(params, saved)
                    torch._foreach_add_(params, noise, alpha=sign * self.scale)
                    values.append(float(total(losses())))
                torch._foreach_copy_(params, saved)
                slope = (values[0] - values[1]) / (2 * self.scale * self.directions)
                torch._foreach_add_(sums, noise, alpha=slope)
        return found, sums
