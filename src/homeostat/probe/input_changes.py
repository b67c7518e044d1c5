"""Generic changes of inputs, noise, offset, gain, smoothing, gaps; tokens exchanged or lost."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from homeostat.core.tree import Tree, map_tree


def changes(generator: torch.Generator) -> list[Callable[[Tree], Tree]]:
    """Generic changes of inputs, in units of the data's own spread; the weakest come first."""

    def on_leaves(change: Callable[[Tensor], Tensor], replace: float, lost: bool) -> Callable[[Tree], Tree]:
        def leaf(x: Tensor) -> Tensor:
            if x.is_floating_point():
                return change(x)
            if x.ndim < 2 or int(x.unique().numel()) <= 2:  # lengths and masks stay
                return x
            # What a vocabulary lacks becomes one token, whatever it was.
            drawn = torch.randint(x.numel(), (1,) * x.ndim if lost else x.shape, generator=generator)
            other = x.flatten()[drawn]
            return torch.where(torch.rand(x.shape, generator=generator) < replace, other, x)

        return lambda tree: map_tree(leaf, tree)

    def noise(size: float) -> Callable[[Tensor], Tensor]:
        return lambda x: _bounded(x + size * _spread(x) * torch.randn(x.shape, generator=generator), x)

    def gain(size: float) -> Callable[[Tensor], Tensor]:
        def change(x: Tensor) -> Tensor:
            middle = x.mean(0) if x.ndim <= 2 else x.flatten(1).mean(1).view(-1, *[1] * (x.ndim - 1))
            return _bounded(middle + _columns(x, size, 1.0) * (x - middle), x)

        return change

    def offset(size: float) -> Callable[[Tensor], Tensor]:
        return lambda x: _bounded(x + _columns(x, size, 0.0) * _spread(x), x)

    def _columns(x: Tensor, value: float, other: float) -> Tensor | float:
        """For a table, half of the columns are changed; for anything else, all."""
        if x.ndim != 2:
            return value
        return torch.where(torch.rand(x.shape[1], generator=generator) < 0.5, value, other)

    def gap(share: float) -> Callable[[Tensor], Tensor]:
        def change(x: Tensor) -> Tensor:
            flat = x.flatten(1).clone()
            wide = max(1, round(share * flat.shape[1]))
            low = int(torch.randint(max(1, flat.shape[1] - wide), (), generator=generator))
            flat[:, low : low + wide] = flat.mean(0)[low : low + wide]
            return flat.view_as(x)

        return change

    def smooth(rounds: int) -> Callable[[Tensor], Tensor]:
        def change(x: Tensor) -> Tensor:
            for _ in range(rounds if x.ndim > 2 else 0):
                for dim in range(2, x.ndim):
                    x = (x + x.roll(1, dim) + x.roll(-1, dim)) / 3
            return x if x.ndim > 2 else noise(0.5)(x)

        return change

    made = (
        (noise(0.25), 0.1), (offset(0.4), 0.2), (gain(0.6), 0.2), (smooth(1), 0.3), (gap(0.15), 0.3),
        (noise(0.8), 0.4), (offset(-0.8), 0.5), (gain(0.25), 0.6), (gain(1.8), 0.4), (smooth(4), 0.6), (gap(0.4), 0.8),
        (offset(1.2), 0.3),
    )  # fmt: skip
    return [on_leaves(change, share, number % 2 == 1) for number, (change, share) in enumerate(made)]


def _spread(x: Tensor) -> Tensor:
    return x.std(0) if x.ndim <= 2 else x.std()


def _bounded(changed: Tensor, x: Tensor) -> Tensor:
    """Within the data's own range, for images and the like; columns of a table have none."""
    return changed if x.ndim <= 2 else changed.clamp(float(x.min()), float(x.max()))
