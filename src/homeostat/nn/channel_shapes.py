"""How operations that only rearrange tensors move the labels of their channels (`channel_tracing`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from homeostat.core.errors import ModelError
from homeostat.nn.channel_labels import Axis, Labels

Value = tuple[Axis, ...]
Given = Mapping[str, Any]


class Rearranging:
    """A rule for each operation: labels of its results, from those of its first tensor and its arguments by name."""

    labels: Labels
    step: int

    def value(self, tensor: Tensor) -> Value:
        """The labels of a tensor."""
        raise NotImplementedError

    def together(self, tensors: Iterable[Tensor]) -> Value:
        """Labels of an operation that works position by position, with broadcasting."""
        tensors = [t for t in tensors if t.ndim]
        shape = torch.broadcast_shapes(*(t.shape for t in tensors))
        out: list[Axis] = []
        for back in range(len(shape), 0, -1):
            size = shape[-back]
            axes = [self.value(t)[-back] for t in tensors if t.ndim >= back and t.shape[-back] == size]
            out.append(self.labels.join(*axes))
        return tuple(out)

    def _t(self, x: Value, given: Given, made: Sequence[Tensor]) -> list[Value]:
        return [x[::-1]]

    def _transpose(self, x: Value, given: Given, made: Sequence[Tensor]) -> list[Value]:
        order, a, b = list(x), given["dim0"], given["dim1"]
        order[a], order[b] = order[b], order[a]
        return [tuple(order)]

    def _permute(self, x: Value, given: Given, made: Sequence[Tensor]) -> list[Value]:
        return [tuple(x[d] for d in given["dims"])]

    def _unsqueeze(self, x: Value, given: Given, made: Sequence[Tensor]) -> list[Value]:
        at = given["dim"] % (len(x) + 1)
        return [(*x[:at], self.labels.fixed(1), *x[at:])]

    def _squeeze(self, x: Value, given: Given, made: Sequence[Tensor]) -> list[Value]:
        dims = given.get("dim", range(len(x)))
        gone = {d % len(x) for d in ([dims] if isinstance(dims, int) else dims) if len(x[d].ids) == 1}
        return [tuple(axis for d, axis in enumerate(x) if d not in gone)]

    def _expand(self, x: Value, given: Given, made: Sequence[Tensor]) -> list[Value]:
        shape = made[0].shape
        padded = [None] * (len(shape) - len(x)) + list(x)
        return [
            tuple(
                axis if axis is not None and len(axis.ids) == n else self.labels.constant(n, self.step)
                for axis, n in zip(padded, shape, strict=True)
            )
        ]

    def _slice(self, x: Value, given: Given, made: Sequence[Tensor]) -> list[Value]:
        d = given.get("dim", 0) % len(x)
        part = x[d].cut(slice(given.get("start"), given.get("end"), given.get("step", 1)))
        if len(part.ids) < len(x[d].ids):
            self.labels.mark([part], (self.step, 0))
        return [(*x[:d], part, *x[d + 1 :])]

    def _select(self, x: Value, given: Given, made: Sequence[Tensor]) -> list[Value]:
        d = given["dim"] % len(x)
        self.labels.freeze([x[d].cut([given["index"]])])
        return [(*x[:d], *x[d + 1 :])]

    def _split(self, x: Value, given: Given, made: Sequence[Tensor]) -> list[Value]:
        d, low, out = given.get("dim", 0) % len(x), 0, []
        for i, tensor in enumerate(made):
            part = x[d].cut(slice(low, low := low + tensor.shape[d]))
            self.labels.mark([part], (self.step, i))
            out.append((*x[:d], part, *x[d + 1 :]))
        return out

    _split_with_sizes = _split

    def _cat(self, x: Value, given: Given, made: Sequence[Tensor]) -> list[Value]:
        values = [self.value(t) for t in given["tensors"] if t.shape != (0,)]
        d = given.get("dim", 0) % len(x)
        for i, value in enumerate(values):
            self.labels.mark([value[d]], (self.step, i))
        columns = [
            Axis.joined(column) if at == d else self.labels.join(*column)
            for at, column in enumerate(zip(*values, strict=True))
        ]
        return [tuple(columns)]

    def _stack(self, x: Value, given: Given, made: Sequence[Tensor]) -> list[Value]:
        whole = list(self.together(given["tensors"]))
        whole.insert(given.get("dim", 0) % (len(x) + 1), self.labels.fixed(len(given["tensors"])))
        return [tuple(whole)]

    def _constant_pad_nd(self, x: Value, given: Given, made: Sequence[Tensor]) -> list[Value]:
        pad, out = given["pad"], list(x)
        for i in range(len(pad) // 2):
            d, left, right = len(x) - 1 - i, pad[2 * i], pad[2 * i + 1]
            if min(left, right) < 0:
                raise ModelError("padding by a negative width cuts channels off; slice them instead")
            around = [self.labels.constant(n, self.step) for n in (left, right)]
            out[d] = Axis.joined([around[0], x[d], around[1]])
        return [tuple(out)]
