"""Chromium for tests of pages, driven over its debugging pipe: what a page asks for and says, widths, contrasts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-sync", "--disable-component-update", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """A headless Chromium with one page, and what that page asked for and said."""

    def __init__(self, profile: str):
        theirs, self._to = os.pipe()
        self._from, there = os.pipe()
        actions = [
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0), (os.POSIX_SPAWN_DUP2, 1, 2),
            (os.POSIX_SPAWN_DUP2, theirs, 3), (os.POSIX_SPAWN_DUP2, there, 4),
        ]  # fmt: skip
        program = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}"]
        self._process = os.posix_spawn(program[0], program, dict(os.environ), file_actions=actions, setpgroup=0)
        os.close(theirs)
        os.close(there)
        self._rest, self._number, self._session = b"", 0, ""
        self.asked: list[str] = []
        self.said: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        os.write(
            self._to, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while (heard := self._hear()).get("id") != self._number:
            pass
        assert "error" not in heard, heard
        return heard["result"]

    def _hear(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._from, 1 << 20)
            assert more, "Chromium has gone"
            self._rest += more
        text, _, self._rest = self._rest.partition(b"\0")
        heard = json.loads(text)
        params = heard.get("params", {})
        if heard.get("method") == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        if heard.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.said.append(json.dumps(params))
        return heard

    def open(self, path: Path, width: int = 1280, scheme: str = "light") -> None:
        self.asked, self.said = [], []
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 700
        )
        self.media("screen", scheme)
        self.call("Page.navigate", url=path.as_uri())
        while self.js("document.readyState") != "complete":
            time.sleep(0.02)

    def media(self, media: str, scheme: str = "light") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def js(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str, code: int) -> None:
        # A button hears Enter only with its character.
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def close(self) -> None:
        os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._to)
        os.close(self._from)


def opened() -> Iterator[Browser]:
    """A browser that is closed afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        made = Browser(profile)
        try:
            yield made
        finally:
            made.close()


def widths(browser: Browser) -> tuple[int, int]:
    """Of the view, and of what is in it."""
    return browser.js("innerWidth"), browser.js("document.scrollingElement.scrollWidth")


CONTRAST = """(() => {
  const lit = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => { v /= 255;
      return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 }); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(c) && c !== 'transparent') return c } return 'rgb(255, 255, 255)' };
  const found = []; const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) { const e = walk.currentNode.parentElement, s = getComputedStyle(e);
    if (!walk.currentNode.data.trim() || !e.getClientRects().length || e.closest('.hidden, .skip, style')) continue;
    const a = lit(e.closest('svg') ? s.fill : s.color), b = lit(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(walk.currentNode.data.trim().slice(0, 30) + ' ' + ratio.toFixed(2)) }
  return found })()"""
"""A script that lists the words that do not stand out from what is behind them."""
