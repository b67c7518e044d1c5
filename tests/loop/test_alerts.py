"""Alerts: what is told, and that no hook, however bad, holds up or breaks who tells it."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch

from homeostat.core.configfile import read_spec
from homeostat.core.errors import InputError, MissingPart, SpecError
from homeostat.core.run import Event, Run
from homeostat.core.spec import from_config
from homeostat.loop import alerts as module
from homeostat.loop.alerts import Alert, Alerts, Hook, LogAlert, Webhook

COMMIT = Event("commit", 24, values={"served": "EATA", "why": "+12.0% on 30 labels"})
PATIENCE = 20.0
"""Seconds until a test that hangs is called failed; none waits that long when things are right."""


@dataclass(frozen=True)
class FedCalls(Hook, register=False):
    """Notes alerts, and does what it is told to first."""

    act: Any = None
    heard: Any = None

    def send(self, alert: Alert) -> None:
        if self.act is not None:
            self.act(alert)
        self.heard.append(alert)


class Server:
    """A web server that answers as `answers` says, in turn: a status, an event to wait for, or a redirect's target."""

    def __init__(self, *answers: Any):
        self.answers, self.requests, self.met = list(answers), list[tuple[dict, Any]](), threading.Semaphore(0)
        self.over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((dict(self.headers), body))
                answer = outer.answers.pop(0) if outer.answers else 200
                outer.met.release()
                if isinstance(answer, threading.Event):
                    answer.wait(PATIENCE)
                    answer = 200
                self.send_response(302 if isinstance(answer, str) else answer)
                if isinstance(answer, str):
                    self.send_header("Location", answer)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/hook"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@contextmanager
def serving(*answers: Any) -> Iterator[Server]:
    server = Server(*answers)
    try:
        yield server
    finally:
        for answer in answers:
            if isinstance(answer, threading.Event):
                answer.set()
        server.http.shutdown()
        server.http.server_close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORTEST", 0.001)


# ------------------------------------------------------------------------------------------------------ what is told


def test_an_event_becomes_an_alert_with_kind_window_text_store_and_values():
    heard: list[Alert] = []
    alerts = Alerts([FedCalls(heard=heard)], store="runs/one")
    alerts(COMMIT)
    alerts(Event("alarm", 21, values={"text": "entropy rose", "effect": 0.3}))
    alerts(Event("keep", 26, values={"why": "not asked for"}))
    alerts(Event("window", 27, 60, {"served": "EATA"}))
    alerts(Event("failure", 28, values={"why": "it failed: boom"}))
    assert alerts.close(PATIENCE)
    assert [(a.kind, a.step, a.text, a.store) for a in heard] == [
        ("commit", 24, "EATA is served: +12.0% on 30 labels", "runs/one"), ("alarm", 21, "entropy rose", "runs/one"),
        ("failure", 28, "it failed: boom", "runs/one"),
    ]  # fmt: skip
    assert heard[1].values["effect"] == 0.3 and heard[0].time > 1e9 and (alerts.sent, alerts.failed) == (3, 0)


def test_each_hook_hears_only_what_it_asked_for():
    first, second = [], []
    alerts = Alerts([FedCalls(heard=first, on=("keep",)), FedCalls(heard=second, on=("commit", "keep"))])
    alerts(COMMIT)
    alerts(Event("keep", 26, values={"why": "nothing was better"}))
    assert alerts.close(PATIENCE)
    assert [a.kind for a in first] == ["keep"] and [a.kind for a in second] == ["commit", "keep"]
    assert first[0].text == "nothing changed: nothing was better"


def test_values_that_are_no_json_are_made_so_and_none_breaks_the_caller():
    class Broken:
        def __str__(self) -> str:
            raise ZeroDivisionError

    heard: list[Alert] = []
    alerts = Alerts([FedCalls(heard=heard)])
    odd = {
        "text": "odd",
        "nan": float("nan"),
        "deep": {"inf": [float("inf"), 1]},
        "tensor": torch.ones(1),
        "b": Broken(),
    }
    alerts(Event("alarm", 1, values=odd))
    assert alerts.close(PATIENCE)
    values = json.loads(json.dumps(dict(heard[0].values), allow_nan=False))
    assert values["nan"] is None and values["deep"] == {"inf": [None, 1]} and values["b"] == "<Broken>"


def test_the_log_gets_a_line_at_the_asked_level_and_failures_at_least_as_errors(caplog):
    caplog.set_level(logging.DEBUG, logger="ops")
    alerts = Alerts([LogAlert("info", "ops")], store="runs/one")
    alerts(COMMIT)
    alerts(Event("failure", 3, values={"text": "boom"}))
    assert alerts.close(PATIENCE)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("INFO", "window 24, commit: EATA is served: +12.0% on 30 labels (runs/one)"),
        ("ERROR", "window 3, failure: boom (runs/one)"),
    ]


def test_a_webhook_posts_json_with_the_token_from_the_environment(monkeypatch):
    monkeypatch.setenv("FED_TOKEN", "s3cret")
    with serving(200) as server:
        alerts = Alerts([Webhook(server.url, token="$FED_TOKEN")], store="runs/one")
        alerts(COMMIT)
        assert alerts.close(PATIENCE) and alerts.sent == 1
    ((headers, body),) = server.requests
    assert headers["Authorization"] == "Bearer s3cret" and headers["Content-Type"] == "application/json"
    assert {key: body[key] for key in ("kind", "step", "store")} == {"kind": "commit", "step": 24, "store": "runs/one"}
    assert body["values"]["served"] == "EATA" and "EATA is served" in body["text"]


def test_the_address_may_come_from_the_environment(monkeypatch):
    with serving(200) as server:
        monkeypatch.setenv("FED_URL", server.url)
        alerts = Alerts([Webhook("$FED_URL")])
        alerts(COMMIT)
        assert alerts.close(PATIENCE) and len(server.requests) == 1


# --------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(("status", "asked"), [(500, 3), (503, 3), (429, 3), (404, 1), (401, 1)])
def test_errors_of_the_server_are_tried_again_and_refusals_are_not(quick, status, asked):
    with serving(*[status] * 5) as server:
        alerts = Alerts([Webhook(server.url, retries=2)])
        alerts(COMMIT)
        assert alerts.close(PATIENCE)
    assert len(server.requests) == asked and (alerts.sent, alerts.failed) == (0, 1) and str(status) in alerts.failure


def test_an_alert_that_succeeds_at_last_counts_as_sent(quick):
    with serving(500, 500, 200) as server:
        alerts = Alerts([Webhook(server.url, retries=2)])
        alerts(COMMIT)
        assert alerts.close(PATIENCE) and (alerts.sent, alerts.failed, len(server.requests)) == (1, 0, 3)


def test_a_redirect_is_not_followed_because_it_would_take_the_token_elsewhere(monkeypatch):
    monkeypatch.setenv("FED_TOKEN", "s3cret")
    with serving() as elsewhere, serving(elsewhere.url) as server:
        alerts = Alerts([Webhook(server.url, token="$FED_TOKEN")])
        alerts(COMMIT)
        assert alerts.close(PATIENCE) and alerts.failed == 1
        assert len(server.requests) == 1 and elsewhere.requests == []


def test_a_raising_hook_stops_neither_the_others_nor_the_next_alert():
    def boom(alert: Alert) -> None:
        raise ZeroDivisionError("boom")

    first, second = [], []
    alerts = Alerts([FedCalls(act=boom, heard=first), FedCalls(heard=second)])
    for _ in range(3):
        alerts(COMMIT)
    assert alerts.close(PATIENCE)
    assert len(second) == 3 and not first and (alerts.sent, alerts.failed) == (3, 3)
    assert alerts.failure == "FedCalls: boom"


def test_events_are_taken_while_a_hook_hangs_and_the_oldest_are_dropped_and_counted():
    go, began = threading.Event(), threading.Event()

    def hang(alert: Alert) -> None:
        began.set()
        go.wait(PATIENCE)

    heard: list[Alert] = []
    alerts = Alerts([FedCalls(act=hang, heard=heard)], most=3)
    alerts(Event("alarm", 0))
    assert began.wait(PATIENCE)
    for step in range(1, 8):  # the hook is still in its first alert: each of these calls came back without it
        alerts(Event("alarm", step))
    assert alerts.dropped == 4 and not heard
    go.set()
    assert alerts.close(PATIENCE) and [a.step for a in heard] == [0, 5, 6, 7]


def test_closing_waits_no_longer_than_asked_drops_what_is_left_and_takes_no_more():
    go, began = threading.Event(), threading.Event()

    def hang(alert: Alert) -> None:
        began.set()
        go.wait(PATIENCE)

    heard: list[Alert] = []
    alerts = Alerts([FedCalls(act=hang, heard=heard)])
    for step in range(4):
        alerts(Event("alarm", step))
    assert began.wait(PATIENCE)
    assert alerts.close(timeout=0.01) is False and alerts.dropped == 3 and not heard
    alerts(Event("alarm", 9))
    go.set()
    assert alerts.close(PATIENCE) is True and [a.step for a in heard] == [0] and alerts.dropped == 3


def test_no_thread_is_started_without_hooks_and_the_thread_ends_with_closing():
    before = threading.active_count()
    nobody = Alerts([])
    nobody(COMMIT)
    assert threading.active_count() == before and nobody.close() is True
    alerts = Alerts([LogAlert()])
    assert threading.active_count() == before + 1 and alerts._thread.daemon
    assert alerts.close()
    alerts._thread.join(PATIENCE)
    assert threading.active_count() == before


@pytest.mark.parametrize("bad", ["hangs", "fails", "raises"])
def test_the_loop_serves_the_same_windows_while_a_hook_is_bad(problem, tmp_path, quick, bad):
    """The hanging server answers only after the last window was served: no window can have waited for it."""
    go = threading.Event()
    stream = problem.stream([(problem.CLEAN, 8), (problem.DARK, 12)])

    def boom(alert: Alert) -> None:
        raise RuntimeError("boom")

    def follow(folder: str, watch: Any) -> list:
        run = Run(seed=1, watch=watch)
        with problem.loop(tmp_path / folder, problem.net, run=run, simulate=problem.SIMULATED) as loop:
            outputs = [loop.step(batch) for batch in stream.batches(problem.WINDOW)]
            assert loop.history(), "nothing happened that a hook could have heard of"
        return outputs

    quiet = follow("quiet", lambda event: None)
    with serving(*{"hangs": [go], "fails": [500] * 9, "raises": []}[bad]) as server:
        hook = FedCalls(act=boom, heard=[]) if bad == "raises" else Webhook(server.url, timeout=PATIENCE, retries=1)
        alerts = Alerts([hook])
        told = follow("told", alerts)
        alerts(COMMIT)  # so that there is news whatever this stream brings
        if bad == "hangs":
            assert server.met.acquire(timeout=PATIENCE)
            assert not go.is_set() and alerts.sent == alerts.failed == 0
        go.set()
        assert alerts.close(PATIENCE)
    assert all(torch.equal(a, b) for a, b in zip(quiet, told, strict=True))
    assert (alerts.sent > 0) if bad == "hangs" else (alerts.failed > 0)


# ----------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "url", ["", "file:///etc/passwd", "ftp://a/b", "example.org", "http://", "http://[", "http://a:0"]
)
def test_only_web_addresses_are_taken(url):
    with pytest.raises(SpecError, match="a web address is wanted"):
        Webhook(url)


def test_a_secret_in_the_file_is_refused_and_not_repeated_in_the_error(tmp_path):
    path = tmp_path / "hook.yaml"
    path.write_text("Webhook:\n  url: https://example.org\n  token: abc123\n")
    with pytest.raises(SpecError, match=r"hook.yaml, line 3: .*\$HOOK_TOKEN") as refused:
        read_spec(path, Hook)
    assert "abc123" not in str(refused.value)


def test_a_variable_that_is_not_set_is_found_before_the_loop_starts(monkeypatch):
    monkeypatch.delenv("FED_TOKEN", raising=False)
    with pytest.raises(MissingPart, match="FED_TOKEN, which is not set"):
        Alerts([Webhook("http://127.0.0.1/a", token="$FED_TOKEN")])
    monkeypatch.setenv("FED_URL", "file:///etc/passwd")
    with pytest.raises(InputError, match="FED_URL: a web address is wanted"):
        Alerts([Webhook("$FED_URL")])


def test_hooks_survive_their_config_and_refuse_kinds_that_never_come():
    for hook in (LogAlert("error", on=("keep",)), Webhook("https://example.org/a", retries=0)):
        assert from_config(hook.to_config(), Hook) == hook
    with pytest.raises(SpecError, match="must be one of"):
        LogAlert(on=("commits",))  # type: ignore[arg-type]  # what a file may say
    with pytest.raises(InputError, match="at least one alert"):
        Alerts([], most=0)
