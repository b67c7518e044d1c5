"""RSCP+ with PTT: prediction sets that keep their coverage under attack, Monte-Carlo error included.

Ordinary conformal sets lose their promise when an adversary moves the input. These keep it for every move of l2 norm
up to delta: P(true class in set(x')) >= 1 - alpha for all |x' - x|_2 <= delta.

Let S(x, k) in 0..1 be a score of nonconformity (see `Conformal`), and e_i ~ N(0, sigma^2 I). The mean
s(x, k) = E S(x + e, k) satisfies |Q(s(x', k)) - Q(s(x, k))| <= delta / sigma, Q the standard normal quantile. Only an
estimate of it is known, from N = `draws` noisy copies, with sample variance V `[batch, classes]`:

    m(x, k) = 1/N sum_i S(x + e_i, k)
    tau     = the ceil((n + 1)(1 - alpha + 2 beta))-th smallest m(x_j, y_j) of n calibration samples
    h       = sqrt(ln(1/beta) / 2N)                                                (Hoeffding)
    b       = sqrt(2 V ln(2/beta) / N) + 7 ln(2/beta) / 3(N - 1)                   (empirical Bernstein)
    set(x') = { k : Q(max(m(x', k) - b, 0)) - delta / sigma  <=  Q(min(tau + h, 1)) }

The 2 beta pay for the chance that either bound fails. `plus=False` is the older RSCP: level alpha, b = h = 0. It takes
the estimate for the mean, so its promise holds for N -> infinity only, and with few draws an attack breaks it.

**Where even a score of 1 in all draws passes, every set holds every class**: surely where tau + h >= 1, and already at
Q(1 - b(V = 0)) - delta / sigma <= Q(tau + h), which at the defaults is tau > 0.72. That is what the mathematics says
and what usually happens with plain scores, because a hard sample's score is near 1; `RobustSets.trivial` tells. PTT is
the cure: a transform learnt on m held-out labelled samples, monotone and in 0..1, so that the promise stays,

    g(s) = 1 / (1 + exp(-T (r(s) - c))),     r(s) = share of held-out true-class scores (one noisy draw each) <= s,

which pulls the scores below their c-quantile to 0. Defaults, from the paper: delta 0.125, sigma = 2 delta, 256 draws,
alpha 0.1, beta 0.001; T 400, c 0.9, 500 held-out samples.

Noise is seeded by a sample's id, in streams of their own for calibration, hold-out and use, so sets repeat exactly
and do not depend on batches. The uniform number of aps is the id's too, the same before and after an attack. The
official code takes an interpolated quantile; here it is the order statistic that the proof needs. The promise is void
against an adversary who knows the seed and can search for inputs that suit its noise. The network should be trained
with noise of the same sigma; otherwise sets are valid and large. `RCT` trains its last layer for small sets.

Inputs are one float tensor. Each costs `draws` forward passes.

>>> from homeostat.core.world import World
>>> y = torch.arange(60) % 2
>>> x = 4.0 * torch.nn.functional.one_hot(y) + torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
>>> net = RSCP(draws=128, alpha=0.2)(nn.Identity(), World(calibration=(x, y)))
>>> net.sets(torch.tensor([[4.0, 0.0], [0.1, 0.0]])), net.trivial
(tensor([[ True, False],
        [ True,  True]]), False)

References: Yan, Romano, Weng, Provably Robust Conformal Prediction with Improved Efficiency, ICLR 2024 (RSCP+, PTT);
Gendler et al., Adversarially Robust Conformal Prediction, ICLR 2022 (RSCP); Maurer, Pontil, COLT 2009 (b).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction as Exact
from functools import partial
from typing import Annotated, Any, ClassVar

import annotated_types as at
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from homeostat.core.data import Batch, check_finite, floating
from homeostat.core.errors import InputError, SpecError
from homeostat.core.fork import fork
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Bag
from homeostat.core.place import there
from homeostat.core.random import Draw, seed_for
from homeostat.core.run import Run
from homeostat.core.spec import Count, Fraction, Index, NonNegative, Positive, Spec
from homeostat.core.tree import Tree
from homeostat.core.world import World
from homeostat.trust.conformal import (
    ConformalSets,
    Level,
    Score,
    conformal_threshold,
    labelled,
    nonconformity,
    probabilities,
    true_class,
)

Transform = Callable[[Tensor], Tensor]
_DRAWS = 16  # noisy copies a forward pass; part of what a seed means
_IMAGES = 64  # samples a forward pass


def hoeffding(draws: int, beta: float = 0.001) -> float:
    """How far the mean of `draws` numbers in 0..1 exceeds its estimate, with probability at most `beta`."""
    return math.sqrt(math.log(1 / beta) / (2 * draws))


def empirical_bernstein(variance: Float[Tensor, "*any"], draws: int, beta: float = 0.001) -> Float[Tensor, "*any"]:
    """How far an estimate exceeds the mean, with probability at most `beta`; from the sample variance."""
    t = math.log(2 / beta)
    return (2 * variance * t / draws).sqrt() + 7 * t / (3 * (draws - 1))


def robust_sets(
    mean: Float[Tensor, "batch classes"], bound: Float[Tensor, "batch classes"], ceiling: float, radius: float
) -> Bool[Tensor, "batch classes"]:
    """The classes that some clean input within reach would have had in its set.

    Args:
        mean: Monte-Carlo scores of the (perhaps attacked) inputs.
        bound: what they may exceed their expectation by.
        ceiling: the threshold, with the calibration's own margin.
        radius: delta / sigma.
    """
    limit = torch.special.ndtri(mean.new_tensor(min(ceiling, 1.0)))
    return torch.special.ndtri((mean - bound).clamp(min=0)) - radius <= limit


@dataclass(frozen=True)
class PTT(Spec):
    """Post-training transform: ranks among held-out scores, then a steep sigmoid.

    Attributes:
        holdout: labelled calibration samples set aside for it.
        slope: T.
        bias: c, the rank where the sigmoid rises.
    """

    holdout: Count = 500
    slope: Positive = 400.0
    bias: Fraction = 0.9

    def transform(self, scores: Tensor, reference: Float[Tensor, " holdout"]) -> Tensor:
        """Scores of any shape, given the held-out ones in rising order."""
        rank = torch.searchsorted(reference, scores.contiguous(), right=True).double() / len(reference)
        return torch.sigmoid(self.slope * (rank - self.bias))


class RobustSets(ConformalSets):
    """A classifier with robust prediction sets; `forward` gives the classifier's own logits on the clean input."""

    method: RSCP

    @property
    def threshold(self) -> float:
        """tau; 1, the largest score, when there are too few calibration samples for the level."""
        alpha, beta = Exact(str(self.method.alpha)), Exact(str(self.method.beta))
        return min(conformal_threshold(self.kit["scores"], alpha - 2 * beta if self.method.plus else alpha), 1.0)

    @property
    def ceiling(self) -> float:
        """tau + h, or tau without `plus`."""
        margin = hoeffding(self.method.draws, self.method.beta) if self.method.plus else 0.0
        return self.threshold + margin

    @property
    def trivial(self) -> bool:
        """Whether every set holds every class: even a score of 1 in every draw is accepted."""
        worst = torch.ones(1, 1, dtype=torch.float64)
        return bool(robust_sets(worst, self._bound(worst - 1), self.ceiling, self.method.delta / self.method.sigma))

    def _bound(self, variance: Tensor) -> Tensor:
        m = self.method
        return empirical_bernstein(variance, m.draws, m.beta) if m.plus else torch.zeros_like(variance)

    def moments(
        self, x: Tensor, ids: Int[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        """Mean and sample variance of every class's score over the draws; arguments as for `scores`."""
        batch, m = Batch(x) if ids is None else Batch(x, id=ids), self.method
        return _moments(m, self.model, batch, seed_for(self.seed, "sets"), m.draws, _transform(m, self.kit))

    def scores(self, x: Tree, ids: Int[Tensor, " batch"] | None = None) -> Float[Tensor, "batch classes"]:
        """The Monte-Carlo score of every class, in float64."""
        return self.moments(x, ids)[0]  # type: ignore[arg-type]

    def sets(self, x: Tree, ids: Int[Tensor, " batch"] | None = None) -> Bool[Tensor, "batch classes"]:
        mean, variance = self.moments(x, ids)  # type: ignore[arg-type]
        return robust_sets(mean, self._bound(variance), self.ceiling, self.method.delta / self.method.sigma)


def _transform(method: RSCP, kit: Bag) -> Transform:
    return (lambda scores: scores) if method.ptt is None else partial(method.ptt.transform, reference=kit["reference"])


def _moments(
    method: RSCP, net: nn.Module, batch: Batch, seed: int, draws: int, transform: Transform
) -> tuple[Tensor, Tensor]:
    """Mean and sample variance of every class's transformed score."""
    x = floating(batch.x, "RSCP")
    check_finite(x, "x")
    pieces = zip(x.split(_IMAGES), batch.id.split(_IMAGES), strict=True)
    with torch.no_grad():
        found = [_piece(method, net, there(part, net), Draw(seed, ids), draws, transform) for part, ids in pieces]
    return torch.cat([mean for mean, _ in found]), torch.cat([variance for _, variance in found])


def _piece(
    method: RSCP, net: nn.Module, x: Tensor, draw: Draw, draws: int, transform: Transform
) -> tuple[Tensor, Tensor]:
    u, done = draw.uniform().to(x.device).double(), 0
    mean = squares = torch.zeros((), dtype=torch.float64, device=x.device)
    while done < draws:
        count = min(_DRAWS, draws - done)
        noisy = x[:, None] + method.sigma * draw.normal(count, *x.shape[1:]).to(x)
        found = probabilities(net(noisy.flatten(0, 1)))
        scores = nonconformity(found, u.repeat_interleave(count), method.score, method.penalty, method.free)
        scores = transform(scores).unflatten(0, (len(x), count))
        part = scores.mean(1)
        # Chan's update: deviations within both groups, and those of the two means.
        squares = squares + (scores - part[:, None]).square().sum(1)
        squares = squares + (part - mean).square() * (done * count / (done + count))
        mean, done = mean + (part - mean) * (count / (done + count)), done + count
    return mean, squares / max(draws - 1, 1)


@dataclass(frozen=True)
class RSCP(Remedy):
    """Gives a classifier prediction sets with coverage `1 - alpha` under any l2 move of size `delta`.

    Attributes:
        score: `"hps"`, `"aps"` or `"raps"` (see `Conformal`).
        delta: radius of the ball, in the unit of inputs.
        sigma: of the noise; more of it costs less margin and more accuracy.
        draws: noisy copies per sample.
        alpha: how often the true class may be missing.
        beta: chance that a Monte-Carlo bound fails; paid for at the level.
        plus: account for the Monte-Carlo error; without it nothing is certified.
        ptt: transform of the scores; None leaves them, and all calibration samples make the threshold.
        penalty, free: of raps.
    """

    score: Score = "hps"
    delta: NonNegative = 0.125
    sigma: Positive = 0.25
    draws: Annotated[int, at.Ge(2)] = 256
    alpha: Level = 0.1
    beta: Level = 0.001
    plus: bool = True
    ptt: PTT | None = None
    penalty: NonNegative = 0.2
    free: Index = 5

    card: ClassVar[Card] = Card(
        id="S110",
        paper="Yan, Romano, Weng, Provably Robust Conformal Prediction with Improved Efficiency, ICLR 2024",
        handles=frozenset({"adversarial"}),
        prepares=frozenset({"calibration.x", "calibration.y"}),
        passes=256.0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.plus and self.alpha <= 2 * self.beta:
            raise SpecError(
                f"RSCP.beta = {self.beta}, but 2 beta is taken from alpha = {self.alpha}, and nothing is left; lower it"
            )

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> nn.Module | None:
        """A bag with the `scores` of the true classes, and PTT's `reference` scores in rising order."""
        assert model is not None
        batch, net, kit = labelled(world), fork(model).eval(), Bag()
        if self.ptt is not None:
            if len(batch) <= self.ptt.holdout:
                raise InputError(
                    f"PTT sets {self.ptt.holdout} labelled calibration samples aside, and there are {len(batch)}; "
                    "give more, or lower PTT(holdout=...)"
                )
            order = torch.randperm(len(batch), generator=run.rng("rscp", "hold-out"))
            held, batch = batch[order[: self.ptt.holdout]], batch[order[self.ptt.holdout :]]
            found, _ = _moments(self, net, held, run.seed_for("rscp", "reference"), 1, lambda scores: scores)
            kit["reference"] = true_class(found, held.labels).sort().values
        found, _ = _moments(self, net, batch, run.seed_for("rscp", "calibration"), self.draws, _transform(self, kit))
        kit["scores"] = true_class(found, batch.labels)
        return kit

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        made = RobustSets(fork(model), fork(kit), self, run.seed_for("rscp"))
        if made.trivial:
            run.emit("every set holds every class", threshold=made.threshold, ceiling=made.ceiling)
        return made
