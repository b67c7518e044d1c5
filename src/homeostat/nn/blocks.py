"""What the networks share: norm layers by name, starting weights from a seed, attention, and checks at the door."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.core.errors import DtypeError, InputError, SpecError, nearest
from homeostat.core.random import generator

NORMS = ("batch", "group", "instance", "layer", "none")


def norm_layer(norm: str, channels: int, among: tuple[str, ...] = NORMS) -> nn.Module:
    """A norm layer for images `[batch, channels, height, width]`.

    Args:
        norm: `"batch"`; `"group"`, 8 groups or as many as divide the channels; `"instance"`, one group a channel;
            `"layer"`, one group; `"none"`.
        channels: how many there are.
        among: the names that the network allows.
    """
    if norm not in among:
        raise SpecError(f"norm = {norm!r}, but it must be one of {', '.join(map(repr, among))}.{nearest(norm, among)}")
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    groups = {"group": math.gcd(8, channels), "instance": channels, "layer": 1}
    return nn.GroupNorm(groups[norm], channels) if norm in groups else nn.Identity()


def start(network: nn.Module, seed: int, gain: float = 2.0) -> None:
    """Draw starting weights in place, so that equal seeds give equal networks whatever was drawn elsewhere.

    Weights of linear layers and convolutions are normal with variance `gain / fan_in` (2 keeps the scale through
    ReLU), of embeddings with standard deviation 0.02; biases are 0. Norm layers keep their ones and zeros.
    """
    draw = generator(seed, "weights")
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.weight.normal_(0.0, math.sqrt(gain / module.weight[0].numel()), generator=draw)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0.0, 0.02, generator=draw)


def at_least_one(**numbers: int) -> None:
    """Raise `SpecError` naming the first of these sizes that is below 1."""
    for name, number in numbers.items():
        if number < 1:
            raise SpecError(f"{name} = {number}, but it must be >= 1")


def holds(condition: Tensor) -> bool:
    """Whether a condition holds; True where values cannot be looked at (`torch.compile`, `vmap`, the meta device)."""
    if torch.compiler.is_compiling():
        return True
    try:
        return bool(condition)
    except RuntimeError:
        return True


def check_images(x: Any, channels: int, size: int | None = None) -> None:
    """Raise our error unless `x` is a float batch `[batch, channels, height, width]`, of side `size` if that is given.

    Raises:
        DtypeError: not a tensor, or integers. InputError: wrong dimensions, channels or size, or an empty batch.
    """
    if not isinstance(x, Tensor):
        raise DtypeError(f"images are a {type(x).__name__}; a float tensor [batch, channels, height, width] is wanted")
    if not x.is_floating_point():
        raise DtypeError(f"images have dtype {x.dtype}; floats in 0..1 are wanted: images.float() / 255")
    if x.ndim != 4:
        hint = "; add the batch: images[None]" if x.ndim == 3 else ""
        raise InputError(f"images have shape {tuple(x.shape)}; [batch, channels, height, width] is wanted{hint}")
    if len(x) == 0:
        raise InputError("the batch of images is empty; at least one is needed")
    if x.shape[1] != channels:
        hint = " The channels are last: images.permute(0, 3, 1, 2)." if x.shape[3] == channels else ""
        raise InputError(f"images have {x.shape[1]} channels (shape {tuple(x.shape)}); {channels} are wanted.{hint}")
    if size is not None and tuple(x.shape[2:]) != (size, size):
        raise InputError(f"images are {x.shape[2]} x {x.shape[3]}; this network was built for {size} x {size}")


def check_tokens(tokens: Any, vocabulary: int, length: int) -> Tensor:
    """The tokens, when they are an integer batch `[batch, time]` of at most `length` ids below `vocabulary`.

    Raises:
        DtypeError: not a tensor, or not integers. InputError: wrong dimensions, empty, too long, or ids out of range.
    """
    if not isinstance(tokens, Tensor):
        raise DtypeError(f"tokens came as a {type(tokens).__name__}; an integer tensor [batch, time] is wanted")
    if tokens.dtype not in (torch.int64, torch.int32):
        raise DtypeError(f"tokens have dtype {tokens.dtype}; int64 ids are wanted")
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise InputError(f"tokens have shape {tuple(tokens.shape)}; a batch [batch, time] with at least one is wanted")
    if tokens.shape[1] > length:
        raise InputError(f"texts have {tokens.shape[1]} tokens; this network reads at most {length}: cut them")
    low, high = torch.aminmax(tokens)
    if not holds((low >= 0) & (high < vocabulary)):
        raise InputError(
            f"token ids span {int(low)} to {int(high)}, the vocabulary is 0..{vocabulary - 1}; use its own tokenizer"
        )
    return tokens


class Attention(nn.Module):
    """Multi-head attention, spelt out: unlike the fused kernels it can be differentiated twice and mapped by `vmap`."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        if width % heads:
            raise SpecError(f"width = {width}, but it must be a multiple of heads = {heads}")
        self.heads, self.causal = heads, causal
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        batch, time, width = x.shape
        query, key, value = (
            layer(x).reshape(batch, time, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(2, 3) * (width // self.heads) ** -0.5
        if self.causal:
            later = torch.ones(time, time, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, time, width)
        return self.out(mixed)


class Block(nn.Module):
    """A transformer block, LayerNorm first: attention, then a two-layer perceptron four times as wide."""

    def __init__(self, width: int, heads: int, causal: bool = False):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads, causal)
        self.norm2 = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        x = x + self.attention(self.norm1(x))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
