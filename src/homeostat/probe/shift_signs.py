"""Signs that tell kinds of shift apart, comparable between networks and data.

From a window of n samples in stream order (logits, features, the labels that are known) and a reference from before,
some fifty numbers. Each is made so that it means the same for any network: a rank in the reference, a share, or a
difference in units of its own sampling error, z, squashed to `sign(z) log(1 + |z|)`.

Features are seen as u, whitened within classes (see `shift_reference`). The window's class balance is estimated by
expectation-maximization, and the reference is weighted by it, so that what a changed balance explains does not count
as drift. The signs then are

- `balance.*`: how far predicted classes, and the estimated balance, are from the reference's;
- `entropy.*`, `height.*`, `center.*`, `near.*`, `rest.*`: the share of the window below the reference's 10, 50, 90 and
  99 % quantile of the five scores;
- `drift.*`: how far the mean of u moved, before and after weighting; within predicted classes, how much, whether in
  one common direction, whether in few classes, and whether classes became narrower;
- `far.*`: how many samples are far from all of the reference, how tight they are among themselves, whether few classes
  are predicted for them, and how much the others moved;
- `order.*`: whether neighbors in the stream are alike in predicted class, in u, in u within the class, in entropy;
- `label.*`, zero where fewer than `LEAST_LABELS` labels are known: their balance and order, the error against that
  expected of these classes, against the confidence, whether it is in few pairs of classes, and how sure errors are.

Reference: Lipton, Wang and Smola, ICML 2018, and Rabanser et al., NeurIPS 2019, for telling label from other shifts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from homeostat.core.data import UNKNOWN
from homeostat.probe.saerens import em_prior
from homeostat.probe.shift_reference import SCORES, Reference, Rows, scores_of, surprise_of

LEAST_LABELS = 10
"""With fewer known labels in a window, labels are left out of account."""
_LEVELS = (0.1, 0.5, 0.9, 0.99)
_LEAST = 4  # samples of a class, in window and reference, without which the class is passed over
_LABEL = ("balance", "order", "error", "promise", "surprise", "pair", "class", "sure")
SIGNS: tuple[str, ...] = (
    "balance.predicted", "balance.distance", "balance.estimated", "balance.rise", "balance.fall",
    *(f"{score}.{level:g}" for score in SCORES for level in _LEVELS),
    "drift.before", "drift.after", "drift.within", "drift.common", "drift.few", "drift.width",
    "far.share", "far.tight", "far.classes", "far.others",
    "order.classes", "order.halves", "order.blocks", "order.features", "order.within", "order.entropy",
    *(f"label.{name}" for name in _LABEL),
)  # fmt: skip
"""Names of the signs, in order; the last ones need labels."""
UNLABELLED = len(SIGNS) - len(_LABEL)
"""How many of the signs need no label."""


@dataclass(frozen=True)
class Seen:
    """The signs of a window `[signs]`, and what they say by class `[classes]`.

    Attributes:
        signs: values in the order of `SIGNS`.
        predicted: share of the window predicted as each class, minus that of the reference.
        estimated: estimated class balance.
        within: squared drift within each predicted class, in variances of a class, its sampling error taken off.
        alike, chance: share of neighbors of one predicted class, and the share expected by chance.
        clumped: what each class adds to the difference of these.
        far, far_before: share of samples far from all of the reference, in the window and in the reference.
        taken: share of each predicted class among the far ones.
        errors: share of known labels of each class that is wrong, minus the share expected; 0 where none is known.
        error, expected: the same over all known labels; NaN where too few are known.
    """

    signs: Tensor
    predicted: Tensor
    estimated: Tensor
    within: Tensor
    alike: float
    chance: float
    clumped: Tensor
    far: float
    far_before: float
    taken: Tensor
    errors: Tensor
    error: float
    expected: float


def signs(rows: Rows, ref: Reference) -> Seen:
    """The signs of a window of at least 10 samples in stream order."""
    classes, n, m = rows.logits.shape[1], len(rows), len(ref.labels)
    p = (rows.logits / ref.temperature).softmax(1)
    c, (u, rest), found = p.argmax(1), ref.seen(rows.features), dict[str, float]()
    now, was = (torch.bincount(k, minlength=classes).float() for k in (c, ref.predicted))
    change, estimated = now / n - was / m, em_prior(p, ref.prior, rounds=30, tolerance=1e-4)
    noise = (((was + 0.5) / m).clamp(max=1) * (1 / n + 1 / m)).sqrt()
    found["balance.predicted"] = _squash(_chi_square(torch.stack([now, was])))
    found["balance.distance"] = float(change.abs().sum() / 2 - 0.4 * noise.sum())
    found["balance.estimated"] = float((estimated - ref.prior).abs().sum() / 2)
    found["balance.rise"] = _squash(float((change / noise).max()))
    found["balance.fall"] = _squash(float((change / noise).min()))

    weights = (estimated / ref.prior).clamp(max=20)[ref.labels]
    weights = weights / weights.sum()
    size = float(1 / weights.square().sum())
    scores, marks = scores_of(p, rows.logits, u, rest, ref.centers, ref.support), _quantiles(ref, weights)
    for name, score, mark in zip(SCORES, scores, marks, strict=True):
        below = (score < mark[:, None]).float().mean(1) + 0.5 * (score == mark[:, None]).float().mean(1)
        for level, share in zip(_LEVELS, below.tolist(), strict=True):
            found[f"{name}.{level:g}"] = _squash((share - level) / math.sqrt(level * (1 - level) * (1 / n + 1 / size)))

    within = _drift(u, c, ref, weights, size, found)
    near, mark = scores[SCORES.index("near")], 0.5 * float(marks[SCORES.index("near"), 2:].sum())
    taken, far, far_before = _far(u, c, near > mark, ref, ref.scores[SCORES.index("near")] > mark, found)
    alike, chance, clumped = _order(u, c, scores[0], found)
    errors, error, expected = _labels(p, c, rows.labels, ref, found)
    values = torch.tensor([found[name] for name in SIGNS]).clamp(-8, 8)
    return Seen(
        values, change, estimated, within, alike, chance, clumped, far, far_before, taken, errors, error, expected
    )


def _squash(z: float) -> float:
    return math.copysign(math.log1p(abs(z)), z)


def _quantiles(ref: Reference, weights: Tensor) -> Tensor:
    """Weighted quantiles `[scores, levels]` of the reference's scores."""
    running = weights[ref.order].cumsum(1)
    levels = torch.tensor(_LEVELS).expand(len(running), -1).contiguous()
    place = torch.searchsorted(running, levels).clamp(max=running.shape[1] - 1)
    return ref.scores.gather(1, ref.order.gather(1, place))


def _chi_square(table: Tensor) -> float:
    """The chi-square of a table, standardized: about 0 by chance."""
    table = table[:, table.sum(0) > 0]
    table = table[table.sum(1) > 0]
    free = (table.shape[0] - 1) * (table.shape[1] - 1)
    if free < 1:
        return 0.0
    wanted = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / table.sum()
    return (float(((table - wanted).square() / wanted).sum()) - free) / math.sqrt(2 * free)


@dataclass(frozen=True)
class _Within:
    """Drift within predicted classes: its squared length by class used, without what chance gives, and their sum."""

    used: Tensor
    here: Tensor
    delta: Tensor
    square: Tensor
    chance: Tensor
    share: Tensor
    width: float
    z: float


def _within(u: Tensor, c: Tensor, known: Tensor, known_c: Tensor, weights: Tensor, classes: int) -> _Within | None:
    """Means by predicted class in the window and in the (weighted) reference; None where no class has enough."""
    member, before = one_hot(c, classes).float(), one_hot(known_c, classes).float() * weights[:, None]
    counts, total = member.sum(0), before.sum(0)
    here = member.T @ u / counts.clamp(min=1)[:, None]
    there = before.T @ known / total.clamp(min=1e-9)[:, None]
    sizes = total.square() / before.square().sum(0).clamp(min=1e-12)
    used = (counts >= _LEAST) & (sizes >= _LEAST)
    if not bool(used.any()):
        return None
    width = float((weights[:, None] * (known - there[known_c]).square()).sum())
    chance = width * (1 / counts[used] + 1 / sizes[used])
    delta, share = (here - there)[used], counts[used] / len(u)
    square = delta.square().sum(1) - chance
    z = float((square * share).sum() / (share * chance).norm().clamp(min=1e-9)) / math.sqrt(2 / u.shape[1])
    return _Within(used, here, delta, square, chance, share, width, z)


def _drift(u: Tensor, c: Tensor, ref: Reference, weights: Tensor, size: float, found: dict[str, float]) -> Tensor:
    spread = float(ref.u.var(0).sum())
    for name, other, count in (("before", ref.u.mean(0), len(ref.u)), ("after", weights @ ref.u, size)):
        square, chance = float((u.mean(0) - other).square().sum()), spread * (1 / len(u) + 1 / count) + 1e-9
        found[f"drift.{name}"] = _squash((square - chance) / (chance * math.sqrt(2 / u.shape[1])))
    by_class = torch.zeros(len(ref.prior))
    seen = _within(u, c, ref.u, ref.predicted, weights, len(by_class))
    if seen is None:
        found.update({f"drift.{name}": 0.0 for name in ("within", "common", "few", "width")})
        return by_class
    by_class[seen.used] = seen.square
    trust, share = 2 * max(0.0, seen.z) / (max(0.0, seen.z) + 3), seen.share
    found["drift.within"] = _squash(seen.z)
    common = float((share @ seen.delta).square().sum() - (share.square() * seen.chance).sum()) / float(share.sum())
    total, parts = float((share * seen.square).sum()), (share * seen.square).clamp(min=0)
    found["drift.common"] = trust * min(1.0, max(0.0, common / max(total, 1e-6)))
    found["drift.few"] = trust * float(parts.max() / parts.sum().clamp(min=1e-6) - 1 / len(parts))
    mine = seen.used[c]
    own = float((u - seen.here[c])[mine].square().sum()) / max(1, int(mine.sum()) - int(seen.used.sum()))
    found["drift.width"] = _squash(math.log(max(own, 1e-6) / max(seen.width, 1e-6)) * math.sqrt(len(u) / 2))
    return by_class


def _far(
    u: Tensor, c: Tensor, far: Tensor, ref: Reference, far_before: Tensor, found: dict[str, float]
) -> tuple[Tensor, float, float]:
    n, classes, count = len(u), len(ref.prior), int(far.sum())
    share, before = count / n, max(float(far_before.float().mean()), 0.01)
    found["far.share"] = _squash((share - before) / math.sqrt(before * (1 - before) * (1 / n + 1 / len(ref.u))))
    taken = torch.bincount(c[far], minlength=classes).float() / max(1, count)
    found["far.tight"] = found["far.classes"] = found["far.others"] = 0.0
    if count >= 5:
        trust = 2 * min(1.0, 10 * max(0.0, share - before))
        apart, typical = torch.pdist(u[far][:100]).median(), torch.pdist(u[:: max(1, n // 100)]).median()
        found["far.tight"] = trust * math.log(max(float(apart / typical.clamp(min=1e-6)), 1e-3))
        plain = torch.bincount(c, minlength=classes).float() / n
        found["far.classes"] = trust * float((taken - plain).abs().sum() / 2)
    if n - count >= 10:
        known = ~far_before
        even = torch.ones(int(known.sum())) / max(1, int(known.sum()))
        seen = _within(u[~far], c[~far], ref.u[known], ref.predicted[known], even, classes)
        found["far.others"] = 0.0 if seen is None else _squash(seen.z)
    return taken, share, before


def _alike(c: Tensor, classes: int) -> tuple[float, float, float]:
    """Share of neighbors alike, the share expected, and their difference in units of its sampling error."""
    counts, n = torch.bincount(c, minlength=classes).double(), len(c)
    chance = float((counts * (counts - 1)).sum() / (n * (n - 1)))
    share = float((c[1:] == c[:-1]).double().mean())
    return share, chance, (share - chance) / math.sqrt((chance * (1 - chance) + 1e-3) / (n - 1))


def _serial(x: Tensor) -> float:
    """Correlation of neighbors, columns together, in units of its sampling error."""
    x = x - x.mean(0)
    total = x.square().sum(0)
    x = x[:, total > 1e-9] / total[total > 1e-9].sqrt()
    return float((x[1:] * x[:-1]).sum()) * math.sqrt(len(x) / x.shape[1]) if x.shape[1] else 0.0


def _order(u: Tensor, c: Tensor, entropy: Tensor, found: dict[str, float]) -> tuple[float, float, Tensor]:
    n, classes = len(u), int(c.max()) + 1
    alike, chance, z = _alike(c, classes)
    found["order.classes"] = _squash(z)
    found["order.halves"] = _squash(sum(_alike(part, classes)[2] for part in (c[: n // 2], c[n // 2 :])) / 2**0.5)
    blocks = torch.arange(n) * min(8, max(2, n // 20)) // n
    table = torch.zeros(int(blocks[-1]) + 1, classes).index_put_((blocks, c), torch.ones(n), accumulate=True)
    found["order.blocks"] = _squash(_chi_square(table))
    member = one_hot(c, classes).float()
    counts = member.sum(0)
    found["order.features"] = _squash(_serial(u))
    found["order.within"] = _squash(_serial(u - (member.T @ u / counts.clamp(min=1)[:, None])[c]))
    found["order.entropy"] = _squash(_serial(entropy.argsort().argsort().float()[:, None]))
    return alike, chance, ((member[1:] * member[:-1]).sum(0) - counts * (counts - 1) / n) / (n - 1)


def _labels(
    p: Tensor, c: Tensor, labels: Tensor, ref: Reference, found: dict[str, float]
) -> tuple[Tensor, float, float]:
    known = labels != UNKNOWN
    count, classes = int(known.sum()), len(ref.prior)
    if count < LEAST_LABELS:
        found.update({f"label.{name}": 0.0 for name in _LABEL})
        return torch.zeros(classes), math.nan, math.nan
    y, guess, q = labels[known], c[known], p[known]
    seen, was = (torch.bincount(k, minlength=classes).float() for k in (y, ref.labels))
    found["label.balance"] = _squash(_chi_square(torch.stack([seen, was])))
    found["label.order"] = _squash(_alike(y, classes)[2])
    wrong, usual = guess != y, 1 - ref.rates.diagonal()
    chance = usual[y]
    noise = float((chance * (1 - chance)).sum()) * (1 + count / len(ref.labels)) + 0.5
    found["label.error"] = _squash(float((wrong.float() - chance).sum()) / math.sqrt(noise))
    gap = q.amax(1) - (~wrong).float() - ref.promise
    found["label.promise"] = _squash(float(gap.mean()) / math.sqrt(float(gap.var()) / count + 0.25 / count**2))
    beyond = (surprise_of(q, y).mean() - ref.surprise[0]) / ref.surprise[1].clamp(min=0.05)
    found["label.surprise"] = _squash(float(beyond) * math.sqrt(count))
    table = torch.zeros(classes, classes).index_put_((guess, y), torch.ones(count), accumulate=True)
    excess = ((table - ref.rates * seen) / (ref.rates * seen + 1).sqrt()).fill_diagonal_(0)
    found["label.pair"] = _squash(float(excess.max()))
    missed = seen - table.diagonal()
    found["label.class"] = _squash(float(((missed - usual * seen) / (usual * seen + 1).sqrt()).max()))
    surer = float(q.amax(1)[wrong].mean() - ref.sure) if bool(wrong.any()) else 0.0
    found["label.sure"] = _squash(4 * surer * math.sqrt(int(wrong.sum())))
    errors = torch.where(seen > 0, missed / seen.clamp(min=1) - usual, 0.0)
    return errors, float(wrong.float().mean()), float(chance.mean())
