"""The loop's report in Chromium: nothing is cut off on a hand-held screen, and the console is silent."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from homeostat.core.reading import Reading
from homeostat.core.trace import Entry, Trace
from homeostat.loop.plan import Plan
from homeostat.loop.reporting.page import report
from homeostat.loop.store import Row

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
        *(Row(i, "window", {"served": LONG if i > 15 else "source", "ms": 5.0, "entropy": 0.3}) for i in range(30)),
    ]
    readings = (Reading("seconds", 0.1), Reading("accuracy", 0.8), Reading("frozen", 0.7))
    trace = Trace(tuple(Entry(i, "source", str(i // 10), readings) for i in range(30)))
    pictures = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    names = ["clean", "p" * 100, "clean again"]
    return report(
        rows, trace, folder / "report.html", title="t" * 200, phases=names, examples=[("e" * 100, pictures)],
        about={"k" * 80: "v" * 300},
    )  # fmt: skip


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = (
    "<script>addEventListener('load', () => { const page = document.scrollingElement;"
    "parent.postMessage(innerWidth + ' ' + page.scrollWidth, '*') })</script>"
)
FRAME = (
    "<!DOCTYPE html><p id='said'></p><iframe src='{}' style='width:390px;height:4000px;border:0'></iframe>"
    "<script>addEventListener('message', e => document.getElementById('said').textContent = e.data)</script>"
)


def seen_in_a_browser(folder: Path, text: str) -> tuple[int, int, list[str]]:
    """Width of the view, width of the page, and what the console said, at 390 pixels.

    The page lies in a frame because a browser's own window has a least width; a probe is added to a copy, whose policy
    is first made to allow it.
    """
    allowed = text.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    (folder / "copy.html").write_text(allowed.replace("</head>", PROBE + "</head>"), encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.format("copy.html"), encoding="utf-8")
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--enable-logging=stderr",
        "--hide-scrollbars", "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--virtual-time-budget=3000", f"--user-data-dir={folder / 'profile'}",
        "--dump-dom", (folder / "frame.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run([str(CHROMIUM), *flags], capture_output=True, text=True, timeout=60)
    said = re.search(r'id="said">(\d+) (\d+)<', done.stdout)
    assert said, done.stdout[:500] + done.stderr[-500:]
    return int(said[1]), int(said[2]), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to look at the page with")
def test_at_390_pixels_nothing_is_cut_off_and_the_console_is_silent(tmp_path):
    full = everything(tmp_path).read_text(encoding="utf-8")
    assert seen_in_a_browser(tmp_path, full) == (390, 390, [])
    spoilt = full.replace("<main", "<script>console.error('seen')</script><div style='width:900px'>wide</div><main")
    view, page, console = seen_in_a_browser(tmp_path, spoilt)
    assert view == 390
    assert page >= 900
    assert any("seen" in line for line in console)
