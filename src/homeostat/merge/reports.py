"""What a merge of checkpoints did, or would do."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from homeostat.core.memory import _said

EVERY = 0.02
"""Seconds between two looks at the memory."""


@dataclass(frozen=True)
class MergeReport:
    """What a merge of checkpoints did, or, of a dry run, would do.

    Attributes:
        out: the checkpoint.
        methods: with how many tensors each merges.
        merged, copied: tensors.
        numbers: in them.
        read, written: bytes; those that are read twice count twice.
        memory: bytes that it is expected to hold at a time besides the process itself.
        notes: what was found worth knowing of the inputs.
        dry: whether nothing was done.
        resumed: tensors that an earlier, killed run had finished.
        seconds: of this run.
        peak: bytes of anonymous memory that it held at most beyond what the process held before; None where the system
            does not say.
        tensors: what methods noted of tensors: for TIES the share of changes `kept`, and of these the share `outvoted`.
    """

    out: Path
    methods: Mapping[str, int]
    merged: int
    copied: int
    numbers: int
    read: int
    written: int
    memory: int
    notes: tuple[str, ...] = ()
    dry: bool = False
    resumed: int = 0
    seconds: float = 0.0
    peak: int | None = None
    tensors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def mean(self, what: str) -> float | None:
        """The mean over tensors of a number that methods noted of them, such as `"outvoted"`."""
        found = [float(note[what]) for note in self.tensors.values() if what in note]
        return sum(found) / len(found) if found else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "out": str(self.out), "tensors": {n: dict(t) for n, t in self.tensors.items()}}


class Held:
    """Watches how much anonymous memory the process holds, while a block runs.

    Attributes:
        most: bytes beyond what there was at the beginning; None where the system does not say.
    """

    def __enter__(self) -> Held:
        self._before = _said("RssAnon")
        self.most: int | None = None if self._before is None else 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        if self._before is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._before is not None:
            self._thread.join()

    def _look(self) -> None:
        while True:
            last = self._over.wait(EVERY)
            self.most = max(self.most or 0, (_said("RssAnon") or 0) - (self._before or 0))
            if last:
                return
