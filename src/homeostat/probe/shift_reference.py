"""What is kept of the time before, to tell kinds of shift apart: samples as the network saw them, and their statistics.

Logits are divided by the temperature T that fits the labels best. Features, in units of their standard deviations, go
to their 24 leading principal axes and are whitened by the covariance within classes, so that a distance of 1 is one
standard deviation of a class; call them u. Five scores rank a sample among those before: its entropy, its highest
logit above the mean, its distance to the nearest class's center, to the fifth nearest sample, and the length of what
the axes leave out.

>>> generator = torch.Generator().manual_seed(0)
>>> y = torch.arange(90) % 3
>>> logits = torch.randn(90, 3, generator=generator) + 3 * one_hot(y, 3)
>>> found = reference(Rows.of(logits, logits, y))
>>> tuple(found.u.shape), tuple(found.scores.shape)
((90, 3), (5, 90))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from homeostat.core.data import UNKNOWN

SCORES = ("entropy", "height", "center", "near", "rest")
"""The scores by which a sample is ranked among those before."""
_AXES, _NEIGHBORS, _SUPPORT = 24, 5, 400


@dataclass(frozen=True)
class Rows:
    """Samples as the signs see them: `logits [n, K]` as log-probabilities, `features [n, d]`, `labels [n]`."""

    logits: Tensor
    features: Tensor
    labels: Tensor

    @staticmethod
    def of(logits: Tensor, features: Tensor, labels: Tensor | None) -> Rows:
        """Float32 and on the processor; without labels, none is known."""
        known = torch.full((len(logits),), UNKNOWN) if labels is None else labels.cpu()
        return Rows(logits.float().cpu().log_softmax(1).clamp(min=-60), features.float().cpu(), known)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Rows:
        return Rows(self.logits[index], self.features[index], self.labels[index])

    def labelled(self, labels: Tensor) -> Rows:
        """The same samples with other labels."""
        return Rows(self.logits, self.features, labels)


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows one after another."""
    return Rows(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Rows)))


@dataclass(frozen=True)
class Reference:
    """What is kept of the time before; made by `reference`.

    Attributes:
        mean, scale: of the features; columns that hardly vary have a scale of at least a tenth of the typical one.
        spread: standard deviations of the features in units of `scale`.
        axes, whiten: principal axes `[features, axes]`, and what makes classes white along them.
        temperature: by which logits are divided.
        prior: class balance, smoothed.
        centers: of the classes in u; far away for classes without a sample.
        support: rows of u among which neighbors are looked for.
        u, labels, predicted: of every sample.
        scores, order: `[scores, samples]`, and what sorts them.
        rates: `P(predicted i | true j)`, smoothed.
        promise: mean confidence minus accuracy.
        surprise: mean and standard deviation of the cross-entropy beyond the entropy.
        sure: mean confidence of wrong predictions.
    """

    mean: Tensor
    scale: Tensor
    spread: Tensor
    axes: Tensor
    whiten: Tensor
    temperature: Tensor
    prior: Tensor
    centers: Tensor
    support: Tensor
    u: Tensor
    labels: Tensor
    predicted: Tensor
    scores: Tensor
    order: Tensor
    rates: Tensor
    promise: Tensor
    surprise: Tensor
    sure: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name, to be saved."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def read(tensors: Mapping[str, Tensor]) -> Reference:
        """From the fields by name."""
        return Reference(**{field.name: tensors[field.name].cpu() for field in fields(Reference)})

    def standardized(self, features: Tensor) -> Tensor:
        """Features in standard deviations of the reference."""
        return ((features - self.mean) / self.scale).clamp(-30, 30)

    def seen(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """u `[n, axes]`, and the length `[n]` of what the axes leave out."""
        z = self.standardized(features)
        points = z @ self.axes
        return (points @ self.whiten).clamp(-50, 50), _rest(z, points)


def reference(rows: Rows) -> Reference:
    """Statistics of labelled samples from before; at least two classes have labels."""
    classes, y, predicted = rows.logits.shape[1], rows.labels, rows.logits.argmax(1)
    spread = rows.features.std(0)
    typical = float(spread[spread > 0].median()) if bool((spread > 0).any()) else 1.0
    mean, scale = rows.features.mean(0), spread.clamp(min=0.1 * typical)
    z = ((rows.features - mean) / scale).clamp(-30, 30)
    vectors = torch.linalg.eigh((z.T @ z / len(z)).double()).eigenvectors
    axes = vectors[:, -min(_AXES, max(2, len(z) // 8)) :].flip(1).float()
    points = z @ axes
    member = one_hot(y, classes).float()
    counts = member.sum(0)
    middle = member.T @ points / counts.clamp(min=1)[:, None]
    inside = points - middle[y]
    covariance = (inside.T @ inside / max(1, len(y) - int((counts > 0).sum()))).double()
    covariance.diagonal().add_(0.05 * float(covariance.diagonal().mean()) + 1e-6)
    values, vectors = torch.linalg.eigh(covariance)
    whiten = (vectors / values.sqrt()).float()
    u = (points @ whiten).clamp(-50, 50)
    rest = _rest(z, points)
    centers = (middle @ whiten).masked_fill((counts == 0)[:, None], 1e4)
    own = torch.linspace(0, len(u) - 1, min(_SUPPORT, len(u))).long()
    support = u[own]
    temperature = _temperature(rows.logits, y)
    p = (rows.logits / temperature).softmax(1)
    scores = scores_of(p, rows.logits, u, rest, centers, support, own)
    joint = one_hot(predicted, classes).float().T @ member + 0.5 * torch.eye(classes) + 0.1
    wrong, sure, surprise = predicted != y, p.amax(1), surprise_of(p, y)
    return Reference(
        mean, scale, spread / scale, axes, whiten, torch.tensor(temperature), (counts + 0.5) / (counts + 0.5).sum(),
        centers, support, u, y, predicted, scores, scores.argsort(1), joint / joint.sum(0),
        (sure - (~wrong).float()).mean(), torch.stack([surprise.mean(), surprise.std()]),
        sure[wrong].mean() if bool(wrong.any()) else sure.mean(),
    )  # fmt: skip


def _rest(z: Tensor, points: Tensor) -> Tensor:
    """The length of what the axes leave out; where that is nothing, a twentieth of the whole, and no rounding error."""
    whole = z.square().sum(1)
    return ((whole - points.square().sum(1)).clamp(min=0) + whole / 400).sqrt()


def _temperature(logits: Tensor, y: Tensor) -> float:
    """The temperature of least cross-entropy, among 25 from 1/4 to 8."""
    tried = torch.logspace(-2, 3, 25, base=2)
    losses = [float(cross_entropy(logits / t, y)) for t in tried]
    return float(tried[int(torch.tensor(losses).argmin())])


def surprise_of(p: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each label beyond the entropy that was expected."""
    log_p = p.clamp(min=1e-6).log()
    return -log_p.gather(1, y[:, None])[:, 0] + (p * log_p).sum(1)


def scores_of(
    p: Tensor, logits: Tensor, u: Tensor, rest: Tensor, centers: Tensor, support: Tensor, own: Tensor | None = None
) -> Tensor:
    """Scores `[scores, n]`; `own` says which rows are those of the support, so that none is its own neighbor."""
    entropy = -(p * p.clamp(min=1e-9).log()).sum(1)
    height = logits.amax(1) - logits.mean(1)
    center = torch.cdist(u, centers).amin(1)
    distance = torch.cdist(u, support)
    if own is not None:
        distance[own, torch.arange(len(own))] = torch.inf
    near = distance.kthvalue(min(_NEIGHBORS, len(support) - 1), dim=1).values
    return torch.stack([entropy, height, center, near, rest])
