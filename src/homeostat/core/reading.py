"""What a probe saw: a number with an interval, and what it points at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from homeostat.core import plotting, tables

if TYPE_CHECKING:
    import pandas

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

    def plot(self, backend: plotting.Backend | Any = "matplotlib", array: str | None = None) -> Any:
        """A figure: what the arrays say (a reliability diagram, bars by class), else the value with its interval.

        Args:
            backend: `"matplotlib"` gives a `matplotlib.figure.Figure`, `"plotly"` a `plotly.graph_objects.Figure`.
            array: draw this array; one of `arrays` that has one dimension.

        Raises:
            MissingExtra: the library is not installed. InputError: it is another one, or there is no such array.
        """
        return plotting.plot_reading(self, backend, array)

    def to_pandas(self, *, arrays: bool = False) -> pandas.DataFrame:
        """One row with value, interval and finding; or the arrays, a column each.

        Raises:
            MissingExtra: pandas is not installed.
        """
        return tables.frame_of_arrays(self) if arrays else tables.frame_of_readings([self])

    def _repr_html_(self) -> str:
        return tables.html_of_readings([self])

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


class Readings(list[Reading]):
    """A list of readings that notebooks show as a table.

    >>> Readings([Reading("accuracy", 0.8), Reading("ece", 0.1)])[1].name
    'ece'
    """

    def to_pandas(self) -> pandas.DataFrame:
        """A row a reading.

        Raises:
            MissingExtra: pandas is not installed.
        """
        return tables.frame_of_readings(self)

    def _repr_html_(self) -> str:
        return tables.html_of_readings(self)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
