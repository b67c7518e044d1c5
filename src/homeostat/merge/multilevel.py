"""Multi-level training: shrink a transformer, train the small one, and let the large one start from what it learnt.

A step of a network of half the width and half the depth costs about an eighth, and much of what training has to find
is found there as well. Three operators move between the levels:

    coalesce      halve width and depth: units and blocks in a group become one
    de-coalesce   the way back: a unit becomes as many equal ones, a block as many equal blocks
    interpolate   theta = (1 - alpha) theta_large + alpha theta_projected

With groups of heads, F `[small, large]` averages a group (rows add up to 1) and holds whole heads: an identity of the
head's size stands where a head belongs to a group. N(.) divides every row by its sum, and T = N(F^T) is the way back.
With M = F or M = T, every axis of a tensor that the width changes is one of two kinds:

    what a layer gives   (rows and biases of linear layers, gains of norms, embeddings)   M W
    what a layer takes   (columns of linear layers)                                       W N(M^T)

so that taken units are summed where given ones are averaged: a large network whose units in a group are equal is
coalesced, and a small one widened, without changing what it computes. Depth: R averages a group of blocks, N(R^T)
copies. Embeddings that are also the output layer are taken as well as given; they are multiplied by the ratio of the
widths when coalescing and divided by it on the way back (the official code's 2 and 0.5), others are not.

Which axis is which is found by building the small network and comparing shapes: an axis of another length is mapped,
and the layer that holds it says of which kind it is. That takes tensors of `nn.Linear`, `nn.Conv2d`, `nn.Embedding`,
norm layers and biases, and single rows (`[1, n, width]`, such as positions). Refused with an error are fused
projections of queries, keys and values, `Conv1D` of GPT-2, and what cannot be built in another size (`nn.block_stack`).

The V-cycle: train the large one a little, coalesce, train the small one, de-coalesce, interpolate, train on. Defaults:
alpha = 0.25, the pairs (i, i + heads / 2) of heads and neighbouring pairs of blocks, all the official code's; learning
rates 1e-4, 4e-4, 1e-4 and lengths 1 : 10 : 10 of its GPT-2 example. With alpha = 1 the copies of a unit stay equal for
ever, as their gradients do: the larger width is unused. Near convergence of the large network nothing is saved.

>>> from homeostat.nn import CausalTransformer
>>> net = CausalTransformer(vocabulary=11, length=8, width=16, depth=2)
>>> small, maps = coalesce(net)
>>> maps
LevelMaps(width=((0, 2), (1, 3)), depth=((0, 1),), embedding=1.0)
>>> small.width, small.depth, small.heads, decoalesce(small, net, maps).width
(8, 1, 2, 16)

Reference: Zou, Zhang, Zhang, A Multi-Level Framework for Accelerating Training Transformer Models, ICLR 2024.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.core.errors import CheckpointError, InputError, ModelError, SpecError
from homeostat.core.fork import fork
from homeostat.core.method import Card, Remedy
from homeostat.core.run import Run
from homeostat.core.spec import Count, Fraction
from homeostat.core.world import World
from homeostat.fit.fit import Fit
from homeostat.fit.training import Recipe
from homeostat.nn.block_stack import resized, sizes_of, stack_of
from homeostat.nn.optimizers import Adam

Groups = Sequence[Sequence[int]] | Literal["half", "keep"]
Stage = Literal["down", "up", "last"]
_TAKES = (nn.Linear, nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True)
class LevelMaps:
    """How a large network and a small one belong together.

    Attributes:
        width, depth: heads and blocks of the large network that make up each of the small one.
        embedding: what embeddings are multiplied by when coalescing.
    """

    width: tuple[tuple[int, ...], ...]
    depth: tuple[tuple[int, ...], ...]
    embedding: float = 1.0

    def averages(self) -> Float[Tensor, "small large"]:
        """F, a number a head."""
        made = torch.zeros(len(self.width), sum(map(len, self.width)), dtype=torch.float64)
        for row, group in zip(made, self.width, strict=True):
            row[list(group)] = 1 / len(group)
        return made

    def copies(self) -> Float[Tensor, "large small"]:
        """T = N(F^T)."""
        return _by_rows(self.averages().T)


def coalesce(
    model: nn.Module, width: Groups | Any = "half", depth: Groups | Any = "half", embedding: float | None = None
) -> tuple[nn.Module, LevelMaps]:
    """The small network, and how it belongs to the large one.

    Args:
        model: a transformer; untouched.
        width: heads in each group, every head once; `"half"` pairs i with i + heads / 2, `"keep"` leaves the width.
        depth: blocks in each group; `"half"` pairs neighbours, `"keep"` leaves the depth.
        embedding: scale of embeddings; default heads / groups where one is also the output layer, else 1.

    Raises:
        ModelError: the network is refused; see the module's docstring. InputError: groups do not hold every one once.
    """
    now = sizes_of(model)
    heads, blocks = _groups(width, now.heads, "heads"), _groups(depth, now.depth, "blocks")
    if embedding is None:
        embedding = now.heads / len(heads) if _tied(model) else 1.0
    maps = LevelMaps(heads, blocks, float(embedding))
    small = resized(model, now.width // now.heads * len(heads), len(heads), len(blocks))
    _fill(small, model, model, small, maps.averages(), lambda i: maps.depth[i], maps.embedding)
    return small, maps


def decoalesce(small: nn.Module, model: nn.Module, maps: LevelMaps) -> nn.Module:
    """A network as large as `model` whose weights are those of the small one, projected back.

    Of the large `model` only the structure is used; the maps come from `coalesce`.
    """
    counts = [(len(g), sum(map(len, g))) for g in (maps.width, maps.depth)]
    if counts != [(few, many) for few, many in zip(sizes_of(small)[1:], sizes_of(model)[1:], strict=True)]:
        raise InputError(f"the maps are of other networks: {sizes_of(small)} and {sizes_of(model)} do not fit {counts}")
    made = fork(model, own="*")
    above = {block: (number,) for number, group in enumerate(maps.depth) for block in group}
    _fill(made, small, model, small, maps.copies(), lambda i: above[i], 1 / maps.embedding)
    return made


def interpolate(model: nn.Module, projected: nn.Module, alpha: float = 0.25) -> nn.Module:
    """`(1 - alpha) model + alpha projected`, parameter by parameter; buffers stay the model's.

    Raises:
        InputError: alpha is not in 0..1. CheckpointError: parameters do not fit.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is a share in 0..1; got {alpha}")
    made, others = fork(model, own="*"), dict(projected.named_parameters())
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name not in others or others[name].shape != parameter.shape:
                raise CheckpointError(f"the projected network has no {name} of shape {tuple(parameter.shape)}")
            parameter.lerp_(others[name].to(parameter), alpha)
    return made


def v_cycle(
    model: nn.Module,
    train: Callable[[nn.Module, int, Stage], nn.Module],
    levels: int = 2,
    alpha: float = 0.25,
    shrink: Literal["both", "width", "depth"] = "both",
) -> nn.Module:
    """Train through the levels and return the large network, trained.

    Args:
        model: the large network.
        train: `(network, level, stage) -> trained network`, level 0 the largest. Stage `"down"` is before coalescing,
            `"up"` is training on the smallest level and, after interpolation, on those between, `"last"` the end.
        levels: how many networks there are; alpha: share of the projected weights.
        shrink: what is halved from level to level.
    """
    if levels < 2:
        raise InputError(f"a V-cycle has at least 2 levels; got {levels}")
    width, depth = ["keep" if shrink == other else "half" for other in ("depth", "width")]
    above = list[tuple[nn.Module, LevelMaps]]()
    for level in range(levels - 1):
        large = train(model, level, "down")
        model, maps = coalesce(large, width, depth)
        above.append((large, maps))
    model = train(model, levels - 1, "up")
    for level in reversed(range(levels - 1)):
        large, maps = above[level]
        model = interpolate(large, decoalesce(model, large, maps), alpha)
        model = train(model, level, "up" if level else "last")
    return model


@dataclass(frozen=True)
class MultiLevel(Remedy):
    """Trains a transformer on the source through smaller ones, in a V-cycle.

    Attributes:
        levels: how many networks there are, the given one with them.
        alpha: share of the projected weights when interpolating.
        shrink: what is halved from level to level.
        down: training before a network is coalesced.
        up: training of the smallest network, and of those between after interpolation.
        last: training of the large one at the end.
    """

    levels: Count = 2
    alpha: Fraction = 0.25
    shrink: Literal["both", "width", "depth"] = "both"
    down: Recipe = Recipe(optimizer=Adam(lr=1e-4, weight_decay=0.01, decoupled=True))
    up: Recipe = Recipe(optimizer=Adam(lr=4e-4, weight_decay=0.01, decoupled=True), epochs=10)
    last: Recipe = Recipe(optimizer=Adam(lr=1e-4, weight_decay=0.01, decoupled=True), epochs=10)

    card: ClassVar[Card] = Card(
        id="S132", paper="Zou et al., A multi-level framework, ICLR 2024", handles=frozenset({"none"}),
        needs=frozenset({"source.x", "source.y", "model.norm", "model.linear"}), passes=30.0,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels < 2:
            raise SpecError(f"MultiLevel.levels = {self.levels}, but it must be >= 2")

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        recipes: dict[str, Recipe] = {"down": self.down, "up": self.up, "last": self.last}

        def train(net: nn.Module, level: int, stage: Stage) -> nn.Module:
            return Fit(recipe=recipes[stage])(net, world, run=run.replace(seed=run.seed_for(stage, level)))

        return v_cycle(model, train, self.levels, self.alpha, self.shrink)


def _by_rows(matrix: Tensor) -> Tensor:
    return matrix / matrix.sum(1, keepdim=True)


def _groups(groups: Any, count: int, what: str) -> tuple[tuple[int, ...], ...]:
    if isinstance(groups, str):
        if groups == "keep":
            return tuple((i,) for i in range(count))
        if groups != "half":
            raise InputError(f"groups of {what} are lists of numbers, 'half' or 'keep'; got {groups!r}")
        if count % 2:
            raise InputError(f"{count} {what} cannot be halved; give the groups, such as [[0, 1], [2]], or 'keep'")
        half = count // 2
        return tuple((i, i + half) if what == "heads" else (2 * i, 2 * i + 1) for i in range(half))
    made = tuple(tuple(int(i) for i in group) for group in groups)
    if sorted(i for group in made for i in group) != list(range(count)) or not all(made):
        raise InputError(f"groups of {what} must hold each of 0..{count - 1} once, and none be empty; got {made}")
    return made


def _tied(model: nn.Module) -> bool:
    taken = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    return any(id(m.weight) in taken for m in model.modules() if isinstance(m, nn.Embedding))


def _fill(
    made: nn.Module, source: nn.Module, large: nn.Module, small: nn.Module, given: Tensor,
    blocks: Callable[[int], tuple[int, ...]], embedding: float,
) -> None:  # fmt: skip
    """Put the source's tensors, projected, into `made`."""
    axes, pattern = _axes(large, small), re.compile(rf"({re.escape(stack_of(large))}\.)(\d+)(\..+)")
    taken, before = _by_rows(given.T).T, dict(source.named_parameters())
    embeddings = {f"{n}.weight" for n, m in made.named_modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            found = pattern.fullmatch(name)
            names = [name] if found is None else [f"{found[1]}{i}{found[3]}" for i in blocks(int(found[2]))]
            tensor = torch.stack([before[n].double() for n in names]).mean(0)
            for axis, takes in axes[name if found is None else f"{found[1]}0{found[3]}"]:
                tensor = _along(tensor, axis, taken if takes else given)
            parameter.copy_(tensor * embedding if name in embeddings else tensor)


def _along(tensor: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """The matrix applied along an axis that holds as many numbers for each head."""
    matrix, tensor = matrix.to(tensor), tensor.movedim(axis, 0)
    shape = tensor.shape
    made = matrix @ tensor.reshape(matrix.shape[1], -1)
    return made.reshape(shape[0] // matrix.shape[1] * matrix.shape[0], *shape[1:]).movedim(0, axis)


def _axes(large: nn.Module, small: nn.Module) -> dict[str, list[tuple[int, bool]]]:
    """For each parameter the axes that the width changes, and whether the layer takes (or gives) them."""
    found, others = dict[str, list[tuple[int, bool]]](), dict(small.named_parameters())
    wide, narrow = sizes_of(large).width, sizes_of(small).width
    for name, parameter in large.named_parameters():
        if name not in others:  # of a block that the small network lacks; the first one speaks for all
            continue
        pairs = enumerate(zip(parameter.shape, others[name].shape, strict=True))
        changed = [axis for axis, (a, b) in pairs if a != b]
        found[name] = [(axis, _takes(large, name, parameter, axis, changed)) for axis in changed]
        for axis in changed:
            if parameter.shape[axis] * narrow != others[name].shape[axis] * wide:
                raise ModelError(f"{name} goes from {tuple(parameter.shape)} to {tuple(others[name].shape)}: refused")
    for name, buffer in large.named_buffers():
        if buffer.is_floating_point() and buffer.shape != small.get_buffer(name).shape:
            raise ModelError(f"the buffer {name} depends on the width; networks with statistics are refused")
    return found


def _takes(large: nn.Module, name: str, parameter: Tensor, axis: int, changed: list[int]) -> bool:
    owner = large.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, _TAKES) and name.endswith("weight") and getattr(owner, "groups", 1) == 1:
        if len(parameter) == 3 * parameter.shape[1] and len(changed) == 2:
            raise ModelError(f"{name} looks like queries, keys and values in one layer, which is refused: split it")
        return axis == 1
    row = parameter.ndim == 1 or (len(changed) == 1 and axis == parameter.ndim - 1 and len(parameter) == 1)
    if row or (isinstance(owner, nn.Embedding) and axis == 1):
        return False
    raise ModelError(f"how {name} of a {type(owner).__name__} goes with the width is not known; it is refused")
