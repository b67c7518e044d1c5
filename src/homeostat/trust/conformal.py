"""Split conformal prediction: sets of classes that hold the true one as often as promised.

A classifier's confidence is a guess; a conformal set comes with a promise that needs nothing of the network. Each
class of a sample gets a score of nonconformity in 0..1, from p = softmax(logits) `[batch, classes]` and u uniform on
0..1, one number per sample:

    hps    s_k = 1 - p_k                                          (also called LAC or THR)
    aps    s_k = sum of the probabilities before k, in falling order, + (1 - u) p_k
    raps   s_k = (aps_k + penalty max(rank_k - free, 0) / (K - free)) / (1 + penalty),      rank 1 is the likeliest

With n labelled calibration samples and the scores of their true classes, the threshold is the
ceil((n + 1)(1 - alpha))-th smallest of them (infinite when that is more than n), and the set of a sample is every
class whose score is at most the threshold. If the calibration samples and the new one are exchangeable,

    1 - alpha  <=  P(true class in set)  <=  1 - alpha + 1 / (n + 1)      (the right side for scores without ties).

Equal probabilities keep the order of the classes. hps gives the smallest sets on average, aps sets that grow with the
difficulty of the sample, raps fewer large sets. RAPS as published is not divided by `1 + penalty`; here it is, so that
every score lies in 0..1 (`RSCP` needs that), which changes no set. Defaults: penalty 0.2 and free 5, the values in the
official code of RSCP+.

The promise is an average over samples, and it ends where exchangeability ends: under drift or attack the coverage can
be anything. `RSCP` keeps it under attack.

>>> from homeostat.core.world import World
>>> x = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.5, 0.0], [1.0, 1.5]])
>>> net = Conformal(alpha=0.25)(nn.Identity(), World(calibration=(x, torch.tensor([0, 1, 1, 1]))))
>>> net.sets(torch.tensor([[3.0, 0.0], [0.1, 0.0]]))
tensor([[ True, False],
        [ True,  True]])

References: Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005; Sadinle, Lei, Wasserman, JASA 2019
(hps); Romano, Sesia, Candes, NeurIPS 2020 (aps); Angelopoulos et al., ICLR 2021 (raps).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

import annotated_types as at
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from homeostat.core.data import UNKNOWN, Batch, check_finite
from homeostat.core.errors import InputError, ModelError
from homeostat.core.fork import fork
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Bag
from homeostat.core.part import Part
from homeostat.core.place import there
from homeostat.core.random import Draw, seed_for
from homeostat.core.reading import Reading
from homeostat.core.run import Run
from homeostat.core.spec import Index, NonNegative, Spec
from homeostat.core.task import check_labels
from homeostat.core.tree import Tree, length
from homeostat.core.world import World
from homeostat.probe.intervals import student, wilson

Score = Literal["hps", "aps", "raps"]
Level = Annotated[float, at.Gt(0), at.Lt(1)]


def nonconformity(
    probabilities: Float[Tensor, "batch classes"],
    u: Float[Tensor, " batch"],
    score: Score = "hps",
    penalty: float = 0.2,
    free: int = 5,
) -> Float[Tensor, "batch classes"]:
    """The score of every class, in 0..1; larger is stranger. See the module's docstring.

    Args:
        probabilities: rows that add up to 1.
        u: one uniform number per sample; hps does not use it.
        score: which.
        penalty, free: of raps.
    """
    if score == "hps":
        return 1 - probabilities
    ordered, order = probabilities.sort(dim=1, descending=True, stable=True)
    found = ordered.cumsum(1) - u[:, None] * ordered
    if score == "raps":
        rank = torch.arange(1, ordered.shape[1] + 1, dtype=found.dtype, device=found.device)
        found = (found + penalty * (rank - free).clamp(min=0) / max(ordered.shape[1] - free, 1)) / (1 + penalty)
    # Rounding in the sum can pass 1 by a few units in the last place, where the normal quantile is not defined.
    return torch.empty_like(found).scatter_(1, order, found.clamp(max=1))


def conformal_threshold(scores: Float[Tensor, " samples"], alpha: float | Fraction = 0.1) -> float:
    """The `ceil((n + 1)(1 - alpha))`-th smallest score; infinite when there is no such score.

    The rank is computed from the decimal digits of `alpha`, so that `(n + 1) alpha` is not rounded across an integer.

    >>> conformal_threshold(torch.arange(1.0, 20.0), 0.1), conformal_threshold(torch.arange(1.0, 9.0), 0.1)
    (18.0, inf)
    """
    exact = alpha if isinstance(alpha, Fraction) else Fraction(str(alpha))
    rank = len(scores) + 1 - math.floor((len(scores) + 1) * exact)
    return float(scores.kthvalue(rank).values) if rank <= len(scores) else math.inf


def coverage(sets: Bool[Tensor, "batch classes"], labels: Int[Tensor, " batch"], level: float = 0.95) -> Reading:
    """Share of sets that hold the true class, with Wilson's interval."""
    hits = sets.gather(1, labels[:, None])[:, 0]
    value = float(hits.double().mean())
    return Reading("coverage", value, wilson(int(hits.sum()), len(hits), level), "fraction", "higher")


def set_size(sets: Bool[Tensor, "batch classes"], level: float = 0.95) -> Reading:
    """Mean number of classes in a set, with Student's interval (two sets or more)."""
    sizes = sets.sum(1).double()
    interval = student(sizes, level, 0.0, float(sets.shape[1])) if len(sizes) > 1 else None
    return Reading("set size", float(sizes.mean()), interval, "classes", "lower")


def probabilities(logits: Any) -> Tensor:
    """Softmax in float64 of what a model gave, checked to be logits `[batch, classes]`."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not logits.is_floating_point():
        what = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(f"conformal sets want float logits [batch, classes]; the model gave {what}")
    return logits.double().softmax(1)


def labelled(world: World) -> Batch:
    """The calibration samples whose label is known.

    Raises:
        InputError: there is none.
    """
    assert world.calibration is not None
    batch = world.calibration.load()
    known = batch.labels != UNKNOWN
    if not bool(known.any()):
        raise InputError(f"none of the {len(batch)} calibration samples has a label; thresholds need labelled ones")
    return batch[known]


def true_class(scores: Float[Tensor, "batch classes"], labels: Tensor) -> Float[Tensor, " batch"]:
    """The scores of the true classes; labels are checked."""
    check_labels(labels, scores.shape[1], "calibration.y", (len(scores),))
    return scores.gather(1, labels[:, None].to(scores.device))[:, 0]


class ConformalSets(Part):
    """A classifier with prediction sets; `forward` gives the classifier's own logits.

    Args:
        model: the classifier.
        kit: the true classes' calibration scores.
        method: how scores are made and the level.
        seed: of the uniform numbers in aps and raps.
    """

    def __init__(self, model: nn.Module, kit: Bag, method: Spec, seed: int = 0):
        super().__init__()
        self.model, self.kit, self.method, self.seed = model, kit, method, seed

    def forward(self, x: Tree) -> Tree:
        return self.model(x)

    @property
    def threshold(self) -> float:
        """Classes with a score up to this are in the set."""
        return conformal_threshold(self.kit["scores"], self.method.alpha)  # type: ignore[attr-defined]

    @property
    def trivial(self) -> bool:
        """Whether every set holds every class, as there are too few calibration samples for the level."""
        return math.isinf(self.threshold)

    def scores(self, x: Tree, ids: Int[Tensor, " batch"] | None = None) -> Float[Tensor, "batch classes"]:
        """Every class's score, in float64.

        Args:
            x: inputs.
            ids: names of the samples, which seed their randomness; default `0..batch-1`, as in a `Batch`.
        """
        ids = torch.arange(length(x)) if ids is None else ids
        with torch.no_grad():
            return _scores(self.method, self.model, x, Draw(seed_for(self.seed, "sets"), ids))

    def sets(self, x: Tree, ids: Int[Tensor, " batch"] | None = None) -> Bool[Tensor, "batch classes"]:
        """Which classes are in the set of each sample; arguments as for `scores`."""
        return self.scores(x, ids) <= self.threshold


def _scores(method: Any, model: nn.Module, x: Tree, draw: Draw) -> Tensor:
    check_finite(x, "x")
    found = probabilities(model(x))
    return nonconformity(found, draw.uniform().to(found), method.score, method.penalty, method.free)


@dataclass(frozen=True)
class Conformal(Remedy):
    """Gives a classifier prediction sets that hold the true class with probability `1 - alpha`.

    Attributes:
        score: `"hps"`, `"aps"` or `"raps"`.
        alpha: how often the true class may be missing.
        penalty: of raps, for all classes after the first `free` together.
        free: likeliest classes without penalty.
    """

    score: Score = "hps"
    alpha: Level = 0.1
    penalty: NonNegative = 0.2
    free: Index = 5

    card: ClassVar[Card] = Card(
        paper="Vovk, Gammerman, Shafer, 2005",
        handles=frozenset({"none"}),
        prepares=frozenset({"calibration.x", "calibration.y"}),
    )

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> nn.Module | None:
        assert model is not None
        batch, net = labelled(world), fork(model).eval()
        seed = run.seed_for("conformal", "calibration")
        parts = [batch[low : low + 256] for low in range(0, len(batch), 256)]
        with torch.no_grad():
            found = [true_class(_scores(self, net, there(p.x, net), Draw(seed, p.id)), p.labels) for p in parts]
        return Bag({"scores": torch.cat(found)})

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        made = ConformalSets(fork(model), fork(kit), self, run.seed_for("conformal"))
        if made.trivial:
            run.emit("every set holds every class", calibration=len(kit["scores"]), alpha=self.alpha)
        return made
