"""Readings and traces as figures, frames and tables: by real matplotlib, Plotly and pandas where they are installed."""

from __future__ import annotations

import html.parser
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import homeostat as hs
from homeostat.core.errors import InputError, MissingExtra
from homeostat.core.plotting import SUBJECTS
from homeostat.core.reading import Finding, Interval, Reading, Readings
from homeostat.core.tables import ROWS, number
from homeostat.core.trace import Entry, Trace
from homeostat.probe import ECE, Accuracy

SOURCE = Path(__file__).parents[2] / "src"
PLAIN = Reading("accuracy", 0.8, Interval(0.7, 0.9), "fraction", "higher")
COUNTS = {"count": torch.tensor([4, 0, 5]), "correct": torch.tensor([2, 0, 5])}
BY_CLASS = Reading("accuracy", 7 / 9, None, "fraction", "higher", arrays=COUNTS)
BOTH = ("matplotlib", "plotly")


def figure(reading, backend, **more):
    pytest.importorskip(backend, reason=f"{backend} is not installed: pip install 'homeostat[report]'")
    return reading.plot(backend, **more)


def bars(made, backend):
    """Heights of the bars, by name."""
    if backend == "plotly":
        return {t.name: list(t.y) for t in made.data if t.type == "bar"}
    found = made.axes[0].containers
    return {c.get_label(): [bar.get_height() for bar in c] for c in found if hasattr(c, "patches")}


def lines(made, backend, panel=0):
    """Points of the lines of a panel, by name."""
    if backend == "plotly":
        axis = "y" if panel == 0 else f"y{panel + 1}"
        return {t.name: (list(t.x), list(t.y)) for t in made.data if t.type == "scatter" and t.yaxis == axis}
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in made.axes[panel].get_lines()}


@pytest.mark.parametrize("backend", BOTH)
def test_accuracy_is_drawn_by_class_and_a_class_that_was_not_there_has_no_bar(backend):
    (heights,) = bars(figure(BY_CLASS, backend), backend).values()
    assert heights[0] == 0.5 and math.isnan(heights[1]) and heights[2] == 1.0
    x, y = lines(figure(BY_CLASS, backend), backend)["accuracy of all"]
    assert y == pytest.approx([7 / 9] * 2) and x[0] < 0 < 2 < x[1]


@pytest.mark.parametrize("backend", BOTH)
def test_calibration_is_a_reliability_diagram_of_the_filled_bins(backend):
    draws = torch.Generator().manual_seed(0)
    logits = 3 * torch.rand(200, 2, generator=draws)
    labels = (torch.rand(200, generator=draws) < logits.softmax(1)[:, 1] ** 2).long()
    (reading,) = hs.read([ECE(bins=5)], nn.Identity(), (logits, labels))
    made = figure(reading, backend)
    (heights,) = bars(made, backend).values()
    confidence, predicted = logits.softmax(1).max(1)
    bins = [(confidence > i / 5) & (confidence <= (i + 1) / 5) for i in range(5)]
    wanted = [float((predicted == labels)[b].double().mean()) for b in bins if bool(b.any())]
    assert heights == pytest.approx(wanted) and 0 < len(wanted) < 5
    assert lines(made, backend)["as sure as right"] == ([0, 1], [0, 1])


@pytest.mark.parametrize("backend", BOTH)
def test_a_reading_without_arrays_is_its_value_with_the_interval(backend):
    made = figure(PLAIN, backend)
    if backend == "plotly":
        (point,) = made.data
        assert point.y[0] == 0.8
        assert (point.error_y.array[0], point.error_y.arrayminus[0]) == pytest.approx((0.1, 0.1))
    else:
        segment = made.axes[0].containers[0][2][0].get_segments()[0]
        assert segment[:, 1].tolist() == pytest.approx([0.7, 0.9])


@pytest.mark.parametrize("backend", BOTH)
def test_arrays_are_drawn_beside_what_they_are_compared_with_or_as_a_line_where_long(backend):
    prior, source = torch.tensor([0.2, 0.8]), torch.tensor([0.5, 0.5])
    moved = Reading("bbse", 0.3, arrays={"prior": prior, "source": source, "weights": prior / source})
    heights = bars(figure(moved, backend), backend)
    assert list(heights) == ["prior", "source"]
    assert heights["prior"] == pytest.approx([0.2, 0.8]) and heights["source"] == [0.5, 0.5]
    assert list(bars(figure(moved, backend, array="weights"), backend)) == ["weights"]
    long = Reading("shift", 1.0, arrays={"score": torch.arange(500.0), "matrix": torch.eye(3)})
    assert lines(figure(long, backend), backend)["score"][1] == list(range(500))
    with pytest.raises(InputError, match=r"no array 'weight' to plot\. Did you mean 'weights'"):
        moved.plot(backend, array="weight")
    with pytest.raises(InputError, match="no array 'matrix'"):
        long.plot(backend, array="matrix")


def history() -> Trace:
    made = [
        Entry(
            step,
            "B" if 2 <= step < 4 else "A",
            "now",
            (Reading("accuracy", step / 10), Reading("seconds", 0.1, unit="s")),
        )
        for step in range(6)
    ]
    return Trace(tuple(made))


@pytest.mark.parametrize("backend", BOTH)
def test_a_trace_has_a_panel_a_reading_and_a_line_a_subject_broken_where_another_was_measured(backend):
    made = figure(history(), backend)
    first, second = lines(made, backend), lines(made, backend, 1)
    assert list(first) == list(second) == ["A", "B"]
    assert first["B"] == ([2, 3], [0.2, 0.3])
    x, y = first["A"]
    assert x == [0, 1, 2, 3, 4, 5] and [math.isnan(v) for v in y] == [False, False, True, True, False, False]
    one = figure(history(), backend, names=["seconds"], subjects=["B"])
    assert list(lines(one, backend)) == ["B"] and lines(one, backend)["B"][1] == [0.1, 0.1]


@pytest.mark.parametrize("backend", BOTH)
def test_a_subject_that_is_measured_in_several_places_has_a_line_for_each(backend):
    entries = [
        Entry(s, "model", f"task {t}", (Reading("accuracy", s + t / 10),)) for s in range(3) for t in range(s + 1)
    ]
    found = lines(figure(Trace(tuple(entries)), backend), backend)
    assert list(found) == ["model, task 0", "model, task 1", "model, task 2"]
    assert found["model, task 1"] == ([1, 2], [1.1, 2.1])


def test_intervals_of_a_trace_are_drawn():
    pytest.importorskip("plotly")
    entries = [Entry(s, "m", "", (Reading("a", 0.5, Interval(0.4, 0.7) if s else None),)) for s in range(3)]
    (line,) = Trace(tuple(entries)).plot("plotly").data
    assert list(line.error_y.array)[1:] == pytest.approx([0.2, 0.2]) and math.isnan(line.error_y.array[0])
    pytest.importorskip("matplotlib")
    assert len(Trace(tuple(entries)).plot().axes[0].collections) == 1


def test_what_cannot_be_plotted_is_refused_with_what_to_do():
    with pytest.raises(InputError, match="'ggplot'; wanted is 'matplotlib' or 'plotly'"):
        PLAIN.plot("ggplot")
    with pytest.raises(InputError, match=r"no reading 'acuracy'\. Did you mean 'accuracy'"):
        history().plot(names=["acuracy"])
    with pytest.raises(InputError, match="no subject 'C'"):
        history().plot(subjects=["C"])
    with pytest.raises(InputError, match="nothing to plot"):
        Trace().plot()
    many = Trace(tuple(Entry(i, str(i), "", (Reading("a", 0.0),)) for i in range(SUBJECTS + 1)))
    with pytest.raises(InputError, match="13 lines, too many for a panel; choose at most 12 by subjects="):
        many.plot()
    names = tuple(Reading(str(i), 0.0) for i in range(13))
    with pytest.raises(InputError, match="choose at most 12 by names="):
        Trace((Entry(0, "a", "", names),)).plot()


@pytest.mark.parametrize(
    ("absent", "call"),
    [
        ("matplotlib.figure", lambda: PLAIN.plot()),
        ("plotly.graph_objects", lambda: history().plot("plotly")),
        ("pandas", lambda: PLAIN.to_pandas()),
        ("pandas", lambda: history().to_pandas()),
    ],
)
def test_a_missing_package_is_one_error_that_names_the_extra(monkeypatch, absent, call):
    from homeostat.core import plotting

    plotting._figure_class.cache_clear()
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(MissingExtra, match=rf"{absent.split('.')[0]}.*pip install 'homeostat\[report\]'"):
        call()


def test_nothing_is_imported_before_it_is_asked_for_and_pyplot_never():
    pytest.importorskip("matplotlib")
    code = (
        "import sys; from homeostat.core.reading import Reading; from homeostat.core.trace import Trace\n"
        "assert not {'matplotlib', 'plotly', 'pandas'} & set(sys.modules)\n"
        "png = Reading('a', 0.5).plot()._repr_png_(); assert png.startswith(b'\\x89PNG') and len(png) > 1000\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {"PYTHONPATH": str(SOURCE), "PATH": "", "HOME": "/tmp", "MPLCONFIGDIR": "/tmp"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr


# -- frames


def test_a_reading_as_a_frame_has_its_value_its_interval_or_its_arrays():
    pytest.importorskip("pandas", reason="pandas is not installed: pip install 'homeostat[report]'")
    frame = PLAIN.to_pandas()
    assert frame.loc[0, ["name", "value", "low", "high", "unit"]].tolist() == ["accuracy", 0.8, 0.7, 0.9, "fraction"]
    arrays = Reading("a", 1.0, arrays={**COUNTS, "few": torch.tensor([1.5]), "matrix": torch.eye(2)}).to_pandas(
        arrays=True
    )
    assert list(arrays.columns) == ["count", "correct", "few"] and arrays["correct"].tolist() == [2, 0, 5]
    assert arrays["few"].isna().tolist() == [False, True, True]


def test_a_trace_as_a_frame_has_a_row_a_reading():
    pytest.importorskip("pandas", reason="pandas is not installed: pip install 'homeostat[report]'")
    frame = history().to_pandas()
    assert list(frame.columns)[:5] == ["step", "subject", "where", "name", "value"] and len(frame) == 12
    assert frame[frame.name == "accuracy"].groupby("subject").value.mean().to_dict() == pytest.approx(
        {"A": 0.25, "B": 0.25}
    )
    assert list(Trace().to_pandas().columns) == list(frame.columns) and len(Trace().to_pandas()) == 0


def test_what_read_gives_is_a_list_that_is_also_a_table():
    made = hs.read([Accuracy(), ECE()], nn.Identity(), (torch.eye(4), torch.arange(4)))
    assert isinstance(made, list) and isinstance(made, Readings) and [r.name for r in made] == ["accuracy", "ece"]
    assert "ece" in made._repr_html_()
    pytest.importorskip("pandas", reason="pandas is not installed: pip install 'homeostat[report]'")
    assert made.to_pandas().name.tolist() == ["accuracy", "ece"]


# -- notebooks


class Cells(html.parser.HTMLParser):
    """The rows of a table; raises when its elements do not nest."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


HOSTILE = "<script>alert(1)</script>\"'&lt;"


def test_tables_in_notebooks_say_what_there_is_and_escape_it():
    found = Finding("covariate", True, text=HOSTILE)
    table = Cells(Readings([PLAIN, Reading(HOSTILE, math.nan, unit=HOSTILE, finding=found)])._repr_html_())
    assert table.tags == {"table", "thead", "tbody", "tr", "th", "td"}
    assert table.rows[1] == ["accuracy", "0.8", "0.7 to 0.9 (95%)", "fraction", "higher is better", ""]
    assert table.rows[2][:2] == [HOSTILE, "–"] and table.rows[2][-1] == HOSTILE
    trace = Cells(Trace((Entry(3, HOSTILE, HOSTILE, (PLAIN,), HOSTILE),))._repr_html_())
    assert trace.rows[1] == ["3", HOSTILE, HOSTILE, "accuracy", "0.8", "fraction", HOSTILE]
    assert Cells(PLAIN._repr_html_()).rows[1][0] == "accuracy"


def test_the_table_of_a_long_trace_is_short():
    long = Trace(tuple(Entry(i, "a", "", (PLAIN,), "n" * 5000) for i in range(5000)))
    text = long._repr_html_()
    rows = Cells(text).rows
    assert len(rows) == ROWS + 2 and rows[1][0] == "0" and rows[-1][0] == "4999"
    assert "5,000 entries, 5,000 readings; 4,980 left out" in text and len(text) < 30_000


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0"), (1e-7, "1e-07"), (123456.7, "123,457"), (-0.25, "-0.25"), (1e12, "1e+12"), (math.inf, "∞")],
)
def test_numbers_are_short(value, said):
    assert number(value) == said
