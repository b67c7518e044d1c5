"""Fisher merging: each weight is averaged by how sure each donor is of it.

The average of weights takes every donor to be as sure as the others of everything it says. Taken as posteriors, donors
are Gaussians around their weights with the Fisher information F as precision, and their product is largest at

    theta_j = sum_m a_m F_m,j theta_m,j / sum_m a_m F_m,j

with a coefficient a_m a donor. F is estimated per sample and class, without labels (`sample_fisher`). `normalize`
divides each a_m by the length of its donor's F over the model, so that a donor with more or sharper data does not
drown the others. F is raised to `floor`; with `favor_first` the first donor's alone, so that where nobody knows
anything its weights stand. With equal F it is the average.

It needs donors of one ancestor, as averages do; and its estimate takes a backward pass a class for each of `samples`.
Where donors share their data and their certainty, it is no better than the average, at a cost.

>>> a, b = {"w": torch.tensor([0.0, 0.0])}, {"w": torch.tensor([1.0, 1.0])}
>>> fa, fb = {"w": torch.tensor([1.0, 3.0])}, {"w": torch.tensor([1.0, 1.0])}
>>> merge_weights(FisherAverage(normalize=False), a, [a, b, fa, fb])["w"]
tensor([0.5000, 0.2500])

Reference: Matena and Raffel, Merging Models with Fisher-Weighted Averaging, NeurIPS 2022.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from homeostat.core.data import Data
from homeostat.core.errors import InputError
from homeostat.core.fork import matches
from homeostat.core.holding import holding
from homeostat.core.method import Card, Remedy
from homeostat.core.place import home
from homeostat.core.run import Run
from homeostat.core.spec import Count, NonNegative
from homeostat.core.world import World
from homeostat.merge.engine import merge_weights as merge_weights
from homeostat.merge.merging import Block, Each, Group, Merge, Numbers, as_network, one_each, parts_by_donor
from homeostat.nn.sample_fisher import Labels, sample_fisher


@dataclass(frozen=True)
class FisherAverage(Merge, register=False):
    """The average of donors weighted by their Fisher information.

    Its donors are the networks, and after them as many mappings of the same names that hold their information.

    Attributes:
        weights: the networks' coefficients a_m; one for all, or one each.
        normalize, floor, favor_first: see `FisherMerge`.
    """

    weights: Numbers = 1.0
    normalize: bool = True
    floor: NonNegative = 1e-6
    favor_first: bool = True
    skip: tuple[str, ...] = ()

    def check(self, donors: int) -> None:
        if donors % 2:
            raise InputError(f"each network needs its Fisher information; there are {donors} mappings, an odd number")
        one_each(self.weights, donors // 2)

    def survey(self, groups: Sequence[Group], each: Each[Any], run: Run) -> list[float]:
        """A coefficient a network."""
        weights = one_each(self.weights, len(groups[0].donors) // 2) if groups else ()
        if not self.normalize:
            return list(weights)
        squares = [sum(column) for column in zip(*each(_squares, groups), strict=True)]
        return [w / math.sqrt(s) if s > 0 else w for w, s in zip(weights, squares, strict=True)]

    def constants(self, group: Group, survey: list[float]) -> list[float]:
        return survey

    def combine(self, block: Block, constants: list[float]) -> Tensor:
        count = len(constants)
        above, below = torch.zeros_like(block.base), torch.zeros_like(block.base)
        for number in range(count):
            sure = block.donors[count + number].to(block.base.dtype)
            least = 0.0 if self.favor_first and number else self.floor
            precision = sure.clamp(min=least).mul_(constants[number])
            above.addcmul_(precision, block.donors[number].to(block.base.dtype))
            below += precision
        # Nothing is known where all information is 0: the first network's weights, as with a floor of its own.
        empty = below == 0
        return torch.where(empty, block.donors[0].to(block.base.dtype), above / below.masked_fill(empty, 1.0))


def _squares(group: Group) -> list[float]:
    held = group.read()[1]
    return [float(t.double().square().sum()) for t in held[len(held) // 2 :]]


def fisher_merge(
    models: Sequence[Mapping[str, Tensor]],
    fishers: Sequence[Mapping[str, Tensor]],
    weights: Numbers = 1.0,
    *,
    normalize: bool = True,
    floor: float = 1e-6,
    favor_first: bool = True,
) -> dict[str, Tensor]:
    """Average networks by their Fisher information.

    Args:
        models: tensors by name; the first names what is merged.
        fishers: of each, the same names and shapes (from `sample_fisher`, or from files).
        weights: coefficients; one for all, or one each.
        normalize, floor, favor_first: see `FisherMerge`.

    Raises:
        InputError, CheckpointError: numbers, names or shapes do not fit.
    """
    if len(models) != len(fishers) or not models:
        raise InputError(f"there are {len(models)} networks and {len(fishers)} Fisher informations; give one each")
    method = FisherAverage(weights, normalize, floor, favor_first)
    names = [f"network {i + 1}" for i in range(len(models))]
    return merge_weights(
        method,
        models[0],
        dict(zip([*names, *(f"information of {n}" for n in names)], [*models, *fishers], strict=True)),
    )


@dataclass(frozen=True)
class FisherMerge(Remedy):
    """Averages `world.models` by their Fisher information on data from before.

    Attributes:
        weights: of the donors; one for all, or one each.
        labels: whose likelihood: `"exact"`, `"sampled"`, or `"empirical"`, which needs labels.
        samples: that the information of each donor is estimated on, taken evenly.
        normalize: divide each coefficient by the length of its donor's information.
        floor: least information.
        favor_first: the floor is that of the first donor alone, which stands where nobody knows anything.
        streams: inputs for all donors as `world.source`, or for each as the part of its name, `"parts"`.
        skip: globs of parameters that stay the base's, such as heads; donors that are networks are run with their own.
    """

    weights: Numbers = 1.0
    labels: Labels = "exact"
    samples: Count = 1024
    normalize: bool = True
    floor: NonNegative = 1e-6
    favor_first: bool = True
    streams: Literal["source", "parts"] = "source"
    skip: tuple[str, ...] = ()

    card: ClassVar[Card] = Card(
        id="S025", paper="Matena and Raffel, Merging Models with Fisher-Weighted Averaging, NeurIPS 2022",
        handles=frozenset({"tasks", "covariate"}), needs=frozenset({"models.*", "model.parameters"}), passes=0.0,
    )  # fmt: skip

    def needs(self) -> frozenset[str]:
        data = "source" if self.streams == "source" else "parts.*"
        return self.card.needs | {f"{data}.x"} | ({f"{data}.y"} if self.labels == "empirical" else set())

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        skipped = matches(self.skip)
        names = [n for n, p in model.named_parameters() if p.is_floating_point() and not skipped(n)]
        donors, fishers = [], []
        for name, donor in world.models.items():
            network = as_network(donor, model, name, self.skip)
            batches = data_of(world, name, self.streams, self.samples).batches(64)
            fishers.append(home(sample_fisher(network, batches, names, self.labels, run.rng("fisher", name))))
            donors.append({n: home(p.detach()) for n, p in network.named_parameters() if n in fishers[-1]})
        merged = fisher_merge(
            donors, fishers, self.weights, normalize=self.normalize, floor=self.floor, favor_first=self.favor_first
        )
        return holding(model, merged)


def data_of(world: World, donor: str, streams: str, samples: int) -> Data:
    """The data that a donor is measured on: those from before, or the part of its name.

    Of many samples so many are taken evenly, since data often come sorted by class.

    Raises:
        MissingPart: there is no such part.
    """
    data = world.source if streams == "source" else parts_by_donor(world)[donor]
    assert data is not None
    count = min(samples, len(data))
    return data[(torch.arange(count) * len(data)) // max(count, 1)]
