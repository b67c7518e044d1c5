"""TIES: merge fine-tuned models into one, with their conflicts settled first.

Several people fine-tuned one network, each for a task; averaging them cancels what they learnt where they disagree.
TIES keeps only each one's largest changes, lets them vote on the direction of every weight, and averages the changes
that agree with the vote.

With base weights theta_0 `[d]` and task vectors tau_t = theta_t - theta_0, t = 1..T:

    trim      tau'_t keeps the `density * d` entries of tau_t largest in size, the rest is 0
    elect     gamma = sign(sum_t tau'_t); entries whose sum is 0 take the sign of sum(gamma)
    merge     tau = mean over {t : sign(tau'_t) = gamma, tau'_t != 0} of tau'_t
    theta     = theta_0 + scale * tau

Defaults are the paper's: density 0.2, scale 1. `scope="model"` trims over all weights together, as the paper does;
`"tensor"` trims each tensor by itself, as mergekit does. Among entries of equal size the first in order of tensor and
index are kept, so that the share kept is exact and the same everywhere; `ties="all"` keeps all of them, as the
official code does, which in half precision can be many more. With weights w_t, entries are w_t tau'_t and the mean is
weighted.

It helps when tasks conflict in few weights. Where all tasks change all weights in conflict, it does no better than
task arithmetic with a tuned scale.

>>> base = {"w": torch.zeros(4)}
>>> a, b = {"w": torch.tensor([3.0, 1.0, 0.0, 0.0])}, {"w": torch.tensor([-1.0, 2.0, 0.0, 0.5])}
>>> merge_weights(TIES(density=0.5), base, [a, b])["w"]
tensor([3.0000, 1.5000, 0.0000, 0.0000])

Reference: Yadav et al., TIES-Merging: Resolving Interference When Merging Models, NeurIPS 2023.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from homeostat.core.method import Card
from homeostat.core.run import Run
from homeostat.core.spec import Positive
from homeostat.merge.election import Election, Vote
from homeostat.merge.engine import merge_weights as merge_weights  # for the doctest
from homeostat.merge.merging import Block, Densities, Each, Group, Merge, Numbers, one_each
from homeostat.merge.trimming import Kept, largest, one_by_one, rank_of, trim


@dataclass(frozen=True)
class TIES(Merge):
    """Merges `world.models` (donors fine-tuned from the given model) into the given model.

    Attributes:
        density: share of each donor's changes kept, K / 100 of the paper; one for all, or one each.
        weights: of the donors; one for all, or one each.
        scale: of the merged task vector, the paper's lambda.
        scope: trim over the `"model"` (the paper) or each `"tensor"` (mergekit).
        ties: among changes of equal size keep the first by `"index"`, or `"all"` (the official code).
        vote: elect signs by the `"mass"` of changes (the paper) or their `"count"`.
        even: who wins an even vote: the `"majority"` of all elected signs (the official code), or the `"positive"`
            (mergekit).
        mean: average what agrees; else add it up.
        skip: globs of parameters that stay the base's, such as heads of other tasks.
    """

    density: Densities = 0.2
    weights: Numbers = 1.0
    scale: Positive = 1.0
    scope: Literal["model", "tensor"] = "model"
    ties: Literal["index", "all"] = "index"
    vote: Vote = "mass"
    even: Literal["majority", "positive"] = "majority"
    mean: bool = True
    skip: tuple[str, ...] = ()

    card: ClassVar[Card] = Card(
        id="S022", paper="Yadav et al., TIES-Merging, NeurIPS 2023", handles=frozenset({"tasks", "covariate"}),
        needs=frozenset({"models.*", "model.parameters"}), passes=0.0,
    )  # fmt: skip

    def check(self, donors: int) -> None:
        one_each(self.weights, donors)
        one_each(self.density, donors, "densities")

    def survey(self, groups: Sequence[Group], each: Each[Any], run: Run) -> _Survey:
        found = _Survey({group.name: group for group in groups})
        if groups and self.scope == "model":
            found.kept = largest(groups, self._ranks(groups), self.ties, each)
        return found

    def constants(self, group: Group, survey: _Survey) -> _Constants:
        survey.told[group.name] = told = _Told()
        return _Constants(told, self._kept(group, survey))

    def combine(self, block: Block, constants: _Constants) -> Tensor:
        weights = one_each(self.weights, len(block.donors))
        election = Election(block.base, self.vote)
        for delta, kept, weight in zip(block.deltas(), constants.kept, weights, strict=True):
            trimmed = trim(delta, kept, block.start)
            election.add(trimmed if weight == 1 else trimmed.mul_(weight), weight)
        merged, votes, even = election.result(constants.even, self.mean)
        told = constants.told
        told.votes += votes
        told.even |= even and self.even == "majority"
        told.cast, told.agreed = told.cast + election.cast, told.agreed + election.agreed
        return torch.add(block.base, merged, alpha=self.scale)

    def settle(self, survey: _Survey) -> Iterator[tuple[Group, _Constants]]:
        """Tensors with even votes, merged as if the majority were positive: again, where it is not."""
        votes = sum(told.votes for told in survey.told.values())
        majority = (votes > 0) - (votes < 0)
        if majority != 1:
            for name in [name for name, told in survey.told.items() if told.even]:
                group = survey.groups[name]
                yield group, _Constants(_Told(), self._kept(group, survey), float(majority))

    def note(self, group: Group, survey: _Survey) -> dict[str, Any]:
        """Votes and whether one was even; with `mean`, the share of changes kept and of those the share outvoted."""
        told, weights = survey.told[group.name], one_each(self.weights, len(group.donors))
        shares = dict[str, float]()
        if self.mean and all(weight > 0 for weight in weights):
            shares = {
                "kept": told.cast / max(sum(weights) * group.count, 1e-300),
                "outvoted": 1 - told.agreed / told.cast if told.cast else 0.0,
            }
        return {"votes": told.votes, "even": told.even, **shares}

    def recall(self, group: Group, survey: _Survey, note: Mapping[str, Any]) -> None:
        survey.told[group.name] = _Told(int(note["votes"]), bool(note["even"]))

    def _kept(self, group: Group, survey: _Survey) -> tuple[Kept, ...]:
        if group.name not in survey.kept:
            survey.kept |= largest([group], self._ranks([group]), self.ties, one_by_one)
        return survey.kept[group.name]

    def _ranks(self, groups: Sequence[Group]) -> list[int]:
        count = sum(group.count for group in groups)
        return [rank_of(d, count) for d in one_each(self.density, len(groups[0].donors))]


@dataclass
class _Told:
    """What the merge of a tensor told of it."""

    votes: int = 0
    even: bool = False
    cast: float = 0.0
    agreed: float = 0.0


@dataclass
class _Survey:
    """What is kept of each donor, by tensor, where that is decided over the model; and the votes as they come in."""

    groups: dict[str, Group]
    kept: dict[str, tuple[Kept, ...]] = field(default_factory=dict)
    told: dict[str, _Told] = field(default_factory=dict)


@dataclass(frozen=True)
class _Constants:
    told: _Told
    kept: tuple[Kept, ...]
    even: float = 1.0
