"""Watching a stream: sequential tests that may be looked at after every window.

The sensor is the network as it was deployed, frozen, so that a commit does not move the reference. From each window it
gives numbers in 0..1: the mean predictive entropy over log K and, where labels came, the error. For each number u and
bound b the e-detector bets against the hypothesis that its conditional mean is at most b:

    K_t = max(K_{t-1}, 1) * (1 + lambda_t (u_t - b)),    0 <= lambda_t < 1 / b,

with a bet lambda_t that depends on the past alone. Under the hypothesis the factor has conditional mean at most 1, so
that the average run length between false alarms is at least `threshold` looks, whatever the distribution and however
often one looks. The bound is the calibrated mean, plus its own error, plus the smallest effect worth an alarm: an alarm
needs an effect, not only evidence.

Reference: Shin, Ramdas, Rinaldo, E-detectors: a nonparametric framework for sequential change detection, 2023
(e-CUSUM); Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, JRSS-B 2024 (the bets).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from homeostat.core.errors import InputError
from homeostat.core.online import Bag
from homeostat.core.reading import Finding
from homeostat.core.spec import Count, Positive, Spec


def e_cusum(capital: float, value: float, bound: float, bet: float) -> float:
    """One step of the e-CUSUM; `bet` in `[0, 1 / bound)`."""
    return max(capital, 1.0) * (1.0 + bet * (value - bound))


def bet_size(mean: float, second: float, bound: float) -> float:
    """A bet from past values: the mean excess over its second moment, kept within three quarters of what could ruin."""
    return min(max(mean / second, 0.0), 0.75 / bound)


@dataclass(frozen=True)
class Monitor(Spec):
    """Detects that the sensor's numbers have left their calibrated range.

    Attributes:
        run_length: average number of windows between false alarms, at least; shared by the three detectors.
        effect: smallest change of the mean normalised entropy worth an alarm.
        harm: smallest rise of the error worth an alarm, where labels come.
        block: samples averaged into one observation. Samples within a block may depend on each other; a stream whose
            neighbours are alike (video, sorted arrivals) wants a block as long as that likeness lasts.
    """

    run_length: Count = 500
    effect: Positive = 0.03
    harm: Positive = 0.05
    block: Count = 10

    def begin(self, reference: Tensor, error: float | None, state: Bag) -> None:
        """Calibrate.

        Args:
            reference: `[samples]` the sensor's normalised entropies on data from before.
            error: the sensor's error on labelled data from before, if known.
            state: where the detectors' state is kept.

        Raises:
            InputError: fewer than 50 samples.
        """
        if len(reference) < 50:
            raise InputError(
                f"the reference has {len(reference)} samples; at least 50 are needed to calibrate a monitor"
            )
        mean, doubt = float(reference.mean()), 2.0 * float(reference.std()) / math.sqrt(len(reference))
        if error is not None:
            error += 2.0 * math.sqrt(max(error * (1 - error), 1e-4) / len(reference))
        bounds = [mean + doubt + self.effect, 1 - mean + doubt + self.effect, (error or 0.0) + self.harm]
        state["bounds"] = torch.tensor(bounds, dtype=torch.float64).clamp(1e-3, 1.0)
        state["center"] = torch.tensor(mean, dtype=torch.float64)
        self._restart(state)

    def _restart(self, state: Bag) -> None:
        # Per detector: capital; then count, sum and sum of squares of the excess since the capital last was 1.
        state["detectors"] = torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 3, dtype=torch.float64)

    def look(self, entropy: Tensor, wrong: Tensor | None, state: Bag) -> Finding | None:
        """Look at a window.

        Args:
            entropy: `[window]`, the sensor's normalised entropies.
            wrong: `[labelled]`, 0 or 1 for each sample whose label came; None or empty when none did.

        Returns:
            A finding when there is an alarm; the detectors then start afresh.
        """
        blocks = self._blocks(entropy)
        streams = [blocks, [1 - value for value in blocks], [] if wrong is None else self._blocks(wrong)]
        threshold = 3 * self.run_length * max(1, len(blocks))
        rows = state["detectors"].tolist()
        alarm: int | None = None
        for which, (row, values, bound) in enumerate(zip(rows, streams, state["bounds"].tolist(), strict=True)):
            for value in values:
                capital, count, total, squares = row
                # One imagined observation of the size of the effect lets the first bets be made.
                bet = bet_size(total + self.effect, squares + self.effect**2 + 0.01, bound)
                capital, excess = e_cusum(capital, value, bound, bet), value - bound
                row[:] = (
                    (capital, count + 1, total + excess, squares + excess**2) if capital > 1 else (1.0, 0.0, 0.0, 0.0)
                )
                if capital >= threshold:
                    alarm = which if alarm is None else alarm
        state["detectors"] = torch.tensor(rows, dtype=torch.float64)
        if alarm is None:
            return None
        capital, count, _, _ = rows[alarm]
        mean, center = float(entropy.mean()), float(state["center"])
        seen = math.nan if wrong is None or not len(wrong) else float(wrong.double().mean())
        kind, effect, text = (
            (
                "uncertain",
                mean - center,
                f"predictions are less certain than before: entropy {mean:.3f}, was {center:.3f}",
            ),
            (
                "certain",
                center - mean,
                f"predictions are more certain than before: entropy {mean:.3f}, was {center:.3f}",
            ),
            ("error", seen, f"errors rose: {seen:.0%} of the labels that came in this window disagree"),
        )[alarm]
        self._restart(state)
        since = math.ceil(count / max(1, len(streams[alarm])))
        return Finding(kind, True, since=since, p_value=min(1.0, 1 / capital), effect=effect, text=text)

    def _blocks(self, values: Tensor) -> list[float]:
        if not len(values):
            return []
        whole = len(values) // self.block * self.block
        if not whole:
            return [float(values.double().mean())]
        return values[:whole].double().view(-1, self.block).mean(1).tolist()


def normalised_entropy(logits: Tensor) -> Tensor:
    """Predictive entropy over log K, `[batch]` in 0..1, of logits or log-probabilities `[batch, K]`."""
    log_p = logits.float().log_softmax(-1)
    return (-(log_p.exp() * log_p).sum(-1) / math.log(logits.shape[-1])).clamp(0, 1)
