"""The order of one network's neurons in which it is most like another's.

Two networks trained apart may have learnt much the same in different orders. Both functions give an order, one
permutation for each group of channels of `nn.permutation_spec`, in which network b is to be read beside network a.

`weight_match` compares weights: it looks for the order that maximises the inner product of all parameters,

    sum over tensors w of  <w_a, w_b in that order>,

or, the same, minimises the distance. All groups at once is NP-hard; with all others held, group g is a linear
assignment on A `[n, n]`, where A_ij adds up the inner products of channel i of a and channel j of b over all places of
g. Groups are solved in turn until none gains, or after `sweeps` rounds. Scales and shifts of normalisation layers
count, their running statistics, which follow their channels, do not. Needs no data; ends in a local optimum, which may
depend on the turn (`generator` draws it). Where a weight carries one group on both axes the problem is no assignment:
its solution is taken only if the inner product rises.

`activation_match` compares what the networks compute: for each group, Pearson's correlation of channel i of a and
channel j of b over samples and positions, taken where linear layers and convolutions read the group and, where several
do, added up. Each group is one assignment, with no turns. Needs a few hundred unlabelled inputs; channels that never
vary on them cannot be told apart.

Groups in blocks (GroupNorm) are assigned exactly, too: within each pair of blocks first, then blocks to blocks.

It cannot help when networks are narrow or trained so differently that no order makes them alike: then `barrier` stays
high, and renormalisation (`nn.renormalize`) is what is left.

>>> net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(50, 4)
>>> spec = permutation_spec(net, x[:2])
>>> mixed = spec.permuted(net, spec.random(torch.Generator().manual_seed(0)))
>>> found = spec.permuted(mixed, weight_match(net, mixed, spec))
>>> bool(torch.equal(found[0].weight, net[0].weight)), bool(torch.equal(found[2].weight, net[2].weight))
(True, True)

References: Ainsworth, Hayase, Srinivasa, Git re-basin, ICLR 2023 (weight matching); Li, Yosinski, Clune, Lipson,
Hopcroft, Convergent learning, 2015 (activation matching); Qu, Horvath, Rethink model re-basin, 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from homeostat.core.data import Data, check_finite
from homeostat.core.errors import CheckpointError, InputError, ModelError
from homeostat.core.fork import fork
from homeostat.core.intake import as_data
from homeostat.core.place import HOME, home, there
from homeostat.core.weights import as_weights
from homeostat.nn.permutation import ChannelPlace, PermutationSpec, moved, permutation_spec
from homeostat.nn.repair import LAYERS

Model = nn.Module | Mapping[str, Tensor] | str | Path


def weight_match(
    a: Model, b: Model, spec: PermutationSpec, generator: torch.Generator | None = None, sweeps: int = 100
) -> list[Tensor]:
    """The order of b's channels that brings its weights near a's.

    Args:
        a, b: networks, weights by name, or files of them.
        spec: of the architecture.
        generator: draws whose turn it is; by default groups take turns from the inputs on.
        sweeps: rounds at most.

    Raises:
        CheckpointError: weights are missing or of other shapes.
    """
    names = sorted({place.name for group in spec.groups for place in group.places} & spec.learnt)
    left, right = _wide(a, names), _wide(b, names)
    for name in names:
        if left[name].shape != right[name].shape:
            raise CheckpointError(f"{name} is {tuple(left[name].shape)} in a and {tuple(right[name].shape)} in b")
    order = spec.identity()
    for _ in range(sweeps):
        turns = range(len(order)) if generator is None else torch.randperm(len(order), generator=generator).tolist()
        gained = False
        for turn in turns:
            group = spec.groups[turn]
            places = [place for place in group.places if place.name in left]
            cost = sum(_alike(left[p.name], right[p.name], p) for p in places)
            assert isinstance(cost, Tensor)
            best = assign(cost, group.blocks)
            changed = {p.name: right[p.name] for p in places}
            before = _inner(left, changed)
            for place in places:
                changed[place.name] = moved(changed[place.name], place, best)
            if _inner(left, changed) - before > 1e-12 * float(cost.abs().sum()):
                right |= changed
                order[turn], gained = order[turn][best], True
        if not gained:
            break
    return order


def activation_match(
    a: nn.Module, b: nn.Module, data: Data | Any, spec: PermutationSpec | None = None, batch: int = 256
) -> list[Tensor]:
    """The order of b's channels in which they correlate most with a's.

    Args:
        a, b: networks of one architecture; they are not changed.
        data: inputs that both are shown; labels are not read.
        spec: of the architecture; found from the data when absent.
        batch: samples at a time.

    Raises:
        ModelError: no linear layer or convolution reads a group. InputError: no data.
    """
    data = as_data(data)
    if len(data) == 0:
        raise InputError("activations are matched on at least one sample; the data are empty")
    spec = permutation_spec(a, data.fetch(torch.arange(min(2, len(data)))).x) if spec is None else spec
    nets = [fork(net).eval() for net in (a, b)]
    readers = {name: module for name, module in nets[0].named_modules() if isinstance(module, LAYERS)}
    reads: list[tuple[int, ChannelPlace, str]] = []
    for number, group in enumerate(spec.groups):
        found = [
            (number, place, place.name.removesuffix(".weight")) for place in group.places if _reads(place, readers)
        ]
        if not found:
            raise ModelError(f"no linear layer or convolution reads the channels of {group.places[0].name}")
        reads += found
    sums = [_Moments() for _ in reads]
    for piece in data.batches(batch):
        check_finite(piece.x, "x")
        inputs = [_inputs(net, there(piece.x, net), {name for *_, name in reads}) for net in nets]
        for (_, place, name), total in zip(reads, sums, strict=True):
            total.add(*(_channels(found[name], readers[name], place) for found in inputs))
    costs: dict[int, Tensor] = {}
    for (number, *_), total in zip(reads, sums, strict=True):
        costs[number] = costs.get(number, 0) + total.correlation()
    return [assign(costs[number], group.blocks) for number, group in enumerate(spec.groups)]


def assign(cost: Float[Tensor, "channels channels"], blocks: int = 1) -> Tensor:
    """The permutation p that maximises `sum_i cost[i, p[i]]` and moves blocks as a whole.

    >>> assign(torch.tensor([[1.0, 3.0], [2.0, 0.0]]))
    tensor([1, 0])
    """
    values = cost.double().cpu().numpy()
    if blocks == 1:
        return torch.from_numpy(linear_sum_assignment(values, maximize=True)[1])
    size = len(values) // blocks
    tiles = values.reshape(blocks, size, blocks, size).swapaxes(1, 2)
    within = np.array([[linear_sum_assignment(tile, maximize=True)[1] for tile in row] for row in tiles])
    gains = np.take_along_axis(tiles, within[..., None], 3).sum((2, 3))
    to = linear_sum_assignment(gains, maximize=True)[1]
    return torch.from_numpy(np.concatenate([to[i] * size + within[i, to[i]] for i in range(blocks)]))


def alikeness(a: Model, b: Model, spec: PermutationSpec) -> float:
    """What `weight_match` maximises: the inner product of the parameters that channels stand in."""
    names = sorted({place.name for group in spec.groups for place in group.places} & spec.learnt)
    left, right = _wide(a, names), _wide(b, names)
    return _inner(left, right)


def _wide(model: Model, names: list[str]) -> dict[str, Tensor]:
    tensors = as_weights(model)
    if missing := [name for name in names if name not in tensors]:
        raise CheckpointError(f"weights to match are missing: {', '.join(missing[:5])}")
    return {name: tensors[name].to(HOME, torch.float64) for name in names}


def _inner(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    return float(sum((left[name] * tensor).sum() for name, tensor in right.items()))


def _alike(a: Tensor, b: Tensor, place: ChannelPlace) -> Tensor:
    rows = [t.movedim(place.axis, 0)[place.positions].flatten(1) for t in (a, b)]
    return rows[0] @ rows[1].T


def _reads(place: ChannelPlace, readers: Mapping[str, nn.Module]) -> bool:
    return place.axis == 1 and place.name.endswith(".weight") and place.name.removesuffix(".weight") in readers


def _inputs(net: nn.Module, x: Any, names: set[str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    handles = [
        net.get_submodule(name).register_forward_hook(lambda _, args, __, n=name: found.__setitem__(n, args[0]))
        for name in names
    ]
    try:
        with torch.no_grad():
            net(x)
    finally:
        for handle in handles:
            handle.remove()
    return {name: home(tensor) for name, tensor in found.items()}


def _channels(x: Tensor, layer: nn.Module, place: ChannelPlace) -> Tensor:
    """A layer's inputs by channel, `[channels, samples and positions]`."""
    rows = x.movedim(x.ndim - 1 if isinstance(layer, nn.Linear) else 1, 0)[place.positions]
    return rows.flatten(1).double()


class _Moments:
    """Sums from which the correlation of every channel of a with every channel of b follows."""

    def __init__(self) -> None:
        self.count, self.first, self.second, self.product = 0, [], [], torch.zeros(())

    def add(self, a: Tensor, b: Tensor) -> None:
        if not self.count:
            # Sums of differences from a typical value: large means would drown small deviations.
            self.near = [rows.mean(1, keepdim=True) for rows in (a, b)]
            self.first, self.second = [torch.zeros(len(a)).double() for _ in "ab"], [torch.zeros(len(a)).double()] * 2
        rows = [r - near for r, near in zip((a, b), self.near, strict=True)]
        self.count += a.shape[1]
        self.first = [total + r.sum(1) for total, r in zip(self.first, rows, strict=True)]
        self.second = [total + r.square().sum(1) for total, r in zip(self.second, rows, strict=True)]
        self.product = self.product + rows[0] @ rows[1].T

    def correlation(self) -> Tensor:
        """0 for a channel that never varies."""
        mean = [total / self.count for total in self.first]
        deviation = [(s / self.count - m.square()).clamp(min=0).sqrt() for s, m in zip(self.second, mean, strict=True)]
        scale = torch.outer(*deviation)
        both = self.product / self.count - torch.outer(*mean)
        return torch.where(scale > 1e-12 * scale.max(), both / scale.clamp(min=1e-300), 0.0)
