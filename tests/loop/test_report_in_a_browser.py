"""The loop's report in Chromium, which is driven over its debugging pipe: widths, schemes, keys, print, silence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from homeostat.core.reading import Reading
from homeostat.core.trace import Entry, Trace
from homeostat.loop.plan import Plan
from homeostat.loop.reporting.page import report
from homeostat.loop.samples import Pair, Side
from homeostat.loop.store import Row
from tests.browser import CHROMIUM, CONTRAST, Browser, opened, widths

LONG = 'ARemedyWithAVeryLongName(learning_rate=0.00025, pattern="layer4.1.bn2.weight", blend=0.1)'


def everything(folder: Path) -> Path:
    """A report with every part, and names that would not fit in a line."""
    verdicts = [
        {"name": name, "word": "better", "why": "w" * 200, "gain": 0.1, "low": 0.1, "labels": 0} for name in ("A", LONG)
    ]
    rows = [
        Row(0, "start", {"served": "source", "accuracy_before": 0.86, "plan": Plan().to_config()}, "0" * 64, 1e9),
        Row(
            12,
            "alarm",
            {
                "kind": "uncertain",
                "text": "entropy 0.500, was 0.200",
                "effect": 0.3,
                "since": [3, 2, 5],
                "shift": "novel-class",
                "shift_text": "w" * 200,
                "kinds": {"novel-class": 0.9, "label": 0.1},
                "evidence": {
                    "confidence": {"capital": 1e200, "threshold": 1000},
                    "all": {"capital": 1e200, "threshold": 500},
                },
            },
        ),
        Row(12, "propose", {"tried": ["A", LONG], "left": {LONG: "w" * 200}}),
        Row(15, "decision", {"verdicts": verdicts}),
        Row(15, "commit", {"from": "source", "to": LONG, "why": "w" * 200}, "0" * 64),
        *(Row(i, "alarm", {"kind": "classes", "text": "classes moved", "since": [1, 1, 1]}) for i in (20, 25)),
        *(Row(i, "window", {"served": LONG if i > 15 else "source", "ms": 5.0, "entropy": 0.3}) for i in range(30)),
    ]
    readings = (Reading("seconds", 0.1), Reading("accuracy", 0.8), Reading("frozen", 0.7))
    trace = Trace(tuple(Entry(i, "source", str(i // 10), readings) for i in range(30)))
    pictures = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    names = ["clean", "p" * 100, "clean again"]
    numbers, tokens = torch.arange(40.0).view(4, 10).exp(), torch.full((4, 9), 119)
    kept = {"x": pictures[:4]}, {"x": numbers}, {"x.input_ids": tokens, "x.attention_mask": tokens}
    samples = {
        step: Pair(step, Side("n" * 100, leaves), Side("after", leaves))
        for step, leaves in zip((12, 20, 25), kept, strict=True)
    }
    return report(
        rows, trace, folder / "report.html", title="t" * 200, phases=names, examples=[("e" * 100, pictures)],
        about={"k" * 80: "v" * 300}, samples=samples, words=lambda ids: "".join(map(chr, ids)) * 20,
    )  # fmt: skip


pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to look at the page with")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from opened()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    return everything(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    """300 alarms in 10,000 windows, each with inputs from before and after it, and as many phases as fill pages."""
    rows = [Row(i, "window", {"served": "source", "ms": 5.0, "entropy": 0.3}) for i in range(10_000)]
    steps = list(range(30, 9_930, 33))
    alarm = {"kind": "features", "text": "features moved", "since": [2, 1, 3], "shift": "label", "shift_text": "so"}
    for step in steps:
        rows += [Row(step, "alarm", alarm), Row(step, "propose", {"tried": ["A"], "passes": {"A": 1.0}, "left": {}}),
                 Row(step + 3, "keep", {"served": "source", "why": "no"})]  # fmt: skip
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pairs = {step: Pair(step, Side("before it", {"x": x}), Side("after it", {"x": x.flip(3)})) for step in steps}
    readings = (Reading("seconds", 0.1), Reading("accuracy", 0.8), Reading("frozen", 0.7))
    trace = Trace(tuple(Entry(i, "source", str(i // 100), readings) for i in range(10_000)))
    path = tmp_path_factory.mktemp("long") / "report.html"
    return report(rows, trace, path, samples=pairs)


@pytest.mark.parametrize("width", [390, 820, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_nothing_is_asked_for_and_the_console_is_silent(browser, page, width, scheme):
    browser.open(page, width, scheme)
    assert widths(browser) == (width, width)
    assert [url for url in browser.asked if not url.startswith("data:")] == [page.as_uri()]
    assert browser.said == []
    assert browser.js("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


def test_the_browser_notices_what_is_too_wide_asks_or_speaks(browser, page, tmp_path):
    allowed = page.read_text(encoding="utf-8").replace("default-src 'none';", "script-src 'unsafe-inline';")
    spoilt = "<script>console.error('seen')</script><img src='more.png'><div style='width:900px;color:#999'>wide</div>"
    (tmp_path / "spoilt.html").write_text(allowed.replace("img-src data:", "").replace("<footer", spoilt + "<footer"))
    browser.open(tmp_path / "spoilt.html", 390)
    view, wide = widths(browser)
    assert wide >= 900 > view or view >= 900, "a phone zooms out to what is too wide"
    assert any(url.endswith("more.png") for url in browser.asked)
    assert any("seen" in said for said in browser.said)
    assert any(found.startswith("wide ") for found in browser.js(CONTRAST))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_stands_out_from_what_is_behind_it(browser, page, long, scheme):
    for path in (page, long):
        browser.open(path, scheme=scheme)
        assert browser.js(CONTRAST) == []


def test_long_tables_are_paged_with_the_keyboard_alone(browser, long):
    browser.open(long)
    assert long.stat().st_size < 5e6

    def shown(section: str, what: str) -> list[str]:
        texts = f"[...document.querySelectorAll('#{section} .page {what}')].filter(e => e.getClientRects().length)"
        return browser.js(f"{texts}.map(e => e.textContent)")

    first = shown("evidence", "tr th")
    assert first == [f"{step:,}" for step in range(30, 30 + 20 * 33, 33)]
    groups = []
    for _ in range(40):  # tab through the page
        browser.press("Tab", 9)
        if name := browser.js("document.activeElement.name || ''"):
            groups.append(name)
            assert browser.js("getComputedStyle(document.activeElement.parentElement).outlineStyle") == "solid"
        if name == "p-alarms":
            break
    assert groups == ["p-phases", "p-events", "p-alarms"], "a stop a pager: arrows move within"
    browser.press("ArrowRight", 39)
    assert shown("evidence", "tr th") == [f"{step:,}" for step in range(30 + 20 * 33, 30 + 40 * 33, 33)]
    assert "Page 2 of 15: windows 690 to 1,317" in browser.js("document.activeElement.ariaLabel")
    browser.press("ArrowLeft", 37)
    assert shown("evidence", "tr th") == first
    browser.press("ArrowLeft", 37)
    assert shown("evidence", "tr th")[-1] == f"{steps_of(long)[-1]:,}", "from the first page to the last"
    assert len(shown("events", "h3")) == 5 and len(shown("phases", "tr th")) == 20


def steps_of(long: Path) -> list[int]:
    return list(range(30, 9_930, 33))


def test_print_shows_every_page_and_no_control(browser, long):
    browser.open(long)
    count = "[...document.querySelectorAll('{}')].filter(e => e.getClientRects().length).length"
    assert browser.js(count.format("#events h3")) == 5
    browser.media("print")
    assert browser.js(count.format("#events h3")) == 300
    assert browser.js(count.format(".pager, nav, .skip")) == 0
    assert browser.js("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_who_hears_the_page_is_told_of_every_part(browser, page):
    browser.open(page)
    browser.call("Accessibility.enable")
    nodes = [n for n in browser.call("Accessibility.getFullAXTree")["nodes"] if not n.get("ignored")]
    roles: dict[str, list[str]] = {}
    for node in nodes:
        roles.setdefault(node["role"]["value"], []).append(str(node.get("name", {}).get("value", "")))
    for role in ("banner", "main", "contentinfo", "navigation"):
        assert len(roles[role]) == 1, role
    assert len(roles["region"]) >= 8 and all(roles["region"])
    assert len(roles["image"]) >= 7 and all(len(name) > 20 for name in roles["image"])
    assert len(roles["table"]) >= 5 and all(roles["table"]), "a caption names each table"
    assert roles["heading"][0] == "t" * 199 + "…" or roles["heading"][0] == "t" * 200
    browser.press("Tab", 9)
    assert browser.js("document.activeElement.className") == "skip"
    assert browser.js("document.activeElement.getBoundingClientRect().top") >= 0, "it is seen when it has the focus"
    browser.press("Enter", 13)
    assert browser.js("document.activeElement.id") == "main"
