"""The cloud of CEMA as a server: edges send samples, and get normalisation parameters back.

`POST /exchange` takes a message (`adapt.cema_messages`) as `application/octet-stream` and answers with one. What is
wrong is said in JSON, `{"error": "..."}`:

| status | when |
|---|---|
| 200 | the answer is a message |
| 400 | the body breaks off |
| 408 | the body takes longer than `patience` seconds to come |
| 409 | the edge has other parameters than the cloud and did not send them; it sends again, with them |
| 413 | the body is larger than `most` bytes; it is not read further |
| 415 | the body is not `application/octet-stream` |
| 422 | it is no message, or its samples do not fit the networks; nothing was learnt from it |

Nothing but safetensors is read. `GET /status` says how many samples came and how many steps were made. One server looks
after one edge network: several devices that serve the same one would pull it to and fro. Exchanges are made one after
another. It listens on this machine alone unless told otherwise, and has neither passwords nor encryption: what is
reachable from elsewhere belongs behind a server that has.

With `store` the cloud's state is written there after every `every` exchanges that taught something and at the end, so
that a server that is started again goes on. What was learnt since then is lost when it is killed; the edge finds that
out and brings its own parameters along. A store that cannot be written is logged (`homeostat.serve.cloud`) and tried
again at the next exchange; `unsaved` in the status then grows.

It needs `pip install 'homeostat[serve]'`.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from homeostat.adapt.cema_cloud import CEMACloud
from homeostat.adapt.cema_link import CONTENT, MOST, PATH
from homeostat.adapt.cema_messages import OutOfStep
from homeostat.core.errors import CheckpointError, DtypeError, InputError, MissingExtra, StoreError
from homeostat.core.save import save

_LOG = logging.getLogger("homeostat.serve.cloud")
PATIENCE = 30.0
"""Seconds that a body may take to come."""
ENDING = 3
"""Seconds that connections have to end when the server does."""


class _TooLarge(Exception):
    pass


def cloud_app(
    cloud: CEMACloud | Any, *, most: int = MOST, store: str | Path | None = None, every: int = 1,
    patience: float = PATIENCE,
) -> Any:  # fmt: skip
    """A FastAPI application that answers for a cloud; see the module's docstring.

    Args:
        cloud: from `CEMA.cloud`, or loaded from a `store`.
        most: bytes that a message may have.
        store: a folder for the cloud's state.
        every: exchanges that taught something between two writes of it.
        patience: seconds that a body may take to come.

    Raises:
        MissingExtra: FastAPI is not installed. DtypeError: that is no cloud.
    """
    try:
        names = ("fastapi", "starlette.requests", "starlette.responses", "starlette.routing", "starlette.concurrency")
        fastapi, requests, responses, routing, concurrency = (importlib.import_module(name) for name in names)
    except ImportError:
        raise MissingExtra("a cloud's server needs FastAPI: pip install 'homeostat[serve]'") from None
    if not isinstance(cloud, CEMACloud):
        raise DtypeError(f"a {type(cloud).__name__} is no cloud; make one with CEMA(...).cloud(edge, strong)")
    turn, began = threading.Lock(), time.time()
    state = {"exchanges": 0, "refused": 0, "unsaved": 0}

    def answer(body: bytes) -> bytes:
        with turn:
            steps = int(cloud.carry["steps"])
            found = cloud.exchange(body)
            state["exchanges"] += 1
            state["unsaved"] += int(cloud.carry["steps"]) > steps
            if state["unsaved"] >= every:
                written()
            return found

    def written() -> None:
        if store is None:
            return
        try:
            save(cloud, store)
        except (StoreError, CheckpointError) as error:
            _LOG.error("%s; serving goes on", error)  # the edge must not wait for a disk
        else:
            state["unsaved"] = 0

    def refuse(status: int, why: str) -> Any:
        state["refused"] += 1
        return responses.JSONResponse({"error": why}, status)

    async def exchange(request: Any) -> Any:
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if kind != CONTENT:
            return refuse(415, f"a message comes as {CONTENT}; this is {kind or 'without a type'}")
        try:
            body = await asyncio.wait_for(_body(request, most), patience)
        except _TooLarge:
            return refuse(413, f"a message may have {most:,} bytes; send fewer samples at a time")
        except TimeoutError:
            return refuse(408, f"the message took longer than {patience:g} seconds to come")
        except requests.ClientDisconnect:
            return refuse(400, "the message broke off")
        try:
            return responses.Response(await concurrency.run_in_threadpool(answer, body), media_type=CONTENT)
        except OutOfStep as error:
            return refuse(409, str(error))
        except InputError as error:
            return refuse(422, str(error))

    async def status(request: Any) -> Any:
        counts = {name: int(cloud.carry[name]) for name in ("received", "steps")}
        return responses.JSONResponse(counts | state | {"seconds": round(time.time() - began, 3)})

    async def elsewhere(request: Any, error: Any) -> Any:
        return refuse(error.status_code, f"{error.detail}: there are POST {PATH} and GET /status")

    routes = [routing.Route(PATH, exchange, methods=["POST"]), routing.Route("/status", status, methods=["GET"])]
    app = fastapi.FastAPI(title="CEMA cloud", routes=routes, docs_url=None, redoc_url=None, openapi_url=None)
    for code in (404, 405):
        app.add_exception_handler(code, elsewhere)
    app.state.turn = turn
    return app


async def _body(request: Any, most: int) -> bytes:
    """The body, as long as it is not too large: what a client says its length is counts, too."""
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > most:
        raise _TooLarge
    parts, length = [], 0
    async for part in request.stream():
        length += len(part)
        if length > most:
            raise _TooLarge
        parts.append(part)
    return b"".join(parts)


@contextmanager
def serving_cloud(
    cloud: CEMACloud | Any, *, host: str = "127.0.0.1", port: int = 9178, most: int = MOST,
    store: str | Path | None = None, every: int = 1, patience: float = PATIENCE,
) -> Iterator[str]:  # fmt: skip
    """Answer while inside; gives the address. Whoever is not done `ENDING` seconds after the end is cut off.

    Args:
        cloud, most, store, every, patience: see `cloud_app`.
        host: where to listen.
        port: 0 takes a free one.

    Raises:
        MissingExtra: uvicorn or FastAPI is not installed. InputError: the port cannot be had.
        StoreError, CheckpointError: the store cannot be written.
    """
    try:
        uvicorn: Any = importlib.import_module("uvicorn")
    except ImportError:
        raise MissingExtra("a cloud's server needs uvicorn: pip install 'homeostat[serve]'") from None
    app = cloud_app(cloud, most=most, store=store, every=every, patience=patience)
    listening = _listening(host, port)
    if store is not None:
        try:
            save(cloud, store)  # a folder that cannot be written is found out now, and not when all is over
        except BaseException:
            listening.close()
            raise
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=ENDING))
    thread = threading.Thread(target=server.run, args=([listening],), name="homeostat-cloud", daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield f"http://{host}:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
        if store is not None:
            with app.state.turn:  # an exchange of somebody who was cut off may still be learning
                save(cloud, store)


def _listening(host: str, port: int) -> Any:
    try:
        found = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise InputError(f"{host}:{port} cannot be listened on: {error}; give another port") from None
    return found
