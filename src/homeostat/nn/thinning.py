"""Gradual pruning by magnitude of weights that lie in a bag.

>>> bag = Bag({"net.weight": torch.tensor([[1.0, -4.0], [3.0, 2.0]]), "net.bias": torch.tensor([0.1])})
>>> thin(bag, "net", 0.5)
>>> bag["net.weight"]
tensor([[ 0., -4.],
        [ 3.,  0.]])

Reference: Zhu and Gupta, To prune, or not to prune, 2017.
"""

from __future__ import annotations

import torch

from homeostat.core.online import Bag


@torch.no_grad()
def thin(bag: Bag, owner: str, share: float) -> None:
    """Set the weights of smallest magnitude below a prefix to 0, and those that were set so before.

    Only tensors of two dimensions or more count and are changed. Which are 0 is kept below `dead.` and the prefix, so
    that a step of the optimiser in between does not bring them back.

    Args:
        bag: holds the weights.
        owner: their prefix.
        share: of the weights, over all tensors together.
    """
    weights = [tensor.detach() for tensor in bag.under(owner).values() if tensor.ndim > 1]
    names = [f"dead.{owner}.{i}" for i in range(len(weights))]
    for weight, name in zip(weights, names, strict=True):
        if name in bag:
            weight.masked_fill_(bag[name], 0.0)
    magnitudes = torch.cat([weight.abs().flatten() for weight in weights])
    count = int(share * len(magnitudes))
    if count == 0:
        return
    smallest = torch.zeros(len(magnitudes), dtype=torch.bool, device=magnitudes.device)
    smallest[magnitudes.topk(count, largest=False).indices] = True
    for weight, name, dead in zip(weights, names, smallest.split([w.numel() for w in weights]), strict=True):
        bag[name] = dead.view_as(weight)
        weight.masked_fill_(bag[name], 0.0)
