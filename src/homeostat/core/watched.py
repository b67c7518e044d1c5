"""What the public checks are made of: a world that notes what is read of it, and a list of broken promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from homeostat.core.data import Batch, Data
from homeostat.core.errors import HomeostatError
from homeostat.core.world import SPLITS, World


class CheckFailed(HomeostatError, AssertionError):
    """A method breaks promises; the message lists them."""


class Broken:
    """Collects broken promises."""

    def __init__(self, who: str):
        self.who, self.said = who, list[str]()

    def unless(self, holds: bool, promise: str) -> None:
        if not holds:
            self.said.append(promise)

    @contextmanager
    def case(self, promise: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.said.append(f"{promise}: {type(error).__name__}: {error}")

    def refuses(self, call: Callable[[], Any], kind: type[Exception], promise: str) -> None:
        try:
            call()
        except kind as error:
            self.unless(isinstance(error, HomeostatError), f"{promise} by an error of this library")
        except Exception as error:
            self.said.append(f"{promise} with {kind.__name__}; it was {type(error).__name__}: {error}")
        else:
            self.said.append(promise)

    def report(self) -> None:
        if self.said:
            lines = "\n".join(f"- {text}" for text in self.said)
            raise CheckFailed(f"{self.who} breaks {len(self.said)} promise{'s' * (len(self.said) > 1)}:\n{lines}")


class _Seen(Batch):
    """A batch that notes when its labels are read."""

    def __getattribute__(self, name: str) -> Any:
        if name == "y":
            noted = object.__getattribute__(self, "__dict__").get("_note")
            if noted is not None:
                noted()
        return object.__getattribute__(self, name)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        plain = Batch(*(object.__getattribute__(self, n) for n in ("x", "y", "id", "meta"))).map(function)
        return _seen(plain, self.__dict__["_note"])

    def replace(self, **changes: Any) -> Batch:
        fields = {n: object.__getattribute__(self, n) for n in ("x", "y", "id", "meta")} | changes
        return Batch(**fields) if "y" in changes else _seen(Batch(**fields), self.__dict__["_note"])


def _seen(batch: Batch, note: Callable[[], None]) -> Batch:
    made = _Seen(batch.x, batch.y, batch.id, batch.meta)
    object.__setattr__(made, "_note", note)
    return made


class _Noted(Data):
    """Data that notes which of its leaves are read."""

    def __init__(self, base: Data, note: Callable[[str], None]):
        self.base, self.note = base, note

    def __len__(self) -> int:
        return len(self.base)

    def fetch(self, positions: Tensor) -> Batch:
        self.note("x")
        return _seen(self.base.fetch(positions), lambda: self.note("y"))

    def has_labels(self) -> bool:
        return self.base.has_labels()

    def fingerprint(self) -> str:
        return self.base.fingerprint()


class Watch:
    """A world that notes what is read of it."""

    def __init__(self, world: World):
        self.read: set[str] = set()
        splits = {n: self._noted(d, n) for n in SPLITS if (d := getattr(world, n)) is not None}
        parts = {n: self._noted(d, f"parts.{n}") for n, d in world.parts.items()}
        self.world = world.replace(**splits, parts=parts)

    def _noted(self, data: Data, name: str) -> Data:
        return _Noted(data, lambda leaf: self.read.add(f"{name}.{leaf}"))

    def differences(self, declared: frozenset[str], ignore: tuple[str, ...] = ()) -> list[str]:
        """Declared data that were never read. (Undeclared data are absent, so they cannot be.)"""
        said = []
        for need in sorted(declared):
            head = need.split(".")[0]
            if need.endswith("?") or head in ("model", "models", "env", *ignore):
                continue
            pattern = need.replace("parts.*.", "parts.")
            read = any(r == need or (need.startswith("parts.*.") and r.endswith(pattern[-2:])) for r in self.read)
            if not read:
                said.append(f"{need} is declared and never read")
        return said
