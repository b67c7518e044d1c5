"""Which channels of a network's tensors are one and the same, found by watching a forward pass.

Every axis of every weight starts with labels of its own, one for each position. Then the network runs once on an
example, and each operation says which labels are the same: a product of matrices joins what it sums over, an addition
joins its terms position by position (a residual stream becomes one set of channels), BatchNorm joins its five vectors
with the channels that they scale, flattening spreads a channel over several positions, padding with a constant adds
positions that belong to whatever they are added to. What meets the inputs, the outputs, positions of pixels, or
something that knows positions (attention's heads, grouped convolutions) is fixed.

Two channels can change places if they stand in the same axes of the same weights, and nothing else told them apart:
no slice, no part of a concatenation, and no group of a GroupNorm. An operation of which nothing is known is refused.

>>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
>>> [sorted(channels) for channels in watch(net, torch.zeros(1, 2))[0]]
[[('0.bias', 0), ('0.weight', 0), ('2.weight', 1)]]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from homeostat.core.errors import ModelError
from homeostat.core.tree import Tree, leaves
from homeostat.core.weights import weights
from homeostat.nn.channel_labels import Labels, Places
from homeostat.nn.channel_shapes import Given, Rearranging, Value


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ELEMENTWISE = _names(
    "abs add addcdiv addcmul alias atan bitwise_and bitwise_not bitwise_or ceil celu clamp clamp_max clamp_min "
    "clone contiguous cos detach div elu eq erf exp expm1 floor fmod ge gelu gt hardsigmoid hardswish hardtanh "
    "isfinite isnan leaky_relu le lerp lift_fresh lift_fresh_copy log log1p log_sigmoid_forward logical_and "
    "logical_not logical_or lt maximum minimum mish mul ne neg pow reciprocal relu relu6 remainder round rsqrt "
    "rsub selu sigmoid sign silu sin softplus sqrt square sub tan tanh threshold to true_divide where "
    "_prelu_kernel _to_copy"
)
REDUCTIONS = _names("all amax amin aminmax any linalg_vector_norm logsumexp mean norm prod std sum var var_mean")
CONSTANTS = _names("full full_like new_full new_ones new_zeros ones ones_like zeros zeros_like")
POOLS = _names(
    "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d avg_pool2d avg_pool3d max_pool2d_with_indices "
    "max_pool3d_with_indices mkldnn_max_pool2d reflection_pad1d reflection_pad2d replication_pad1d "
    "replication_pad2d upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d "
    "upsample_nearest2d"
)
BATCH_NORMS = _names(
    "_batch_norm_impl_index _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm "
    "miopen_batch_norm native_batch_norm"
)
VIEWS = _names("_reshape_alias _unsafe_view flatten reshape view")


def watch(model: nn.Module, example: Tree) -> tuple[list[dict[tuple[str, int], Places]], Mapping[str, str]]:
    """Sets of channels that may change places, and names of tied tensors.

    Args:
        model: one's own, in evaluation mode; it is run once.
        example: a few samples.

    Returns:
        For each set, where its channels stand: `(tensor's name, axis)` to positions `[channels, positions each]`, in
        which equal rows of blocks are those that move as a whole; and for a tensor of several names the other names.

    Raises:
        ModelError: an operation is not known.
    """
    named, first, tied = weights(model), dict[int, str](), dict[str, str]()
    held = model.state_dict(keep_vars=True)
    for name in named:
        if (known := first.setdefault(id(held[name]), name)) != name:
            tied[name] = known
    watcher = _Watcher({name: held[name] for name in first.values()})
    with torch.no_grad(), watcher:
        out = model(example)
    for leaf in leaves(out):
        watcher.labels.freeze(watcher.value(leaf))
    return watcher.labels.interchangeable(watcher.named), tied


class _Watcher(Rearranging, TorchDispatchMode):
    """Labels the axes of all tensors of a forward pass."""

    def __init__(self, named: Mapping[str, Tensor]):
        super().__init__()
        self.labels, self.step = Labels(), 0
        self.values: dict[int, Value | None] = {}
        self.kept: list[Tensor] = []  # ids are those of living tensors only
        self.named = {name: tuple(self.labels.fresh(n) for n in tensor.shape) for name, tensor in named.items()}
        for name, tensor in named.items():
            self.assign(tensor, self.named[name])

    def assign(self, tensor: Tensor, value: Value | None) -> None:
        self.values[id(tensor)] = value
        self.kept.append(tensor)

    def value(self, tensor: Tensor) -> Value:
        """The labels of a tensor; one that no operation made and that is no weight is fixed."""
        if id(tensor) not in self.values:
            self.assign(tensor, tuple(map(self.labels.fixed, tensor.shape)))
        value = self.values[id(tensor)]
        if value is None:
            raise ModelError("the network uses a second result of an operation, whose channels are not known")
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        self.step += 1
        names = [argument.name for argument in func._schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if not made:
            return out
        if name.endswith("_") and isinstance(args[0], Tensor):
            if any((axis.ids < 0).any() for axis in self.value(args[0])):
                raise ModelError(f"the network writes into a constant tensor ({name}); join tensors with torch.cat")
            name = name[:-1]
        found = self.rule(name, given, made)
        for i, tensor in enumerate(made):
            value = found[i] if i < len(found) else None
            if value is not None and tuple(len(axis.ids) for axis in value) != tuple(tensor.shape):
                raise ModelError(f"channels through {name} are not understood for results {tuple(tensor.shape)}")
            self.assign(tensor, value)
        return out

    def rule(self, name: str, given: Given, made: Sequence[Tensor]) -> list[Value]:
        """Labels of what an operation made, from those of what it was given."""
        labels, tensors = self.labels, [leaf for leaf in tree_leaves(dict(given)) if isinstance(leaf, Tensor)]
        if name in CONSTANTS:
            return [tuple(labels.constant(n, self.step) for n in made[0].shape)]
        if not tensors:
            return [tuple(map(labels.fixed, tensor.shape)) for tensor in made]
        if name in ELEMENTWISE:
            return [self.together(tensors)]
        values = [self.value(tensor) for tensor in tensors]
        x = values[0]
        if name in VIEWS:
            return [labels.reshaped(x, tuple(tensors[0].shape), tuple(made[0].shape))]
        if name in POOLS:
            keep = len(x) - _digit(name)
            labels.freeze(x[keep:])
            return [(*x[:keep], *map(labels.fixed, made[0].shape[keep:]))]
        if name in REDUCTIONS:
            return self.reduced(x, given.get("dim"), made)
        if name in BATCH_NORMS:
            for value in values[1:]:
                if len(value[0].ids) == len(x[1].ids):
                    labels.join(x[1], value[0])
            return [x]
        if name.startswith("_scaled_dot_product"):
            labels.freeze(axis for value in values for axis in value)
            return [tuple(map(labels.fixed, made[0].shape))]
        special = getattr(self, f"_{name.strip('_')}", None)
        if special is None:
            raise ModelError(f"no rule says how the operation {name} moves channels, so they cannot be permuted")
        return special(x, given, made)

    def reduced(self, x: Value, dim: Any, made: Sequence[Tensor]) -> list[Value]:
        dims = range(len(x)) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
        gone = {d % len(x) for d in dims} if x else set()
        self.labels.mark((x[d] for d in gone), (self.step, 0))
        if made[0].ndim == len(x):
            out = tuple(self.labels.fixed(1) if d in gone else axis for d, axis in enumerate(x))
        else:
            out = tuple(axis for d, axis in enumerate(x) if d not in gone)
        return [out] * len(made)

    def product(self, a: Value, b: Value) -> Value:
        """Labels of a matrix product, of one matrix or a batch of them."""
        self.labels.mark([self.labels.join(a[-1], b[-2])], (self.step, 0))
        batch = tuple(self.labels.join(p, q) for p, q in zip(a[:-2], b[:-2], strict=True))
        return (*batch, a[-2], b[-1])

    def _mm(self, x: Value, given: Given, made: Sequence[Tensor]) -> list[Value]:
        return [self.product(x, self.value(given["mat2"]))]

    _bmm = _mm

    def _addmm(self, x: Value, given: Given, made: Sequence[Tensor]) -> list[Value]:
        names = ("mat1", "mat2") if "mat1" in given else ("batch1", "batch2")
        product = self.product(*(self.value(given[name]) for name in names))
        for axis, other, size in zip(x[::-1], product[::-1], made[0].shape[::-1], strict=False):
            if len(axis.ids) == size:
                self.labels.join(axis, other)
        return [product]

    _baddbmm = _addmm

    def _convolution(self, x: Value, given: Given, made: Sequence[Tensor]) -> list[Value]:
        labels, groups = self.labels, given["groups"]
        weight = self.value(given["weight"])
        labels.freeze((*weight[2:], *x[2:]))
        into, out = (weight[0], weight[1]) if given["transposed"] else (weight[1], weight[0])
        if groups == 1:
            labels.mark([labels.join(x[1], into)], (self.step, 0))
        elif groups == len(x[1].ids) == len(weight[0].ids) == made[0].shape[1]:
            out = labels.join(x[1], weight[0])
        else:
            labels.freeze((x[1], *weight))
            out = labels.fixed(made[0].shape[1])
        if given["bias"] is not None:
            labels.join(out, self.value(given["bias"])[0])
        return [(x[0], out, *map(labels.fixed, made[0].shape[2:]))]

    def _native_group_norm(self, x: Value, given: Given, made: Sequence[Tensor]) -> list[Value]:
        channels, groups = given["C"], given["group"]
        for name in ("weight", "bias"):
            if given.get(name) is not None:
                self.labels.join(x[1], self.value(given[name])[0])
        if groups == 1:
            self.labels.mark([x[1]], (self.step, 0))
        elif groups < channels:
            self.labels.sizes[self.step] = channels // groups
            for g in range(groups):
                self.labels.mark(
                    [x[1].cut(slice(g * channels // groups, (g + 1) * channels // groups))], (self.step, g)
                )
        return [x]

    def _native_layer_norm(self, x: Value, given: Given, made: Sequence[Tensor]) -> list[Value]:
        last = x[len(x) - len(given["normalized_shape"]) :]
        for name in ("weight", "bias"):
            if given.get(name) is not None:
                for axis, other in zip(last, self.value(given[name]), strict=True):
                    self.labels.join(axis, other)
        self.labels.mark(last, (self.step, 0))
        return [x]

    def _softmax(self, x: Value, given: Given, made: Sequence[Tensor]) -> list[Value]:
        self.labels.mark([x[given["dim"]]], (self.step, 0))
        return [x]

    _log_softmax = _softmax

    def _embedding(self, x: Value, given: Given, made: Sequence[Tensor]) -> list[Value]:
        weight = self.value(given["weight"])
        self.labels.freeze(weight[:1])
        return [(*map(self.labels.fixed, given["indices"].shape), weight[1])]


def _digit(name: str) -> int:
    return next(int(c) for c in name if c.isdigit())
