"""Running a loop over recorded data, with labels that judge but are not seen."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from homeostat.core.data import UNKNOWN, Batch, Data, revealed
from homeostat.core.errors import InputError
from homeostat.core.reading import Reading
from homeostat.core.task import check_labels
from homeostat.core.trace import Entry, Trace
from homeostat.loop.judged import TRIED
from homeostat.loop.verify import share_right

if TYPE_CHECKING:
    from homeostat.loop.loop import Loop


def follow(loop: Loop, stream: Data, labels: int, delay: int) -> Trace:
    """Serve a stream window by window; see `Loop.run`."""
    for name, value in (("labels a window", labels), ("windows of delay", delay)):
        if value < 0:
            raise InputError(f"{name} are 0 or more; got {value}")
    size = loop.plan.window
    entries, total = list[Entry](), -(-len(stream) // size)
    for batch in stream.batches(size, start=loop.progress.at * size):
        step, served = loop.progress.at, loop.progress.served
        shown = torch.full((len(batch),), UNKNOWN)
        if batch.y is not None and delay == 0:
            shown = _revealed(loop, batch, step, labels)
        elif batch.y is not None and step >= delay:
            first = (step - delay) * size
            earlier = stream.fetch(torch.arange(first, first + size))
            loop.feedback(_revealed(loop, earlier, step - delay, labels), earlier.id, step - delay)
        began = time.perf_counter()
        out = loop.step(batch.replace(y=shown))
        readings = [Reading("seconds", time.perf_counter() - began, unit="s", better="lower")]
        if batch.y is not None and bool((known := batch.labels != UNKNOWN).any()):
            assert loop.seen is not None
            for name, logits in (("accuracy", out), ("frozen", loop.seen.logits)):
                value = share_right(logits[known], batch.labels[known])
                readings.append(Reading(name, value, unit="fraction", better="higher"))
            for name, logits in loop.controller.tried.items():
                value = share_right(logits[known], batch.labels[known])
                readings.append(Reading(TRIED + name, value, unit="fraction", better="higher"))
        if (memory := peak_memory()) is not None:
            readings.append(Reading("memory", memory, unit="MiB", better="lower"))
        where = str(int(batch.meta["phase"][0])) if "phase" in batch.meta else ""
        entries.append(Entry(step, served, where, tuple(readings)))
        seen = {reading.name: reading.value for reading in readings}
        loop.setup.emit("window", step + 1, total, served=served, where=where, **seen)
    loop.snapshot()
    return Trace(tuple(entries))


def peak_memory() -> float | None:
    """Most memory that this process ever held, in MiB; None where the system does not say it in `/proc`."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024, 1)
    except (OSError, StopIteration, ValueError):
        return None


def _revealed(loop: Loop, batch: Batch, step: int, labels: int) -> Tensor:
    check_labels(batch.labels, loop.classes, "stream.y", (len(batch),))
    return revealed(batch.labels, labels, loop.setup.rng("labels", step))
