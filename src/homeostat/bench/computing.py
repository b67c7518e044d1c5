"""One cell, computed: the function that runs in this process, in a pool's, or on a Ray worker, with the same result.

A cell is handed over as plain JSON, so that every kind of worker starts from the same words. It is computed on one
thread; what is random comes from its seed. A cell that raises gives a result that says so.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import platform
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from homeostat.bench.entrants import Entrant, Opened, answer
from homeostat.bench.protocols import Protocol
from homeostat.bench.results import Measured, Result
from homeostat.bench.streams import drawn, share
from homeostat.bench.suite import Setting, Stream
from homeostat.core.data import Data
from homeostat.core.method import Remedy
from homeostat.core.probe import Outputs, Probe, measure
from homeostat.core.reach import LIBRARY, modules_of
from homeostat.core.run import Run
from homeostat.core.save import load
from homeostat.core.spec import Spec, from_config
from homeostat.core.task import Classify
from homeostat.core.world import World
from homeostat.loop.network import Network

if TYPE_CHECKING:
    from homeostat.bench.grid import Cell

SMALLEST = 25
"""Samples, at least, over which accuracy is said along a stream."""


def packed(cell: Cell, scratch: Path | None) -> dict[str, Any]:
    """A cell in JSON types."""
    parts = (cell.setting, cell.stream, cell.entrant, cell.protocol, *cell.probes)
    foreign = [name for name in modules_of(*parts) if not name.startswith(f"{LIBRARY}.") and name != "__main__"]
    return {
        "key": cell.key, "suite": cell.suite, "name": cell.name, "sweep": cell.sweep, "seed": cell.seed,
        "setting": cell.setting.to_config(), "stream": cell.stream.to_config(), "entrant": cell.entrant.to_config(),
        "protocol": cell.protocol.to_config(), "probes": [probe.to_config() for probe in cell.probes],
        "tuned": cell.tuned, "network_seed": cell.network_seed,
        "scratch": None if scratch is None else str(scratch), "modules": foreign,
    }  # fmt: skip


def compute(job: Mapping[str, Any]) -> Result:
    """The result of a cell, whatever happens in it.

    Args:
        job: from `packed`.
    """
    with _one_thread():
        try:
            for name in job["modules"]:
                importlib.import_module(name)
            return _computed(job)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            trace = "".join(traceback.format_exception(error)[-6:])
            return failed(job, f"{said}\n\n{trace}")


def failed(job: Mapping[str, Any], error: str) -> Result:
    """The result of a cell that gave none."""
    return Result(**_names(job), status="failed", error=error, about={"versions": _versions()}, at=_now())


def _names(job: Mapping[str, Any]) -> dict[str, Any]:
    stream, protocol = from_config(job["stream"], Stream), from_config(job["protocol"], Protocol)
    ((_, setting),) = job["setting"].items()
    return {
        "key": job["key"], "suite": job["suite"], "setting": setting["name"], "stream": stream.name,
        "protocol": protocol.called(), "entrant": job["name"], "sweep": job["sweep"], "seed": job["seed"],
        "phases": stream.phrases(),
    }  # fmt: skip


def _computed(job: Mapping[str, Any]) -> Result:
    protocol = from_config(job["protocol"], Protocol)
    entrant: Remedy | Entrant | Spec = from_config(job["entrant"], Spec)
    probes = [from_config(probe, Probe) for probe in job["probes"]]
    scratch = None if job["scratch"] is None else Path(job["scratch"])
    opened = _opened(json.dumps(job["setting"]), job["network_seed"], scratch)
    run = Run(seed=job["seed"], scratch=scratch)
    parts = _parts(json.dumps([job[name] for name in ("setting", "stream", "network_seed", "seed", "tuned")]), scratch)
    # What is read of the network in service is prepared before there is a stream.
    kits = {probe: probe.kit(opened.model, World(source=opened.before, task=opened.task), run=run) for probe in probes}
    reads = frozenset[str]().union(*(probe.reads for probe in probes)) | {"y"}
    given = answer(entrant, opened, protocol.pieces(parts, run), protocol, reads, run)
    phases = _by_phase(given.seen, len(parts))
    readings: dict[str, list[Any]] = {}
    for seen, part in zip(phases, parts, strict=True):
        world = World(source=opened.before, target=part, task=opened.task)
        for reading in measure(probes, seen, given.model, world, kits={p: k for p, k in kits.items() if k}, run=run):
            readings.setdefault(reading.name, []).append(reading)
    size = max(protocol.batch, SMALLEST)
    return Result(
        **_names(job), at=_now(),
        readings={
            name: Measured(tuple(float(one.value) for one in found), found[0].better, found[0].unit)
            for name, found in readings.items()
        },
        windows=_windows(given.seen, size, opened),
        prepare_seconds=given.prepare_seconds, seconds=given.seconds, samples=len(given.seen),
        about={"versions": _versions(), "phase_windows": _lengths(given.seen, size), **given.about},
    )  # fmt: skip


@functools.lru_cache(maxsize=3)
def _opened(setting: str, seed: int, scratch: Path | None) -> Opened:
    made: Setting = from_config(json.loads(setting), Setting)
    assert made.before is not None and made.pool is not None
    run = Run(seed=seed, scratch=scratch)
    model = made.model.build(run) if isinstance(made.model, Network) else load(made.model)
    return Opened(model, made.before.read(), made.pool.read(), made.task)


@functools.lru_cache(maxsize=8)
def _parts(drawing: str, scratch: Path | None) -> list[Data]:
    """A stream's parts; entrants that answer the same stream one after another share them."""
    setting, config, network_seed, seed, tuned = json.loads(drawing)
    opened, stream = _opened(json.dumps(setting), network_seed, scratch), from_config(config, Stream)
    pool = share(opened.pool, stream.tuning) if tuned else opened.pool
    return drawn(pool, stream.phases, stream.each, opened.model, Run(seed=seed))


def _by_phase(seen: Outputs, count: int) -> Sequence[Outputs]:
    phase = (seen.meta or {})["phase"]
    return [seen[phase == number] for number in range(count)]


def _windows(seen: Outputs, size: int, opened: Opened) -> tuple[float, ...]:
    """Accuracy along the stream; nothing where the task is no classification."""
    if not isinstance(opened.task, Classify) or not isinstance(seen.y, Tensor):
        return ()
    known = opened.task.known(seen.y)
    right = (seen.logits.argmax(-1) == seen.y).double()
    shares = [
        float(hit[mine].mean()) if bool(mine.any()) else math.nan
        for hit, mine in zip(right.split(size), known.split(size), strict=True)
    ]
    return tuple(shares)


def _lengths(seen: Outputs, size: int) -> list[int]:
    """Windows of each phase, where phases come one after another; a window belongs to the phase that it begins in."""
    phase = (seen.meta or {})["phase"]
    if bool((phase.diff() < 0).any()):
        return []
    return torch.bincount(phase[::size], minlength=int(phase.max()) + 1).tolist()


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _versions() -> dict[str, Any]:
    try:
        own = version("homeostat")
    except PackageNotFoundError:
        own = "from source"
    return {"homeostat": own, "torch": torch.__version__, "python": platform.python_version()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
