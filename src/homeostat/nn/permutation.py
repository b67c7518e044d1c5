"""Which neurons of a network can change places, and a network with its neurons in another order.

Swapping two neurons of a hidden layer, with what goes into them and what comes out, gives another point in weight
space and the same function. Before networks are averaged their neurons have to be brought into one order, and before
neurons are removed one has to know every tensor that they stand in. `permutation_spec` finds both by watching a
forward pass (`channel_tracing`); nothing has to be written for an architecture. A set of channels g of size n has
places: for each (tensor, axis) the positions that each channel fills, one of a linear layer or convolution, height *
width of a linear layer behind a flattening. With `order[g]` `[n]`, a permutation,

    new tensor at positions of channel i  =  old tensor at positions of channel order[g][i]

in all places of g, BatchNorm's scale, shift and running statistics among them.

Linear layers and convolutions, Batch-, Group-, Layer- and InstanceNorm, residual streams with projected and with padded
shortcuts, concatenation, pooling and flattening are understood, and of a transformer the residual stream and the hidden
layers of its perceptrons; attention's heads stay. With a GroupNorm, channels change places within a group, and where
each of its groups holds all of a set's channels also whole groups. What is found is checked: a network permuted at
random must give the same outputs on the example. What cannot be watched, or is not understood, is refused. Channels
that are told apart by the *values* of inputs, as in networks that branch on them, are beyond this.

>>> net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
>>> spec = permutation_spec(net, torch.rand(2, 4))
>>> [(group.size, [(place.name, place.axis) for place in group.places]) for group in spec.groups]
[(8, [('0.weight', 0), ('0.bias', 0), ('1.weight', 0), ('1.bias', 0), ('1.running_mean', 0), ('1.running_var', 0),
('3.weight', 1)])]
>>> order = spec.random(torch.Generator().manual_seed(0))
>>> permuted, x = spec.permuted(net, order), torch.rand(5, 4)
>>> bool(torch.equal(net[0].weight, permuted[0].weight)), bool(torch.allclose(net.eval()(x), permuted.eval()(x)))
(False, True)

Reference: Ainsworth, Hayase, Srinivasa, Git re-basin: merging models modulo permutation symmetries, ICLR 2023 (the
symmetries; its specifications are written by hand).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from homeostat.core.errors import HomeostatError, InputError, ModelError
from homeostat.core.fork import fork
from homeostat.core.holding import holding
from homeostat.core.place import HOME
from homeostat.core.tree import Tree, leaves, map_tree
from homeostat.core.weights import weights
from homeostat.nn.channel_tracing import watch

Order = Sequence[Int[Tensor, " _"]]
"""For each group a permutation: which channel comes to each place."""


@dataclass(frozen=True)
class ChannelPlace:
    """Where a group stands: along an axis of a tensor, channel i at `positions[i]`.

    Attributes:
        name, axis: of the tensor.
        positions: int64 `[channels, positions each]`.
    """

    name: str
    axis: int
    positions: Int[Tensor, "channels each"]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can change places with each other.

    Attributes:
        places: where they stand, all of which must be permuted together.
        blocks: of this many equal blocks each moves as a whole; channels are free within. 1: all are free.
    """

    places: tuple[ChannelPlace, ...]
    blocks: int = 1

    @property
    def size(self) -> int:
        """The number of channels."""
        return len(self.places[0].positions)


@dataclass(frozen=True)
class PermutationSpec:
    """All sets of channels of a network that can be permuted.

    Attributes:
        groups: the sets, in the order of the network's weights.
        learnt: names of the tensors that are parameters, not statistics.
        tied: further names of tensors that have several.
    """

    groups: tuple[ChannelGroup, ...]
    learnt: frozenset[str]
    tied: Mapping[str, str]

    def identity(self) -> list[Tensor]:
        """The order that changes nothing."""
        return [torch.arange(group.size) for group in self.groups]

    def random(self, generator: torch.Generator) -> list[Tensor]:
        """An order drawn evenly from all."""
        return [_drawn(group, generator) for group in self.groups]

    def apply(self, tensors: Mapping[str, Tensor], order: Order) -> dict[str, Tensor]:
        """Weights by name in another order; tensors without channels are handed through.

        Raises:
            InputError: the order does not fit.
        """
        self.check(order)
        out = {name: tensors[name] for name in tensors}
        for group, each in zip(self.groups, order, strict=True):
            for place in group.places:
                out[place.name] = moved(out[place.name], place, each)
        return out | {name: out[known] for name, known in self.tied.items()}

    def permuted(self, model: nn.Module, order: Order) -> nn.Module:
        """A fork of the network in another order: the same function."""
        return holding(model, self.apply(weights(model), order))

    def check(self, order: Order) -> None:
        """Raise `InputError` unless there is a permutation for each group that keeps its blocks."""
        if len(order) != len(self.groups):
            raise InputError(f"there are {len(order)} permutations for {len(self.groups)} groups of channels")
        for number, (group, each) in enumerate(zip(self.groups, order, strict=True)):
            if not torch.equal(each.cpu().sort().values, torch.arange(group.size)):
                raise InputError(f"order[{number}] is no permutation of {group.size} channels")
            block = each.view(group.blocks, -1) // (group.size // group.blocks)
            if not bool((block == block[:, :1]).all()):
                raise InputError(f"order[{number}] tears apart blocks that a GroupNorm holds together")


def permutation_spec(model: nn.Module, example: Tree) -> PermutationSpec:
    """The channels of a network that can change places.

    Args:
        model: any network; it is run in evaluation mode, on a copy in double precision, and not changed.
        example: inputs of a few samples; two are enough.

    Raises:
        ModelError: the network cannot be watched, or is not understood, or has no such channels.
    """
    net = fork(model, own="*").to(HOME).double().eval()
    net.requires_grad_(False)
    x = map_tree(lambda t: t.detach().to(HOME, torch.float64 if t.is_floating_point() else t.dtype), example)
    name = type(model).__name__
    try:
        found, tied = watch(net, x)
    except HomeostatError as error:
        raise ModelError(f"the channels of {name} cannot be followed: {error}") from None
    except (RuntimeError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ModelError(f"the channels of {name} cannot be followed; its forward pass fails: {error}") from error
    if not found:
        raise ModelError(f"{name} has no hidden channels that could change places")
    groups = []
    for places in found:
        made = tuple(ChannelPlace(n, axis, torch.from_numpy(p.positions)) for (n, axis), p in places.items())
        groups.append(ChannelGroup(made, next(iter(places.values())).blocks))
    spec = PermutationSpec(tuple(groups), frozenset(n for n, _ in model.named_parameters()), tied)
    _check(net, spec, x, name)
    return spec


def moved(tensor: Tensor, place: ChannelPlace, order: Int[Tensor, " channels"]) -> Tensor:
    """A tensor with the channels at one place in another order."""
    positions = place.positions.to(tensor.device)
    taken = tensor.index_select(place.axis, positions[order.to(tensor.device)].flatten())
    return tensor.index_copy(place.axis, positions.flatten(), taken)


def _drawn(group: ChannelGroup, generator: torch.Generator) -> Tensor:
    each = group.size // group.blocks
    blocks = torch.randperm(group.blocks, generator=generator)
    return torch.cat([b * each + torch.randperm(each, generator=generator) for b in blocks])


def _check(net: nn.Module, spec: PermutationSpec, x: Tree, name: str) -> None:
    """Any permutation must leave the outputs as they are: a rule that misjudged an operation is found here."""
    order = spec.random(torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = net(x), spec.permuted(net, order)(x)
    for a, b in zip(leaves(before), leaves(after), strict=True):
        if a.is_floating_point() and not torch.allclose(a, b, rtol=1e-6, atol=1e-6 * max(1.0, float(a.abs().max()))):
            raise ModelError(f"the channels of {name} are not understood: in another order it gives other outputs")
