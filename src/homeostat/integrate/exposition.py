"""How stores stand, in Prometheus' text format.

`prometheus("runs/one", "runs/two")` reads the stores from outside, without a lock, and gives the text that a scraper
reads; each sample carries the label `store`. A store that cannot be read has `homeostat_up` 0 and nothing else, so that
one that is gone is seen and the others are not lost. Counters are counted in the journal and survive a restart.

- Through node_exporter's textfile collector: write the text to a file that ends in `.prom`, under another name first
  and then renamed, `homeostat status STORE --prometheus > new && mv new /var/lib/node_exporter/homeostat.prom`.
- Over HTTP: `with endpoint("runs/one", port=9177): ...` answers `GET /metrics` from a thread of its own, with what is
  in the stores at that moment. It listens on this machine alone unless told otherwise, and has neither passwords nor
  encryption: what is reachable from elsewhere belongs behind a server that has.

What is not known is left out: no accuracy where no labels came, no length where the stream has no known end.

Reference: Prometheus, Exposition formats, text format version 0.0.4.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from homeostat.core.errors import HomeostatError, InputError
from homeostat.loop.operate import Status, history, status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""What an answer over HTTP says it is."""
PHASES = ("new", "watch", "trial")
RECENT = 50
"""Windows that the recent share of right answers is taken from."""


@dataclass
class _Family:
    """One metric: its kind, its help, and its samples."""

    kind: str
    help: str
    samples: list[tuple[dict[str, str], float]] = field(default_factory=list)


class _Families(dict[str, _Family]):
    """The metrics by name, in order."""

    def put(self, name: str, kind: str, text: str, value: int | float | None, **labels: str) -> None:
        if value is not None:
            self.setdefault(f"homeostat_{name}", _Family(kind, text)).samples.append((labels, float(value)))


def prometheus(*stores: str | Path) -> str:
    """The text for these stores; see the module's docstring.

    Raises:
        InputError: no store is named, or one twice.
    """
    names = [str(store) for store in stores]
    if not names or len(set(names)) < len(names):
        raise InputError(f"name one store or several, each once; got {', '.join(names) or 'none'}")
    made = _Families()
    for name in names:
        try:
            found, windows = status(name), history(name, ("window",), RECENT)
        except HomeostatError:
            made.put("up", "gauge", _UP, 0, store=name)
            continue
        made.put("up", "gauge", _UP, 1, store=name)
        _store(made, found, name)
        _windows(made, [row.content for row in windows], name)
    return "".join(_text(name, family) for name, family in made.items())


_UP = "Whether the store could be read."


def _store(made: _Families, found: Status, name: str) -> None:
    def gauge(key: str, text: str, value: int | float | None, **labels: str) -> None:
        made.put(key, "gauge", text, value, store=name, **labels)

    def counter(key: str, text: str, value: int) -> None:
        made.put(f"{key}_total", "counter", text, value, store=name)

    counter("windows", "Windows served.", found.windows)
    counter("alarms", "Alarms, those repeated for one cause not counted.", found.alarms)
    counter("commits", "Times that another model was put in service.", found.commits)
    counter("rollbacks", "Times that an earlier model was put back.", found.rollbacks)
    counter("trials_unchanged", "Trials after which nothing changed.", found.unchanged)
    gauge("serving", "Whether a process serves from the store now.", found.process is not None)
    gauge("stream_windows", "Windows of the whole stream.", found.of)
    served = {"served": found.served or "nothing", "checkpoint": found.checkpoint}
    gauge("served_info", "What is served, always 1.", 1, **served)
    gauge("served_since_window", "Window from which on it is served.", found.since)
    for phase in PHASES:
        gauge("phase", "1 for what the loop does now.", found.phase == phase, phase=phase)
    gauge(
        "last_alarm_window", "Window of the last alarm.", None if found.last_alarm is None else found.last_alarm["step"]
    )
    gauge("accuracy_before_ratio", "Share of right answers on data from before.", found.accuracy_before)
    capital = found.breach.get("capital")
    gauge("breach_capital", "Evidence that the network as deployed is better than what is served; 1 is none.", capital)
    gauge("written_timestamp_seconds", "When the last row was written.", found.written or None)
    gauge("journal_rows", "Rows of the journal.", found.rows)
    gauge("journal_bytes", "Size of the journal, where it lies in the store.", found.journal_bytes)
    gauge("checkpoints", "Checkpoints kept.", found.checkpoints)
    gauge("checkpoint_bytes", "Size of the checkpoints.", found.checkpoint_bytes)


def _windows(made: _Families, windows: list[dict[str, Any]], name: str) -> None:
    if not windows:
        return
    last = windows[-1]
    entropy, ms = last.get("entropy"), last.get("ms")
    made.put(
        "window_entropy_nats", "gauge", "Mean entropy of the network as deployed, last window.", entropy, store=name
    )
    seconds = None if ms is None else ms / 1000
    made.put("window_seconds", "gauge", "Seconds until the last window was answered.", seconds, store=name)
    labels = sum(said.get("labels", 0) for said in windows)
    made.put("recent_labels", "gauge", f"Labels that came for the last {RECENT} windows.", labels, store=name)
    for model, key in (("served", "right"), ("deployed", "frozen_right")):
        share = sum(said.get(key, 0) for said in windows) / labels if labels else None
        text = f"Share of right answers among the labels of the last {RECENT} windows."
        made.put("recent_accuracy_ratio", "gauge", text, share, store=name, model=model)


def _text(name: str, family: _Family) -> str:
    lines = [f"# HELP {name} {family.help}", f"# TYPE {name} {family.kind}"]
    for labels, value in family.samples:
        said = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        lines.append(f"{name}{{{said}}} {_number(value)}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "NaN" if value != value else "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


@contextmanager
def endpoint(*stores: str | Path, port: int = 9177, host: str = "127.0.0.1") -> Iterator[str]:
    """Answer `GET /metrics` while inside; gives the address.

    Args:
        stores: what `prometheus` takes; read anew for every answer.
        port: 0 takes a free one.
        host: where to listen.

    Raises:
        InputError: no store is named, or the port cannot be had.
    """
    prometheus(*stores)

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            there = self.path.split("?")[0] == "/metrics"
            body = (prometheus(*stores) if there else "the metrics are at /metrics\n").encode()
            self.send_response(200 if there else 404)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """A scrape every few seconds is no news."""

    try:
        server = ThreadingHTTPServer((host, port), Answer)
    except (OSError, OverflowError) as error:
        raise InputError(f"{host}:{port} cannot be listened on: {error}; give another port") from None
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="homeostat-metrics", daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
