"""Features by layer name, taken during a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from homeostat.core.errors import ModelError, nearest
from homeostat.core.tree import Tree


def head(model: nn.Module) -> str:
    """Name of the last linear layer, which makes the outputs.

    Raises:
        ModelError: the model has no linear layer.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ModelError(f"{type(model).__name__} has no linear layer; name the layer whose input is the features")
    return names[-1]


@contextmanager
def tap(model: nn.Module, layer: str | None = None, *, output: bool = False) -> Iterator[list[Tensor]]:
    """Collect what goes into a layer (or comes out of it) during the forward passes inside the `with`.

    Args:
        model: one's own fork; a hook is on it while inside.
        layer: dotted name; default the last linear layer.
        output: collect the layer's output instead of its input.
    """
    name = head(model) if layer is None else layer
    try:
        tapped_layer = model.get_submodule(name)
    except AttributeError:
        known = dict(model.named_modules())
        raise ModelError(f"{type(model).__name__} has no layer {name!r}.{nearest(name, known)}") from None
    kept: list[Tensor] = []

    def hook(module: nn.Module, args: Any, result: Any) -> None:
        value = result if output else args[0]
        kept.append(value[0] if isinstance(value, tuple) else value)

    handle = tapped_layer.register_forward_hook(hook)
    try:
        yield kept
    finally:
        handle.remove()


def tapped(call: Callable[[Tree], Tree], x: Tree, model: nn.Module, layer: str | None = None) -> tuple[Tree, Tensor]:
    """`(outputs, features)` of one call; features are flattened to `[batch, features]`."""
    with tap(model, layer) as kept:
        out = call(x)
    if not kept:
        raise ModelError(f"layer {layer or head(model)!r} was not used in the forward pass; name another layer")
    return out, kept[-1].flatten(1)
