"""RCT: train the last layer so that robust prediction sets come out small.

`RSCP`'s sets are valid for any network; how large they are is the network's doing. This objective runs a soft version
of the whole method, calibration included, on every batch, and lowers the size of its sets.

Each sample is repeated with n = `draws` noises of sigma, and q = Q(mean over them of softmax) `[batch, classes]`, Q the
standard normal quantile. The first half of the batch (n_c samples) calibrates, the second half is predicted:

    tau  = softsort(true-class q of the first half)[rank] - delta / sigma,    rank = max(floor(alpha (n_c + 1)), 1)
    C    = sigmoid((q - tau) / temperature)                                   soft sets of the second half
    loss = log( mean(1 - C_true) + weight * mean(max(sum_k C_k - size, 0)) + 1e-8 )

A wrong class in a set costs through its size alone (the identity as matrix of class losses, the paper's choice).

softsort is the Euclidean relaxation: with s the values in falling order of -q and w = (n_c, ..., 1) / strength, it
projects w on the permutahedron of s by isotonic regression (pool adjacent violators), and its gradient is the mean
over each pool. Pools form only where neighbouring values differ by more than 1 / strength; at the default 0.1 that is a
gap of 10 on the scale of Q, so tau is then the exact order statistic with its ordinary gradient. More strength averages
neighbours.

Use it with everything but the last layer frozen, normalisation included, after fresh weights there:

    Chain((FreshHead(), Fit(objective=RCT(), own="linear.*", freeze_stats=True, recipe=Recipe(
        optimizer=SGD(lr=0.05, nesterov=True, weight_decay=5e-4), schedule=Steps(at=(0.4, 0.6, 0.8)),
        epochs=150, batch=500))))

Defaults are the paper's: alpha 0.1, delta 0.125, sigma 0.25, 8 draws, temperature 0.1, strength 0.1, size 1, weight 1
(the official script's own defaults are 4 draws and size 0). Half a batch should hold well over 1 / alpha samples, or
tau is the smallest value of all. It is trained for hps sets; afterwards calibrate on data that it has not seen.
The learning rate suits normalised features, of length about 6: on a perceptron's of length 22 the same rate ended in
full sets, from which there is no way back. A loss that stays at log(classes - size) says so; lower the rate then.

>>> from homeostat.core.world import World
>>> from homeostat.fit import Fit
>>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
>>> net = Fit(objective=RCT(draws=2))(nn.Sequential(nn.Linear(2, 2)), World(source=(x, (x[:, 0] > 0).long())))

References: Yan, Romano, Weng, ICLR 2024 (RCT); Stutz et al., ICLR 2022 (conformal training); Blondel et al., Fast
Differentiable Sorting and Ranking, ICML 2020.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.core.data import UNKNOWN, Batch, floating
from homeostat.core.errors import InputError, ModelError
from homeostat.core.fork import fork
from homeostat.core.method import Card, Remedy
from homeostat.core.run import Run
from homeostat.core.spec import Count, NonNegative, Positive
from homeostat.core.taps import head
from homeostat.core.task import Task
from homeostat.core.world import World
from homeostat.fit.objective import Objective
from homeostat.trust.conformal import Level


def soft_sort(values: Float[Tensor, " n"], strength: float = 0.1) -> Float[Tensor, " n"]:
    """Values in rising order, differentiable, with neighbours further apart than `1 / strength` pulled together.

    >>> soft_sort(torch.tensor([3.0, 1.0, 2.0]), 0.1), soft_sort(torch.tensor([3.0, 0.0]), 1.0)
    (tensor([1., 2., 3.]), tensor([1., 2.]))
    """
    ordered = values.sort().values
    weights = torch.arange(len(values), 0, -1, dtype=values.dtype, device=values.device) / strength
    offset = weights + ordered
    pools = torch.tensor(_pools(offset.tolist()), device=values.device)
    each = torch.repeat_interleave(torch.arange(len(pools), device=values.device), pools)
    means = torch.zeros(len(pools), dtype=values.dtype, device=values.device).index_add(0, each, offset) / pools
    return means[each] - weights


def _pools(values: list[float]) -> list[int]:
    """Sizes of the pools of the falling isotonic regression."""
    pools: list[tuple[float, int]] = []
    for value in values:
        total, size = value, 1
        while pools and pools[-1][0] * size < total * pools[-1][1]:
            before = pools.pop()
            total, size = total + before[0], size + before[1]
        pools.append((total, size))
    return [size for _, size in pools]


@dataclass(frozen=True)
class RCT(Objective):
    """The log of soft miscoverage plus soft size of robust sets.

    Attributes:
        alpha: how often the true class may be missing.
        delta, sigma: radius of the attack and of the noise, as in the `RSCP` that will be used.
        draws: noisy copies per sample.
        temperature: of the soft membership.
        strength: of the soft sort.
        size: sets up to this size cost nothing.
        weight: of the size.
        on: which labelled data: `"source"` or `"target"`.
    """

    alpha: Level = 0.1
    delta: NonNegative = 0.125
    sigma: Positive = 0.25
    draws: Count = 8
    temperature: Positive = 0.1
    strength: Positive = 0.1
    size: NonNegative = 1.0
    weight: NonNegative = 1.0
    on: str = "source"

    card: ClassVar[Card] = Card(id="S110", paper="Yan, Romano, Weng, ICLR 2024", handles=frozenset({"adversarial"}))

    def inputs(self) -> tuple[str, ...]:
        return (self.on,)

    def losses(
        self, model: nn.Module, batches: Mapping[str, Batch], task: Task, kit: Any, run: Run
    ) -> dict[str, Tensor]:
        batch = batches[self.on]
        batch = batch[batch.labels != UNKNOWN]
        x, y = floating(batch.x, "RCT"), batch.labels
        half = len(x) // 2
        if half == 0:
            raise InputError(f"RCT calibrates on half of a batch and predicts the other; {len(x)} labelled are too few")
        noisy = x[:, None] + self.sigma * run.draw(batch.id, "rct").normal(self.draws, *x.shape[1:]).to(x)
        logits = model(noisy.flatten(0, 1))
        wide = torch.promote_types(logits.dtype, torch.float32)
        share = logits.to(wide).softmax(1).unflatten(0, (len(x), self.draws)).mean(1)
        # The quantile is infinite at 0 and 1; the official code's margin.
        q = torch.special.ndtri((share + 1e-7).clamp(max=1 - 1e-7))
        true = q.gather(1, y[:, None])[:, 0]
        rank = max(math.floor((half + 1) * Fraction(str(self.alpha))), 1)
        tau = soft_sort(true[:half], self.strength)[rank - 1] - self.delta / self.sigma
        sets = torch.sigmoid((q[half:] - tau) / self.temperature)
        missed = 1 - sets.gather(1, y[half:, None])[:, 0].mean()
        excess = (sets.sum(1) - self.size).clamp(min=0).mean()
        return {"loss": (missed + self.weight * excess + 1e-8).log()}


@dataclass(frozen=True)
class FreshHead(Remedy):
    """Gives the last linear layer new weights, as PyTorch draws them, and leaves the rest.

    Attributes:
        layer: its dotted name; empty finds the last linear layer.
    """

    layer: str = ""

    card: ClassVar[Card] = Card(
        paper="Yan, Romano, Weng, ICLR 2024", handles=frozenset({"none"}), needs=frozenset({"model.linear"}), passes=0.0
    )

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        name = self.layer or head(model)
        made = fork(model, own=(f"{name}.weight", f"{name}.bias") if name else ("weight", "bias"))
        found = dict(made.named_modules()).get(name)
        if not isinstance(found, nn.Linear):
            raise ModelError(f"{type(model).__name__} has no linear layer {name!r}; `layer=` takes the last one")
        draw = run.rng("fresh head")
        with torch.no_grad():
            for tensor in (found.weight, found.bias):
                if tensor is not None:
                    noise = torch.rand(tensor.shape, generator=draw, dtype=torch.float64)
                    tensor.copy_((2 * noise - 1) * found.in_features**-0.5)
        return made
