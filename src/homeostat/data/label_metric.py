"""Distances between classes: how wrong one class is in the place of another.

A metric over M classes is a Spec, so that it has a name and fits into a file. Which classes a network predicts is not
its business; it covers all that there are, also those that nobody has trained on.

- `TreeMetric`: classes are nodes of a tree, the distance is the length of the path between them.
- `PointMetric`: classes are points (embeddings of their names, say), the distance is Euclidean.
- `CompleteMetric`: all classes are equally far from each other.
- `WordNetMetric`: classes are synsets of WordNet's nouns, in the tree of their first hypernyms.

>>> TreeMetric(parents=(-1, 0, 0, 1)).distances()[3].tolist()  # 3 lies below 1; 2 on the other side of the root
[2.0, 1.0, 3.0, 0.0]

Reference: Roberts et al., Geometry-aware adaptation for pretrained models, NeurIPS 2023 (the locus).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from homeostat.core.errors import InputError, SpecError
from homeostat.core.spec import Count, Spec
from homeostat.data.wordnet import hypernyms


class LabelMetric(Spec, abstract=True):
    """Base of distances between classes; a subclass gives `distances`."""

    @abstractmethod
    def distances(self) -> Float[Tensor, "classes classes"]:
        """The distance of every class from every other, float64."""

    def locus(self, observed: Iterable[int]) -> set[int]:
        """The classes that minimise expected squared distance for some probabilities over the observed ones.

        For a general metric that is one small linear programme a class.

        Raises:
            InputError: no class is observed, or one is not in the metric.
        """
        from scipy.optimize import linprog

        squared = self.distances().square()
        rows = squared[checked_classes(observed, len(squared))].numpy()
        found = set()
        for j in range(len(squared)):
            # The largest t with p . (d_j^2 - d_i^2) + t <= 0 for all i; class j is reachable when t >= 0.
            others = [i for i in range(len(squared)) if i != j]
            if not others:
                return {j}
            above = (rows[:, [j]] - rows[:, others]).T
            said = linprog(
                [0.0] * len(rows) + [-1.0],
                A_ub=[[*row, 1.0] for row in above], b_ub=[0.0] * len(others),
                A_eq=[[1.0] * len(rows) + [0.0]], b_eq=[1.0],
                bounds=[(0, None)] * len(rows) + [(None, None)],
            )  # fmt: skip
            if said.status == 0 and -said.fun >= -1e-9 * max(1.0, float(squared.max())):
                found.add(j)
        return found


def checked_classes(observed: Iterable[int], classes: int) -> list[int]:
    """Observed classes, each once, in order.

    Raises:
        InputError: there is none, or one is not in `[0, classes)`.
    """
    given = sorted({int(i) for i in observed})
    if not given:
        raise InputError("no class is observed; at least one is needed")
    if given[0] < 0 or given[-1] >= classes:
        raise InputError(
            f"observed classes span {given[0]} to {given[-1]}; the metric has the classes 0..{classes - 1}"
        )
    return given


@dataclass(frozen=True)
class CompleteMetric(LabelMetric):
    """Every class is at distance 1 from every other.

    Attributes:
        classes: how many there are.
    """

    classes: Count = 2

    def distances(self) -> Tensor:
        return 1 - torch.eye(self.classes, dtype=torch.float64)

    def locus(self, observed: Iterable[int]) -> set[int]:
        # An expected squared distance is 1 - p_j for an observed class j, and 1 for every other.
        return set(checked_classes(observed, self.classes))


@dataclass(frozen=True)
class PointMetric(LabelMetric):
    """Classes as points, at their Euclidean distance.

    Attributes:
        points: one tuple of coordinates a class, all equally long.
    """

    points: tuple[tuple[float, ...], ...] = ((0.0,), (1.0,))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.points or len({len(point) for point in self.points}) != 1 or not self.points[0]:
            raise SpecError("PointMetric.points: one point a class is wanted, all with equally many coordinates")

    def distances(self) -> Tensor:
        points = torch.tensor(self.points, dtype=torch.float64)
        return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


@dataclass(frozen=True)
class TreeMetric(LabelMetric):
    """Classes as nodes of a tree, at the length of the path between them.

    Attributes:
        parents: for each node the number of its parent, -1 for the root, in any order.
        lengths: of the edge to the parent, for each node; empty for 1 each. The root's is not used.
        classes: which nodes are classes, in the order of the labels; empty for all nodes.
    """

    parents: tuple[int, ...] = (-1, 0)
    lengths: tuple[float, ...] = ()
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        count = len(self.parents)
        if self.parents.count(-1) != 1 or any(not -1 <= parent < count for parent in self.parents):
            raise SpecError(f"TreeMetric.parents: one -1 for the root and numbers below {count} are wanted")
        if len(self.order()) != count:
            raise SpecError("TreeMetric.parents: some nodes form a circle and do not lead to the root")
        if self.lengths and (len(self.lengths) != count or min(self.lengths) < 0):
            raise SpecError(f"TreeMetric.lengths: {count} numbers that are not negative are wanted, one a node")
        if len(set(self.classes)) != len(self.classes) or any(not 0 <= node < count for node in self.classes):
            raise SpecError(f"TreeMetric.classes: different nodes below {count} are wanted")

    def order(self) -> list[int]:
        """Nodes that lead to the root, parents before their children."""
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(self.parents):
            children.setdefault(parent, []).append(node)
        found = list(children.get(-1, ()))
        for node in found:
            found += children.get(node, ())
        return found

    def distances(self) -> Tensor:
        order = self.order()
        made = torch.zeros(len(order), len(order), dtype=torch.float64)
        for seen, node in enumerate(order[1:], start=1):
            before = torch.tensor(order[:seen])
            row = made[self.parents[node], before] + (self.lengths[node] if self.lengths else 1.0)
            made[node, before] = row
            made[before, node] = row
        return made[list(self.classes)][:, list(self.classes)] if self.classes else made

    def locus(self, observed: Iterable[int]) -> set[int]:
        """The nodes on the paths between observed ones, by stripping unobserved leaves; linear in the nodes.

        Where only some nodes are classes, or an edge has length 0, it takes the general way.
        """
        if self.classes or 0.0 in self.lengths:
            return super().locus(observed)
        given = set(checked_classes(observed, len(self.parents)))
        near: list[list[int]] = [[] for _ in self.parents]
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                near[node].append(parent)
                near[parent].append(node)
        degree = [len(found) for found in near]
        kept = set(range(len(self.parents)))
        leaves = [node for node in kept if degree[node] <= 1 and node not in given]
        while leaves:
            node = leaves.pop()
            kept.discard(node)
            for other in near[node]:
                degree[other] -= 1
                if degree[other] == 1 and other not in given and other in kept:
                    leaves.append(other)
        return kept


@dataclass(frozen=True)
class WordNetMetric(LabelMetric):
    """Classes as synsets of WordNet's nouns, at the length of the path over first hypernyms.

    Attributes:
        synsets: WordNet's numbers as in `glosses`: 1, then the 8 digits of the synset's place.
    """

    synsets: tuple[int, ...] = (100001740,)

    def tree(self) -> TreeMetric:
        """The tree of the synsets and everything above them, with the synsets as its classes.

        Raises:
            MissingPart: WordNet is nowhere. InputError: a synset is not there.
        """
        above = hypernyms("noun")
        nodes: dict[int, int] = {}
        waiting: list[Any] = list(self.synsets)
        for synset in waiting:
            if synset is not None and synset not in nodes:
                if synset not in above:
                    raise InputError(f"WordNet has no noun synset {synset}; ids are those of `glosses('noun')`")
                nodes[synset] = len(nodes)
                waiting.append(above[synset])
        roots = [nodes[synset] for synset in nodes if above[synset] is None]
        parents = [-1 if above[s] is None else nodes[above[s]] for s in nodes]  # type: ignore[index]
        # Nouns have one root in WordNet 3; should there be several, they hang below the first.
        for extra in roots[1:]:
            parents[extra] = roots[0]
        return TreeMetric(tuple(parents), classes=tuple(nodes[synset] for synset in self.synsets))

    def distances(self) -> Tensor:
        return self.tree().distances()
