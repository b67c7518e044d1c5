"""What the monitor reads off the frozen network: scores of single samples, as ranks among those from before.

A rank is the share of reference samples whose score is lower (ties count half). Whatever the network, ranks of data
like the reference have mean 1/2, and the mean rank of other data is P(now > before): a shift's size in one unit for
every score. Few samples that are new move a mean rank little, however far out they are; so it is looked at too how many
are in the extreme tenth.

>>> import torch
>>> mid_ranks(torch.tensor([[0.1, 0.2, 0.2, 0.3]]), torch.tensor([[0.0, 0.2, 0.9]])).tolist()
[[0.0, 0.5, 1.0]]
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from homeostat.core.errors import InputError
from homeostat.core.probe import Outputs
from homeostat.loop.signals import Layout, layout_of
from homeostat.probe.checks import logits, matrix, same_width

KEPT = 512
"""Order statistics kept of a score, at most."""
AXES = 8192
"""Numbers kept of the features' principal axes, at most (but at least two axes are)."""
RANKED = 8
"""Leading axes along which samples are ranked, at most."""
TAIL = 0.1
"""Share of the reference that counts as its least certain, or furthest, part."""
CLASSES = 32
"""Predicted classes told apart; beyond that the rarest share one place, the last."""


def mean_entropy(logits: Float[Tensor, "samples classes"]) -> float:
    """Mean predictive entropy over log K, in 0..1, of logits or log-probabilities."""
    samples, classes = logits.shape
    return float(torch.special.entr(logits.float().softmax(-1)).sum()) / (samples * math.log(classes))


def _certainty(p: Float[Tensor, "samples classes"]) -> Float[Tensor, "2 samples"]:
    """Entropy and confidence of probabilities."""
    return torch.stack([_entropy(p), p.amax(-1)])


def _entropy(p: Tensor) -> Tensor:
    return (torch.special.entr(p).sum(-1) / math.log(p.shape[-1])).clamp(0, 1)


class Scores:
    """Reads samples' scores against a reference, which is kept in a few small tensors.

    Args:
        kept: tensors as `Scores.fit` made them.
    """

    def __init__(self, kept: dict[str, Tensor]):
        self.kept = kept

    @classmethod
    def fit(cls, before: Outputs, *, ordered: bool) -> Scores:
        """Keep what is needed of a reference.

        Args:
            before: logits and, if they are to be watched, features of data from before.
            ordered: whether neighbours in `before` may be alike, as in a stream.
        """
        p = logits(before, "Monitor").softmax(-1)
        balance = torch.bincount(p.argmax(-1), minlength=p.shape[1])
        kept = {
            "width": torch.tensor(p.shape[1]),
            "classes": balance.argsort(descending=True, stable=True)[: CLASSES - 1 if p.shape[1] > CLASSES else None],
        }
        count = min(KEPT, len(p))
        known = [order_statistics(_certainty(p), count)]
        if before.features is not None:
            x = matrix(before, "features", "Monitor")
            rest = ranked_among(len(x), ordered)
            kept |= principal_axes(x[~rest])
            known.append(order_statistics(away(x[rest], kept), count))
        return cls({**kept, "known": torch.cat(known)})

    def read(self, seen: Outputs, signals: Collection[str]) -> tuple[Layout, Float[Tensor, "columns samples"]]:
        """Numbers in 0..1 for the signals that are wanted, and can be had.

        `entropy`, `confidence`: rank, and whether it is in the least certain tenth. `features`: rank of the distance,
        whether that is in the furthest tenth, ranks along the leading axes. `classes`: which one is predicted.

        Raises:
            InputError: other classes or features than the reference has.
            NonFiniteError: NaN or infinity among them.
        """
        p, kept = logits(seen, "Monitor").softmax(-1), self.kept
        if p.shape[1] != int(kept["width"]):
            was = int(kept["width"])
            raise InputError(f"the monitor was begun with {was} classes; these outputs have {p.shape[1]}")
        scores, known = _certainty(p), kept["known"]
        if "features" in signals and "features.mean" in kept and seen.features is not None:
            x = matrix(seen, "features", "Monitor")
            same_width(x.shape[1], len(kept["features.mean"]), "Monitor", "features")
            scores = torch.cat([scores, away(x, kept)])
        ranks = mid_ranks(known[: len(scores)], scores)
        entropy, confidence, distance = ranks[:1], ranks[1:2], ranks[2:3]
        made = dict[str, tuple[Tensor, ...]]()
        if "entropy" in signals:
            made["entropy"] = (entropy, entropy > 1 - TAIL)
        if "confidence" in signals:
            made["confidence"] = (confidence, confidence < TAIL)
        if len(distance):
            made["features"] = (distance, distance > 1 - TAIL, ranks[3:])
        if "classes" in signals:
            made["classes"] = (self._places(p),)
        layout = layout_of(tuple((name, sum(map(len, parts))) for name, parts in made.items()))
        parts = [part for parts in made.values() for part in parts]
        return layout, torch.cat(parts) if parts else ranks[:0]

    def _places(self, p: Tensor) -> Float[Tensor, "places samples"]:
        named = self.kept["classes"][:, None] == p.argmax(-1)
        if len(self.kept["classes"]) < p.shape[1]:
            named = torch.cat([named, ~named.any(0, keepdim=True)])
        return named.double()


def ranked_among(count: int, ordered: bool) -> Bool[Tensor, " samples"]:
    """Which reference samples features are ranked among; the axes are fitted to the others.

    Samples lie nearer to axes that were fitted to them than new ones do. Runs of a stream are kept on one side.
    """
    return torch.arange(count) // (25 if ordered else 1) % 2 == 1


def order_statistics(values: Float[Tensor, "scores samples"], count: int) -> Float[Tensor, "scores count"]:
    """So many of each score's values, at even ranks and in rising order."""
    ordered = values.sort(-1).values
    return ordered[:, ((torch.arange(count) + 0.5) * ordered.shape[1] / count).long()].contiguous()


def mid_ranks(
    known: Float[Tensor, "scores kept"], values: Float[Tensor, "scores samples"]
) -> Float[Tensor, "scores samples"]:
    """Share of the known values below each value; those that are equal count half."""
    values, count = values.to(known.dtype).contiguous(), known.shape[1]
    low = torch.searchsorted(known, values)
    if not bool((known.gather(1, low.clamp(max=count - 1)) == values).any()):
        return low.double() / count
    return (low + torch.searchsorted(known, values, right=True)).double() / (2 * count)


def principal_axes(x: Float[Tensor, "samples features"]) -> dict[str, Tensor]:
    """Mean, leading principal axes and weights of squares: the model behind `away`."""
    rows, columns = x.shape
    mean = x.mean(0)
    most = max(0, min(16, max(2, AXES // columns), rows // 5, columns - 1))
    used = (x - mean)[: max(1000, most + 1)]
    _, singular, axes = torch.linalg.svd(used.double(), full_matrices=False)
    variance = singular.square() / max(1, len(used) - 1)
    total = float((x - mean).double().square().sum()) / max(1, rows - 1)
    rest = max(total - float(variance[:most].sum()), 0.0) / max(1, columns - most)
    # What no reference sample ever does must not be infinitely surprising.
    rest = max(rest, 1e-3 * total / columns, 1e-12)
    weights = torch.cat([1 / variance[:most].clamp(min=rest) - 1 / rest, torch.tensor([1 / rest])])
    # Contiguous, as they are when they are read back: strides decide the last bit of a product.
    axes = axes[:most].float().contiguous()
    return {"features.mean": mean.contiguous(), "features.axes": axes, "features.weights": weights.float()}


def away(x: Float[Tensor, "samples features"], kept: dict[str, Tensor]) -> Float[Tensor, "scores samples"]:
    """How far samples are from the reference, then where they lie along its leading axes.

    The distance is Mahalanobis's, squared, under probabilistic principal components: along the axes a difference counts
    over its variance there, elsewhere over the mean variance of what is left.
    """
    difference, weights = x - kept["features.mean"].to(x), kept["features.weights"].to(x)
    along = difference @ kept["features.axes"].to(x).T
    distance = along.square() @ weights[:-1] + weights[-1] * difference.square().sum(1)
    return torch.cat([distance[None], along[:, :RANKED].T]).float()
