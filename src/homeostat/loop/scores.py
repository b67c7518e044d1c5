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
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from homeostat.core.errors import InputError
from homeostat.core.probe import Outputs
from homeostat.probe.checks import logits, matrix, same_width

Signal = Literal["entropy", "confidence", "features", "classes", "error"]
"""What a monitor may watch."""

Column = tuple[int, int]
"""A column of a signal, and the direction (1 or -1) in which its mean may move."""


def columns_of(signal: str, width: int) -> list[Column]:
    """What is tested of a signal with so many columns, in the order of its detectors."""
    if signal in ("entropy", "confidence"):
        return [(0, 1), (1, 1), (0, -1)]
    if signal == "features":
        return [(i, 1) for i in range(width)] + [(i, -1) for i in range(2, width)]
    if signal == "classes":
        return [(i, side) for side in (1, -1) for i in range(width)]
    return [(0, 1)]


def kind_of(signal: str, column: Column) -> str:
    """The kind of alarm that a detector stands for."""
    if signal not in ("entropy", "confidence"):
        return signal
    return "uncertain" if column[0] == 1 or (column[1] > 0) == (signal == "entropy") else "certain"


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


def normalised_entropy(logits: Tensor) -> Tensor:
    """Predictive entropy over log K, `[batch]` in 0..1, of logits or log-probabilities `[batch, K]`."""
    return _entropy(logits.float().softmax(-1))


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
            "entropy": order_statistics(_entropy(p)[None]),
            "confidence": order_statistics(p.amax(-1)[None]),
            "classes": balance.argsort(descending=True, stable=True)[: CLASSES - 1 if p.shape[1] > CLASSES else None],
        }
        if before.features is not None:
            x = matrix(before, "features", "Monitor")
            rest = ranked_among(len(x), ordered)
            kept |= principal_axes(x[~rest])
            kept["features"] = order_statistics(away(x[rest], kept))
        return cls(kept)

    def read(self, seen: Outputs) -> dict[str, Tensor]:
        """By signal, `[samples, columns]` numbers in 0..1.

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
        entropy = mid_ranks(kept["entropy"], _entropy(p)[None])
        confidence = mid_ranks(kept["confidence"], p.amax(-1)[None])
        made = {
            "entropy": torch.cat([entropy, (entropy > 1 - TAIL).double()]).T,
            "confidence": torch.cat([confidence, (confidence < TAIL).double()]).T,
            "classes": self._places(p),
        }
        if "features" in kept and seen.features is not None:
            x = matrix(seen, "features", "Monitor")
            same_width(x.shape[1], len(kept["features.mean"]), "Monitor", "features")
            ranks = mid_ranks(kept["features"], away(x, kept))
            made["features"] = torch.cat([ranks[:1], (ranks[:1] > 1 - TAIL).double(), ranks[1:]]).T
        return made

    def _places(self, p: Tensor) -> Tensor:
        named = p.argmax(-1)[:, None] == self.kept["classes"]
        if len(self.kept["classes"]) < p.shape[1]:
            named = torch.cat([named, ~named.any(1, keepdim=True)], 1)
        return named.double()


def ranked_among(count: int, ordered: bool) -> Bool[Tensor, " samples"]:
    """Which reference samples features are ranked among; the axes are fitted to the others.

    Samples lie nearer to axes that were fitted to them than new ones do. Runs of a stream are kept on one side.
    """
    return torch.arange(count) // (25 if ordered else 1) % 2 == 1


def order_statistics(values: Float[Tensor, "scores samples"]) -> Float[Tensor, "scores kept"]:
    """Each score's values in rising order, or `KEPT` of them at even ranks."""
    ordered = values.sort(-1).values
    if ordered.shape[1] <= KEPT:
        return ordered
    return ordered[:, ((torch.arange(KEPT) + 0.5) * ordered.shape[1] / KEPT).long()].contiguous()


def mid_ranks(
    known: Float[Tensor, "scores kept"], values: Float[Tensor, "scores samples"]
) -> Float[Tensor, "scores samples"]:
    """Share of the known values below each value; those that are equal count half."""
    values = values.to(known.dtype).contiguous()
    below = torch.searchsorted(known, values) + torch.searchsorted(known, values, right=True)
    return below.double() / (2 * known.shape[1])


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
