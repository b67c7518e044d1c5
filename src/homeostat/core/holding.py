"""A network of the same structure with other weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from homeostat.core.fork import fork


def holding(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A fork of a model that holds other weights; those that are not given stay shared."""
    made = fork(model, own=set(tensors))
    with torch.no_grad():
        for name, tensor in made.state_dict(keep_vars=True).items():
            if name in tensors:
                tensor.copy_(tensors[name])
    return made
