"""Watching a stream: sequential tests that may be looked at after every window.

The sensor is the network as it was deployed, frozen, so that a commit does not move the reference. Of each sample it
gives numbers u in 0..1: how its entropy, its confidence and the distance of its features rank among samples from
before, which class is predicted and, where a label came, whether that was wrong. For each number, direction and bound
b, and for each of a few stakes g in 0..1, there is an e-detector (Shiryaev-Roberts), whose capital after window t is

    R_t = (R_{t-1} + 1) * product over the window's observations of (1 - g + g u / b),        R_0 = 0.

If every observation has mean at most b given the past, R_t - t has no upward drift, and the average over all stakes,
classes, directions and signals has none either. So the first window in which that average reaches `run_length` comes
after at least `run_length` windows on average, whatever the distribution, however small the windows and however often
one looks. The average gives this once for all signals; comparing each with a threshold of its own would never alarm
sooner. A window counts as one step, however many observations it has.

The bound is the mean on data from before, plus two standard errors of it (more where a signal has many detectors), plus
the smallest effect worth an alarm: an alarm needs an effect, not only evidence. Below the bound false alarms are far
rarer than stated.

Observations are single samples where neighbours are independent, else means of blocks twice as long as the likeness of
neighbours lasts. A block's mean is held against a bound like a sample is, so dependence costs speed: what one sample
can multiply the capital by, a block of ten can too, and no more.

Reference: Shin, Ramdas, Rinaldo, E-detectors: a nonparametric framework for sequential change detection, NEJSDS 2024;
Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, JRSS-B 2024 (the stakes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from scipy.special import ndtr, ndtri
from torch import Tensor

from homeostat.core.data import UNKNOWN
from homeostat.core.errors import InputError, SpecError
from homeostat.core.online import Bag
from homeostat.core.probe import Outputs
from homeostat.core.reading import Finding
from homeostat.core.spec import Count, Positive, Spec
from homeostat.loop.neighbours import begun, block_lengths, block_means, gone_on, times
from homeostat.loop.onset import Onset
from homeostat.loop.scores import Scores, ranked_among
from homeostat.loop.signals import Layout, Signal, columns_of, kind_of, layout_of
from homeostat.probe.intervals import wilson

STAKES = torch.tensor([1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 0.95], dtype=torch.float64)
"""Shares of what could be lost that are bet; the capitals they lead to are averaged."""
SIGNALS: tuple[Signal, ...] = ("entropy", "confidence", "features", "classes", "error")
HISTORY = 200
"""Windows of which the means are kept."""
LEAST = 50
"""Samples needed to begin."""


def shiryaev_roberts(
    capital: Float[Tensor, "*detectors stakes"],
    observed: Float[Tensor, "*detectors observations"],
    bound: Float[Tensor, "*detectors"],
    stakes: Float[Tensor, " stakes"] = STAKES,
) -> Float[Tensor, "*detectors stakes"]:
    """Capitals after one window; a detector without observations stays as it is.

    >>> zero = torch.zeros(1, dtype=torch.float64)
    >>> shiryaev_roberts(zero, zero + 0.6, zero[0] + 0.5, zero + 0.5).tolist()
    [1.1]
    """
    if not observed.shape[-1]:
        return capital
    grown = torch.log1p(stakes * (observed / bound[..., None] - 1)[..., None]).sum(-2)
    return ((capital + 1) * grown.exp()).clamp(max=1e300)


@dataclass(frozen=True)
class Monitor(Spec):
    """Detects that the frozen network's numbers have left what they were on data from before.

    Attributes:
        run_length: average number of windows between false alarms, at least; all signals together.
        signals: what is watched. `features` needs outputs that have them, `error` needs labels that come.
        effect: smallest P(now > before) - 1/2 worth an alarm, of entropy, confidence and the features' distance.
        share: smallest change of a predicted class's share, or of the least certain or furthest tenth, worth an alarm.
        harm: smallest rise of the error worth an alarm, where labels come.
        block: samples averaged into one observation; None takes twice as many as neighbours were alike in earlier
            windows. Samples within a block may depend on each other. Likeness that outlasts a window is not seen.
    """

    run_length: Count = 500
    signals: tuple[Signal, ...] = SIGNALS
    effect: Positive = 0.03
    share: Positive = 0.03
    harm: Positive = 0.05
    block: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.signals or len(set(self.signals)) < len(self.signals):
            raise SpecError(f"Monitor.signals = {self.signals!r}, but it must name at least one signal, each once")

    # -- calibrate

    def begin(self, before: Outputs | Any, state: Bag, error: float | None = None, *, ordered: bool = False) -> None:
        """Calibrate.

        Args:
            before: what the frozen network gives for data from before: logits and, to watch them, features.
            state: where all state is kept, under `monitor`; how alike neighbours are stays from earlier.
            error: the network's error on data from before; where not given, that on the labels in `before`. Without
                either, errors are not watched.
            ordered: whether `before` is in the order of a stream, so that neighbours may be alike.

        Raises:
            InputError: fewer than 50 samples.
        """
        if len(before) < LEAST:
            raise InputError(
                f"the reference has {len(before)} samples; at least {LEAST} are needed to calibrate a monitor"
            )
        alike = state.under("monitor").get("alike")
        for name in [name for name in state if name.startswith("monitor.")]:
            del state[name]
        sensor, rows = Scores.fit(before, ordered=ordered), len(before)
        layout, values = sensor.read(before, self.signals)
        lasting = [1.0] * len(layout.widths)
        if ordered and layout.widths:
            made = begun(layout, values)
            lasting = [min(max(1.0, time), rows / 5) for time in times(made, 0.0)]
            alike = made if alike is None or alike.shape != made.shape else alike
        opened = list[dict[str, Tensor]]()
        for (name, _), time in zip(layout.widths, lasting, strict=True):
            used = values[layout.columns[name]]
            used = used[:, ranked_among(rows, ordered)] if name == "features" else used
            opened.append(self._open(name, used.mean(1), used.shape[1] / time))
        error, labels = _error_before(before, error)
        widths = layout.widths
        if error is not None and "error" in self.signals:
            widths = (*widths, ("error", 1))
            center = torch.tensor([error], dtype=torch.float64)
            opened.append(self._open("error", center, labels / max(lasting, default=1.0)))
        columns = dict(widths)
        kept = {"widths": torch.tensor([columns.get(name, 0) for name in SIGNALS])}
        kept |= {key: torch.cat([part[key] for part in opened]) for key in (opened[0] if opened else ())}
        kept["lasting"] = torch.tensor(lasting, dtype=torch.float64)
        kept["history"] = torch.zeros(0, 2 + sum(columns.values()))
        state.put("monitor.sensor", sensor.kept)
        state.put("monitor", kept | ({} if alike is None else {"alike": alike}))

    def _open(self, name: str, center: Tensor, size: float) -> dict[str, Tensor]:
        """Detectors of a signal whose columns had this mean over `size` independent samples."""
        columns, bounds = columns_of(name, len(center)), []
        # One detector's bound covers the reference's error by two standard errors, and so do those of several together.
        missed = float(ndtr(-2.0)) / len(columns)
        for index, side in columns:
            if name in ("classes", "error") or index == 1:
                mean = float(center[index])
                least, doubt = self.harm if name == "error" else self.share, wilson(mean * size, size, 1 - 2 * missed)
                bounds.append((doubt.high if side > 0 else 1 - doubt.low) + least)
            else:  # of ranks
                center[index] = 0.5
                bounds.append(0.5 - float(ndtri(missed)) * math.sqrt(1 / 12 / size) + self.effect)
        # No number in 0..1 is evidence against a bound of 1 or more: such detectors are left out of the average.
        bound = torch.tensor(bounds, dtype=torch.float64)
        alive = bound < 1
        return {
            "center": center,
            "size": torch.tensor([size], dtype=torch.float64),
            "bounds": bound.where(alive, math.inf),
            "weights": alive.double() / alive.sum().clamp(min=1),
            "capital": torch.zeros(len(bounds), len(STAKES), dtype=torch.float64),
        }

    # -- look

    def look(self, seen: Outputs | Any, wrong: Tensor | None, state: Bag) -> Finding | None:
        """Look at a window.

        Args:
            seen: what the frozen network gives for the window.
            wrong: `[labels]`, 0 or 1 for each label that came since the last look, also of earlier windows; None or
                empty when none did.
            state: as `begin` and earlier looks left it.

        Returns:
            A finding when there is an alarm; the detectors start afresh with the next look.
        """
        kept = state.under("monitor")
        layout = _layout(kept)
        if not layout.widths:
            return None
        capital, means, history = kept["capital"].clone(), kept["center"].clone(), kept["history"]
        if kept.pop("spoke", None) is not None:
            del state["monitor.spoke"]
            capital.zero_()
        found, values = Scores(_under(kept, "sensor")).read(seen, layout.columns)
        level = values.mean(1)
        changed = {"capital": capital}
        lengths, alike = [self.block or len(seen)] * len(found.widths), kept.get("alike")
        if not self.block and found.widths:
            if alike is None:
                changed["alike"] = begun(found, values)
            elif len(alike) == len(lengths) + 1:
                lengths = block_lengths(alike, len(seen))
                step = level - history[-1, 2 : 2 + len(level)] if len(history) else None
                changed["alike"] = gone_on(alike, found, values, step)
        blocks: dict[str, int | None] = {name: length for (name, _), length in zip(found.widths, lengths, strict=True)}
        # Neighbouring signals whose blocks are of one length are told together.
        for length, group in groupby(layout.widths, lambda signal: blocks.get(signal[0])):
            part = layout_of(tuple(group))
            if length is not None:
                mine = part.of(found.columns)
                means[part.of(layout.columns)] = level[mine]
                observed = part.observed(block_means(values[mine], length))
                _bet(capital, kept["bounds"], part.of(layout.detectors), observed)
        labels = 0 if wrong is None else len(wrong)
        if wrong is not None and labels and "error" in layout.columns:
            told = wrong.double()[None]
            means[layout.columns["error"]] = told.mean()
            observed = block_means(told, max(lengths, default=1))
            _bet(capital, kept["bounds"], layout.detectors["error"], observed)
        row = torch.cat([torch.tensor([len(seen), labels]), means]).float()
        changed["history"] = torch.cat([history[1 - HISTORY :], row[None]])
        state.put("monitor", changed)
        kept |= changed
        average = _average(kept)
        return self._alarm(state, kept, average) if average >= self.run_length else None

    # -- say

    def _alarm(self, state: Bag, kept: dict[str, Tensor], capital: float) -> Finding:
        layout, by_kind = _layout(kept), dict[str, float]()
        tested = [(name, column) for name, columns in layout.tested.items() for column in columns]
        for (name, column), part in zip(tested, _capitals(kept).tolist(), strict=True):
            by_kind[kind_of(name, column)] = by_kind.get(kind_of(name, column), 0.0) + part
        # The evidence stays to be read until the next look.
        state["monitor.spoke"] = torch.tensor(True)
        kind = max(by_kind, key=lambda key: by_kind[key])
        onset = Onset.of(kept, layout, kind)
        effect, subjects, text = onset.say(kept["sensor.classes"].tolist(), self.share)
        return Finding(kind, True, subjects, onset.ago[onset.at - 1], min(1.0, 1 / capital), effect, text)

    def since(self, state: Bag, kind: str) -> tuple[int, int, int]:
        """How many windows ago what an alarm of this kind is about began (1: in the last): estimate, 95 % interval."""
        kept = state.under("monitor")
        return Onset.of(kept, _layout(kept), kind).interval()

    def evidence(self, state: Bag) -> dict[str, Any]:
        """By signal: capital, the capital at which it alone would raise the alarm, bound; and `all`, the average."""
        kept = state.under("monitor")
        layout, made = _layout(kept), dict[str, Any]()
        capitals = _capitals(kept) if layout.widths else torch.zeros(0)
        for name, places in layout.detectors.items():
            made[name] = {
                "capital": _short(float(capitals[places].sum())),
                "threshold": self.run_length * len(layout.widths),
            }
            bound = float(kept["bounds"][places][0])
            # Classes have a bound each; one of 1 or more can never be passed, and is kept as infinite.
            if name != "classes" and math.isfinite(bound):
                made[name]["bound"] = round(bound, 4)
        return made | {"all": {"capital": _short(_average(kept)), "threshold": self.run_length}}


def evidence_of_one(monitor: Monitor, seen: Outputs | Any, state: Bag) -> float:
    """Evidence of a window alone that it is unlike the reference; its mean is at most 1 where it is like it.

    Neighbours are taken to be alike for as long as they were in the reference.
    """
    kept = state.under("monitor")
    layout = _layout(kept)
    found, values = Scores(_under(kept, "sensor")).read(seen, layout.columns)
    if not found.widths:
        return 0.0
    # Not what earlier windows called for: a change of worlds among them makes all neighbours look alike for long.
    lengths = [monitor.block or math.ceil(time) for time in kept["lasting"].tolist()]
    capital = torch.zeros_like(kept["capital"])
    for (name, width), length in zip(found.widths, lengths, strict=True):
        part = layout_of(((name, width),))
        observed = part.observed(block_means(values[part.of(found.columns)], length))
        _bet(capital, kept["bounds"], part.of(layout.detectors), observed)
    return _average(kept | {"capital": capital})


def _under(kept: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: tensor for name, tensor in kept.items() if name.startswith(prefix + ".")}


def _layout(kept: dict[str, Tensor]) -> Layout:
    """What is watched."""
    widths = kept["widths"].tolist()
    return layout_of(tuple((name, width) for name, width in zip(SIGNALS, widths, strict=True) if width))


def _bet(capital: Tensor, bounds: Tensor, places: slice, observed: Tensor) -> None:
    capital[places] = shiryaev_roberts(capital[places], observed, bounds[places])


def _capitals(kept: dict[str, Tensor]) -> Float[Tensor, " detectors"]:
    """What each detector adds to its signal's average."""
    return kept["capital"].mean(1) * kept["weights"]


def _average(kept: dict[str, Tensor]) -> float:
    """The average over stakes, detectors and signals; an alarm goes off at `run_length`."""
    watched = int(kept["widths"].count_nonzero())
    return float(_capitals(kept).sum()) / watched if watched else 0.0


def _error_before(before: Outputs, error: float | None) -> tuple[float | None, int]:
    """The error on data from before, and the number of labels behind it."""
    if error is not None or before.y is None:
        return error, len(before)
    known = before.labels != UNKNOWN
    if not bool(known.any()):
        return None, 0
    wrong = before.logits[known].argmax(-1) != before.labels[known]
    return float(wrong.double().mean()), len(wrong)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
