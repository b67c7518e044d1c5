"""What changed between two models: the currency of tuning, merging, forgetting and federation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.core.errors import CheckpointError
from homeostat.core.fork import fork
from homeostat.core.part import build, recipe
from homeostat.core.place import there
from homeostat.core.save import fill
from homeostat.core.weights import as_weights, carried, fingerprint, weights


@dataclass(frozen=True)
class Delta:
    """The tensors of `after` that differ from `before`, the recipe of `after`, and the hash of `before`.

    Undo is exact because the base is kept: changed tensors are stored as they are after, not as differences.

    Attributes:
        base: hash of the weights before.
        changed: tensors by their name in `after`.
        kept: name in `after` to name in `before`, for the rest (a wrapped layer's tensors move, and stay the base's).
        recipe: structure of `after`.
    """

    base: str
    changed: Mapping[str, Tensor]
    kept: Mapping[str, str]
    recipe: Mapping[str, Any]

    def apply(self, base: nn.Module) -> nn.Module:
        """The model after the change, over `base`'s unchanged tensors, in evaluation mode.

        Raises:
            CheckpointError: `base` is not the model that the delta was taken from.
        """
        if (found := fingerprint(base)) != self.base:
            raise CheckpointError(f"the delta was taken from weights {self.base[:12]}; these are {found[:12]}")
        model = fork(base) if self.recipe == recipe(base) else build(self.recipe, base)
        before = weights(base)
        kept = {new: before[old] for new, old in self.kept.items()}
        fill(model, {**kept, **there(self.changed, base)}, "the delta's tensors")
        return model.eval()

    def difference(self, base: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Task vector: `after - before` for the changed floating tensors that the base has."""
        before = as_weights(base)
        return {n: t - before[n] for n, t in self.changed.items() if n in before and t.is_floating_point()}


def delta(before: nn.Module, after: nn.Module) -> Delta:
    """What changed from `before` to `after`, bit for bit."""
    old, new = weights(before), {**weights(after), **carried(after)}
    at_memory = {_memory(tensor): name for name, tensor in old.items() if tensor.numel()}
    kept, changed = {}, {}
    for name, tensor in new.items():
        if (source := at_memory.get(_memory(tensor))) is not None:
            kept[name] = source
        elif name in old and _same(old[name], tensor):
            kept[name] = name
        else:
            changed[name] = tensor.clone()
    return Delta(fingerprint(before), changed, kept, recipe(after))


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _same(a: Tensor, b: Tensor) -> bool:
    # By bytes, so that NaN equals itself and 0.0 differs from -0.0.
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))
