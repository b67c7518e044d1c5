"""The report of a grid: its sentences, its escaping, what it holds and what it leaves out, its size and its files."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from homeostat.bench.page import write_page
from homeostat.bench.reporting.downloads import readings_csv, tables_csv
from homeostat.bench.reporting.headline import lead
from homeostat.bench.summary import summarize
from homeostat.core.errors import StoreError
from tests.bench.made import grid, tuning

EVIL = """</script><script>alert(1)</script><img src=x onerror=alert(1)>"'&{{ 1 }}"""


class Reader(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said, self._inside = "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.said += data


def page(tmp_path, cells, title="", about=None, protocols=None, **options) -> str:
    made = write_page(
        tmp_path / "out" / "page.html", cells, summarize(cells, **options), title=title, about=about or {},
        protocols=protocols or {},
    )  # fmt: skip
    return made.read_text(encoding="utf-8")


def test_the_first_sentences_say_who_is_better_who_does_harm_and_what_cannot_be_told():
    cells = grid(streams=("a", "b", "c"))
    found = summarize(cells)
    rows = {row.entrant: row for row in found.tables[0].rows}
    said = lead(found)
    assert said[0].startswith(f"Over 3 streams and 5 seeds, EATA was best: right on {100 * rows['EATA'].mean:.1f}%")
    assert f"+{100 * rows['EATA'].difference:.1f} points (95% interval +" in said[0]
    assert "Better than Source by more than seeds differ: EATA (+" in said[1]
    assert "not to be told from Source: LAME (" in said[1]
    assert "Tent loses" in said[2] and "in “clean, " in said[2] and "can be ruled out for none" in said[2]
    assert said[3] == "Ranked over 3 streams, EATA cannot be told from Tent, BatchNorm and LAME."
    assert found.tables[0].ranking.alike[0] == ("EATA", "Tent", "BatchNorm", "LAME")
    two = " ".join(lead(summarize(grid())))
    assert "Ranked over 2 streams, no two of the 5 can be told apart" in two


def test_who_does_no_harm_is_named_and_who_is_worse_too():
    safe = grid({"Source": (0.0,), "Good": (0.1,), "Bad": (-0.1,)}, noise=0.001, streams=tuple("abcdefghijklmnop"))
    said = " ".join(lead(summarize(safe)))
    assert "worse: Bad (−10.0)" in said and "can be ruled out, at 95%, for Good." in said
    assert "Good stands above all others" in said
    nothing = " ".join(lead(summarize(grid({"Source": (0.0,), "Bad": (-0.1,), "C": (-0.1,)}))))
    assert "nothing was better than Source, the network left as it is" in nothing
    few = " ".join(lead(summarize(grid(seeds=3))))
    assert "Five seeds or more are wanted" in few
    one = " ".join(lead(summarize(grid(seeds=1))))
    assert "With one seed nothing says how far they are chance" in one
    alone = lead(summarize(grid({"Source": (0.0,)})))
    assert "nobody to compare it with" in alone[0]
    assert "at nll" in lead(summarize(grid(), probe="nll"))[0]
    assert "neither way is better" in lead(summarize(grid(), probe="entropy"))[0]


def test_everything_from_results_is_escaped_and_nothing_is_asked_for(tmp_path):
    names = {"Source": (0.0,), EVIL: (0.05,), "Ünïcode 网络 🦊": (0.1,)}
    cells = grid(names, settings=(EVIL, "ok"), protocols=(EVIL,), streams=(EVIL, "b"), phases=(EVIL, "q"))
    cells += grid({f"{EVIL}{i}": (0.0,) for i in range(3)}, settings=(EVIL, "ok"), protocols=(EVIL,), sweep=EVIL,
                  streams=(EVIL, "b"), phases=(EVIL, "q"))  # fmt: skip
    cells[0] = replace(
        cells[0], status="failed", readings={}, windows=(), error=f"{EVIL}\n{EVIL}", about={"versions": {EVIL: EVIL}}
    )
    text = page(tmp_path, cells, title=EVIL, about={EVIL: EVIL}, protocols={EVIL: EVIL})
    read = Reader(text)
    scripts = [attrs for tag, attrs in read.tags if tag == "script"]
    assert len(scripts) == 3 and "<script>alert" not in text and not any(tag == "img" for tag, _ in read.tags)
    assert not any(name.startswith("on") for _, attrs in read.tags for name in attrs)
    wanted = [v for _, attrs in read.tags for name, v in attrs.items() if name in ("src", "href", "srcset", "action")]
    assert all(v.startswith(("#", "data:")) for v in wanted)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp", text)
    assert EVIL in read.said and "Ünïcode 网络 🦊" in read.said and "{{ 1 }}" in read.said


def test_what_the_page_says_of_a_grid_with_sweeps_failures_and_protocols(tmp_path):
    cells = tuning(protocols=("online", "episodic"))
    cells[-1] = replace(cells[-1], status="failed", readings={}, error="RuntimeError: boom\n  deep inside")
    text = page(tmp_path, cells, tune=("tuning",), protocols={"online": "Each sample is answered once."}, title="T")
    read = Reader(text)
    promised = summarize(cells, tune=("tuning",)).sensitivity[0].optimism
    assert f"what was tuned elsewhere gives: Tent {100 * promised:.1f} points." in read.said
    for words in ("Each sample is answered once.", "Not described by the results", "RuntimeError: boom", "deep inside",
                  "Tent, tuned elsewhere", "upper bound", "What the hyper-parameters do", "Tent(1)", "taken by tuning",
                  "1 of 180 cells failed", "What is for tuning is in no table", "2.13.0"):  # fmt: skip
        assert words in read.said, words
    charts = [attrs["aria-label"] for tag, attrs in read.tags if tag == "svg" and attrs.get("role") == "img"]
    assert len(charts) == 3 * 2 * 2 + 4, "differences and ranks for a desk and a hand, and a chart for each stream"
    assert all(label and len(label) > 20 for label in charts)


@pytest.mark.parametrize(
    "cells",
    [grid(seeds=1), grid({"Source": (0.0,)}), grid({"Source": (0.0,), "B": (0.1,)}), grid(streams=("a",), seeds=2),
     [replace(r, status="failed", readings={}, windows=(), error="") for r in grid()], grid(windows=0),
     [replace(r, phases=(), windows=r.windows[:7]) for r in grid()]],
    ids=["one seed", "one entrant", "two", "one stream", "all failed", "no windows", "no phases"],
)  # fmt: skip
def test_small_and_broken_grids_have_a_page(tmp_path, cells):
    read = Reader(page(tmp_path, cells))
    assert "nan" not in read.said.lower().split() and "None" not in read.said
    assert read.said.count("How to read this") == 2
    for tag, attrs in read.tags:
        for name in ("x", "x1", "x2", "y", "y1", "cx", "points", "transform"):
            assert "nan" not in (attrs.get(name) or ""), (tag, attrs)


def test_five_thousand_cells_stay_under_five_megabytes_and_two_hundred_entrants_are_all_in_the_table(tmp_path):
    gains = {"Source": (0.0,), **{f"a method with a name of usual length {i}": (i / 1000,) for i in range(1, 200)}}
    cells = grid(gains, streams=tuple(f"stream {i}" for i in range(5)), windows=60, phases=tuple("abcde"))
    assert len(cells) == 5000
    text = page(tmp_path, cells)
    assert len(text.encode()) < 5e6
    read = Reader(text)
    assert sum(attrs.get("data-v") == "a method with a name of usual length 77" for _, attrs in read.tags) == 3
    assert read.said.count("159 more entrants left out here") == 1 and "160 more entrants left out here" in read.said


def test_files_hold_what_the_summary_and_the_cells_say(tmp_path):
    cells = grid({"Source": (0.0,), 'com,ma "quoted"\nline': (0.1,)})
    cells[2] = replace(cells[2], status="failed", readings={})
    found = summarize(cells)
    lines = list(csv.DictReader(io.StringIO(tables_csv(found))))
    assert len(lines) == 6 and {line["entrant"] for line in lines} == {r.entrant for r in cells}
    ours = next(line for line in lines if line["probe"] == "accuracy" and line["entrant"] != "Source")
    row = found.tables[0].rows[0]
    assert float(ours["difference"]) == pytest.approx(row.difference, rel=1e-5)
    assert (float(ours["low"]), float(ours["harm_bound"])) == pytest.approx(
        (row.interval.low, row.harm.bound), rel=1e-4
    )
    read = list(csv.DictReader(io.StringIO(readings_csv(cells))))
    assert len(read) == 19 * 3 + 1, "a line for each phase, and one for the cell that failed"
    assert {line["status"] for line in read} == {"ok", "failed"}
    one = next(line for line in read if line["entrant"] == "Source" and line["phase"] == "1")
    assert float(one["accuracy"]) == pytest.approx(cells[0].readings["accuracy"].values[1], rel=1e-5)
    text = page(tmp_path, cells)
    held = re.search(r'id="f-readings">([^<]+)<', text)
    assert held and gzip.decompress(base64.b64decode(held[1])).decode() == readings_csv(cells)
    short = list(csv.DictReader(io.StringIO(readings_csv(cells, whole=False))))
    assert len(short) == 20 and float(short[0]["accuracy"]) == pytest.approx(
        cells[0].readings["accuracy"].mean, rel=1e-5
    )


def test_the_same_results_make_the_same_file(tmp_path):
    assert page(tmp_path / "a", grid()) == page(tmp_path / "b", grid())


def test_phases_are_marked_where_the_cell_says_or_where_they_come_out_even(tmp_path):
    def marked(cells) -> int:
        return page(tmp_path, cells).count('class="phase0"')

    even = marked(grid(streams=("a",)))
    assert even == 2, "first and third"
    assert marked(grid(streams=("a",), windows=31)) == 0
    said = [replace(r, about={"phase_windows": [5, 25, 1]}) for r in grid(streams=("a",), windows=31)]
    assert marked(said) == 2
    assert marked([replace(r, about={"phase_windows": [5, 5, 5]}) for r in said]) == 0, "they do not add up"


def test_a_page_that_cannot_be_written_is_our_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        write_page(tmp_path / "file" / "page.html", grid(), summarize(grid()))
