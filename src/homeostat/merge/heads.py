"""A head for each task over one merged network.

Donors that were fine-tuned for tasks of their own labels have heads of their own, which cannot be merged. What is
merged lies below them; `with_head` gives a donor's network over the merged weights, its head aside.

>>> trunk, donor = nn.Sequential(nn.Linear(2, 4)), nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3))
>>> made = with_head(trunk, donor)
>>> made[0].weight is trunk[0].weight, made(torch.zeros(1, 2)).shape
(True, torch.Size([1, 3]))
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from homeostat.core.errors import CheckpointError
from homeostat.core.fork import Pattern, fork, matches
from homeostat.core.weights import as_weights


def with_head(
    merged: nn.Module, donor: nn.Module | Mapping[str, Tensor] | str | Path, heads: Pattern = ()
) -> nn.Module:
    """A donor's network whose weights are the merged ones, except for its head.

    Args:
        merged: the merged network, or its trunk alone; it is not changed, and its tensors are shared.
        donor: the network that has the head. Where only its tensors are given, the merged network's modules serve.
        heads: names of the parameters and buffers that stay the donor's. What `merged` lacks is the donor's anyhow.

    Returns:
        A new network in evaluation mode, over the very parameters of `merged`.

    Raises:
        CheckpointError: the donor lacks tensors of the merged network, or these are of another shape.
    """
    kept = matches(heads)
    shared = {n: t for n, t in merged.state_dict(keep_vars=True).items() if not kept(n)}
    if not isinstance(donor, nn.Module):
        return _filled(merged, as_weights(donor), shared)
    made = fork(donor).eval()
    there = made.state_dict(keep_vars=True)
    wrong = [n for n, t in shared.items() if n not in there or there[n].shape != t.shape]
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} tensors of the merged network are not in the donor, or of another shape: "
            f"{', '.join(wrong[:6])}; is one of them its head? Name it: heads=('head.*',)"
        )
    _assign(made, shared)
    return made


def _filled(merged: nn.Module, tensors: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> nn.Module:
    made = fork(merged).eval()
    own = {}
    for name, tensor in made.state_dict(keep_vars=True).items():
        if name in shared:
            continue
        if name not in tensors:
            raise CheckpointError(f"the donor lacks {name}, which is to be its head's")
        new = tensors[name].to(tensor.device)
        own[name] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
    _assign(made, {**shared, **own})
    for module in made.modules():
        # The heads of two tasks differ in how many classes they have.
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
    return made


def _assign(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in tensors.items():
            owner, _, leaf = name.rpartition(".")
            module = model.get_submodule(owner)
            store = module._parameters if leaf in module._parameters else module._buffers
            store[leaf] = tensor  # type: ignore[assignment]
