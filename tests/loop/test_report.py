"""The loop's report: complete in itself, well formed, safe, small, readable on any screen, and true to its numbers."""

from __future__ import annotations

import base64
import html.parser
import io
import math
import re
import time
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from homeostat.core.errors import DtypeError, InputError, StoreError
from homeostat.core.reading import Reading
from homeostat.core.trace import Entry, Trace
from homeostat.loop.plan import Plan
from homeostat.loop.reporting import story, summary
from homeostat.loop.reporting.page import report
from homeostat.loop.store import Row

HASH = "0123456789abcdef" * 4
VOID = {"meta", "link", "img", "br", "hr", "input", "line", "rect", "path", "circle", "polyline"}


class Page(html.parser.HTMLParser):
    """What the tests ask of a page; raises when its elements do not nest."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.figures: list[dict[str, int]] = []
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag == "figure":
            self.figures.append({"named": 0, "caption": 0})
        if "figure" in self.open and dict(attrs).get("role") == "img" and dict(attrs).get("aria-label"):
            self.figures[-1]["named"] += 1
        if tag == "figcaption":
            self.figures[-1]["caption"] += 1
        if tag not in {"meta", "link", "img", "input"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID, tag
        self.elements.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def verdict(name, word, why="estimated +38.3%", gain=0.38, low=0.29):
    return {"name": name, "word": word, "why": why, "gain": gain, "low": low, "labels": 0}


VERDICTS = [verdict("Blend", "better"), verdict("Tent", "not shown"), verdict("Wild", "refused")]

ALARM = {
    "kind": "uncertain", "text": "entropy 0.500, was 0.200", "effect": 0.3, "since": [3, 2, 5], "again": False,
    "shift": "covariate", "shift_text": "the inputs changed", "kinds": {"covariate": 0.97, "label": 0.03},
    "evidence": {"entropy": {"capital": 3000.0, "threshold": 1000}, "error": {"capital": 0.0, "threshold": 1000},
                 "all": {"capital": 1500.0, "threshold": 500}},
}  # fmt: skip
EVENTS = [
    Row(0, "start", {"served": "source", "accuracy_before": 0.86, "plan": Plan().to_config()}, HASH, 1e9),
    Row(12, "alarm", ALARM),
    Row(12, "propose", {"tried": ["Blend", "Tent", "Wild"], "left": {"Refit": "it needs labels"}}),
    Row(15, "decision", {"verdicts": VERDICTS}),
    Row(15, "commit", {"from": "source", "to": "Blend", "why": "estimated +38.3%"}, HASH),
    Row(25, "rollback", {"from": "Blend", "to": "source", "why": "the frozen network is better"}, HASH[::-1]),
    Row(26, "alarm", ALARM | {"text": "still there", "again": True, "shift": "none", "shift_text": "no shift"}),
    Row(26, "propose", {"tried": [], "left": {"Refit": "it needs labels"}}),
    Row(26, "keep", {"served": "source", "why": "no candidate fits"}),
]  # fmt: skip


def journal(windows=30, labels=0, events=EVENTS):
    said = [
        {"served": "Blend" if 15 < i <= 25 else "source", "ms": 5.0 + i % 3, "entropy": 0.5 if i >= 10 else 0.2}
        | ({"labels": labels, "right": labels // 2, "frozen_right": labels // 4} if labels else {})
        for i in range(windows)
    ]
    return [*events, *(Row(i, "window", content) for i, content in enumerate(said))]


def judged(windows=30, accuracy=None, frozen=None, phases=3):
    made = []
    for i in range(windows):
        ours = 0.9 - 0.3 * (i >= 10) if accuracy is None else accuracy[i]
        theirs = ours - 0.2 * (15 < i <= 25) if frozen is None else frozen[i]
        readings = (Reading("seconds", 0.02), Reading("accuracy", ours), Reading("frozen", theirs))
        made.append(Entry(i, "source", str(i * phases // windows), readings))
    return Trace(tuple(made))


NAMES = ("clean", "fog", "clean again")


@pytest.fixture
def write(tmp_path):
    def write(rows, trace, **more):
        return report(rows, trace, tmp_path / "out" / "report.html", **more).read_text(encoding="utf-8")

    return write


def inputs(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def full(write):
    examples = [("clean", inputs(3, 1, 8, 8)), ("fog", inputs(20, 3, 8, 8))]
    return write(journal(), judged(), title="A run", phases=NAMES, examples=examples, about={"Data": "little pictures"})


def test_elements_nest_and_what_links_point_at_is_there(full):
    page = Page(full)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a")} <= set(ids)
    named = {a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a}
    assert named <= set(ids)
    assert page.all("html") == [{"lang": "en"}]
    assert [a["class"] for a in page.all("a")[:1]] == ["skip"]


def test_nothing_is_loaded_and_nothing_runs(full):
    page = Page(full)
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                assert value.startswith(("data:", "#")), (tag, name, value)
    style = full[full.index("<style>") : full.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert page.all("script") == []
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_every_figure_is_named_and_captioned_and_every_column_has_a_header(full):
    page = Page(full)
    assert len(page.figures) == 6
    assert all(figure["named"] >= 1 and figure["caption"] == 1 for figure in page.figures)
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in page.all("svg"))
    assert all("alt" in image for image in page.all("img"))
    assert all(th["scope"] in ("col", "row") for th in page.all("th"))
    assert all(td["data-name"] for td in page.all("td"))


def test_the_headline_says_what_the_numbers_say(full):
    text = Page(full).text
    # 10 windows at 0.9 and 20 at 0.6; the network as deployed is 0.2 lower in 10 of them.
    assert "right on 70.0% of the inputs" in text
    assert "would have been right on 63.3%" in text
    assert "(+6.7 points)" in text
    # In windows 10 to 19, four come after the commit at 15.
    assert "The hardest phase was “fog”: 60.0% right, against 52.0%" in text
    assert "In all: 1 alarm, 1 commit" in text
    assert "1 rollback" in text
    assert "1 trial ended without a change, 1 trial was a repetition, and 1 candidate was refused" in text
    assert "In no phase did the loop do worse" in text


def test_a_phase_in_which_the_loop_did_harm_is_named(write):
    text = Page(write(journal(), judged(accuracy=[0.5] * 30, frozen=[0.5] * 20 + [0.6] * 10), phases=NAMES)).text
    assert "worse than the network as deployed in 1 phase: clean again (−10.0 points)" in text
    assert "there by more than chance (the 95% interval of the difference is all below 0)." in text
    assert "In no phase" not in text
    assert "less often (−3.3 points)" in text


def test_events_are_told_in_sentences(full):
    text = Page(full).text
    assert "At window 12 the monitor raised an alarm: entropy 0.500, was 0.200." in text
    assert "It had been so for about 3 windows, since window 10 (95% interval: 2 to 5)." in text
    assert "Its evidence was 1,500, where 500 is enough: 100% from entropy." in text
    assert "Diagnosis: the inputs changed. Likeliest kinds of shift: covariate 97%, label 3%." in text
    assert "3 candidates ran in shadow" in text and "1 more was left out." in text and "It needs labels." in text
    assert "From window 16 on, Blend answers in place of the network as deployed" in text
    assert "over the 10 windows it answered, it was right on 60.0% of the inputs" in text
    assert "the network as deployed on 40.0% (+20.0 points)" in text
    assert f"Checkpoint {HASH[:12]}" in text
    assert "Nothing was changed: the network as deployed went on answering. No candidate fits." in text
    outcomes = [tried.outcome.split(":")[0] for tried in _episodes()[0].tried]
    assert outcomes == ["taken", "not taken", "refused", "left out"]


def test_each_alarm_is_in_a_table_with_its_diagnosis_and_evidence(full):
    row = re.search(r'<tr role="row"><th role="rowheader" scope="row">12</th>(.*?)</tr>', full)
    assert row is not None
    cells = [re.sub("<[^>]+>", "", cell) for cell in row[1].split("</td>")[:-1]]
    assert cells == ["less certain", "3 (2 to 5)", "covariate 97%, label 3%", "1,500 (enough: 500): entropy 100%"]
    assert ">Evidence</th>" in full
    assert full.count(">retry</text>") == 4 and "retry at window 26: none" in full, "in both charts, at both widths"
    assert full.count('class="mark-name"') >= 2 and "alarm at window 12: covariate" in full


def test_an_alarm_that_says_less_is_told_with_what_there_is(write):
    bare = [Row(12, "alarm", {"kind": "uncertain", "text": "entropy rose"}), Row(12, "propose", {"left": ["Refit"]})]
    none = Row(
        14,
        "alarm",
        ALARM | {"evidence": {"entropy": {"capital": 0.0, "threshold": 9}, "all": {"capital": 0.0, "threshold": 9}}},
    )
    text = Page(write(journal(events=[*bare, none]), judged())).text
    assert "At window 12 the monitor raised an alarm: entropy rose." in text
    assert "There was no candidate." in text and "Its evidence was" not in text
    assert "evidence by signal" not in text, "a column that nothing is in"


def test_labels_that_were_lost_and_answers_that_failed_are_counted(write):
    rows = [*journal(28, labels=8), Row(28, "window", {"served": "Blend", "failed": "it failed", "lost": 3})]
    text = Page(write(rows, Trace())).text
    assert "In 1 window what was served could not answer, and the network as deployed answered instead." in text
    assert "3 labels came too late" in text
    assert "could not answer" not in Page(write(journal(), judged())).text


def test_the_plans_settings_are_all_there_with_their_meanings(full):
    text = Page(full).text
    assert "monitor: run_length 500 Average number of windows between false alarms" in text
    assert "diagnose ShiftKind What names the kind of shift." in text and "diagnose: simulations 60" in text
    assert "proposer: explore 0.5 Standard deviations of optimism; 0 is greedy." in text
    assert "monitor: signals entropy, confidence, features, classes, error" in text


def _episodes():
    stream = summary.Stream.of(journal(), judged())
    return [story.tell(group, stream, None) for group in story.grouped(journal())]


def test_a_journal_that_ends_within_a_trial_is_told_as_open(write):
    text = write([*journal(events=EVENTS[:3]), Row(29, "snapshot", {})], judged())
    assert "The journal ends before a decision." in text


def test_without_labels_no_accuracy_is_claimed(write):
    page = Page(write(journal(), Trace()))
    assert "accuracy is not known" in page.text
    assert "As served" not in [td["data-name"] for td in page.all("td")]
    assert not re.search(r"\bnan\b|%", page.text.split("How to read")[0].split("Phase by phase")[0], re.IGNORECASE)


def test_labels_that_came_judge_where_none_else_do(write):
    text = Page(write(journal(labels=8), Trace())).text
    assert "right on 50.0% of the inputs (judged on the labels that came" in text
    assert "would have been right on 25.0%" in text


@pytest.mark.parametrize("judge", [True, False])
def test_one_window_is_enough(write, judge):
    trace = judged(1, phases=1) if judge else Trace()
    page = Page(write(journal(1, events=[]), trace))
    assert "Over 1 window," in page.text if judge else "served 1 window." in page.text
    assert "No alarm was raised" in page.text
    assert not re.search(r"\bnan\b|\binf\b", page.text, re.IGNORECASE)


def test_a_trace_alone_is_enough(write):
    assert "right on 70.0%" in Page(write([], judged())).text


HOSTILE = "<script>alert(1)</script>\"'><img src=https://example.org/x onerror=alert(2)>{{ 7 * 7 }}]]>"


def test_hostile_strings_are_shown_and_do_nothing(write):
    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoil(v) for key, v in value.items()}
        return [spoil(v) for v in value] if isinstance(value, list) else HOSTILE if isinstance(value, str) else value

    rows = [Row(r.step, r.kind, spoil(r.content) | {"plan": {"Plan": {HOSTILE: HOSTILE}}}, HOSTILE) for r in journal()]
    trace = Trace(tuple(Entry(e.step, HOSTILE, HOSTILE + e.where, e.readings) for e in judged()))
    text = write(
        rows, trace, title=HOSTILE, phases=[HOSTILE], about={HOSTILE: HOSTILE}, examples=[(HOSTILE, inputs(1, 1, 4, 4))]
    )
    page = Page(text)
    assert page.all("script") == []
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert "alert(1)" in page.text
    assert "49" not in page.text.split("How to read")[1].split("Settings")[0]
    assert "{{ 7 * 7 }}" in page.text


def test_a_hundred_thousand_windows_are_quick_and_small(tmp_path):
    count, generator = 100_000, np.random.default_rng(0)
    kinds = ["alarm", "propose", "decision", "commit", "alarm", "propose", "decision", "rollback"]
    contents = [
        {**ALARM, "kinds": {"x" * 3000: 1.0}}, EVENTS[2].content,
        {"verdicts": [verdict("x" * 3000, "not shown", "y" * 3000)] * 3},
        {"from": "source", "to": "Blend", "why": "z" * 3000},
    ]  # fmt: skip
    events = [Row(i, kinds[i % 8], contents[i % 4], HASH) for i in range(0, count, 9)]
    rows = [*events, *(Row(i, "window", {"served": f"m{i // 40}", "ms": 1.0, "entropy": 0.3}) for i in range(count))]
    known = [entry.readings for entry in judged(200, generator.random(200), generator.random(200))]
    trace = Trace(tuple(Entry(i, "source", str(i // 100), known[i % 200]) for i in range(count)))
    pictures = [(f"group {i}", inputs(20, 3, 120, 80)) for i in range(15)]
    began = time.process_time()
    path = report(rows, trace, tmp_path / "long.html", examples=pictures)
    seconds = time.process_time() - began
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 5e6
    assert seconds < 3.0
    page = Page(text)
    assert "600 more phases left out here" in page.text
    assert "events left out here" in page.text
    assert "alarms left out here" in page.text
    assert "3 more groups of examples left out" in page.text
    assert "each point of a line stands for about" in page.text


def test_examples_are_the_inputs_pixel_by_pixel(write):
    x = inputs(2, 3, 5, 7)
    page = Page(write(journal(), judged(), examples=[("colour", x), ("grey", x[:, :1])]))
    found = [base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) for image in page.all("img")]
    wanted = [*(x * 255).round().byte().permute(0, 2, 3, 1).numpy(), *(x[:, 0] * 255).round().byte().numpy()]
    for png, pixels in zip(found, wanted, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), pixels)


@pytest.mark.parametrize(
    ("examples", "error", "says"),
    [
        (torch.rand(2, 8, 8), InputError, r"shape \(2, 8, 8\)"),
        (torch.rand(2, 4, 8, 8), InputError, "1 or 3"),
        (torch.rand(0, 1, 8, 8), InputError, "shape"),
        (torch.full((2, 1, 8, 8), 1.5), InputError, "0..1"),
        (torch.full((2, 1, 8, 8), math.nan), InputError, "0..1"),
        ([1.0], DtypeError, "tensor"),
    ],
)
def test_examples_that_are_no_pictures_are_refused(write, examples, error, says):
    with pytest.raises(error, match=says):
        write(journal(), judged(), examples=[("some", examples)])


def test_a_report_on_nothing_or_into_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds a window"):
        report([], Trace(), tmp_path / "a.html")
    with pytest.raises(StoreError, match="cannot be written"):
        report(journal(), Trace(), tmp_path)


def test_the_same_journal_gives_the_same_file(write):
    assert write(journal(), judged()) == write(journal(), judged())
