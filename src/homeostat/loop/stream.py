"""Running a loop over recorded data, with labels that judge but are not seen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from homeostat.core.data import UNKNOWN, Data
from homeostat.core.errors import InputError
from homeostat.core.reading import Reading
from homeostat.core.task import check_labels
from homeostat.core.trace import Entry, Trace
from homeostat.loop.verify import shadow, share_right

if TYPE_CHECKING:
    from homeostat.loop.loop import Loop


def follow(loop: Loop, stream: Data, labels: int) -> Trace:
    """Serve a stream window by window; see `Loop.run`."""
    if labels < 0:
        raise InputError(f"labels a window are 0 or more; got {labels}")
    size, classes = loop.plan.window, loop._before.shape[-1]
    entries, total = list[Entry](), -(-len(stream) // size)
    for batch in stream.batches(size, start=loop.progress.at * size):
        step, served = loop.progress.at, loop.progress.served
        shown = torch.full((len(batch),), UNKNOWN)
        if batch.y is not None:
            check_labels(batch.labels, classes, "stream.y", (len(batch),))
            chosen = torch.randperm(len(batch), generator=loop.setup.rng("labels", step))[:labels]
            shown[chosen] = batch.labels[chosen]
        began = time.perf_counter()
        out = loop.step(batch.replace(y=shown))
        readings = [Reading("seconds", time.perf_counter() - began, unit="s", better="lower")]
        if batch.y is not None and bool((known := batch.labels != UNKNOWN).any()):
            for name, logits in (("accuracy", out), ("frozen", shadow(loop.frozen, batch))):
                value = share_right(logits[known], batch.labels[known])
                readings.append(Reading(name, value, unit="fraction", better="higher"))
        where = str(int(batch.meta["phase"][0])) if "phase" in batch.meta else ""
        entries.append(Entry(step, served, where, tuple(readings)))
        seen = {reading.name: reading.value for reading in readings}
        loop.setup.emit("window", step + 1, total, served=served, **seen)
    loop.snapshot()
    return Trace(tuple(entries))
