"""Task vectors thinned before they are added: at random, by size without the outliers, or at random by size.

What a network learns in fine-tuning is redundant; with most of it gone, the rest does the task, and several task
vectors get in each other's way less. With tau_t = theta_t - theta_0 and a share `density` that stays:

    DARE           tau'_t = m tau_t / density,  m ~ Bernoulli(density)
    Breadcrumbs    tau'_t drops the largest `outliers` of each row, and of the rest keeps the largest `density`
    DELLA          as DARE, but an entry whose size ranks r-th of n in its row (from 0, smallest first) stays with
                   probability p = density - spread + 2 spread r / (n - 1), and is divided by p

    theta = theta_0 + scale sum_t w_t tau'_t

or, with `elect=True`, the signs are elected and what agrees is averaged, as in `TIES`. A row is what makes one unit of
the output; a vector is one row. `axis="tensor"` ranks over whole tensors, as mergekit does.

DARE rests on task vectors being small (fine-tuned, not trained on); where they are large, dropping 90 % spoils the
network, and `TIES` or Breadcrumbs do better. What is dropped is drawn by tensor and donor from the run's seed.

>>> base, donor = {"w": torch.zeros(1, 5)}, {"w": torch.tensor([[9.0, 1.0, -3.0, 2.0, 0.5]])}
>>> merge_weights(Breadcrumbs(density=0.4, outliers=0.2, scale=1.0), base, [donor])["w"]
tensor([[ 0.,  0., -3.,  2.,  0.]])

Reference: Yu et al., Language Models are Super Mario, ICML 2024 (DARE); Davari and Belilovsky, Model Breadcrumbs, ECCV
2024; Deep et al., DELLA-Merging, 2024.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from homeostat.core.errors import InputError
from homeostat.core.method import Card, Kind
from homeostat.core.random import generator
from homeostat.core.run import Run
from homeostat.merge.election import Election
from homeostat.merge.engine import merge_weights as merge_weights  # for the doctest
from homeostat.merge.merging import Block, Densities, Each, Fractions, Grain, Group, Merge, Numbers, one_each
from homeostat.merge.selection import among_largest
from homeostat.merge.trimming import Kept, largest, one_by_one, trim

HANDLES: frozenset[Kind] = frozenset({"tasks", "covariate"})
NEEDS = frozenset({"models.*", "model.parameters"})


class SparseTaskVectors(Merge, abstract=True):
    """Base of methods that thin each task vector by itself, and then add them up or elect signs.

    Attributes:
        density: share of each donor's changes kept; one for all, or one each.
        weights: of the donors; one for all, or one each.
        scale: of the merged task vector.
        elect: merge what agrees with the elected signs; else add up all.
        mean: average what agrees; else add it up.
        skip: globs of tensors that stay the base's.
    """

    density: Densities
    weights: Numbers = 1.0
    scale: float = 1.0
    elect: bool = False
    mean: bool = True

    def check(self, donors: int) -> None:
        one_each(self.weights, donors)
        one_each(self.density, donors, "densities")

    def looks_first(self) -> bool:
        return False

    def survey(self, groups: Sequence[Group], each: Each[Any], run: Run) -> Any:
        return run.seed

    def constants(self, group: Group, survey: Any) -> Any:
        return survey

    @abstractmethod
    def thinned(self, delta: Tensor, density: float, donor: int, block: Block, constants: Any) -> Tensor:
        """A block of a task vector, a tensor of the method's own, thinned."""

    def combine(self, block: Block, constants: Any) -> Tensor:
        count = len(block.donors)
        weights = one_each(self.weights, count)
        densities = one_each(self.density, count)
        election = Election(block.base) if self.elect else None
        total = torch.zeros_like(block.base)
        for donor, (delta, density, weight) in enumerate(zip(block.deltas(), densities, weights, strict=True)):
            thin = self.thinned(delta, density, donor, block, constants)
            if election is None:
                total.add_(thin, alpha=weight)
            else:
                election.add(thin.mul_(weight), weight)
        if election is not None:
            total = election.result(mean=self.mean)[0]
        return torch.add(block.base, total, alpha=self.scale)


@dataclass(frozen=True)
class DARE(SparseTaskVectors):
    """Drops changes at random and rescales the rest, so that the sum stays what it was in expectation.

    Attributes:
        density: share of each donor's changes kept; one for all, or one each; the paper drops up to 0.9 of them.
        weights: of the donors; one for all, or one each.
        scale: of the merged task vector.
        rescale: divide by the density.
        elect: merge what agrees with the elected signs; else add up all.
        mean: average what agrees; else add it up.
        skip: globs of tensors that stay the base's.
    """

    density: Densities = 0.5
    weights: Numbers = 1.0
    scale: float = 1.0
    rescale: bool = True
    elect: bool = False
    mean: bool = True
    skip: tuple[str, ...] = ()

    card: ClassVar[Card] = Card(
        paper="Yu et al., Language Models are Super Mario, ICML 2024", handles=HANDLES, needs=NEEDS, passes=0.0
    )

    def thinned(self, delta: Tensor, density: float, donor: int, block: Block, constants: int) -> Tensor:
        if density == 1:
            return delta
        draws = generator(constants, "DARE", block.group.name, donor, block.start)
        delta *= torch.from_numpy(torch.rand(delta.shape, generator=draws).numpy() < density)
        return delta.div_(density) if self.rescale else delta


@dataclass(frozen=True)
class Breadcrumbs(SparseTaskVectors):
    """Drops the largest changes, which are outliers, and the small ones, which are noise.

    Attributes:
        density: share of a row's changes kept, at least one; 1 keeps all, outliers too.
        outliers: share of a row's changes, the largest, that is dropped first.
        weights: of the donors; one for all, or one each.
        scale: of the merged task vector; one for any number of tasks, 0.3 to 0.4 in the paper.
        axis: rank within each `"row"` (the official code), or over the `"tensor"` (mergekit), where shares are rounded
            down but never to nothing.
        elect: merge what agrees with the elected signs; else add up all.
        mean: average what agrees; else add it up.
        skip: globs of tensors that stay the base's.
    """

    density: Densities = 0.2
    outliers: Fractions = 0.01
    weights: Numbers = 1.0
    scale: float = 0.3
    axis: Literal["row", "tensor"] = "row"
    elect: bool = False
    mean: bool = True
    skip: tuple[str, ...] = ()

    card: ClassVar[Card] = Card(
        id="S206", paper="Davari and Belilovsky, Model Breadcrumbs, ECCV 2024", handles=HANDLES, needs=NEEDS, passes=0.0
    )

    def check(self, donors: int) -> None:
        super().check(donors)
        one_each(self.outliers, donors, "shares of outliers")

    def looks_first(self) -> bool:
        return self.axis == "tensor"

    def grain_of(self, shape: tuple[int, ...]) -> Grain:
        return "row" if self.axis == "row" else "element"

    def constants(self, group: Group, survey: Any) -> tuple[tuple[Kept, ...], tuple[Kept, ...]] | None:
        if self.axis == "row":
            return None
        donors = len(group.donors)
        densities, outliers = one_each(self.density, donors), one_each(self.outliers, donors)
        counts = [_shares(group.count, *both) for both in zip(densities, outliers, strict=True)]
        upper = largest([group], [drop for drop, _ in counts], "index", one_by_one)[group.name]
        lower = largest([group], [drop + keep for drop, keep in counts], "index", one_by_one)[group.name]
        return upper, lower

    def thinned(self, delta: Tensor, density: float, donor: int, block: Block, constants: Any) -> Tensor:
        if constants is not None:
            upper, lower = constants[0][donor], constants[1][donor]
            return trim(delta.clone(), lower, block.start).sub_(trim(delta, upper, block.start))
        width = delta.shape[1]
        drop, keep = _shares(width, density, one_each(self.outliers, len(block.donors))[donor])
        if keep == width:
            return delta
        sizes = delta.abs().numpy()
        kept = among_largest(sizes, drop + keep) & ~among_largest(sizes, drop)
        # A product, which lets NaN and infinity show; they rank among the outliers.
        return delta.mul_(torch.from_numpy(kept))


def _shares(count: int, density: float, outliers: float) -> tuple[int, int]:
    """How many of so many entries are dropped as outliers, and how many of the rest are kept."""
    if density == 1:
        return 0, count
    keep = max(1, int(density * count))
    return min(int(outliers * count), count - keep), keep


@dataclass(frozen=True)
class DELLA(SparseTaskVectors):
    """Drops changes at random, the smaller the likelier, and rescales each that stays by its own probability.

    Attributes:
        density: mean share of a row's changes kept.
        spread: how far the probability of the smallest and of the largest change lie from it; both must be above 0 and
            below 1.
        weights: of the donors; one for all, or one each.
        scale: of the merged task vector.
        rescale: divide by the probability.
        elect: merge what agrees with the elected signs, as the paper does; else add up all.
        mean: average what agrees; else add it up.
        skip: globs of tensors that stay the base's.
    """

    density: Densities = 0.5
    spread: Fractions = 0.15
    weights: Numbers = 1.0
    scale: float = 1.0
    rescale: bool = True
    elect: bool = True
    mean: bool = True
    skip: tuple[str, ...] = ()

    card: ClassVar[Card] = Card(paper="Deep et al., DELLA-Merging, 2024", handles=HANDLES, needs=NEEDS, passes=0.0)
    grain: ClassVar[Grain] = "row"

    def check(self, donors: int) -> None:
        super().check(donors)
        spreads = one_each(self.spread, donors, "spreads")
        for density, spread in zip(one_each(self.density, donors), spreads, strict=True):
            if density < 1 and not (spread < density < 1 - spread):
                raise InputError(
                    f"density {density:g} +- spread {spread:g} must lie above 0 and below 1; make the spread less"
                )

    def thinned(self, delta: Tensor, density: float, donor: int, block: Block, constants: int) -> Tensor:
        if density == 1:
            return delta
        ranks, spread = torch.empty_like(delta), one_each(self.spread, len(block.donors))[donor]
        steps = torch.linspace(density - spread, density + spread, delta.shape[1]).to(delta)
        ranks.scatter_(1, delta.abs().sort(dim=1, stable=True).indices, steps.expand_as(delta).contiguous())
        draws = generator(constants, "DELLA", block.group.name, donor, block.start)
        delta *= torch.from_numpy(torch.rand(delta.shape, generator=draws).numpy() < ranks.numpy())
        return delta.div_(ranks) if self.rescale else delta
