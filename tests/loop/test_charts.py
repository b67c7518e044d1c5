"""Charts: thinning, ticks, and labels and marks that do not lie on each other."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from homeostat.loop.reporting.charts import Chart, Lane, Line, Span, thin, ticks

TEXT = re.compile(r'<text class="([^"]+)" x="([^"]+)" y="([^"]+)" text-anchor="(\w+)">([^<]*)')


def test_thinning_keeps_the_mean_and_gaps():
    values = np.arange(12.0)
    assert thin(values, 4).tolist() == [1.5, 5.5, 9.5]
    assert np.isnan(thin(np.full(5, np.nan), 2)).all()
    assert thin(np.array([1.0, 1.0, 100.0]), 3, median=True).tolist() == [1.0]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.83, 0.91), (0, 99_999), (-3, 4), (1e-6, 3e-6), (5, 5)])
@pytest.mark.parametrize("most", [2, 3, 7])
def test_ticks_are_few_and_lie_within(low, high, most):
    found = ticks(low, high, most)
    assert 1 <= len(found) <= most or (low < 0 < high and most == 2)
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in found)


@pytest.mark.parametrize("width", [340, 1010])
def test_labels_in_a_chart_do_not_lie_on_each_other(width):
    phases = [Span(10 * i, 10 * i + 9, f"{i + 1} a long name of a phase", str(i + 1)) for i in range(40)]
    lanes = [
        Lane("alarm", "alarm", [Span(i, i, "alarm") for i in range(400)], "triangle"),
        Lane("retry", "rollback", [Span(i, i, "retry", "novel-class") for i in (0, 60, 70, 390)], "square"),
    ]
    lines = [Line(np.linspace(0, 1, 400), "served")]
    chart = Chart("all", "right", np.arange(400) + 99_000, lines, phases, lanes, percent=True)
    svg = str(chart.svg(width))
    rows: dict[str, list[tuple[float, float]]] = {}
    for style, x, y, anchor, words in TEXT.findall(svg):
        size = 6.2 * len(words)
        start = float(x) - {"start": 0, "middle": size / 2, "end": size}[anchor]
        assert start >= 0, (style, words)
        assert start + size <= width, (style, words)
        rows.setdefault(y, []).append((start, start + size))
    for places in rows.values():
        places.sort()
        assert all(end <= start + 1 for (_, end), (start, _) in pairwise(places)), places
    marks = [float(x) for x in re.findall(r'class="mark alarm"[^>]*translate\(([\d.]+)', svg)]
    assert min(np.diff(marks)) >= 8.9


def test_what_a_mark_stands_for_is_written_beside_it_where_there_is_room():
    spans = [
        Span(i, i, f"alarm at {i}", name) for i, name in ((0, "label"), (50, "covariate"), (53, "none"), (99, "label"))
    ]
    chart = Chart("all", "", np.arange(100), [], (), [Lane("alarm", "alarm", spans, "triangle")], height=0)
    written = [words for style, *_, words in TEXT.findall(str(chart.svg(1010))) if style == "mark-name"]
    assert written == ["label", "none"], "no room before the next mark, nor before the edge"
    near = [Span(i, i, "alarm", "label") for i in (10, 11)]
    merged = Chart("all", "", np.arange(1000), [], (), [Lane("alarm", "alarm", near, "triangle")], height=0)
    assert [words for style, *_, words in TEXT.findall(str(merged.svg(1010))) if style == "mark-name"] == ["label"]
