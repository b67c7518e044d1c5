"""Running a loop over recorded data, with labels that judge but are not seen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from homeostat.core.data import UNKNOWN, Batch, Data, revealed
from homeostat.core.errors import InputError
from homeostat.core.memory import peak
from homeostat.core.place import home
from homeostat.core.reading import Reading
from homeostat.core.task import check_labels
from homeostat.core.trace import Entry, Trace
from homeostat.loop.asking import OnDemand, wanted
from homeostat.loop.judged import TRIED
from homeostat.loop.verify import share_right

if TYPE_CHECKING:
    from homeostat.loop.loop import Loop


def follow(loop: Loop, stream: Data, labels: int | OnDemand, delay: int) -> Trace:
    """Serve a stream window by window; see `Loop.run`."""
    wanted(labels, loop.progress)
    if delay < 0:
        raise InputError(f"windows of delay are 0 or more; got {delay}")
    size = loop.plan.window
    entries, total = list[Entry](), -(-len(stream) // size)
    for batch in stream.batches(size, start=loop.progress.at * size):
        step, served = loop.progress.at, loop.progress.served
        shown, truth = torch.full((len(batch),), UNKNOWN), None if batch.y is None else home(batch.labels)
        if batch.y is not None and delay == 0:
            shown = _revealed(loop, batch, step, wanted(labels, loop.progress))
        elif batch.y is not None and step >= delay:
            first = (step - delay) * size
            earlier = stream.fetch(torch.arange(first, first + size))
            count = wanted(labels, loop.progress)
            loop.feedback(_revealed(loop, earlier, step - delay, count), earlier.id, step - delay)
        began = time.perf_counter()
        out = loop.step(batch.replace(y=shown))
        readings = [Reading("seconds", time.perf_counter() - began, unit="s", better="lower")]
        if truth is not None and bool((known := truth != UNKNOWN).any()):
            assert loop.seen is not None
            for name, logits in (("accuracy", out), ("frozen", loop.seen.logits)):
                value = share_right(logits[known], truth[known])
                readings.append(Reading(name, value, unit="fraction", better="higher"))
            for name, logits in loop.controller.tried.items():
                value = share_right(logits[known], truth[known])
                readings.append(Reading(TRIED + name, value, unit="fraction", better="higher"))
        if (memory := peak()) is not None:
            readings.append(Reading("memory", round(memory / 2**20, 1), unit="MiB", better="lower"))
        where = str(int(batch.meta["phase"][0])) if "phase" in batch.meta else ""
        entries.append(Entry(step, served, where, tuple(readings)))
        seen = {reading.name: reading.value for reading in readings}
        loop.setup.emit("window", step + 1, total, served=served, where=where, **seen)
    loop.snapshot()
    return Trace(tuple(entries))


def _revealed(loop: Loop, batch: Batch, step: int, labels: int) -> Tensor:
    check_labels(batch.labels, loop.classes, "stream.y", (len(batch),))
    return revealed(home(batch.labels), labels, loop.setup.rng("labels", step))
