"""Whether there is a ridge between two networks: the loss on the straight line from one to the other.

    theta(t) = (1 - t) theta_a + t theta_b,      t = 0 .. 1 in `points` even steps

    barrier of the loss      = max_t L(theta(t)) - (L(theta_a) + L(theta_b)) / 2
    barrier of the accuracy  = (acc(theta_a) + acc(theta_b)) / 2 - min_t acc(theta(t))

Where it is about 0 the networks lie in one basin and can be averaged; networks trained apart do so only after their
neurons are in one order (`weight_match`). All floating weights lie on the line, running statistics too; they fit the
mixed network badly, so with `mode` every inner point is renormalised first (`nn.renormalize`) with weights 1 - t and t
of the two ends, from samples of `statistics`. Eleven points are the official code's; a narrow peak between them is not
seen.

>>> a, b = nn.Linear(1, 2), nn.Linear(1, 2)
>>> x, y = torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64)
>>> with torch.no_grad():
...     _ = a.bias.copy_(torch.tensor([4.0, 0.0])), b.bias.copy_(torch.tensor([0.0, 4.0]))
>>> found = barrier(a, b, (x, y), points=3)
>>> found.losses
[0.0181, 0.6931, 4.0181]
>>> round(found.loss, 3), found.accuracy
(2.0, 0.5)

References: Frankle, Dziugaite, Roy, Carbin, Linear mode connectivity and the lottery ticket hypothesis, ICML 2020;
Entezari et al., The role of permutation invariance in linear mode connectivity, ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.core.data import Data, check_finite
from homeostat.core.errors import CheckpointError, InputError, MissingPart
from homeostat.core.fork import fork
from homeostat.core.holding import holding
from homeostat.core.intake import as_data
from homeostat.core.place import home, there
from homeostat.core.task import Classify, Task
from homeostat.core.weights import weights
from homeostat.nn.repair import renormalize


@dataclass(frozen=True)
class Barrier:
    """Losses and accuracies along a line.

    Attributes:
        at: how far along, 0 to 1.
        losses: mean loss there.
        accuracies: share of samples that are predicted right there; empty where labels are no classes.
    """

    at: list[float]
    losses: list[float]
    accuracies: list[float]

    @property
    def loss(self) -> float:
        """Highest loss over the mean of the ends'."""
        return max(self.losses) - (self.losses[0] + self.losses[-1]) / 2

    @property
    def accuracy(self) -> float:
        """Mean of the ends' accuracies over the lowest."""
        if not self.accuracies:
            raise MissingPart("there are no accuracies: the task's labels are no classes")
        return (self.accuracies[0] + self.accuracies[-1]) / 2 - min(self.accuracies)


def barrier(
    a: nn.Module,
    b: nn.Module,
    data: Data | Any,
    points: int = 11,
    *,
    mode: str | None = None,
    statistics: Data | Any = None,
    samples: int = 200,
    task: Task = Classify(),
    batch: int = 512,
) -> Barrier:
    """Loss and accuracy on the line between two networks of one architecture.

    Args:
        a, b: the ends; they are not changed.
        data: labelled samples to measure on.
        points: on the line, with both ends.
        mode: how inner points are renormalised: `"repair"`, `"rescale"`, `"reshift"`, `"reset_bn"`; None: not at all.
        statistics: inputs for that; default `data`, whose labels are not read for it.
        samples: how many of them.
        task: what outputs and labels mean.
        batch: samples at a time.

    Raises:
        CheckpointError: the weights have different names or shapes. InputError: fewer than two points, or no data.
    """
    data = as_data(data)
    if points < 2 or len(data) == 0:
        raise InputError(f"a line has two points or more and some data; got {points} points and {len(data)} samples")
    ends, seen = [weights(a), weights(b)], data if statistics is None else as_data(statistics)
    at = [i / (points - 1) for i in range(points)]
    losses, accuracies = list[float](), list[float]()
    for t in at:
        net = holding(a, blend(ends, (1 - t, t))) if 0 < t < 1 else (a, b)[int(t)]
        if mode is not None and 0 < t < 1:
            net = renormalize(net, [] if mode == "reset_bn" else [a, b], seen, mode, _shares(mode, t), samples)
        loss, right = _judged(net, data, task, batch)
        losses.append(loss)
        accuracies += [] if right is None else [right]
    return Barrier(at, losses, accuracies)


def blend(tensors: Sequence[Mapping[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """The weighted sum of weights by name, in single precision or better; integer tensors are the first's.

    Raises:
        CheckpointError: names or shapes differ.
    """
    first, *others = tensors
    out = {}
    for name, tensor in first.items():
        rest = [other.get(name) for other in others]
        for other in rest:
            if other is None or other.shape != tensor.shape:
                found = "missing" if other is None else tuple(other.shape)
                raise CheckpointError(f"{name} is {found} in one network and {tuple(tensor.shape)} in the first")
        if not tensor.is_floating_point():
            out[name] = tensor.clone()
            continue
        wide = torch.promote_types(tensor.dtype, torch.float32)
        total = torch.zeros_like(tensor, dtype=wide)
        for one, share in zip((tensor, *rest), shares, strict=True):
            total.add_(one.to(total), alpha=share)  # type: ignore[union-attr]
        out[name] = total.to(tensor.dtype)
    return out


def _shares(mode: str, t: float) -> tuple[float, float] | None:
    return None if mode == "reset_bn" else (1 - t, t)


def _judged(net: nn.Module, data: Data, task: Task, batch: int) -> tuple[float, float | None]:
    net, losses, right, count = fork(net).eval(), list[Tensor](), 0.0, 0
    for piece in data.batches(batch):
        check_finite(piece.x, "x")
        if piece.y is None:
            raise MissingPart("a barrier is measured on labelled samples; these have no labels")
        with torch.no_grad():
            out = home(net(there(piece.x, net)))
        task.check(out, piece.y)
        known = task.known(piece.y)
        losses.append(task.loss(out, piece.y)[known])
        count += int(known.sum())
        if isinstance(task, Classify):
            right += float((task.predict(out) == piece.labels)[known].sum())
    if count == 0:
        raise MissingPart("a barrier is measured on labelled samples; none of these labels is known")
    return float(torch.cat(losses).double().mean()), right / count if isinstance(task, Classify) else None
