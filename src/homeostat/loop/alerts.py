"""Telling somebody: hooks that hear of alarms, commits, rollbacks and failures, and never hold up the loop.

The loop hands an event over and goes on at once. One thread of its own takes alerts from a queue and gives each to the
hooks. A hook that is slow, fails or raises delays other alerts at most; when the queue is full the oldest alert is
dropped and counted. So what a hook hears is a courtesy: the journal is the record.

>>> heard = []
>>> class Heard(Hook, register=False):
...     def send(self, alert):
...         heard.append(alert.text)
>>> alerts = Alerts([Heard()], store="runs/one")
>>> alerts(Event("commit", 24, values={"served": "EATA", "why": "+12% on 30 labels"}))
>>> alerts.close(), heard
(True, ['EATA is served: +12% on 30 labels'])
"""

from __future__ import annotations

import json
import logging
import math
import time
import urllib.error
import urllib.request
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from homeostat.core.background import Background
from homeostat.core.errors import InputError, SpecError
from homeostat.core.run import Event
from homeostat.core.spec import Index, Positive, Spec
from homeostat.loop.environment import from_environment

KINDS = ("alarm", "commit", "rollback", "keep", "failure")
"""Events that can become alerts."""

SHORTEST, LONGEST = 0.2, 5.0
"""Seconds between two attempts of a webhook: the first pause, which doubles, and the longest."""


@dataclass(frozen=True)
class Alert:
    """What happened; `asdict` gives JSON-ready values.

    Attributes:
        kind: one of `KINDS`.
        step: the window.
        text: in words.
        store: the store's folder, so that whoever is told knows where to look.
        time: when, in seconds since 1970.
        values: what else the event said.
    """

    kind: str
    step: int
    text: str
    store: str = ""
    time: float = 0.0
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Hook(Spec, abstract=True):
    """Base of what alerts are given to; a subclass gives `send`, which may block and raise.

    Attributes:
        on: kinds of event that it hears of.
    """

    on: tuple[Literal["alarm", "commit", "rollback", "keep", "failure"], ...] = (
        "alarm", "commit", "rollback", "failure",
    )  # fmt: skip

    def check(self) -> None:
        """Raise our error when this hook cannot work here; called before the loop starts."""

    @abstractmethod
    def send(self, alert: Alert) -> None: ...


@dataclass(frozen=True)
class LogAlert(Hook):
    """Writes alerts to Python's log.

    Attributes:
        level: of the log entries; failures are never below `error`.
        logger: the logger's name.
    """

    level: Literal["debug", "info", "warning", "error", "critical"] = "warning"
    logger: str = "homeostat"

    def send(self, alert: Alert) -> None:
        level = getattr(logging, self.level.upper())
        level = max(level, logging.ERROR) if alert.kind == "failure" else level
        where = f" ({alert.store})" if alert.store else ""
        logging.getLogger(self.logger).log(level, "window %d, %s: %s%s", alert.step, alert.kind, alert.text, where)


@dataclass(frozen=True)
class Webhook(Hook):
    """Posts alerts as JSON: `kind`, `step`, `text`, `store`, `time`, `values`.

    An answer that is an error of the server (500 and above, or 429), or none, is tried again; any other refusal is not.
    Redirects are not followed: they would take the token elsewhere.

    Attributes:
        url: `http` or `https`; or `$NAME`, an environment variable that holds it, where the address is a secret.
        timeout: seconds to wait for the connection and for each answer.
        retries: further attempts, after 0.2 seconds and then twice as long each time, up to 5.
        token: `$NAME`, an environment variable; its content is sent as `Authorization: Bearer ...`.
    """

    url: str = ""
    timeout: Positive = 5.0
    retries: Index = 2
    token: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.url.startswith("$"):
            _check_url(self.url, lambda text: SpecError(f"Webhook.url = {self.url!r}, but {text}").at("url"))
        if self.token and not self.token.startswith("$"):
            text = "Webhook.token is not shown here, but it must name an environment variable, as in $HOOK_TOKEN: "
            raise SpecError(text + "a secret does not belong in a file").at("token")

    def check(self) -> None:
        _check_url(
            from_environment(self.url, "a webhook"),
            lambda text: InputError(f"the environment variable {self.url[1:]}: {text}"),
        )
        from_environment(self.token, "a webhook")

    def send(self, alert: Alert) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": "homeostat"}
        if self.token:
            headers["Authorization"] = f"Bearer {from_environment(self.token, 'a webhook')}"
        body = json.dumps(asdict(alert), allow_nan=False).encode()
        request = urllib.request.Request(from_environment(self.url, "a webhook"), body, headers, method="POST")
        opener = urllib.request.build_opener(_NoRedirect)
        for attempt in range(self.retries + 1):
            try:
                opener.open(request, timeout=self.timeout).close()
                return
            except OSError as error:  # what urllib raises, time-outs among it
                refused = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
                if refused or attempt == self.retries:
                    raise
            time.sleep(min(SHORTEST * 2**attempt, LONGEST))


class Alerts(Background):
    """Gives events to hooks, from a thread of its own. Call it with events: it is a `Run.watch`.

    Args:
        hooks: whom to tell.
        store: the store's folder, named in every alert.
        most: alerts that may wait; when more come, the oldest is dropped.

    Attributes:
        sent, failed, dropped: how many alerts (one to each hook) were given, raised, or never left the queue.
        failure: what the last hook that failed said.

    Raises:
        SpecError, InputError, MissingPart: a hook cannot work here (a variable is not set).
    """

    def __init__(self, hooks: Sequence[Hook], store: str = "", most: int = 1000):
        super().__init__("homeostat-alerts", "alert", most)
        for hook in hooks:
            hook.check()
        self.hooks, self.store = tuple(hooks), str(store)
        self.sent, self.failed, self.failure = 0, 0, ""
        if self.hooks:
            self._thread.start()

    def __call__(self, event: Event) -> None:
        """Take an event; those that are no news, and all after `close`, are passed over. Never blocks, never raises."""
        if event.name not in KINDS or not any(event.name in hook.on for hook in self.hooks):
            return
        values = {str(key): _plain(value) for key, value in event.values.items()}
        alert = Alert(event.name, event.step, _text(event.name, values), self.store, time.time(), values)
        self._hand(alert)

    def close(self, timeout: float = 5.0) -> bool:
        """Take no more, and wait for what waits to be given, at most so many seconds; whether all was."""
        return self._drain(timeout)

    def _take(self, item: Alert, last: bool) -> None:
        for hook in self.hooks:
            if item.kind in hook.on:
                self._give(hook, item)

    def _give(self, hook: Hook, alert: Alert) -> None:
        try:
            hook.send(alert)
        except Exception as error:  # whatever a hook does wrong, the next alert is still to be given
            self.failed += 1
            # Not the address: it may be a secret.
            self.failure = f"{type(hook).__name__}: {error}"
        else:
            self.sent += 1


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _text(kind: str, values: Mapping[str, Any]) -> str:
    """The event's own text, or one made of what is served and why."""
    if values.get("text"):
        return str(values["text"])
    why = str(values.get("why", "")) or kind
    if kind == "keep":
        return f"nothing changed: {why}"
    return f"{values['served']} is served: {why}" if "served" in values else why


def _plain(value: Any) -> Any:
    """A value that is JSON: numbers that are not finite become None, what is foreign becomes text."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    try:
        return str(value)
    except Exception:  # a broken __str__ must not reach the loop
        return f"<{type(value).__name__}>"


def _check_url(url: str, wrong: Any) -> None:
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise wrong("a web address is wanted, as in https://example.org/hook")
