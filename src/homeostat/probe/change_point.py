"""Since when a sequence has had another mean: the change point, with an interval.

For window means `x_1 .. x_n` with weights `w` (how many samples are behind each) and a change before window `k`, the
least squares gain over no change is

    G_k = W_1 W_2 / (W_1 + W_2) (m_1 - m_2)^2,      or, where the mean b of before is known,    G_k = W_2 (m_2 - b)^2,

with `W_1, m_1` the weight and mean of the windows before `k` and `W_2, m_2` of the others. The estimate is the `k` with
the largest gain. The interval inverts a test of each `k`. If the change was at `k`, then `max_j G_j` has a known
distribution given `m_1`, `m_2` and how much the windows vary around them, and the interval spans all `k` for which what
was seen is not among the largest `1 - level` of draws from it. There are two ways to draw:

- permutations of the windows on either side of `k`. Then the interval covers the true `k` with probability at least
  `level`, whatever the distribution of windows, their number and the size of the change;
- `normal=True`, residuals in a random direction. The same holds for normal windows that vary alike on both sides. It is
  much shorter where few windows followed the change: one window that stands out could be chance among 20 permuted
  ones, and is not among 20 normal ones. Shares over 20 samples, or windows that vary less after the change, were
  covered in 90 to 98 % of simulations at a stated 95 %.

Both assume independent windows, alike on either side of one change. With dependent windows the interval is too short.
Of several changes, or a slow one, the estimate is where one step fits best. A change of the spread alone is not seen.

`ChangePoint` does this over data in the order they came, by permutations. Scores become ranks among all samples, so
that the effect is P(later > earlier) - 1/2, and are averaged over windows of `window` samples. The change need not come
at a window's edge, so the interval is a window wider on either side. It is found when permutations of all windows
seldom give as large a gain (`p <= 1 - level`) and the effect is at least `min_effect`.

>>> import torch
>>> found = find_change(torch.tensor([0.2, 0.1, 0.2, 0.1, 0.2, 0.1, 0.9, 0.8, 0.9, 0.8, 0.9, 0.8]))
>>> found.at, found.low, found.high
(6, 5, 7)

References: Hinkley, Biometrika 1970 (the estimate); Worsley, Biometrika 1986 (inverting tests of each position).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from homeostat.core.errors import InputError, NonFiniteError
from homeostat.core.method import Card
from homeostat.core.probe import Outputs, Probe
from homeostat.core.reading import Finding, Interval, Reading
from homeostat.core.run import Run
from homeostat.core.spec import Count, Fraction
from homeostat.core.world import World
from homeostat.probe.checks import enough, logits
from homeostat.probe.intervals import Level

DRAWS = 199
"""Random sequences behind every p-value."""


@dataclass(frozen=True)
class Change:
    """Where the mean changed.

    Attributes:
        at: first window with the new mean.
        low, high: ends of the interval of `at`, both included.
        p_value: of the windows being one sequence without a change, by permutations.
        effect: mean since `at` less the mean before.
    """

    at: int
    low: int
    high: int
    p_value: float
    effect: float


def change_gains(
    values: Float[Tensor, "*draws windows dims"],
    weights: Float[Tensor, "*draws windows"],
    before: Float[Tensor, " dims"] | None = None,
) -> Float[Tensor, "*draws windows"]:
    """Least squares gain of a change before each window, summed over `dims` that change together.

    It is -inf at the first window where the mean `before` is not known: there is nothing to compare it with.
    """
    summed, weight = (values * weights[..., None]).cumsum(-2), weights.cumsum(-1)
    # Sums over the windows before each one, and from it on.
    first = torch.cat([torch.zeros_like(summed[..., :1, :]), summed[..., :-1, :]], -2)
    first_weight = torch.cat([torch.zeros_like(weight[..., :1]), weight[..., :-1]], -1)
    last_weight = weight[..., -1:] - first_weight
    mean = (summed[..., -1:, :] - first) / last_weight.clamp(min=1e-12)[..., None]
    if before is not None:
        return last_weight * (mean - before).square().sum(-1)
    between = (first / first_weight.clamp(min=1e-12)[..., None] - mean).square().sum(-1)
    gains = first_weight * last_weight / weight[..., -1:].clamp(min=1e-12) * between
    gains[..., 0] = -torch.inf
    return gains


def find_change(
    values: Float[Tensor, " windows"],
    *,
    weights: Float[Tensor, " windows"] | None = None,
    before: float | int | None = None,
    level: float = 0.95,
    normal: bool = False,
    draws: int = DRAWS,
    generator: torch.Generator | None = None,
) -> Change:
    """When the mean of a sequence changed.

    Args:
        values: window means, oldest first.
        weights: samples behind each mean; equal if not given.
        before: mean before the change, where it is known. Only then can the first window be the changed one.
        level: stated coverage of the interval; `draws` must be at least `1 / (1 - level)`.
        normal: whether windows may be taken as normal; else their distribution is left open.
        draws: random sequences behind every p-value.
        generator: of the draws; a fixed one if not given.

    Raises:
        InputError: fewer than 2 windows, a weight that is not positive, or too few draws for the level.
        NonFiniteError: NaN or infinity among the values.
    """
    x = values.double()
    if len(x) < 2:
        raise InputError(f"a change point needs at least 2 windows; got {len(x)}. Give more, or smaller windows")
    if draws * (1 - level) < 1 - 1e-9:
        raise InputError(f"{draws} draws cannot give an interval of level {level}; give at least {1 / (1 - level):.0f}")
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError("a change point was asked for among values that hold NaN or infinity; leave those out")
    w = torch.ones_like(x) if weights is None else weights.double()
    if not bool((w > 0).all()):
        raise InputError("a window's weight is the number of samples behind it, above 0; leave empty windows out")
    generator = generator or torch.Generator().manual_seed(0)
    known = None if before is None else torch.tensor([float(before)], dtype=torch.float64)
    gains, position = change_gains(x[:, None], w, known), torch.arange(len(x))
    at = int(gains.argmax())
    noise = torch.randn(draws, len(x), generator=generator, dtype=torch.float64) if normal else None
    kept = [at]
    for split in range(1 if before is None else 0, len(x)):
        if split == at:
            continue
        if noise is not None:
            drawn, behind = _rotated(x, w, split, before, noise), w.expand(draws, -1)
        else:
            keys = torch.rand(draws, len(x), generator=generator, dtype=torch.float64) + (position >= split)
            order = keys.argsort(-1)  # random keys with an offset: either side is permuted on its own
            drawn, behind = x[order], w[order]
        # Both ways of drawing leave the gain of `split` itself as it is, so the largest gain alone is compared.
        if _p_value(change_gains(drawn[..., None], behind, known), gains[at]) > 1 - level + 1e-9:
            kept.append(split)
    order = torch.rand(draws, len(x), generator=generator, dtype=torch.float64).argsort(-1)
    alone = _p_value(change_gains(x[order][..., None], w[order]), change_gains(x[:, None], w).amax())
    past = _mean(x[:at], w[:at]) if at else float(before or 0.0)
    return Change(at, min(kept), max(kept), alone, _mean(x[at:], w[at:]) - past)


def _rotated(x: Tensor, w: Tensor, split: int, before: float | int | None, noise: Tensor) -> Tensor:
    """Sequences with the same means on either side of `split` and the same sum of squares around them."""
    root, center, residual = w.sqrt(), torch.empty_like(x), noise.clone()
    for side, known in ((slice(0, split), before), (slice(split, None), None)):
        center[side] = _mean(x[side], w[side]) if known is None else float(known)
        if known is None:
            unit = root[side] / root[side].square().sum().sqrt().clamp(min=1e-12)
            residual[:, side] -= (residual[:, side] @ unit)[:, None] * unit
    length = residual.square().sum(1, keepdim=True).clamp(min=1e-300)
    return center + residual * ((w * (x - center).square()).sum() / length).sqrt() / root


def _p_value(gains: Tensor, seen: Tensor) -> float:
    slack = 1e-9 * seen.abs() + 1e-300
    return (1 + int((gains.amax(-1) >= seen - slack).sum())) / (len(gains) + 1)


def _mean(x: Tensor, w: Tensor) -> float:
    return float((x * w).sum() / w.sum().clamp(min=1e-12))


@dataclass(frozen=True)
class ChangePoint(Probe):
    """First sample from which on the network was more, or less, certain; samples are taken in their order."""

    card: ClassVar[Card] = Card(
        paper="Worsley, Confidence regions and tests for a change-point, Biometrika 1986",
        handles=frozenset({"covariate"}),
    )
    permutable: ClassVar[bool] = False

    on: Literal["entropy", "confidence"] = "entropy"
    """The score whose change is looked for."""
    window: Count = 20
    """Samples averaged into one value; neighbours that are alike want a window much longer than their likeness."""
    level: Level = 0.95
    """Stated coverage of the interval; a change is found at 1 less this."""
    min_effect: Fraction = 0.05
    """Smallest P(later > earlier) - 1/2 that counts, in either direction."""

    def measure(self, outputs: Outputs, world: World, kit: Any, run: Run) -> Reading:
        p = logits(outputs, "ChangePoint").softmax(1).double().cpu()
        enough(len(p), 2 * self.window, "ChangePoint", f"samples for two windows of {self.window}")
        score = torch.special.entr(p).sum(1) if self.on == "entropy" else p.amax(1)
        windows = ranks(score).tensor_split(len(p) // self.window)
        edges = torch.tensor([0, *(len(window) for window in windows)]).cumsum(0).tolist()
        draws = max(DRAWS, int(10 / (1 - self.level)))
        weights = torch.tensor([float(len(window)) for window in windows])
        found = find_change(
            torch.stack([window.mean() for window in windows]), weights=weights, level=self.level, draws=draws,
            generator=run.rng("ChangePoint"),
        )  # fmt: skip
        effect, at = found.effect, edges[found.at]
        low, high = edges[found.low - 1], edges[min(found.high + 1, len(windows))]
        detected = found.p_value <= 1 - self.level + 1e-9 and abs(effect) >= self.min_effect
        side = "higher" if effect > 0 else "lower"
        text = (
            f"from sample {at} on (between {low} and {high}) the {self.on} is {side} than before: in "
            f"{0.5 + abs(effect):.0%} of pairs the later sample's is the {side} one"
            if detected
            else f"no notable change of the {self.on} in the order of samples"
        )
        finding = Finding("change", detected, (), at if detected else None, found.p_value, effect, text)
        arrays = {"windows": torch.stack([window.mean() for window in windows])}
        around = Interval(float(low), float(high), self.level)
        return Reading("change_point", float(at), around, "sample", finding=finding, arrays=arrays)


def ranks(score: Float[Tensor, " samples"]) -> Float[Tensor, " samples"]:
    """Mid-ranks in 0..1: the share of samples below, plus half of those that are equal (itself among them)."""
    ordered = score.sort().values
    below, up_to = torch.searchsorted(ordered, score), torch.searchsorted(ordered, score, right=True)
    return (below + up_to).double() / (2 * len(score))
