"""The controller of RNA: from an error signal to shifts of a frozen network's normalisation layers.

The encoder for images is the authors': four stages of three times convolution, GroupNorm(8) and ReLU with `width`, 2, 4
and 8 times as many channels, each but the first followed by a max-pool, and a last stage of the same kind. Vectors go
through two linear layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, nn

from homeostat.core.part import Part
from homeostat.nn.blocks import start


class RNAController(Part):
    """From an error signal to an embedding, and from that to shifts (and scales) of the main network's norm layers.

    Args:
        inputs: channels (or features) of the signal.
        layers: dotted names of the main network's layers.
        channels: how many each has.
        dense: signals are images; otherwise vectors.
        width: channels of the first stage; the embedding has 8 times as many.
        scale: also scale, and not only shift.
        seed: of the starting weights.
    """

    def __init__(
        self,
        inputs: int,
        layers: tuple[str, ...],
        channels: tuple[int, ...],
        dense: bool = True,
        width: int = 16,
        scale: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        self.inputs, self.layers, self.channels = inputs, layers, channels
        self.dense, self.width, self.scale, self.seed = dense, width, scale, seed
        wide = 8 * width
        if dense:
            down = [_stage(a, b) for a, b in ((width, 2 * width), (2 * width, 4 * width), (4 * width, wide))]
            pooled = [part for stage in down for part in (stage, nn.MaxPool2d(2, ceil_mode=True))]
            self.encoder = nn.Sequential(_stage(inputs, width), *pooled, _stage(wide, wide))
        else:
            self.encoder = nn.Sequential(nn.Linear(inputs, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU())
        self.shifts, self.scales = (
            nn.ModuleList(nn.Conv2d(wide, c, 3, padding=1) if dense else nn.Linear(wide, c) for c in wanted)
            for wanted in (channels, channels if scale else ())
        )
        start(self, seed)
        for layer in (*self.shifts, *self.scales):
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]

    def forward(self, signal: Tensor) -> Tensor:
        """The embedding of a signal."""
        return self.encoder(signal)

    @contextmanager
    def steering(self, model: nn.Module, embedding: Tensor, present: Bool[Tensor, " batch"]) -> Iterator[None]:
        """Inside, the layers of a model (one's own fork) are shifted for the samples that have feedback."""
        handles = []
        for index, name in enumerate(self.layers):

            def hook(layer: nn.Module, args: Any, out: Tensor, index: int = index) -> Tensor:
                last = isinstance(layer, nn.LayerNorm)
                there = present.view(-1, *[1] * (out.ndim - 1)).to(out.dtype)
                if self.scale:
                    out = out * (1 + there * _spread(self.scales[index], embedding, out, last))
                return out + there * _spread(self.shifts[index], embedding, out, last)

            handles.append(model.get_submodule(name).register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _stage(channels: int, out: int) -> nn.Sequential:
    """Three times convolution, GroupNorm, ReLU."""
    parts: list[nn.Module] = []
    for number in range(3):
        conv = nn.Conv2d(channels if number == 0 else out, out, 3, padding=1)
        parts += [conv, nn.GroupNorm(math.gcd(8, out), out), nn.ReLU()]
    return nn.Sequential(*parts)


def _spread(layer: nn.Module, embedding: Tensor, out: Tensor, channels_last: bool) -> Tensor:
    """What a layer makes of the embedding, in a shape that adds to `out`."""
    if embedding.ndim == 4 and out.ndim == 4 and not channels_last:
        if embedding.shape[2:] != out.shape[2:]:
            embedding = F.interpolate(embedding, size=out.shape[2:], mode="bilinear", align_corners=False)
        return layer(embedding)
    if embedding.ndim == 4:
        embedding = embedding.mean((2, 3), keepdim=True)
    flat = layer(embedding).flatten(1)
    ones = [1] * (out.ndim - 2)
    return flat.view(len(flat), *ones, flat.shape[1]) if channels_last else flat.view(*flat.shape, *ones)
