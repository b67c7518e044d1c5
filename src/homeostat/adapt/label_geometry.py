"""Loki: predict the class with the smallest expected squared distance, also one that was never trained on.

Where it is known how far classes are from each other (a hierarchy, embeddings of their names), argmax wastes it: of a
network that wavers between *beagle* and *dachshund*, *hound* is the better answer, even if no image was labelled so.
With the probabilities P `[N, k]` of the k observed classes and the distances D `[k, M]` of each observed class to each
class there is,

    S = -P (D * D)   `[N, M]`        prediction = argmax_j S_nj

which is the Frechet mean of P. If all classes are equally far apart it is argmax. S is what the network returns: minus
an expected squared distance, whose argmax is the prediction; it is no log-probability, so read no confidence from it.
It can be differentiated: `Fit` on the result trains with cross-entropy over all M classes.

The *locus* is the set of classes that come out for some P (`LabelMetric.locus`). In a tree it is the union of the paths
between observed classes, so that observing the leaves is enough for all. `NextClass` says which class to label next:
the one farthest from the locus of those that are observed.

P comes from a softmax with a temperature. The authors' script for CLIP multiplies D * D with the *logits* instead; rows
of logits do not add up to 1, so a constant added to all of them, which changes no probability, changes its prediction.
Here it is always the softmax; a high temperature comes near what that script does. Distances are squared once.

Defaults: temperature 1; no metric, which takes the distance between the rows of the last linear layer, scaled to
length 1, as the authors do with a text encoder's embeddings. No passes are added, only an N x k x M product.

It fails where the distances say nothing about which classes the network confuses, and where what counts is being
exactly right: an unsure network is drawn to the middle of the metric, to a class that is nobody's first choice, so that
accuracy falls while the squared distance does too. Networks that are too sure of themselves gain nothing: with P all on
one class it is argmax.

>>> import torch
>>> line = PointMetric(points=((0.0,), (1.0,), (2.0,)))
>>> loki(torch.tensor([[0.45, 0.55]]), line.distances()[[0, 2]].float())  # classes 0 and 2 were trained on
tensor([1])

Reference: Roberts, Li, Adila, Cromp, Huang, Zhao, Sala, Geometry-aware adaptation for pretrained models, NeurIPS 2023
(S182).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from homeostat.adapt.learner import logits_of
from homeostat.core.data import UNKNOWN
from homeostat.core.errors import InputError, ModelError, SpecError
from homeostat.core.fork import fork
from homeostat.core.method import Card, Remedy
from homeostat.core.part import Part
from homeostat.core.run import Run
from homeostat.core.spec import Index, Positive
from homeostat.core.taps import head
from homeostat.core.trace import Choose, Trace
from homeostat.core.tree import Tree
from homeostat.core.world import World
from homeostat.data.label_metric import LabelMetric, PointMetric as PointMetric, checked_classes


def loki_scores(
    probs: Float[Tensor, "batch observed"], dist: Float[Tensor, "observed classes"]
) -> Float[Tensor, "batch classes"]:
    """Minus the expected squared distance of every class.

    Args:
        probs: of the observed classes; rows add up to 1.
        dist: of each observed class to every class, not squared.
    """
    return -(probs @ dist.to(probs).square())


def loki(
    probs: Float[Tensor, "batch observed"],
    dist: Float[Tensor, "observed classes"],
    targets: Sequence[int] | None = None,
) -> Int[Tensor, " batch"]:
    """The class with the smallest expected squared distance, the first of equals.

    Args:
        probs, dist: see `loki_scores`.
        targets: classes that may be predicted; default all.
    """
    scores = loki_scores(probs, dist)
    if targets is None:
        return scores.argmax(1)
    allowed = torch.tensor(checked_classes(targets, dist.shape[1]), device=scores.device)
    return allowed[scores[:, allowed].argmax(1)]


def label_distance(
    predicted: Int[Tensor, " n"], labels: Int[Tensor, " n"], dist: Float[Tensor, "classes classes"], power: float = 2.0
) -> float:
    """Mean distance of predictions from labels, to a power; samples without a label count for nothing."""
    known = labels != UNKNOWN
    if not bool(known.any()):
        raise InputError("the distance of predictions from labels needs labels, and none is known")
    return float(dist[predicted[known], labels[known]].pow(power).mean())


class LokiNetwork(Part):
    """A network over k observed classes that predicts over all classes of a metric.

    Args:
        model: gives logits or log-probabilities of the observed classes.
        observed: how many those are.
        classes: how many the metric has.
        temperature: of the softmax.
    """

    squared: Tensor

    def __init__(self, model: nn.Module, observed: int, classes: int, temperature: float = 1.0):
        super().__init__()
        self.model, self.observed, self.classes, self.temperature = model, observed, classes, temperature
        self.register_buffer("squared", torch.zeros(observed, classes))

    def forward(self, x: Tree) -> Tensor:
        """Minus expected squared distances `[batch, classes]`."""
        logits = logits_of(self.model(x))
        if logits.shape[1] != self.observed:
            raise ModelError(f"the model has {logits.shape[1]} outputs; distances are there for {self.observed}")
        exact = torch.promote_types(logits.dtype, torch.float32)
        probs = (logits.to(exact) / self.temperature).softmax(1)
        return -(probs @ self.squared.to(exact)).to(logits.dtype)


@dataclass(frozen=True)
class Loki(Remedy):
    """Predictions of the smallest expected squared label distance.

    Attributes:
        metric: distances between all classes; None takes those between the rows of the last linear layer.
        observed: which class of the metric each output of the network is; empty for its first ones, in order.
        temperature: of the softmax.
    """

    metric: LabelMetric | None = None
    observed: tuple[Index, ...] = ()
    temperature: Positive = 1.0

    card: ClassVar[Card] = Card(
        id="S182",
        paper="Roberts et al., Geometry-Aware Adaptation for Pretrained Models, NeurIPS 2023",
        handles=frozenset({"novel-class"}),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.observed)) != len(self.observed):
            raise SpecError(f"Loki.observed = {self.observed}, but each output is another class")

    def needs(self) -> frozenset[str]:
        return frozenset({"model.linear"}) if self.metric is None else self.card.needs

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        if self.metric is None:
            weight = F.normalize(model.get_submodule(head(model)).weight.detach().double(), dim=1)  # type: ignore[operator,union-attr]
            dist = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")
        else:
            dist = self.metric.distances()
        rows = list(self.observed or range(len(dist)))
        if not self.observed and self.metric is not None and (outputs := _outputs(model)) is not None:
            rows = rows[:outputs]
        if max(rows) >= len(dist):
            raise SpecError(f"Loki.observed has class {max(rows)}; the metric has the classes 0..{len(dist) - 1}")
        made = LokiNetwork(fork(model), len(rows), len(dist), self.temperature)
        first = next((p for p in model.parameters() if p.is_floating_point()), made.squared)
        made.squared = dist[rows].square().to(first.device, torch.promote_types(first.dtype, torch.float32))
        return made


def _outputs(model: nn.Module) -> int | None:
    """The width of the last linear layer, if there is one."""
    widths = [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]
    return widths[-1] if widths else None


def next_class(dist: Float[Tensor, "classes classes"], locus: Iterable[int], among: Iterable[int] | None = None) -> int:
    """The class farthest from a locus (largest smallest distance), the first of equals.

    Args:
        dist: between all classes.
        locus: see `LabelMetric.locus`.
        among: classes that may be chosen; default all that are not in the locus.

    Raises:
        InputError: the locus already holds all that may be chosen.
    """
    inside = set(checked_classes(locus, len(dist)))
    open_ = [j for j in (range(len(dist)) if among is None else checked_classes(among, len(dist))) if j not in inside]
    if not open_:
        raise InputError("the locus holds every class that may be chosen; there is none left to add")
    return open_[int(dist[open_][:, sorted(inside)].amin(1).argmax())]


@dataclass(frozen=True)
class NextClass(Choose):
    """Which class to label next: the one farthest from the locus of those that are.

    `choose(trace, options)`: options are classes of the metric, those to choose from and those chosen before. The
    subject of each entry of the trace is an option's index as text; those classes are labelled. Without any it takes
    the option that is farthest from some other.

    Attributes:
        metric: distances between classes.
    """

    metric: LabelMetric = PointMetric()

    card: ClassVar[Card] = Card(paper="Roberts et al., Geometry-Aware Adaptation, NeurIPS 2023 (S182)")

    def choose(self, trace: Trace, options: Sequence[Any], run: Run) -> int:
        dist = self.metric.distances()
        classes = [int(option) for option in options]
        checked_classes(classes, len(dist))
        try:
            observed = {classes[int(entry.subject)] for entry in trace}
        except (ValueError, IndexError):
            raise InputError("a trace of NextClass has an option's index as the subject of each entry") from None
        if not observed:
            return int(dist[classes].amax(1).argmax())
        open_ = [c for c in classes if c not in observed]
        if not open_:
            raise InputError(f"all {len(classes)} classes are labelled; there is none left to choose")
        inside = self.metric.locus(observed)
        beyond = [c for c in open_ if c not in inside]
        # Once the locus holds everything, what is left adds nothing; the order is then that of the options.
        return classes.index(next_class(dist, inside, beyond) if beyond else open_[0])
