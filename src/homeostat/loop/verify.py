"""Is the candidate better than what is served? Paired evidence with labels, calibrated estimates without, and guards.

With labels: for each labelled sample d in {-1, 0, 1} is candidate right minus served right. Betting on d,

    E_t = E_{t-1} (1 + lambda_t d_t),    0 <= lambda_t < 1,

is an e-process for "the candidate is no better": by Ville's inequality it ever reaches `1 / alpha` with probability at
most alpha, however often one looks, so evidence may accumulate over windows and stop any time.

Without labels: confidence rises under entropy minimisation whether or not accuracy does, so that a rise alone says
nothing. Each candidate is therefore first run over simulated shifts of labelled data from before. There, how often it
disagrees with the frozen network and how much surer it is are set against its true gain by a line, and the largest
leave-one-out overestimate becomes the margin. The lower bound on the gain is the line's value less that margin. It is
as good as the simulated shifts are like the real one: it assumes that the new shift is exchangeable with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.core.data import Batch, Data
from homeostat.core.errors import CheckpointError, HomeostatError, InputError, NonFiniteError
from homeostat.core.method import Remedy, Shift
from homeostat.core.online import Bag, Online
from homeostat.core.part import recipe
from homeostat.core.run import Run
from homeostat.core.save import load, save
from homeostat.core.spec import digest
from homeostat.core.task import Task
from homeostat.core.weights import fingerprint
from homeostat.core.world import World

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


def confidence(logits: Tensor) -> float:
    """Mean largest probability."""
    return float(logits.float().softmax(-1).amax(-1).mean())


def share_right(logits: Tensor, labels: Tensor) -> float:
    """Accuracy of logits `[window, classes]`."""
    return float(logits.argmax(-1).eq(labels).float().mean())


def effective_classes(logits: Tensor) -> float:
    """Exponential of the entropy of the predicted classes' shares: how many classes are in use."""
    shares = torch.bincount(logits.argmax(-1), minlength=logits.shape[-1]).double() / len(logits)
    return float(torch.exp(-(shares * shares.clamp(min=1e-12).log()).sum()))


@dataclass(frozen=True)
class Signs:
    """What can be seen of a candidate without labels, against the frozen network on the same samples.

    Attributes:
        disagreement: share of samples on which the predicted classes differ.
        rise: mean largest probability less the frozen network's.
    """

    disagreement: float = 0.0
    rise: float = 0.0

    @classmethod
    def of(cls, out: Tensor, frozen: Tensor) -> Signs:
        """From logits `[window, classes]` of both."""
        return cls(float(out.argmax(-1).ne(frozen.argmax(-1)).float().mean()), confidence(out) - confidence(frozen))


def mean_signs(windows: Sequence[Signs]) -> Signs:
    """The mean over windows; no signs at all when there are none."""
    count = max(1, len(windows))
    return Signs(sum(s.disagreement for s in windows) / count, sum(s.rise for s in windows) / count)


@dataclass(frozen=True)
class Estimate:
    """A candidate's gain in accuracy over the frozen network, from its signs.

    Attributes:
        offset, disagreement, rise: the line's coefficients.
        margin: largest overestimate of a simulated shift by a line fitted to the others; infinite when not calibrated.
    """

    offset: float = 0.0
    disagreement: float = 0.0
    rise: float = 0.0
    margin: float = 0.0

    def gain(self, signs: Signs) -> float:
        """The estimated gain, a fraction; `gain - margin` bounds it from below."""
        return self.offset + self.disagreement * signs.disagreement + self.rise * signs.rise


def fit_estimate(signs: Sequence[Signs], gains: Sequence[float]) -> Estimate:
    """Ridge regression of gain on signs, with the largest leave-one-out overestimate as margin.

    >>> seen = [Signs(0.1 * i, 0.05 * i) for i in range(6)]
    >>> estimate = fit_estimate(seen, [0.08 * i - 0.02 for i in range(6)])
    >>> abs(estimate.gain(Signs(0.3, 0.15)) - 0.22) < 0.02
    True

    Raises:
        InputError: fewer than 4 shifts. NonFiniteError: NaN or infinity among signs or gains.
    """
    if len(signs) < 4:
        raise InputError(f"an estimate of gain needs at least 4 simulated shifts; got {len(signs)}")
    x = torch.tensor([[1.0, s.disagreement, s.rise] for s in signs], dtype=torch.float64)
    y = torch.tensor(gains, dtype=torch.float64)
    if not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise NonFiniteError("the candidate's outputs on simulated shifts hold NaN or infinity; nothing can be fitted")
    ridge = torch.diag(torch.tensor([1e-6, 1e-3, 1e-3], dtype=torch.float64)) * len(x)

    def line(keep: Tensor) -> Tensor:
        return torch.linalg.solve(x[keep].T @ x[keep] + ridge, x[keep].T @ y[keep])

    others = ~torch.eye(len(x), dtype=torch.bool)
    over = max(0.0, *(float(x[i] @ line(others[i]) - y[i]) for i in range(len(x))))
    offset, disagreement, rise = line(torch.ones(len(x), dtype=torch.bool)).tolist()
    return Estimate(offset, disagreement, rise, over)


def calibrate(
    remedy: Remedy,
    model: nn.Module,
    data: Data,
    shifts: Sequence[Shift],
    *,
    window: int,
    trial: int,
    verify: int,
    kit: Any,
    task: Any,
    run: Run,
) -> Estimate:
    """Run a candidate over simulated shifts of labelled data and fit how its confidence tells its gain.

    Each scenario takes `trial` windows to adapt and `verify` windows to judge, as the loop does. Cached in
    `run.scratch`.
    """
    key = digest(
        remedy.digest(), fingerprint(model), recipe(model), data.fingerprint(), [s.to_config() for s in shifts],
        window, trial, verify, run.seed, None if kit is None else fingerprint(kit),
    )  # fmt: skip
    path = None if run.scratch is None else run.scratch / "estimates" / key
    if path is not None and path.exists():
        try:
            found: Any = load(path)
            signs = [Signs(*row) for row in found["signs"].tolist()]
            return fit_estimate(signs, found["gains"].tolist())
        except CheckpointError:
            run.emit("estimate unreadable, calibrated again", values={"path": str(path)})
    signs, gains = [], []
    size = window * (trial + verify)
    for number, shift in enumerate([None, *shifts]):
        shifted = data.shuffle(run.rng("simulate", number))
        if shift is not None:
            shifted = shift(shifted, run=run.replace(seed=run.seed_for("simulate", number)))
        # A shift that leaves fewer samples than a trial takes has them come again.
        shifted = shifted[torch.arange(size) % len(shifted)]
        target = shifted[: window * trial].unlabelled()
        candidate = remedy(model, World(source=data, target=target, calibration=data, task=task), kit=kit, run=run)
        seen, right = [], 0.0
        for step, batch in enumerate(shifted.batches(window)):
            if step < trial and not isinstance(candidate, Online):
                continue
            out = shadow(candidate, batch.replace(y=None))
            if step >= trial:
                frozen = shadow(model, batch)
                seen.append(Signs.of(out, frozen))
                right += share_right(out, batch.labels) - share_right(frozen, batch.labels)
        signs.append(mean_signs(seen))
        gains.append(right / len(seen))
        run.emit("calibrate", number + 1, len(shifts) + 1, gain=gains[-1])
    if path is not None:
        table = torch.tensor([[s.disagreement, s.rise] for s in signs], dtype=torch.float64)
        save(Bag({"signs": table, "gains": torch.tensor(gains, dtype=torch.float64)}), path)
    return fit_estimate(signs, gains)


def shadow(model: nn.Module, batch: Batch) -> Tensor:
    """A candidate's logits for a window: an `Online` observes it, any other model only predicts."""
    if isinstance(model, Online):
        return model.observe(batch)  # type: ignore[return-value]
    with torch.no_grad():
        return model(batch.x)


def attempt(model: nn.Module, batch: Batch) -> tuple[Tensor | None, str]:
    """`shadow` without the labels, or None and why the outputs cannot be used."""
    try:
        out = shadow(model, batch.replace(y=None))
    except FAILURES as error:
        return None, f"it failed: {error}"
    return (out, "") if bool(torch.isfinite(out).all()) else (None, "its outputs hold NaN or infinity")


def sound(model: nn.Module, batch: Batch, task: Task) -> Tensor:
    """The logits of the network as deployed, or our error: there is nothing to fall back on."""
    try:
        with torch.no_grad():
            out = model(batch.x)
    except RuntimeError as error:
        raise InputError(f"the network cannot take these inputs: {str(error).splitlines()[0]}") from None
    task.check(out, None)
    if not bool(torch.isfinite(out).all()):
        raise NonFiniteError("the network as deployed gives NaN or infinity for these inputs; look at their range")
    return out


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
