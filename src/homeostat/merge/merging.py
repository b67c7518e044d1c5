"""What every merge is made of: groups of tensors of one name, cut into blocks that are combined one by one.

A merging method says how a block of the base and the same block of every donor become a block of the result. The
engine walks the tensors, reads, widens, checks and writes; so a method of some lines works on modules in memory and
on checkpoints that are larger than the memory, and gives the same numbers for both.

A method may look at more than a block first: at all tensors (`survey`: a threshold over the model) and at one tensor
(`constants`: its norm, a threshold of its own). Randomness is drawn by tensor, donor and block, so that neither threads
nor files change it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import annotated_types as at
import torch
from torch import Tensor, nn

from homeostat.core.data import Data
from homeostat.core.errors import CheckpointError, InputError, MissingPart
from homeostat.core.fork import Pattern, fork, matches
from homeostat.core.holding import holding
from homeostat.core.mapped import Mapped
from homeostat.core.method import Remedy
from homeostat.core.place import home
from homeostat.core.run import Run
from homeostat.core.spec import Fraction
from homeostat.core.weights import Weights, as_weights, weights
from homeostat.core.world import World

BLOCK = 1 << 17
"""Elements of a block: few enough for a core's cache, and enough that threads do not wait for the interpreter."""

Density = Annotated[float, at.Gt(0), at.Le(1)]
Densities = Density | tuple[Density, ...]
Fractions = Fraction | tuple[Fraction, ...]
Numbers = float | tuple[float, ...]
"""One for all donors, or one a donor in their order; so are the two above."""

T = TypeVar("T")
Grain = Literal["element", "row", "tensor"]


@dataclass(frozen=True, eq=False)
class Block:
    """The same place in every tensor of a group, widened.

    Attributes:
        base: of the base: `[elements]`; `[rows, columns]` for methods that go by rows (the first dimension and all
            others; a vector is one row); or the tensor in its shape for those that want it whole. float32, or float64
            where the base is.
        donors: the same of each donor, read one after another.
        start: the first element's place in the flattened tensor.
        group: that it is of.
    """

    base: Tensor
    donors: Sequence[Tensor]
    start: int
    group: Group

    def deltas(self) -> Iterator[Tensor]:
        """Each donor less the base, one after another: tensors of the caller's own."""
        for donor in self.donors:
            wide = donor.to(self.base.dtype)
            yield wide.sub_(self.base) if wide is not donor else torch.sub(donor, self.base)


@dataclass(frozen=True, eq=False)
class Group:
    """One tensor of the merged model, and those that it is made of.

    Attributes:
        name: in the merged model.
        base: the tensor that changes are measured from.
        donors: mappings and the tensor's name in each.
        dtype: to write.
        shape: of it and of them.
        called: what messages call the donors.
    """

    name: str
    base: tuple[Mapping[str, Tensor], str]
    donors: tuple[tuple[Mapping[str, Tensor], str], ...]
    dtype: torch.dtype
    shape: tuple[int, ...]
    called: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Elements."""
        return int(torch.Size(self.shape).numel())

    @property
    def wide(self) -> torch.dtype:
        """What it is computed in: float32, float64 where that is written, and whole numbers as they are."""
        return torch.float32 if self.dtype.is_floating_point and self.dtype != torch.float64 else self.dtype

    def read(self) -> tuple[Tensor, list[Tensor]]:
        """The base and the donors, flat and as they are stored."""
        held, name = self.base
        return held[name].reshape(-1), [there[called].reshape(-1) for there, called in self.donors]

    def blocks(self, grain: Grain = "element", *, base: bool = True) -> Iterator[Block]:
        """The whole tensor, block by block; without `base`, what stands for it holds anything."""
        origin, donors = self.read()
        # A row is what makes one unit of the output: of a linear layer its weights, of a convolution its filter.
        width = self.count // max(self.shape[0], 1) if len(self.shape) > 1 else self.count
        if grain == "element":
            step, shape = BLOCK, (-1,)
        elif grain == "row":
            step, shape = max(1, BLOCK // max(width, 1)) * width, (-1, width)
        else:
            step, shape = self.count, self.shape
        for start in range(0, self.count, max(step, 1)):
            stop = min(start + step, self.count)
            wide = origin[start:stop].to(self.wide) if base else torch.empty(stop - start, dtype=self.wide)
            yield Block(wide.view(shape), [d[start:stop].view(shape) for d in donors], start, self)

    def release(self) -> None:
        """Let go of what was read from files."""
        for held, name in (self.base, *self.donors):
            if isinstance(held, Mapped):
                held.release(name)


Each = Callable[[Callable[[Group], T], Sequence[Group]], list[T]]
"""Calls a function on every group, several at a time, and gives what comes out in the groups' order."""


class Merge(Remedy, abstract=True):
    """Base of methods that make each tensor from the tensors of that name.

    As a remedy it merges `world.models`, donors by name (modules or checkpoints), into the given model. Floating
    parameters are merged; buffers (BatchNorm statistics, counters) stay the given model's, so that statistics want
    estimating again afterwards, but with methods that say `buffers`. Merging is done on the CPU, wherever the networks
    lie. For checkpoints there is `merge_checkpoints`.

    A method must let NaN and infinity through to its result, by which the engine finds them.

    Class attributes: `grain` says what a block is, `buffers` whether floating buffers are merged like parameters, and
    `reads_base` whether `combine` looks at the base's values.

    Attributes:
        skip: globs of tensors that stay the base's, such as heads of other tasks.
    """

    skip: tuple[str, ...] = ()

    grain: ClassVar[Grain] = "element"
    buffers: ClassVar[bool] = False
    reads_base: ClassVar[bool] = True

    def check(self, donors: int) -> None:
        """Raise `InputError` where the method cannot merge so many donors."""

    def grain_of(self, shape: tuple[int, ...]) -> Grain:
        """What a block of a tensor of this shape is; the class's `grain`, unless the settings matter."""
        return self.grain

    def looks_first(self) -> bool:
        """Whether it reads its tensors before it merges them; for what a merge is expected to read."""
        return (type(self).survey, type(self).constants) != (Merge.survey, Merge.constants)

    def survey(self, groups: Sequence[Group], each: Each[Any], run: Run) -> Any:
        """What must be known of all tensors before the first is merged."""
        return None

    def constants(self, group: Group, survey: Any) -> Any:
        """What must be known of a tensor before its first block is merged."""
        return None

    @abstractmethod
    def combine(self, block: Block, constants: Any) -> Tensor:
        """The merged block, in the shape and dtype of `block.base`, which must not be changed."""

    def settle(self, survey: Any) -> Iterator[tuple[Group, Any]]:
        """Groups to be merged again, each with its constants, once all have been; mostly none."""
        yield from ()

    def note(self, group: Group, survey: Any) -> dict[str, Any] | None:
        """What is worth knowing of a tensor that was merged, as numbers that JSON holds; reports show it.

        A merge that was killed and goes on hands it to `recall`, so it must say all that `settle` asks for.
        """
        return None

    def recall(self, group: Group, survey: Any, note: Mapping[str, Any]) -> None:
        """Take note of a tensor that was merged before the merge was killed."""

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        from homeostat.merge.engine import merge_weights

        skipped = matches(self.skip)
        named = weights(model) if self.buffers else dict(model.named_parameters())
        base = home({n: p.detach() for n, p in named.items() if p.is_floating_point() and not skipped(n)})
        donors = {
            name: Mapped(donor.path) if isinstance(donor, Weights) else home(dict(as_weights(donor)))
            for name, donor in world.models.items()
        }
        return holding(model, merge_weights(self, base, donors, run=run))


def as_network(donor: Any, model: nn.Module, called: str, skip: Pattern = ()) -> nn.Module:
    """A donor that can be run, in evaluation mode: a fork of it, or of `model` with its parameters and buffers.

    Args:
        donor: a network, tensors by name or a path.
        model: the network that it is merged into.
        called: the donor's name in messages.
        skip: names of parameters that a donor that is a network may have in another shape, or not at all.

    Raises:
        CheckpointError: the donor lacks a parameter, or has one in another shape.
    """
    tensors, own = as_weights(donor), isinstance(donor, nn.Module)
    skipped = matches(skip if own else ())
    wanted = {n: p for n, p in model.named_parameters() if p.is_floating_point() and not skipped(n)}
    check_donors(wanted, {called: tensors})
    if own:
        return fork(donor).eval()
    made = fork(model, own="*").eval()
    with torch.no_grad():
        for name, tensor in weights(made).items():
            if name in tensors:
                tensor.copy_(tensors[name])
    return made


def check_donors(base: Mapping[str, Tensor], donors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise one error that lists every donor tensor that is missing or of another shape."""
    if not donors:
        raise InputError("there are no donors to merge: World(models={'name': net or path})")
    wrong = []
    for donor, tensors in donors.items():
        for name, tensor in base.items():
            if name not in tensors:
                wrong.append(f"{donor} lacks {name}")
            elif (other := tensors[name]).shape != tensor.shape:
                wrong.append(f"{donor}.{name} is {tuple(other.shape)}, {tuple(tensor.shape)} wanted")
    if wrong:
        raise CheckpointError(f"{len(wrong)} donor tensors do not fit the base: {'; '.join(wrong[:6])}")


@dataclass(frozen=True)
class Copy(Merge, register=False):
    """The base's tensor as it is: bits, NaN and whole numbers."""

    def combine(self, block: Block, constants: Any) -> Tensor:
        return block.base


def one_each(values: Numbers, donors: int, what: str = "weights") -> tuple[float, ...]:
    """A number for each donor: those given, or the one for all.

    Raises:
        InputError: there are several, but not one a donor.
    """
    if not isinstance(values, tuple):
        return (values,) * donors
    if len(values) != donors:
        raise InputError(f"there are {len(values)} {what} for {donors} donors; give one each, or one for all")
    return values


def parts_by_donor(world: World) -> dict[str, Data]:
    """The part of each donor's name, for methods whose `streams` are `"parts"`.

    Raises:
        MissingPart: there is none for some donors; all of them are named.
    """
    if missing := [name for name in world.models if name not in world.parts]:
        raise MissingPart(
            f"streams='parts' wants a part of each donor's name, and there is none of {', '.join(missing)}; parts are "
            f"{', '.join(world.parts) or 'none'}"
        )
    return {name: world.parts[name] for name in world.models}
