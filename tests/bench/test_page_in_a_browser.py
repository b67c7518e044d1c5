"""The grid's report in Chromium: widths, schemes, silence, sorting by click and key, choosing, downloads, print."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from homeostat.bench.page import write_page
from homeostat.bench.summary import summarize
from tests.bench.made import GAINS, grid
from tests.browser import CHROMIUM, CONTRAST, Browser, opened, widths

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to look at the page with")

LONG = 'AMethodWithAVeryLongName(learning_rate=0.00025, pattern="layer4.1.bn2.weight", blend=0.1)'
HEADS = "[...document.querySelectorAll('#table .part.of-0 thead th')]"
FIRST = "[...document.querySelectorAll('#table .part.of-0 tbody tr')].map(r => r.cells[0].dataset.v)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from opened()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """Two settings, sweeps, a failed cell, and names that would not fit in a line."""
    two = {"settings": ("a small network", "w" * 60), "streams": ("tuning", "morning", "p" * 70)}
    cells = grid({**GAINS, LONG: (-0.02, -0.1, -0.4)}, **two)
    cells += grid({f"Tent(lr={i})": (0.01 * i,) for i in range(3)}, sweep="Tent", **two)
    cells[4] = replace(
        cells[4], status="failed", readings={}, windows=(), error="RuntimeError: " + "x" * 300 + "\n  here"
    )
    summary = summarize(cells, tune=("tuning",))
    return write_page(
        tmp_path_factory.mktemp("grid") / "page.html", cells, summary, title="t" * 150, about={"k" * 80: "v" * 300}
    )


def shown(browser: Browser, what: str) -> int:
    return browser.js(f"[...document.querySelectorAll('{what}')].filter(e => e.getClientRects().length).length")


@pytest.mark.parametrize("width", [390, 820, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_nothing_is_asked_for_and_the_console_is_silent(browser, page, width, scheme):
    browser.open(page, width, scheme)
    assert widths(browser) == (width, width)
    assert [url for url in browser.asked if not url.startswith("data:")] == [page.as_uri()]
    assert browser.said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_stands_out_from_what_is_behind_it(browser, page, scheme):
    browser.open(page, scheme=scheme)
    assert browser.js(CONTRAST) == []


def test_tables_are_sorted_by_click_and_by_key_and_say_so(browser, page):
    browser.open(page)
    assert browser.js(HEADS + ".map(h => h.getAttribute('aria-sort'))")[:3] == ["none", "descending", "none"]
    rows = browser.js(FIRST)
    browser.js(HEADS + "[0].querySelector('button').click()")
    assert browser.js(FIRST) == sorted(rows, key=str.lower) and browser.js(HEADS + "[0].ariaSort") == "ascending"
    assert browser.js("document.getElementById('said').textContent").startswith("Sorted by Entrant, ascending")
    browser.js(HEADS + "[2].querySelector('button').focus()")
    browser.press("Enter", 13)
    numbers = "[...document.querySelectorAll('#table .part.of-0 tbody tr')].map(r => r.cells[2].dataset.v)"
    found = browser.js(numbers)
    assert found[-1] == "" and browser.js(FIRST)[-1] == "Source", "who has no difference stands last"
    assert [float(v) for v in found[:-1]] == sorted((float(v) for v in found[:-1]), reverse=True)
    browser.press("Enter", 13)
    found = browser.js(numbers)
    assert found[-1] == "" and [float(v) for v in found[:-1]] == sorted(float(v) for v in found[:-1])
    assert browser.js(HEADS + ".map(h => h.ariaSort).filter(s => s !== 'none')") == ["ascending"]
    other = "document.querySelector('#table .part.of-1 thead th:nth-child(2)').ariaSort"
    assert browser.js(other) == "descending", "another table is left alone"


def test_a_choice_shows_its_setting_in_all_sections_with_keys_alone(browser, page):
    browser.open(page)
    assert shown(browser, "#table .part") == 1 and shown(browser, "#curves figure") == 4
    browser.js("document.querySelector('[name=part]').focus()")
    browser.press("ArrowRight", 39)
    assert shown(browser, "#table .part.of-1") == shown(browser, "#table .part") == 1
    assert shown(browser, "#curves figure") == 2 and shown(browser, "#phases table") == 1
    assert shown(browser, "#cost .part.of-1") == shown(browser, "#probes .part") == 1


def test_downloads_are_files_that_parse(browser, page, tmp_path):
    browser.open(page)
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    for name, least in (("tables", 3 * 3 * 9), ("readings", 2 * 3 * 5 * 9 * 3 - 2)):
        browser.js(f"document.querySelector('[data-file=f-{name}]').click()")
        path, until = tmp_path / f"{name}.csv", time.monotonic() + 10
        while not path.exists() and time.monotonic() < until:
            time.sleep(0.05)
            browser.js("1")
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        assert len(lines) == least and any(line["entrant"] == LONG for line in lines)
        assert None not in lines[0] and None not in lines[0].values(), "each line has as many fields as the head"
    assert browser.said == [] and [url for url in browser.asked if url.startswith("http")] == []


def test_print_shows_every_part_and_opens_what_is_folded(browser, page):
    browser.open(page)
    browser.js("dispatchEvent(new Event('beforeprint'))")
    browser.media("print")
    assert shown(browser, "#table .part") == 3 and shown(browser, ".chooser, nav, .downloads") == 0
    browser.call("Emulation.setDeviceMetricsOverride", width=718, height=900, deviceScaleFactor=1, mobile=False)
    wide = "[...document.querySelectorAll('section:not(#phases) table')]"
    wide += ".filter(e => e.getBoundingClientRect().right > 718)"
    assert browser.js(wide + ".map(e => e.caption.textContent)") == [], "a sheet of paper holds it"
    assert browser.js("[...document.querySelectorAll('details')].every(d => d.open)")
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
    assert all(roles["region"]) and all(roles["table"]) and all(len(name) > 20 for name in roles["image"])
    assert len(roles["image"]) == 2 + 4 and len(roles["table"]) >= 5
    browser.press("Tab", 9)
    assert browser.js("document.activeElement.className") == "skip"
