"""Readings and traces as figures, by matplotlib or Plotly.

What is drawn is decided once, as a `Panel` of bars and lines; each library then only draws it. Figures are returned and
never shown: matplotlib's are made without pyplot, so that they belong to nobody else and need not be closed. Both
libraries are extras, imported when a figure is asked for.
"""

from __future__ import annotations

import functools
import importlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from homeostat.core.errors import InputError, MissingExtra, nearest

if TYPE_CHECKING:
    from homeostat.core.reading import Reading
    from homeostat.core.trace import Trace

Backend = Literal["matplotlib", "plotly"]

LONG = 60
"""From so many values on an array is drawn as a line instead of bars."""
SUBJECTS, PANELS = 12, 12
"""Most lines in a panel and most panels: what a person can still tell apart."""
COLORS = (
    "#0060a8", "#b84a00", "#00704d", "#5b3a9b", "#a3216f", "#8f5d00",
    "#4b90d0", "#e08a52", "#4fae8c", "#9a82cf", "#d673ae", "#c9a13b",
)  # fmt: skip
MATES = ("source", "reference", "confidence")
"""Arrays that the main one is compared with, drawn behind it."""


@dataclass(frozen=True)
class Series:
    """Values to draw: `"bar"`, `"line"`, `"point"` with `low` and `high`, or `"guide"`, a thin dashed line."""

    kind: str
    x: list[float]
    y: list[float]
    name: str = ""
    low: list[float] | None = None
    high: list[float] | None = None
    width: float | None = None


@dataclass(frozen=True)
class Panel:
    """What is drawn on one pair of axes."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    categories: bool = False


def plot_reading(reading: Reading, backend: Backend | Any = "matplotlib", array: str | None = None) -> Any:
    """A figure of a reading; see `Reading.plot`."""
    return _draw([_panel(reading, array)], backend)


def plot_trace(
    trace: Trace, backend: Backend | Any = "matplotlib", names: Sequence[str] = (), subjects: Sequence[str] = ()
) -> Any:
    """A figure of a trace; see `Trace.plot`."""
    found = list(dict.fromkeys(reading.name for entry in trace for reading in entry.readings))
    known = list(dict.fromkeys(entry.subject for entry in trace))
    for asked, there, what in ((names, found, "reading"), (subjects, known, "subject")):
        for name in asked:
            if name not in there:
                raise InputError(f"the trace has no {what} {name!r}.{nearest(name, there)} It has {there[:20]}")
    if not found:
        raise InputError("the trace holds no reading; there is nothing to plot")
    chosen = list(names or found)
    if len(chosen) > PANELS:
        raise InputError(f"{len(chosen)} readings are too many for a figure; choose at most {PANELS} by names=")
    return _draw([_history(trace, name, list(subjects)) for name in chosen], backend)


# -- what is drawn


def _panel(reading: Reading, array: str | None) -> Panel:
    flat = {name: values.detach().double().cpu() for name, values in reading.arrays.items()
            if values.ndim == 1 and len(values) > 1}  # fmt: skip
    if array is not None and array not in flat:
        raise InputError(f"{reading.name} has no array {array!r} to plot.{nearest(array, flat)} It has {sorted(flat)}")
    title = _title(reading)
    if array is None and {"count", "confidence", "accuracy"} <= flat.keys():
        return _reliability(title, flat)
    if array is None and {"count", "correct"} <= flat.keys():
        shares = flat["correct"] / flat["count"].clamp(min=1)
        shares[flat["count"] == 0] = torch.nan
        mean = Series("guide", [-0.5, len(shares) - 0.5], [reading.value] * 2, f"{reading.name} of all")
        return Panel(title, "class", reading.name, [_values(shares, reading.name), mean], len(shares) < LONG)
    if not flat:
        return _alone(reading, title)
    main = array or next((name for name in flat if name not in (*MATES, "count")), next(iter(flat)))
    mates = [name for name in MATES if array is None and name != main and name in flat
             and len(flat[name]) == len(flat[main])]  # fmt: skip
    series = [_values(flat[name], name) for name in (main, *mates)]
    what = "class" if reading.name in ("macro_f1",) or "prior" in flat or "share" in flat else "index"
    return Panel(title, what, main, series, len(flat[main]) < LONG)


def _reliability(title: str, flat: dict[str, Tensor]) -> Panel:
    there = flat["count"] > 0
    x, y = flat["confidence"][there], flat["accuracy"][there]
    bars = Series("bar", x.tolist(), y.tolist(), "how often right", width=0.8 / len(there))
    ideal = Series("guide", [0.0, 1.0], [0.0, 1.0], "as sure as right")
    return Panel(title, "confidence", "share of right answers", [bars, ideal])


def _values(values: Tensor, name: str) -> Series:
    places = [float(i) for i in range(len(values))]
    return Series("bar" if len(values) < LONG else "line", places, values.tolist(), name)


def _alone(reading: Reading, title: str) -> Panel:
    around = reading.interval
    low, high = ([around.low], [around.high]) if around else (None, None)
    point = Series("point", [0.0], [reading.value], reading.name, low, high)
    return Panel(title, "", reading.unit or "value", [point])


def _title(reading: Reading) -> str:
    around = f" [{reading.interval.low:.3g}, {reading.interval.high:.3g}]" if reading.interval else ""
    return f"{reading.name} {reading.value:.4g}{around}{' ' + reading.unit if reading.unit else ''}"


def _history(trace: Trace, name: str, subjects: list[str]) -> Panel:
    """A line a subject, and a place where one subject is measured in several; broken where only others were."""
    rows = [(e, r) for e in trace for r in e.readings if r.name == name and (not subjects or e.subject in subjects)]
    several = {(e.step, e.subject) for e, _ in rows}
    apart = len(several) < len(rows)
    steps = sorted({e.step for e, _ in rows})
    lines: dict[str, dict[int, Reading]] = {}
    for entry, reading in rows:
        who = f"{entry.subject}, {entry.where}" if apart and entry.where else entry.subject
        lines.setdefault(who, {})[entry.step] = reading
    if len(lines) > SUBJECTS:
        raise InputError(f"{name} has {len(lines)} lines, too many for a panel; choose at most {SUBJECTS} by subjects=")
    series = []
    for who, at in lines.items():
        inside = [step for step in steps if min(at) <= step <= max(at)]
        y = [at[step].value if step in at else torch.nan for step in inside]
        ends = [at[step].interval if step in at else None for step in inside]
        band: dict[str, Any] = {}
        if any(ends):
            band = {side: [getattr(e, side) if e else torch.nan for e in ends] for side in ("low", "high")}
        series.append(Series("line", [float(step) for step in inside], y, who, **band))
    unit = rows[0][1].unit if rows else ""
    return Panel(name, "step", f"{name} ({unit})" if unit else name, series)


# -- how it is drawn


def _draw(panels: Sequence[Panel], backend: Any) -> Any:
    drawn = {"matplotlib": _by_matplotlib, "plotly": _by_plotly}
    if backend not in drawn:
        raise InputError(f"no figures are made by {backend!r}; wanted is 'matplotlib' or 'plotly'")
    return drawn[backend](panels)


@functools.cache
def _figure_class() -> Any:
    figure = _need("matplotlib.figure")

    class Drawn(figure.Figure):
        """A matplotlib figure that notebooks show although pyplot does not know it."""

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png")
            return file.getvalue()

    return Drawn


def _by_matplotlib(panels: Sequence[Panel]) -> Any:
    figure = _figure_class()(figsize=(7.0, 3.4 * len(panels)), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        bars, few = [s for s in panel.series if s.kind == "bar"], _few(panel)
        for number, s in enumerate(panel.series):
            color = COLORS[number % len(COLORS)]
            if s.kind == "bar":
                width = s.width or 0.8 / len(bars)
                shift = 0.0 if s.width else (bars.index(s) - (len(bars) - 1) / 2) * width
                axes.bar([x + shift for x in s.x], s.y, width, color=color, label=s.name)
            elif s.kind == "guide":
                axes.plot(s.x, s.y, color="gray", linestyle="--", linewidth=1.2, label=s.name)
            elif s.kind == "point":
                ends = None if s.low is None or s.high is None else [
                    [s.y[0] - s.low[0]], [s.high[0] - s.y[0]],
                ]  # fmt: skip
                axes.errorbar(s.x, s.y, yerr=ends, fmt="o", capsize=6, color=color, label=s.name)
            else:
                marked = range(len(s.x)) if few else _alone_in_time(s.y)
                axes.plot(s.x, s.y, color=color, marker="o", markevery=list(marked), markersize=4, label=s.name)
                if s.low is not None and s.high is not None:
                    axes.fill_between(s.x, s.low, s.high, color=color, alpha=0.15, linewidth=0)
        axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if panel.categories and bars:
            axes.xaxis.get_major_locator().set_params(integer=True)
        if not panel.x:
            axes.set_xticks([])
        if len(panel.series) > 1 or panel.x == "step":
            axes.legend(frameon=False, fontsize="small")
    return figure


def _by_plotly(panels: Sequence[Panel]) -> Any:
    go, subplots = _need("plotly.graph_objects"), _need("plotly.subplots")
    figure = subplots.make_subplots(rows=len(panels), cols=1, subplot_titles=[panel.title for panel in panels])
    named = set[str]()
    for row, panel in enumerate(panels, start=1):
        few = _few(panel)
        for number, s in enumerate(panel.series):
            color, place = COLORS[number % len(COLORS)], {"row": row, "col": 1}
            if s.kind == "bar":
                figure.add_trace(go.Bar(x=s.x, y=s.y, width=s.width, name=s.name, marker_color=color), **place)
                continue
            error = None
            if s.low is not None and s.high is not None:
                error = {"type": "data", "symmetric": False, "array": [h - y for h, y in zip(s.high, s.y, strict=True)],
                         "arrayminus": [y - low for y, low in zip(s.y, s.low, strict=True)]}  # fmt: skip
            guide = s.kind == "guide"
            style = {"color": "gray" if guide else color, "dash": "dash" if guide else "solid"}
            marked = few or _alone_in_time(s.y)
            mode = {"guide": "lines", "point": "markers"}.get(s.kind, "lines+markers" if marked else "lines")
            # One line of the legend a subject, which switches it in all panels.
            group = {"legendgroup": s.name, "showlegend": s.name not in named}
            named.add(s.name)
            drawn = go.Scatter(x=s.x, y=s.y, name=s.name, mode=mode, line=style, error_y=error, **group)
            figure.add_trace(drawn, **place)
        figure.update_xaxes(title_text=panel.x, showticklabels=bool(panel.x), row=row, col=1)
        figure.update_yaxes(title_text=panel.y, row=row, col=1)
    figure.update_layout(
        height=340 * len(panels), barmode="group", paper_bgcolor="rgba(0,0,0,0)",
        showlegend=any(len(panel.series) > 1 or panel.x == "step" for panel in panels),
    )  # fmt: skip
    return figure


def _few(panel: Panel) -> bool:
    """Whether points are few enough for a mark each."""
    return max((len(s.x) for s in panel.series), default=0) <= 40


def _alone_in_time(y: list[float]) -> list[int]:
    """Places of values without a neighbor, which a line alone would not show."""
    there = [value == value for value in y]
    return [
        i for i, here in enumerate(there)
        if here and not (i and there[i - 1]) and not (i + 1 < len(y) and there[i + 1])
    ]  # fmt: skip


def _need(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.partition(".")[0]
        raise MissingExtra(f"plots by {name} need the package {name}: pip install 'homeostat[report]'") from None
