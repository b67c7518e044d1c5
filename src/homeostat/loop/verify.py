"""Is the candidate better than what is served? Paired evidence with labels, calibrated estimates without, and guards.

With labels: for each labelled sample d in {-1, 0, 1} is candidate right minus served right. Betting on d,

    E_t = E_{t-1} (1 + lambda_t d_t),    0 <= lambda_t < 1,

is an e-process for "the candidate is no better": by Ville's inequality it ever reaches `1 / alpha` with probability at
most alpha, however often one looks, so evidence may accumulate over windows and stop any time.

Without labels see `estimate`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from homeostat.core.data import Batch
from homeostat.core.errors import HomeostatError
from homeostat.core.online import Online
from homeostat.core.place import device_of, home

FAILURES = (HomeostatError, RuntimeError)
"""What a candidate may raise without taking the loop down: our errors, and those of PyTorch's operations."""

LARGEST = 1e300
"""Where a capital stops growing: a smaller capital is still valid evidence, and infinity is no JSON."""


@dataclass
class Paired:
    """Accumulated evidence that one model beats another on the same samples."""

    capital: float = 1.0
    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, differences: Tensor) -> None:
        """Add `[samples]` differences in {-1, 0, 1}; the bet depends on earlier ones alone."""
        for d in differences.tolist():
            bet = min(max((self.total + 0.1) / (self.squares + 1.0), 0.0), 0.75)
            self.capital = min(self.capital * (1.0 + bet * d), LARGEST)
            self.count, self.total, self.squares = self.count + 1, self.total + d, self.squares + d * d

    def watch(self, differences: Tensor) -> None:
        """Add a window to evidence that is gathered without end, for a change that may come at any time.

        Evidence that speaks against is dropped (e-CUSUM over windows), so that good times do not delay the finding of
        bad ones. While there is no gain, `capital` reaches c after c windows on average, or later.
        """
        self.add(differences)
        if self.capital <= 1 or self.total <= 0:
            self.capital, self.count, self.total, self.squares = 1.0, 0, 0.0, 0.0

    @property
    def mean(self) -> float:
        """Mean difference so far, 0 before any."""
        return self.total / self.count if self.count else 0.0


def share_right(logits: Tensor, labels: Tensor) -> float:
    """Accuracy of logits `[window, classes]`."""
    return float(logits.argmax(-1).eq(labels).float().mean())


def class_shares(logits: Tensor) -> Tensor:
    """Shares of the predicted classes, float64 `[classes]`."""
    return torch.bincount(logits.argmax(-1), minlength=logits.shape[-1]).double() / len(logits)


def effective_classes(logits: Tensor) -> float:
    """Exponential of the entropy of the predicted classes' shares: how many classes are in use."""
    shares = class_shares(logits)
    return float(torch.exp(-(shares * shares.clamp(min=1e-12).log()).sum()))


def shadow(model: nn.Module, batch: Batch) -> Tensor:
    """A candidate's logits for a window, on the CPU: an `Online` observes it, any other model only predicts."""
    batch = batch.to(device_of(model))
    if isinstance(model, Online):
        return home(model.observe(batch))  # type: ignore[return-value]
    with torch.no_grad():
        return home(model(batch.x))


def attempt(model: nn.Module, batch: Batch) -> tuple[Tensor | None, str, float]:
    """`shadow` without the labels, or None and why the outputs cannot be used; and the milliseconds it took."""
    began = time.perf_counter()
    try:
        out = shadow(model, batch.replace(y=None))
    except FAILURES as error:
        return None, f"it failed: {error}", 0.0
    ms = 1000 * (time.perf_counter() - began)
    return (out, "", ms) if bool(torch.isfinite(out).all()) else (None, "its outputs hold NaN or infinity", ms)


def guard(out: Tensor, served: Tensor, few: float) -> str | None:
    """Why a candidate's outputs must not be served, or None.

    Args:
        out, served: `[window, classes]`, the candidate's logits and the frozen model's.
        few: smallest share of the frozen model's effective classes that a candidate may fall to.
    """
    if not bool(torch.isfinite(out).all()):
        return "its outputs hold NaN or infinity"
    mine, theirs = effective_classes(out), effective_classes(served)
    if mine < few * theirs:
        return f"it predicts only {mine:.1f} classes where the frozen model predicts {theirs:.1f}"
    return None
