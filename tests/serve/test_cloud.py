"""The cloud of CEMA over HTTP. Where FastAPI and uvicorn are not installed, only what the edge does is tested."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import torch
from torch import Tensor, nn

from homeostat import cli
from homeostat.adapt import CEMA, CEMAOverHTTP, LinkDown, Message, OutOfStep
from homeostat.adapt.cema_messages import filled, fingerprint_of, flattened
from homeostat.core.check import small_network, small_world
from homeostat.core.errors import CheckpointError, DtypeError, InputError, MissingExtra
from homeostat.core.online import Online
from homeostat.core.save import load, save
from homeostat.core.world import World
from homeostat.nn.optimizers import SGD
from homeostat.serve import cloud_app, serving_cloud

SERVER = all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn"))
needs_server = pytest.mark.skipif(not SERVER, reason="needs the extra: homeostat[serve]")
KEEN = CEMA(
    high=1.0, div_margin=1.1, batch=8, replay=40, replay_from=12, edge_optimizer=SGD(lr=0.05),
    cloud_optimizer=SGD(lr=0.05), timeout=10.0,
)  # fmt: skip
SETTINGS = (
    "CEMA(high=1.0, div_margin=1.1, batch=8, replay=40, replay_from=12, edge_optimizer=SGD(lr=0.05), "
    "cloud_optimizer=SGD(lr=0.05), timeout=10.0)"
)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def strong_network() -> nn.Module:
    made = small_network()
    with torch.no_grad():
        made[5].weight *= 2  # type: ignore[union-attr,operator]
    return made


def batches() -> list[Tensor]:
    return [b.x + 0.3 for b in small_world().target.unlabelled().batches(12)]


def same(a: Online, b: Online) -> bool:
    return all(torch.equal(t, b.owned()[name]) for name, t in a.owned().items())


@contextmanager
def answering(answer) -> Iterator[str]:
    """A server of the standard library: `answer(body)` gives a status and a body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, body = answer(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_over_http_parameters_and_bytes_are_those_of_one_process():
    net, strong = small_network(), strong_network()
    here = KEEN(net, World(models={"cloud": strong}))
    cloud = KEEN.cloud(net, strong)

    def answer(body: bytes) -> tuple[int, bytes]:
        try:
            return 200, cloud.exchange(body)
        except OutOfStep as error:
            return 409, json.dumps({"error": str(error)}).encode()

    with answering(answer) as url:
        far = KEEN.replace(url=url)(net)
        for number, x in enumerate(batches()):
            if number == 2:  # both clouds forget everything
                cloud.reset()
                here.link.cloud.reset()
            assert torch.equal(far.observe(x), here.observe(x))
            assert far.counts() == here.counts() and same(far, here)
    assert far.counts()["uploaded"] == 48 and not torch.equal(far.owned()["1.weight"], net[1].weight)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda _: (422, b'{"error": "no good"}'), "answered 422: no good"),
        (lambda _: (500, b"<html>"), "answered 500: Internal Server Error"),
        (lambda _: (409, b'{"error": "send"}'), "does not take the edge's parameters: send"),
        (lambda _: (200, b"rubbish"), "of no use: 7 bytes are no CEMA message"),
        (lambda _: (200, Message(5).bytes()), "of no use"),
        (lambda _: (200, Message(5, norm=torch.zeros(3)).bytes()), "of no use: 3 normalisation parameters"),
        (lambda _: (200, Message(5, norm=torch.zeros(16)).bytes()), "of no use: .* fingerprint"),
    ],
)
def test_an_answer_that_is_of_no_use_is_reported_and_the_edge_goes_on(answer, said, caplog):
    with answering(answer) as url:
        edge = KEEN.replace(url=url)(small_network())
        x = batches()[0]
        edge.observe(x)
        norm = {name: t.clone() for name, t in edge.owned().items()}
        out = edge.observe(x)
    assert edge.counts()["failures"] == 1 and edge.counts()["undelivered"] == 24
    assert all(torch.equal(t, edge.owned()[name]) for name, t in norm.items()) and torch.equal(out, edge(x))
    assert re.search(said, caplog.text), caplog.text
    assert edge.counts()["bytes_up"] > 12 * 4 * x[0].numel(), "it went up, in vain, and counts"


def test_an_answer_that_dribbles_is_given_up_and_its_bytes_count():
    """A byte in time is no answer in time."""

    class Dribbling(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            for _ in range(200):
                try:
                    self.wfile.write(b"x")
                except OSError:
                    return
                time.sleep(0.02)

        def log_message(self, *_) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Dribbling)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        began = time.monotonic()
        with pytest.raises(LinkDown, match=r"longer to answer than 0\.3 seconds") as caught:
            CEMAOverHTTP(f"http://127.0.0.1:{server.server_address[1]}", timeout=0.3).exchange(b"hello")
        assert time.monotonic() - began < 3 and caught.value.sent and 0 < caught.value.got < 200
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_cloud_that_is_not_there_or_takes_too_long_is_given_up():
    with pytest.raises(LinkDown, match="cannot be reached") as caught:
        CEMAOverHTTP("http://127.0.0.1:9").exchange(b"")
    assert not caught.value.sent, "no connection, no bytes"
    waiting = threading.Event()

    def slow(_: bytes) -> tuple[int, bytes]:
        waiting.wait(5)
        return 200, b""

    with answering(slow) as url:
        link = CEMAOverHTTP(url, timeout=0.2)
        try:
            with pytest.raises(LinkDown, match="timed out") as caught:
                link.exchange(b"")
            assert caught.value.sent
        finally:
            waiting.set()


def test_an_edge_of_a_server_is_saved_and_goes_on(tmp_path):
    cloud = KEEN.cloud(small_network(), strong_network())
    with answering(lambda body: (200, cloud.exchange(body))) as url:
        edge = KEEN.replace(url=url)(small_network())
        for x in batches()[:2]:
            edge.observe(x)
        save(edge, tmp_path / "edge")
        back = load(tmp_path / "edge")
        assert back.link.url == url and "link" not in str(list(back.state_dict()))
        back.observe(batches()[2])
    assert back.counts()["failures"] == 0 and back.counts()["uploaded"] == 36
    assert all(torch.equal(t, back.norm()[name]) for name, t in cloud.norm().items())


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    cloud = KEEN.cloud(small_network(), strong_network())
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(MissingExtra, match=r"homeostat\[serve\]"):
        cloud_app(cloud)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtra, match=r"homeostat\[serve\]"), serving_cloud(cloud, port=0):
        pass


def ask(url: str, body: bytes, kind: str = "application/octet-stream", path: str = "/exchange", **headers: str):
    connection = HTTPConnection(url.removeprefix("http://"), timeout=10)
    try:
        connection.request("POST", path, body, {"Content-Type": kind} | headers, encode_chunked=bool(headers))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@needs_server
def test_what_is_no_message_is_refused_with_a_clear_status():
    cloud = KEEN.cloud(small_network(), strong_network())
    before = {name: cloud.carry[name].clone() for name in cloud.carry}
    with serving_cloud(cloud, port=0, most=20_000) as url:
        x = batches()[0]
        for body, kind, status, said in (
            (b"{}", "application/json", 415, "application/octet-stream"),
            (b"rubbish", "application/octet-stream", 422, "no CEMA message"),
            (b"", "application/octet-stream", 422, "no CEMA message"),
            (bytes(20_001), "application/octet-stream", 413, "20,000 bytes"),
            (Message(3, x=x).bytes(), "application/octet-stream", 409, "send them along"),
        ):
            found, answer = ask(url, body, kind)
            assert found == status and said in json.loads(answer)["error"]
        chunks = (bytes(5_000) for _ in range(5))
        assert ask(url, chunks, **{"Transfer-Encoding": "chunked"})[0] == 413, "a length need not be said"
        code, said = ask(url, b"", path="/elsewhere")
        assert code == 404 and "POST /exchange" in json.loads(said)["error"]
        with pytest.raises(HTTPError, match="405"):
            urlopen(f"{url}/exchange", timeout=10)
        with urlopen(f"{url}/status", timeout=10) as answer:
            status = json.load(answer)
        assert (status["exchanges"], status["refused"], status["received"], status["steps"]) == (0, 8, 0, 0)
    assert set(before) == set(cloud.carry) and all(torch.equal(cloud.carry[n], t) for n, t in before.items())


@needs_server
def test_a_message_that_is_sent_again_teaches_nothing_and_bad_shapes_and_types_are_refused():
    cloud = KEEN.cloud(small_network(), strong_network())
    edge, sent = KEEN.replace(url="http://nowhere")(small_network()), []
    with serving_cloud(cloud, port=0) as url:
        edge.link = Recording(url, sent)
        for x in batches()[:2]:
            edge.observe(x)
        assert edge.counts()["failures"] == 0 and edge.counts()["uploaded"] == 24
        learnt = {name: cloud.carry[name].clone() for name in cloud.carry}
        assert ask(url, sent[-1])[0] == 409, "the edge it speaks of has other parameters by now"
        now, x = int(edge.carry["agreed"]), batches()[2]
        for bad in (x[:, :-1], x.double(), x[:, None], x.to(torch.float8_e5m2)):
            code, said = ask(url, Message(now, x=bad).bytes())
            assert code == 422 and json.loads(said)["error"]
        assert all(torch.equal(cloud.carry[name], t) for name, t in learnt.items()) and set(learnt) == set(cloud.carry)
        edge.observe(x)
    assert edge.counts()["failures"] == 0 and edge.counts()["uploaded"] == 36


class Recording(CEMAOverHTTP, register=False):
    """Keeps what it sends."""

    def __init__(self, url: str, sent: list[bytes]):
        super().__init__(url)
        self.sent = sent

    def exchange(self, message: bytes) -> bytes:
        self.sent.append(message)
        return super().exchange(message)


@needs_server
def test_edges_that_come_at_once_are_answered_one_after_another():
    cloud = KEEN.replace(replay=0).cloud(small_network(), strong_network())
    x, found = batches()[0], []
    with serving_cloud(cloud, port=0) as url:

        def send(number: int) -> None:
            norm = {name: t + 0.01 * number for name, t in small_norm().items()}
            message = Message(fingerprint_of(norm), x=x, norm=flattened(norm))
            found.append(Message.read(ask(url, message.bytes())[1]))

        threads = [threading.Thread(target=send, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 6 and int(cloud.carry["received"]) == 72 and int(cloud.carry["steps"]) == 72 // 8
    for answer in found:
        assert filled(small_norm(), answer.norm, answer.fingerprint), "each answer is whole"


def small_norm() -> dict[str, Tensor]:
    return KEEN.cloud(small_network(), strong_network()).norm()


@needs_server
def test_a_client_that_does_not_finish_is_refused_and_does_not_keep_the_server_from_ending():
    cloud = KEEN.cloud(small_network(), strong_network())
    lines = ("POST /exchange HTTP/1.1", "Host: x", "Content-Type: application/octet-stream", "Content-Length: 99", "")
    head = "\r\n".join((*lines, "x")).encode()
    with serving_cloud(cloud, port=0, patience=0.3) as url:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as slow:
            slow.sendall(head)
            answer = slow.recv(4096)
            assert b" 408 " in answer.split(b"\r\n")[0] and b"0.3 seconds" in answer + slow.recv(4096)
        assert ask(url, b"")[0] == 422, "others are served"
    with serving_cloud(cloud, port=0) as url:
        stalled = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10)
        stalled.sendall(head)
        assert ask(url, b"")[0] == 422
        began = time.monotonic()
    stalled.close()
    assert time.monotonic() - began < 8


@needs_server
def test_a_store_that_cannot_be_written_does_not_stop_the_edge(tmp_path, caplog):
    cloud, store = KEEN.cloud(small_network(), strong_network()), tmp_path / "store"
    with pytest.raises(CheckpointError), serving_cloud(cloud, port=0, store=store) as url:
        shutil.rmtree(store)
        store.write_text("in the way")
        edge = KEEN.replace(url=url)(small_network())
        edge.observe(batches()[0])
        assert edge.counts()["uploaded"] == 12 and edge.counts()["failures"] == 0
        with urlopen(f"{url}/status", timeout=10) as answer:
            assert json.load(answer)["unsaved"] == 1
    assert "no checkpoint" in caplog.text
    with pytest.raises(CheckpointError, match="no checkpoint"), serving_cloud(cloud, port=0, store=store):
        pytest.fail("it must not begin to serve what it cannot keep")


@needs_server
def test_what_is_not_a_cloud_and_a_port_that_is_taken_are_refused():
    with pytest.raises(DtypeError, match="no cloud"):
        cloud_app(small_network())
    cloud = KEEN.cloud(small_network(), strong_network())
    with serving_cloud(cloud, port=0) as url:
        port = int(url.rpartition(":")[2])
        with pytest.raises(InputError, match="cannot be listened on"), serving_cloud(cloud, port=port):
            pass


@contextmanager
def process(folder: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [
        sys.executable, "-m", "homeostat", "cloud", str(folder / "edge"), str(folder / "strong"),
        "--store", str(folder / "store"), "--settings", SETTINGS, "--port", str(port), "--every", "1", "--json",
    ]  # fmt: skip
    source = Path(__file__).parents[2] / "src"
    env = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    made = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        said, line = "", "-"
        while line and line.rstrip() != "}":
            line = made.stdout.readline()
            said += line
        yield made, json.loads(said)["address"] if said else ""
    finally:
        if made.poll() is None:
            made.send_signal(signal.SIGTERM)
        made.communicate(timeout=30)


@needs_server
def test_two_processes_do_what_one_does_also_when_the_cloud_is_killed_and_started_again(tmp_path):
    net, strong = small_network(), strong_network()
    save(net, tmp_path / "edge")
    save(strong, tmp_path / "strong")
    here = KEEN(net, World(models={"cloud": strong}))
    stream = batches()
    with process(tmp_path) as (server, url):
        far = KEEN.replace(url=url, patience=1)(net)
        for x in stream[:2]:
            assert torch.equal(far.observe(x), here.observe(x))
        assert far.counts() == here.counts() and same(far, here)
        server.kill()
        server.wait()
        before = far.counts()
        assert torch.equal(far.observe(stream[2]), here(stream[2])), "it serves on with what it has"
        far.observe(stream[2])
    assert far.counts()["failures"] == 1 and far.counts()["undelivered"] == 24
    assert far.counts()["bytes_up"] == before["bytes_up"] and same(far, here)
    with process(tmp_path, int(url.rpartition(":")[2])) as (server, again):
        assert again == url
        for x in stream[2:]:
            assert torch.equal(far.observe(x), here.observe(x)), "the store had everything"
        assert same(far, here)
        with urlopen(f"{url}/status", timeout=10) as answer:
            assert json.load(answer)["received"] == 48
    assert server.returncode == 0
    kept = load(tmp_path / "store")
    assert all(torch.equal(t, far.norm()[name]) for name, t in kept.norm().items())


@needs_server
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["nowhere", "strong"], "no network at nowhere"),
        (["edge", "plain"], "no normalisation layer"),
        (["edge", "strong", "--settings", "Tent"], "Tent is not a CEMA"),
        (["edge", "strong", "--settings", "CEMA(batch=0)"], "CEMA.batch = 0"),
        (["edge", "strong", "--port", "0", "--host", "nowhere.invalid"], "cannot be listened on"),
        (["edge", "strong", "--port", "0", "--store", "file"], "file exists and is no checkpoint"),
        (["edge", "strong", "--port", "0", "--store", "broken"], "cannot be read"),
    ],
)
def test_the_command_says_in_a_line_what_is_wrong(tmp_path, monkeypatch, capsys, more, said):
    monkeypatch.chdir(tmp_path)
    save(small_network(), "edge")
    save(strong_network(), "strong")
    save(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "plain")
    Path("file").write_text("")
    Path("broken").mkdir()
    Path("broken/model.json").write_text("{")
    monkeypatch.setattr(sys, "argv", ["homeostat", "cloud", *more])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    shown = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and said in shown and "\n" not in shown, shown


@needs_server
def test_a_store_of_other_settings_is_refused(tmp_path):
    save(small_network(), tmp_path / "edge")
    save(strong_network(), tmp_path / "strong")
    save(KEEN.replace(alpha=1.0).cloud(small_network(), strong_network()), tmp_path / "store")
    with process(tmp_path) as (server, _):
        _, said = server.communicate(timeout=30)
    assert server.returncode == 2 and "other networks or settings" in said and "Traceback" not in said
