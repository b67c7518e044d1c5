"""What a probe saw: a number with an interval, and what it points at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Better = Literal["higher", "lower", "none"]


@dataclass(frozen=True)
class Interval:
    """A confidence interval; `level` is its stated coverage."""

    low: float
    high: float
    level: float = 0.95

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Finding:
    """What a probe points at, in a form that code and people can read.

    Attributes:
        kind: what was found (`"covariate"`, `"label"`, `"feature"`, `"none"`, ...).
        detected: whether it passes the probe's threshold, effect size included.
        subjects: which features, classes or parts, most affected first.
        since: first sample or window affected, if known.
        p_value: of the test behind it, adjusted for the number of subjects.
        effect: size of the effect in the reading's unit.
        text: one sentence for a person.
    """

    kind: str
    detected: bool
    subjects: tuple[str | int, ...] = ()
    since: int | None = None
    p_value: float | None = None
    effect: float | None = None
    text: str = ""


@dataclass(frozen=True)
class Reading:
    """One measurement.

    Attributes:
        name: of the quantity, such as `"accuracy"`.
        value: the number.
        interval: its confidence interval, where the probe has one.
        unit: `"fraction"`, `"nats"`, `"ms"`, ...
        better: whether higher or lower is better, or neither.
        finding: what it points at.
        arrays: tensors for plots and tables (per class, per feature).
    """

    name: str
    value: float
    interval: Interval | None = None
    unit: str = ""
    better: Better = "none"
    finding: Finding | None = None
    arrays: Mapping[str, Tensor] = field(default_factory=dict)

    def __str__(self) -> str:
        around = f" [{self.interval.low:.4g}, {self.interval.high:.4g}]" if self.interval else ""
        return f"{self.name} {self.value:.4g}{around}{' ' + self.unit if self.unit else ''}"

    def as_dict(self) -> dict[str, object]:
        """JSON-ready, without the arrays; values that are not finite become None."""
        row: dict[str, object] = {"name": self.name, "value": _finite(self.value), "unit": self.unit}
        row["better"] = self.better
        if self.interval:
            row["interval"] = [_finite(self.interval.low), _finite(self.interval.high), self.interval.level]
        if self.finding:
            found = {k: v for k, v in vars(self.finding).items() if v not in (None, (), "")}
            row["finding"] = {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}
        return row


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
