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
from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float
from scipy.fft import next_fast_len
from torch import Tensor

from homeostat.loop.signals import Layout

LAGS = 64
"""Distances between neighbours at which their likeness is measured."""
FADING = 0.95
"""What a window's likeness of neighbours still counts one window later."""


def begun(layout: Layout, values: Float[Tensor, "columns samples"]) -> Float[Tensor, "rows kept"]:
    """What is kept of how alike neighbours are, of one window.

    A row a signal: `dependence` summed over its columns, and the squared step from the window before, which there is
    none of yet. The last row: pairs at each distance, steps, windows.
    """
    made = torch.zeros(len(layout.widths) + 1, LAGS + 2, dtype=torch.float64)
    made[:-1, :LAGS] = layout.member @ dependence(values)
    made[-1, :LAGS], made[-1, -1] = pairs_of(values.shape[1]), 1.0
    return made


def gone_on(
    alike: Float[Tensor, "rows kept"],
    layout: Layout,
    values: Float[Tensor, "columns samples"],
    step: Float[Tensor, " columns"] | None,
) -> Float[Tensor, "rows kept"]:
    """The same with one more window; `step` is how far its means are from those of the window before."""
    made = begun(layout, values)
    if step is not None:
        made[:-1, LAGS], made[-1, LAGS] = layout.member @ step.square(), 1.0
    return torch.add(made, alike, alpha=FADING)


def times(alike: Float[Tensor, "rows kept"], doubts: float = 2.0) -> list[float]:
    """By signal, an upper estimate of how many neighbours are worth one independent sample, within windows."""
    *products, pairs = alike.tolist()
    window = pairs[0] / pairs[-1]
    return [likeness(row[:LAGS], pairs[:LAGS], window, doubts) for row in products]


def block_lengths(alike: Float[Tensor, "rows kept"], window: int) -> list[int]:
    """By signal, the block length that earlier windows call for."""
    *products, pairs = alike.tolist()
    size = pairs[0] / pairs[-1]
    lengths = list[int]()
    for row in products:
        between = likeness_between(row[LAGS], pairs[LAGS], row[0] / pairs[0], size)
        lengths.append(block_length(max(between, likeness(row[:LAGS], pairs[:LAGS], size)), window))
    return lengths


def dependence(values: Float[Tensor, "columns samples"]) -> Float[Tensor, "columns lags"]:
    """Sums of products of neighbours' deviations from their mean, by distance."""
    count = values.shape[1]
    away, size = values - values.mean(1, keepdim=True), next_fast_len(count + LAGS - 1, real=True)
    spectrum = torch.view_as_real(torch.fft.rfft(away, n=size))
    products = torch.fft.irfft(spectrum.square().sum(-1), n=size)[:, :LAGS]
    # Beyond a short window nothing is left but the error of rounding.
    return products if count >= LAGS else products * (pairs_of(count) > 0)


@cache
def pairs_of(count: int) -> Float[Tensor, " lags"]:
    """How many pairs of samples there are at each distance."""
    return (count - torch.arange(LAGS)).clamp(min=0).double()


def likeness(
    products: Sequence[float], pairs: Sequence[float], window: float | int, doubts: float | int = 2.0
) -> float:
    """Upper estimate of the integrated autocorrelation time: how many neighbours are worth one independent sample.

    1 for independent samples. It is `doubts` standard errors above the estimate; infinity where nothing can be said.

    Args:
        products, pairs: `[lags]`, `dependence` and `pairs_of`, added up over windows of samples.
        window: samples of such a window; likeness that lasts as long as one is not seen.
    """
    if pairs[0] == 0 or products[0] <= 1e-12 * pairs[0]:
        return math.inf
    scale, time = pairs[0] / products[0], 1.0
    for _ in range(3):
        # Deviations from a window's own mean are negatively correlated; what that mean takes is given back.
        share, total, reach = min(time / window, 0.9), 1.0, 1
        for lag in range(1, len(pairs)):
            if not pairs[lag]:
                break
            total += 2 * ((1 - share) * scale * products[lag] / pairs[lag] + share)
            reach = lag
            if lag >= 5 * max(total, 1.0):  # Sokal's rule: sum until noise outweighs what is left
                break
        time = max(1.0, total)
    return time * (1 + doubts * math.sqrt(2 * (2 * reach + 1) / pairs[0]))


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


def block_means(values: Float[Tensor, "columns samples"], length: int) -> Float[Tensor, "columns blocks"]:
    """Means of consecutive blocks of at least `length` samples (all samples, where there are fewer)."""
    samples = values.shape[1]
    count = max(1, samples // length)
    if count == samples:
        return values
    if samples % count == 0:
        return values.view(len(values), count, -1).mean(2)
    return torch.stack([block.mean(1) for block in values.tensor_split(count, 1)], 1)
