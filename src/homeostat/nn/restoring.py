"""Weights that go back to where they started: at random, or those that matter least.

Methods that adapt for long forget what the network was trained on. Putting a share of the weights back after every step
keeps it near: CoTTA draws them at random, PETAL takes those of the smallest Fisher information.

>>> weight, start = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.zeros(2)}
>>> restore_into(weight, start, {"w": torch.tensor([True, False])})
>>> weight["w"]
tensor([0., 2.])

References: Wang et al., Continual test-time domain adaptation, CVPR 2022; Brahma, Rai, A probabilistic framework for
lifelong test-time adaptation, CVPR 2023.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


def random_masks(like: Tensors, rate: float, generator: torch.Generator) -> dict[str, Tensor]:
    """For each tensor a boolean mask, true for an element with probability `rate`.

    One stretch of random numbers serves all tensors in the order of their names, so it does not matter in which order
    they come.
    """
    ordered = sorted(like.items())
    sizes = [tensor.numel() for _, tensor in ordered]
    draws = torch.rand(sum(sizes), generator=generator) < rate
    return {name: part.view(t.shape).to(t.device) for part, (name, t) in zip(draws.split(sizes), ordered, strict=True)}


def smallest_masks(values: Tensors, share: float) -> dict[str, Tensor]:
    """For each tensor a boolean mask of the elements below the `share` quantile of all values of all tensors.

    The quantile is interpolated linearly, as `torch.quantile`'s, but without its limit on size, and the comparison is
    strict: at share 0 nothing is chosen.
    """
    flat = torch.cat([tensor.flatten() for tensor in values.values()])
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    place = share * (len(flat) - 1)
    limit = flat.kthvalue(math.floor(place) + 1).values
    if place % 1:
        limit = torch.lerp(limit, flat.kthvalue(math.ceil(place) + 1).values, place % 1)
    # Compared as found: against a tensor of a narrower type the limit would be rounded to it.
    parts = (flat < limit).split([tensor.numel() for tensor in values.values()])
    return {name: part.view(t.shape) for part, (name, t) in zip(parts, values.items(), strict=True)}


@torch.no_grad()
def put_back(tensors: Tensors, start: Tensors) -> None:
    """Put every tensor back to its start, in place.

    >>> weight = {"w": torch.tensor([1.0, 2.0])}
    >>> put_back(weight, {"w": torch.zeros(2)})
    >>> weight["w"]
    tensor([0., 0.])
    """
    torch._foreach_copy_(list(tensors.values()), [start[name] for name in tensors])


@torch.no_grad()
def restore_into(tensors: Tensors, start: Tensors, chosen: Tensors) -> None:
    """Put the chosen elements of each tensor back to their start, in place."""
    for name, mask in chosen.items():
        tensors[name].copy_(torch.where(mask, start[name], tensors[name]))
