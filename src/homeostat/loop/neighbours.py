"""How long neighbours in a stream are alike, and the blocks that this calls for.

A bet on each sample is fair only if a sample tells nothing about the next. Where neighbours are alike (video, sorted
arrivals) the monitor bets on means of blocks instead, each twice as long as the likeness lasts. That length is measured
in two ways. Within windows by the integrated autocorrelation time

    tau = 1 + 2 sum over k of rho_k,        rho_k the correlation of samples that are k apart in one window,

two standard errors up. Between windows by how much the means of adjacent ones differ, two standard errors down, which
alone sees likeness as long as a window and longer; a lasting shift is one step for it. Both use earlier windows only,
as a bet must, and fade with time.

Where the likeness sets in, the windows until it is measured are judged as before. What outlasts a window makes windows
depend on each other whatever the block: take longer windows then.

Reference: Sokal, Monte Carlo methods in statistical mechanics, 1989 (where to end the sum).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

LAGS = 64
"""Distances between neighbours at which their likeness is measured."""
FADING = 0.95
"""What a window's likeness of neighbours still counts one window later."""


def block_lengths(kept: Mapping[str, Tensor], read: Mapping[str, Tensor], window: int) -> dict[str, int]:
    """By signal, the block length that earlier windows call for; a window is one observation until some is known."""
    made = dict.fromkeys(read, window)
    if "alike.pairs" not in kept:
        return made
    size, pairs = float(kept["alike.window"]), kept["alike.pairs"]
    count, *steps = kept["alike.steps"].tolist() if "alike.steps" in kept else [0.0] * (len(read) + 1)
    for name, step in zip(read, steps, strict=True):
        if f"alike.{name}" in kept:
            products = kept[f"alike.{name}"]
            between = likeness_between(step, count, float(products[0] / pairs[0]), size)
            made[name] = block_length(max(between, likeness(products, pairs, size)), window)
    return made


def remembered(kept: Mapping[str, Tensor], read: Mapping[str, Tensor], window: int) -> dict[str, Tensor]:
    """What is to be kept of how alike neighbours are, this window included."""
    made = {f"alike.{name}": sums for name, sums in {**products_by_signal(read), "pairs": pairs_of(window)}.items()}
    means = torch.cat([values.mean(0) for values in read.values()])
    if "alike.means" in kept and len(kept["alike.means"]) == len(means):
        parts = (means - kept["alike.means"]).square().split([values.shape[1] for values in read.values()])
        made["alike.steps"] = torch.stack([torch.ones(()).double(), *(part.sum() for part in parts)])
    for name in made.keys() & kept.keys():
        if kept[name].shape == made[name].shape:
            made[name] = FADING * kept[name] + made[name]
    size = float(kept.get("alike.window", torch.tensor(window)))
    return {**made, "alike.window": torch.tensor(FADING * size + (1 - FADING) * window), "alike.means": means}


def products_by_signal(read: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`dependence` of each signal, summed over its columns."""
    columns = dependence(torch.cat(list(read.values()), 1)).split([values.shape[1] for values in read.values()], 1)
    return {name: part.sum(1) for name, part in zip(read, columns, strict=True)}


def dependence(values: Float[Tensor, "samples columns"]) -> Float[Tensor, "lags columns"]:
    """Sums of products of neighbours' deviations from their mean, by distance."""
    count = len(values)
    away, size = values - values.mean(0), 2 ** math.ceil(math.log2(count + LAGS))
    power = torch.fft.rfft(away, n=size, dim=0).abs().square()
    return torch.fft.irfft(power, n=size, dim=0)[:LAGS] * (pairs_of(count) > 0)[:, None]


def pairs_of(count: int) -> Float[Tensor, " lags"]:
    """How many pairs of samples there are at each distance."""
    return (count - torch.arange(LAGS)).clamp(min=0).double()


def likeness(
    products: Float[Tensor, " lags"], pairs: Float[Tensor, " lags"], window: float | int, doubts: float | int = 2.0
) -> float:
    """Upper estimate of the integrated autocorrelation time: how many neighbours are worth one independent sample.

    1 for independent samples. It is `doubts` standard errors above the estimate; infinity where nothing can be said.

    Args:
        products, pairs: `dependence` and `pairs_of`, added up over windows of samples.
        window: samples of such a window; likeness that lasts as long as one is not seen.
    """
    if float(pairs[0]) == 0 or float(products[0]) <= 1e-12 * float(pairs[0]):
        return math.inf
    raw = (products / pairs.clamp(min=1))[pairs > 0]
    raw = (raw / raw[0]).tolist()
    time = 1.0
    for _ in range(3):
        # Deviations from a window's own mean are negatively correlated; what that mean takes is given back.
        share, total, reach = min(time / window, 0.9), 1.0, 1
        for lag in range(1, len(raw)):
            total += 2 * ((1 - share) * raw[lag] + share)
            reach = lag
            if lag >= 5 * max(total, 1.0):  # Sokal's rule: sum until noise outweighs what is left
                break
        time = max(1.0, total)
    return time * (1 + doubts * math.sqrt(2 * (2 * reach + 1) / float(pairs[0])))


def likeness_between(steps: float, count: float | int, variance: float, window: float | int) -> float:
    """Lower estimate of the same time from how much the means of neighbouring windows differ.

    It sees likeness that lasts as long as a window, which is hidden within one. A lasting shift is a single step.

    Args:
        steps: sum of squared differences between the means of neighbouring windows.
        count: how many there are.
        variance: of single samples.
        window: samples of a window.
    """
    if count <= 8 or variance <= 0:
        return 1.0
    return max(1.0, window * steps / count / (2 * variance) * (1 - 2 * math.sqrt(2 / count)))


def block_length(time: float, window: int) -> int:
    """Samples to average into one observation for neighbours this much alike: 1 where they are independent."""
    if time <= 1.5:
        return 1
    # Nearly a window's length cannot be measured within windows, so long before that a window counts as one.
    return window if time >= window / 6 else math.ceil(2 * time)


def block_means(values: Float[Tensor, "samples columns"], length: int) -> Float[Tensor, "blocks columns"]:
    """Means of consecutive blocks of at least `length` samples (all samples, where there are fewer)."""
    count = max(1, len(values) // length)
    if count == len(values):
        return values
    if len(values) % count == 0:
        return values.view(count, -1, values.shape[1]).mean(1)
    return torch.stack([block.mean(0) for block in values.tensor_split(count)])
