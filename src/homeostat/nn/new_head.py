"""A network for other outputs: its last linear layer gives way to one that starts at 0.

>>> import torch
>>> net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
>>> with_new_head(net, 5)(torch.randn(1, 2))
tensor([[0., 0., 0., 0., 0.]], grad_fn=<AddmmBackward0>)
"""

from __future__ import annotations

from torch import nn

from homeostat.core.errors import ModelError
from homeostat.core.fork import fork
from homeostat.core.part import replace
from homeostat.core.taps import head


def with_new_head(model: nn.Module, outputs: int) -> nn.Module:
    """A fork that owns everything, with a last linear layer of so many outputs, which starts at 0.

    Raises:
        ModelError: what the network gives does not come from its last linear layer as `[batch, outputs]`.
    """
    made, name = fork(model, own="*"), head(model)
    old = made.get_submodule(name)
    if not isinstance(old, nn.Linear):
        raise ModelError(f"the last layer {name!r} is a {type(old).__name__}; a linear one is wanted")
    new = nn.Linear(old.in_features, outputs).to(old.weight)
    nn.init.zeros_(new.weight)
    nn.init.zeros_(new.bias)
    if not name:
        return new
    replace(made, name, new)
    return made
