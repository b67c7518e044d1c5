"""A transformer's stack of equal blocks: where it is, how large it is, and the same network in another size.

Methods that shrink, grow or share a transformer have to know three numbers, `width` (of the residual stream), `heads`
and `depth` (blocks one after another), and to build the network again with others. Both come from the network itself:
the library's transformers are built by arguments of these names, those of the `transformers` package by a
configuration with `hidden_size`, `num_attention_heads`, `num_hidden_layers` and `intermediate_size`.

>>> from homeostat.nn.vit import SmallViT
>>> net = SmallViT(size=8, width=16, depth=3)
>>> stack_of(net), sizes_of(net), sizes_of(resized(net, depth=5)).depth
('blocks', Sizes(width=16, heads=4, depth=3), 5)
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import nn

from homeostat.core.errors import ModelError
from homeostat.core.part import Part
from homeostat.core.random import seed_for
from homeostat.nn.transformers_models import Transformers

_CONFIG = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")


class Sizes(NamedTuple):
    """Numbers of a transformer.

    Attributes:
        width: of the residual stream.
        heads: of each attention layer.
        depth: number of blocks.
    """

    width: int
    heads: int
    depth: int


def sizes_of(model: nn.Module) -> Sizes:
    """Width, heads and depth.

    Raises:
        ModelError: the network does not say what it was built with.
    """
    inner: Any = model.model if isinstance(model, Transformers) else model
    if isinstance(inner, Part) and {"width", "heads", "depth"} <= set(inner.arguments()):
        return Sizes(inner.width, inner.heads, inner.depth)  # type: ignore[arg-type]
    config = getattr(inner, "config", None)
    if config is not None and all(hasattr(config, name) for name in _CONFIG):
        if getattr(config, "num_key_value_heads", config.num_attention_heads) != config.num_attention_heads:
            raise ModelError(f"{type(inner).__name__} shares keys among its heads (num_key_value_heads); it is refused")
        return Sizes(config.hidden_size, config.num_attention_heads, config.num_hidden_layers)
    raise ModelError(
        f"{type(model).__name__} has no width, heads and depth as arguments, and no configuration with "
        f"{', '.join(_CONFIG)}; give such a transformer (CausalTransformer, SmallViT, a BERT)"
    )


def stack_of(model: nn.Module) -> str:
    """The dotted name of the list of blocks: as many as the network is deep, of one class and of equal shapes.

    Raises:
        ModelError: there is none, or more than one.
    """
    depth, found = sizes_of(model).depth, []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Sequential, nn.ModuleList)) and len(module) == depth:
            kinds = {(type(block), tuple((n, p.shape) for n, p in block.named_parameters())) for block in module}
            if len(kinds) == 1 and any(True for _ in module.parameters()):
                found.append(name)
    # A block may itself hold a list as long; the outermost one is meant.
    outer = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    if len(outer) != 1:
        said = f"there are {len(outer)} ({', '.join(outer)})" if outer else "there is none"
        raise ModelError(f"one list of {depth} equal blocks is wanted in {type(model).__name__}; {said}")
    return outer[0]


def resized(
    model: nn.Module, width: int | None = None, heads: int | None = None, depth: int | None = None, seed: int = 0
) -> nn.Module:
    """A new network of the same class with other sizes, at starting weights, in the given one's mode and dtype.

    Args:
        model: see the module's docstring; untouched.
        width, heads, depth: None keeps what the model has. The perceptrons grow and shrink with the width.
        seed: of the starting weights.

    Raises:
        ModelError: the network does not say what it was built with.
    """
    now = sizes_of(model)
    new = Sizes(width or now.width, heads or now.heads, depth or now.depth)
    if isinstance(model, Transformers):
        made: nn.Module = Transformers(_from_config(model.model, now, new, seed))
    elif isinstance(model, Part):
        changed: dict[str, Any] = {**model.arguments(), **new._asdict()}
        made = type(model)(**{**changed, **({"seed": seed} if "seed" in changed else {})})
    else:
        made = _from_config(model, now, new, seed)
    first = next(model.parameters())
    return made.to(device=first.device, dtype=first.dtype).train(model.training)


def _from_config(model: Any, now: Sizes, new: Sizes, seed: int) -> nn.Module:
    config = copy.deepcopy(model.config)
    grown = config.intermediate_size * new.width
    if grown % now.width:
        raise ModelError(f"intermediate_size = {config.intermediate_size} does not scale to width {new.width}")
    for name, value in zip(_CONFIG, (new.width, new.heads, new.depth, grown // now.width), strict=True):
        setattr(config, name, value)
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = new.heads
    # The package draws from the global generator, which is put back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "weights"))
        return type(model)(config)
