"""Corrections of low rank beside linear and convolution layers: `up (down x)`.

A linear layer with weight `[out, in]` has down `[rank, in]` and up `[out, rank]`. A convolution is treated as its
unfolded matrix: down is a convolution to `rank` channels with the layer's kernel, up a 1x1 convolution back. The
product of the two has the shape of the layer's weight and could be added to it.

>>> import torch
>>> layer = nn.Conv2d(3, 4, 3, padding=1)
>>> down, up = new_factors(layer, rank=2)
>>> down.shape, up.shape, low_rank(layer, torch.rand(1, 3, 5, 5), down, up).shape
(torch.Size([2, 3, 3, 3]), torch.Size([4, 2, 1, 1]), torch.Size([1, 4, 5, 5]))

Reference: Hu et al., LoRA: Low-rank adaptation of large language models, ICLR 2022.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.core.errors import ModelError


def new_factors(layer: nn.Module, rank: int) -> tuple[Tensor, Tensor]:
    """Down and up for a layer, all zeros.

    Raises:
        ModelError: the layer has no weight, or is a convolution with several groups.
    """
    weight = layer.weight
    if not isinstance(weight, Tensor):
        raise ModelError(f"linear and convolution layers are corrected; {type(layer).__name__} has no weight")
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)) and layer.groups != 1:
        raise ModelError(f"convolutions with one group are corrected; this one has {layer.groups}")
    return weight.new_zeros(rank, *weight.shape[1:]), weight.new_zeros(len(weight), rank, *[1] * (weight.ndim - 2))


def low_rank(layer: nn.Module, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """`up (down x)`, with the layer's stride, padding and dilation."""
    if isinstance(layer, nn.Linear):
        return F.linear(F.linear(x, down), up)
    convolve = F.conv2d if down.ndim == 4 else F.conv1d
    settings = layer.stride, layer.padding, layer.dilation
    return convolve(convolve(x, down, None, *settings), up)  # type: ignore[arg-type]


def correction(down: Tensor, up: Tensor) -> Tensor:
    """The product of the two, in the shape of the layer's weight."""
    return (up.flatten(1) @ down.flatten(1)).view(len(up), *down.shape[1:])
