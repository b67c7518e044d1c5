"""Several views of a batch through one network, each with BatchNorm statistics of its own.

A pass over one image costs little more than a pass over sixteen. Views of small batches therefore go through together,
and `grouped_statistics` keeps their statistics apart, so that the result is that of one pass a view. Views of large
batches fill a processor by themselves; they go one after another, which needs less memory.

>>> from homeostat.nn.norms import blend_batchnorm
>>> net, views = blend_batchnorm(nn.BatchNorm1d(2)), [torch.randn(4, 2) for _ in range(3)]
>>> with torch.no_grad():
...     together = view_outputs(net, views)
...     apart = torch.stack([net(view) for view in views])
>>> bool(torch.allclose(together, apart, atol=1e-6))
True
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from homeostat.nn.norms import grouped_statistics

TOGETHER = 64
"""Samples that go through a network in one pass, at most, when views are put together."""


def view_outputs(
    model: nn.Module, views: Iterable[Tensor], call: Callable[[Tensor], Tensor] | None = None, most: int = TOGETHER
) -> Tensor:
    """Outputs of every view, `[views, batch, ...]`.

    Args:
        model: its `BlendedBatchNorm` layers keep the views' statistics apart.
        views: tensors of one shape `[batch, ...]`; made when they are asked for.
        call: what to call in place of the model itself, with the same layers.
        most: samples in one pass; a view that is larger goes alone.
    """
    call, made, held = call or model, list[Tensor](), list[Tensor]()

    def go() -> None:
        with grouped_statistics(model, len(held)):
            out = call(torch.cat(held) if len(held) > 1 else held[0])
        made.extend(out.chunk(len(held)))
        held.clear()

    for view in views:
        held.append(view)
        if (len(held) + 1) * len(view) > most:
            go()
    if held:
        go()
    return torch.stack(made)
