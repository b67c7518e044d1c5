"""A thread of its own for what may be slow or fail, behind a queue that holds nobody up.

Whoever hands an item over goes on at once. When more wait than may, the oldest is dropped and counted.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from typing import Any

from homeostat.core.errors import InputError


class Background(ABC):
    """Base of what gives items to others; a subclass gives `_take`, which may block and must not raise.

    Args:
        name: of the thread.
        item: what an item is, for errors.
        most: items that may wait.

    Attributes:
        dropped: items that were never given.
    """

    def __init__(self, name: str, item: str, most: int):
        if most < 1:
            raise InputError(f"at least one {item} must be able to wait; got most = {most}")
        self.dropped = 0
        self._most, self._closed, self._busy = most, False, False
        self._waiting = deque[Any]()
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    @abstractmethod
    def _take(self, item: Any, last: bool) -> None:
        """Give an item, on the thread; `last` when none waits behind it."""

    def _hand(self, item: Any) -> None:
        """Let an item wait; nothing is taken once closing began."""
        with self._change:
            if self._closed:
                return
            if self._thread.ident is None:
                self._thread.start()
            if len(self._waiting) >= self._most:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(item)
            self._change.notify_all()

    def _drain(self, timeout: float) -> bool:
        """Take no more, and wait for what waits to be given, at most so many seconds; whether all was."""
        with self._change:
            self._closed = True
            self._change.notify_all()
            done = self._change.wait_for(lambda: not self._waiting and not self._busy, timeout)
            self.dropped += len(self._waiting)
            self._waiting.clear()
        return done

    def _work(self) -> None:
        while True:
            with self._change:
                self._busy = False
                self._change.notify_all()
                self._change.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                item, self._busy = self._waiting.popleft(), True
                last = not self._waiting
            self._take(item, last)
