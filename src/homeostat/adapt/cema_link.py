"""How CEMA's edge reaches its cloud: in this process, or over HTTP with nothing but the standard library.

Either way the same bytes go back and forth, so that networks and counts come out the same. What answers over HTTP is
`homeostat.serve.cloud`.
"""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from http.client import HTTPException
from socket import gaierror
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from torch import nn

from homeostat.adapt.cema_cloud import CEMACloud
from homeostat.adapt.cema_messages import LinkDown, OutOfStep
from homeostat.core.errors import SpecError
from homeostat.core.part import Part

PATH = "/exchange"
"""Where a cloud takes messages."""
CONTENT = "application/octet-stream"
MOST = 256 * 2**20
"""Bytes that a message may have, either way."""


class CEMALink(Part, abstract=True):
    """Brings a message to the cloud and its answer back."""

    @abstractmethod
    def exchange(self, message: bytes) -> bytes:
        """The cloud's answer.

        Raises:
            OutOfStep: the cloud wants the edge's parameters. LinkDown: there is no answer.
        """

    def reset(self) -> None:
        """Bring the cloud back to its start, where it is ours alone."""


class CEMAInProcess(CEMALink):
    """The cloud is a module in this process, saved and reset with the edge.

    Args:
        cloud: the cloud's half.
    """

    cloud: CEMACloud

    def __init__(self, cloud: nn.Module):
        super().__init__()
        self.cloud = cloud  # type: ignore[assignment]

    def exchange(self, message: bytes) -> bytes:
        return self.cloud.exchange(message)

    def reset(self) -> None:
        self.cloud.reset()


class CEMAOverHTTP(CEMALink):
    """The cloud is a server, `homeostat cloud` or another that speaks as it does.

    Args:
        url: such as `"http://cloud.example:9178"`.
        timeout: seconds without a byte of an answer, and seconds for all of it, after which there is none.
    """

    def __init__(self, url: str, timeout: float = 5.0):
        super().__init__()
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise SpecError(f"url = {url!r}, but a cloud's address is such as 'http://cloud.example:9178'")
        self.url, self.timeout = url.rstrip("/"), timeout

    def exchange(self, message: bytes) -> bytes:
        request = Request(self.url + PATH, message, {"Content-Type": CONTENT}, method="POST")
        try:
            with urlopen(request, timeout=self.timeout) as answer:
                found = self._read(answer)
        except LinkDown:  # it is an OSError, too
            raise
        except HTTPError as error:
            with error:
                said = _said(error)
            if error.code == 409:
                raise OutOfStep(said) from None
            raise LinkDown(f"the cloud at {self.url} answered {error.code}: {said}") from None
        except (OSError, HTTPException) as error:
            # Where no connection was made nothing was sent; a message that was cut short counts as sent.
            nobody = isinstance(getattr(error, "reason", error), (ConnectionRefusedError, gaierror))
            raise LinkDown(f"the cloud at {self.url} cannot be reached: {error}", sent=not nobody) from None
        return found

    def _read(self, answer: Any) -> bytes:
        """An answer, unless it is too long or comes too slowly: a device must not wait on a cloud that dribbles."""
        parts, length, began = [], 0, time.monotonic()
        while part := answer.read1(1 << 16):
            parts.append(part)
            length += len(part)
            if length > MOST:
                raise LinkDown(f"the cloud at {self.url} answered with more than {MOST:,} bytes", got=length)
            if time.monotonic() - began > self.timeout:
                raise LinkDown(
                    f"the cloud at {self.url} takes longer to answer than {self.timeout:g} seconds", got=length
                )
        return b"".join(parts)


def _said(error: HTTPError) -> str:
    """What a server says was wrong."""
    try:
        return str(json.loads(error.read(1 << 16))["error"])
    except (OSError, HTTPException, ValueError, LookupError, TypeError):
        return str(error.reason)
