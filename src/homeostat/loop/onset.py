"""Since when the monitor's numbers are what they are, and how to say it.

The monitor keeps the means of the last windows. The reference stands before them as one more window, as long as it has
samples, so that a change may have come before all windows that are kept, and the reference's own error is part of what
is compared. The interval takes window means as normal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from homeostat.core.errors import InputError
from homeostat.loop.signals import Column, Layout, kind_of
from homeostat.probe.change_point import change_gains, find_change

NAMED = 5
"""Classes that an alarm names, at most."""


@dataclass(frozen=True)
class Onset:
    """When one number changed, among the window means that were kept.

    Attributes:
        kind: of alarm.
        signal, column: the number that moved most, and its direction.
        values: `[1 + windows, columns]` means of the signal, the reference first.
        weights: `[1 + windows]` samples behind them.
        ago: `[windows]` how many windows ago each was; 1 is the last.
        at: first row of `values` after the change.
    """

    kind: str
    signal: str
    column: Column
    values: Tensor
    weights: Tensor
    ago: list[int]
    at: int

    @classmethod
    def of(cls, kept: Mapping[str, Tensor], layout: Layout, kind: str) -> Onset:
        """From the monitor's state.

        Raises:
            InputError: no signal of this kind was watched, or no window was looked at.
        """
        history, best = kept["history"].double(), None
        counts, means = history[:, :2], history[:, 2:]
        for number, (signal, tested) in enumerate(layout.tested.items()):
            mine, behind = layout.columns[signal], counts[:, 1 if signal == "error" else 0]
            columns = [column for column in tested if kind_of(signal, column) == kind]
            there = (behind > 0).nonzero()[:, 0]
            if not columns or not len(there):
                continue
            values = torch.cat([kept["center"][None, mine], means[there, mine]])
            weights = torch.cat([kept["size"][number : number + 1], behind[there]])
            gains = torch.stack([_gains(values[:, i], weights, side) for i, side in columns])
            which, at = divmod(int(gains.argmax()), len(values))
            found = cls(kind, signal, columns[which], values, weights, (len(history) - there).tolist(), at)
            if best is None or float(gains.max()) > best[0]:
                best = float(gains.max()), found
        if best is None:
            raise InputError(
                f"nothing to say about {kind!r}: signals are {list(layout.columns)}, and "
                f"{len(history)} windows were looked at"
            )
        return best[1]

    @property
    def moved(self) -> Tensor:
        """Mean since the change less the reference, `[columns]`."""
        weights = self.weights[self.at :, None]
        return (self.values[self.at :] * weights).sum(0) / weights.sum() - self.values[0]

    def interval(self, level: float = 0.95) -> tuple[int, int, int]:
        """Windows ago: estimate, lower and upper end."""
        line = self.values[:, self.column[0]]
        found = find_change(line, weights=self.weights, level=level, normal=True, draws=99)
        low, high = min(found.low, self.at), max(found.high, self.at)
        return self.ago[self.at - 1], self.ago[high - 1], self.ago[low - 1]

    def say(self, names: list[int], least: float) -> tuple[float, tuple[int, ...], str]:
        """Effect, subjects and one sentence.

        Args:
            names: the class that each column stands for, of `classes`.
            least: smallest change of a share worth naming, of `classes`.
        """
        index, side = self.column
        was, moved = self.values[0], self.moved
        now, effect = was + moved, abs(float(moved[index]))
        if self.signal == "classes":
            order = moved.abs().argsort(descending=True, stable=True).tolist()
            shown = [i for i in order if i < len(names) and (i == order[0] or abs(float(moved[i])) >= least)][:NAMED]
            parts = [f"class {names[i]} in {float(now[i]):.0%} of samples (was {float(was[i]):.0%})" for i in shown]
            text = f"the classes predicted have changed: {', '.join(parts) or 'rare ones together'}"
            return effect, tuple(names[i] for i in shown), text
        if self.signal == "error":
            labels = int(self.weights[self.at :].sum())
            return effect, (), f"errors rose: {float(now[0]):.0%} of {labels} labels disagree (was {float(was[0]):.0%})"
        start = {
            "uncertain": "predictions are less certain than before",
            "certain": "predictions are more certain than before",
            "features": "features are unlike those from before",
        }[self.kind]
        if index == 1:
            words = {
                "entropy": "as high an entropy as",
                "confidence": "as low a confidence as",
                "features": "features as far out as",
            }
            what = words[self.signal]
            text = f"{start}: {float(now[1]):.0%} of samples have {what} {float(was[1]):.0%} had before"
            return effect, (), text
        rank = 0.5 + effect
        pairs = "of pairs of a sample from now and one from before, the one from now"
        if self.signal != "features":
            more = "higher" if side > 0 else "lower"
            return effect, (), f"{start}: in {rank:.0%} {pairs} has the {more} {self.signal}"
        how = "lies further from the mean" if index == 0 else f"lies to one side along their principal axis {index - 1}"
        return effect, (), f"{start}: in {rank:.0%} {pairs} {how}"


def _gains(line: Tensor, weights: Tensor, side: int) -> Tensor:
    """Gains of changes that lead to this side of the reference and of what was before; at least one is finite."""
    gains = change_gains(line[:, None], weights)
    after = (line * weights).flip(0).cumsum(0).flip(0) / weights.flip(0).cumsum(0).flip(0)
    overall = (line * weights).sum() / weights.sum()
    gains[(side * (after - line[0]) <= 0) | (side * (after - overall) <= 0)] = -1.0
    gains[0] = -torch.inf
    return gains
