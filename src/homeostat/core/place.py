"""Where a network lies, and bringing to it, and back from it, what does not lie there.

Data come on the CPU, and what decides (readings, ledgers, statistics) stays there; networks, what is put around them
and their kits lie on one device. So inputs go `there` before a network runs, and what it gives comes `home`. A tensor
that is there already is not copied.

>>> from torch import nn
>>> net = nn.Linear(2, 3)
>>> device_of(net), home(net(there(torch.zeros(1, 2), net))).shape
(device(type='cpu'), torch.Size([1, 3]))
"""

from __future__ import annotations

from itertools import chain
from typing import TypeVar

import torch
from torch import nn

from homeostat.core.errors import InputError
from homeostat.core.fork import fork
from homeostat.core.tree import map_tree
from homeostat.core.weights import weights

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")

HOME = torch.device("cpu")


def device_of(model: nn.Module) -> torch.device | None:
    """Where a network's first tensor lies; None for one that has no tensors and so computes anywhere."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return None if first is None else first.device


def there(x: T, model: nn.Module) -> T:
    """A tree of inputs where the network lies."""
    return moved(x, device_of(model))


def home(out: T) -> T:
    """What a network gave, a tree, on the CPU."""
    return moved(out, HOME)


def moved(tree: T, device: torch.device | None) -> T:
    """A tree of tensors on a device; `None` leaves it where it is."""
    return tree if device is None else map_tree(lambda leaf: leaf.to(device), tree)  # type: ignore[return-value,arg-type]


def placed(model: M, device: torch.device | str | None) -> M:
    """A network or kit on a device: the given one where it lies there already or `None` is asked for, else a fork.

    Weights tell where a model lies: what it carries besides may hold counts, which are best kept on the CPU.
    """
    if device is None or all(tensor.device == torch.device(device) for tensor in weights(model).values()):
        return model
    return fork(model).to(device)


def check_device(device: str | None, what: str = "device") -> None:
    """Raise our error where a device cannot be used; None is any.

    Args:
        device: such as `"cuda"` or `"cuda:1"`.
        what: what it was given as, for the error.

    Raises:
        InputError: there is no such device, or it does not work.
    """
    if device is None:
        return
    try:
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError, ValueError) as error:
        said = str(error).splitlines()[0]
        said = "there is no such kind of device" if said.startswith("Expected one of") else said
        raise InputError(f"{what} {device} cannot be used here ({said}); leave it out for the CPU") from None
