"""Following a deployment's stream to its end, and the report on it.

What `homeostat run`, `resume` and `report` do, for callers in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from homeostat.core.data import Data
from homeostat.core.errors import HomeostatError, StoreError
from homeostat.core.method import Shift
from homeostat.core.run import Event, ignore
from homeostat.core.trace import Trace
from homeostat.data.strings import Tokenized
from homeostat.loop.alerts import Alerts
from homeostat.loop.asking import OnDemand
from homeostat.loop.deployment import Deployment, begun, check_same, deploy, kept_deployment, open_stream
from homeostat.loop.judged import Judged
from homeostat.loop.operate import Status, status
from homeostat.loop.record import DEPLOYMENT, check_store, record, windows_in_all
from homeostat.loop.reporting.page import report
from homeostat.loop.reporting.pictures import Words
from homeostat.loop.samples import Samples
from homeostat.shift.schedule import Clean, Phases

REPORT = "report.html"
"""Where a store's report is written."""
PICTURES = 12
"""Samples of a phase that a report shows."""


@dataclass(frozen=True)
class Served:
    """What following a stream came to.

    Attributes:
        status: of the store.
        report: the HTML file.
        windows: how many this call served; 0 where the stream was at its end already.
        accuracy, frozen: shares of right answers over all windows that labels judge, as served and as deployed; None
            where none do.
        alerts: what became of alerts that did not get through, or empty.
    """

    status: Status
    report: Path
    windows: int
    accuracy: float | None
    frozen: float | None
    alerts: str = ""


def serve(
    deployment: Deployment,
    *,
    watch: Callable[[Event], None] = ignore,
    fresh: bool = False,
    device: str | None = None,
) -> Served:
    """Follow a deployment's stream from where its store stands to its end, and write the report.

    Args:
        deployment: see `read_deployment`.
        watch: is told of progress and of what happens.
        fresh: begin anew; a store that is there is set aside as `STORE.1`, `STORE.2`, ...
        device: where the networks go, such as `"cuda"`; default, the CPU.

    Raises:
        StoreError: the store is of another deployment, or another process serves from it.
        And what reading the data, building the network and the loop raise.
    """
    folder = Path(deployment.store)
    judged, windows = Judged(folder), 0
    if fresh or not _finished(deployment, folder):
        alerts = Alerts(deployment.alerts, store=str(folder))

        def tell(event: Event) -> None:
            alerts(event)
            judged(event)
            watch(event)

        try:
            windows = _follow(deployment, tell, fresh, device, judged)
        except Exception as error:
            at = windows_served(folder) if isinstance(error, HomeostatError) else 0
            alerts(Event("failure", at, values={"text": f"the loop stopped: {error}"}))
            raise
        finally:
            done = alerts.close()
        lost = [] if done and not alerts.dropped else [f"{max(1, alerts.dropped)} alerts were not given in time"]
        lost += [f"{alerts.failed} alerts failed, the last of {alerts.failure}"] if alerts.failed else []
    else:
        lost = []
    accuracy, frozen = judged.means()
    return Served(status(folder), write_report(folder), windows, accuracy, frozen, "; ".join(lost))


def _follow(
    deployment: Deployment, watch: Callable[[Event], None], fresh: bool, device: str | None, judged: Judged
) -> int:
    loop, stream = deploy(deployment, watch=watch, fresh=fresh, device=device)
    with loop:
        began = loop.progress.at
        judged.add(loop.run(stream, labels=deployment.labels, delay=deployment.delay))
        return loop.progress.at - began


def _finished(deployment: Deployment, folder: Path) -> bool:
    """Whether the store followed the same deployment to the end of its stream."""
    if not begun(folder):
        return False
    check_same(deployment, folder)
    return windows_served(folder) >= -(-len(open_stream(deployment)) // deployment.plan.window)


def windows_served(folder: Path) -> int:
    """How many windows a resumed loop has behind it; 0 where there is no store."""
    try:
        with record(folder) as journal:
            snapshot = journal.last("snapshot")
    except StoreError:
        return 0
    return 0 if snapshot is None else int(snapshot.content.get("at", 0))


def write_report(store: str | Path, path: str | Path | None = None) -> Path:
    """Write a store's report again, from its journal and what labels said; no lock is taken.

    Args:
        store: its folder.
        path: of the HTML file; default, `report.html` in the store.

    Raises:
        StoreError: there is no store, or the report cannot be written. InputError: no window was served yet.
    """
    folder = check_store(store)
    with record(folder) as journal:
        rows = list(journal.rows())
    trace = Judged(folder).trace()
    more: dict[str, Any] = {"samples": Samples(folder).read()}
    if (folder / DEPLOYMENT).is_file():
        more |= _about(kept_deployment(folder), trace, windows_in_all(folder))
    return report(rows, trace, folder / REPORT if path is None else path, **more)


def _about(deployment: Deployment, trace: Trace, total: int | None) -> dict[str, Any]:
    """What a report says beside the journal: the names of phases, pictures, and what was run."""
    labels, window = deployment.labels, deployment.plan.window
    if isinstance(labels, OnDemand):
        shown = f"{labels.calm} of {window} a window, {labels.trial} in a trial"
    else:
        shown = f"{labels} of {window} a window" if labels else "none"
    if labels and deployment.delay:
        shown += f", {deployment.delay} windows late"
    model = deployment.model if isinstance(deployment.model, str) else in_words(deployment.model)
    about = {"Network": model, "Data from before": in_words(deployment.before), "Stream": in_words(deployment.stream),
             "Labels shown to the loop": shown}  # fmt: skip
    if deployment.shift is not None:
        about["Shift of the stream"] = "a rehearsal: " + in_words(deployment.shift)
    if total is not None:
        about["Windows in the stream"] = f"{total:,}"
    phases = phase_names(deployment.shift)
    return {"about": about, "phases": phases, **_inputs(deployment, trace, phases)}


def phase_names(shift: Shift | None) -> list[str]:
    """What a report calls the phases of a stream."""
    if not isinstance(shift, Phases):
        return []
    return [in_words(part) for part in shift.shifts] * shift.cycles


def in_words(spec: Any) -> str:
    """A Spec by its name and what is not as usual.

    >>> in_words(Clean()), in_words(Phases((Clean(),), each=50))
    ('as it is', 'Phases (each 50)')
    """
    if isinstance(spec, Clean):
        return "as it is"
    usual = {name: field.default for name, field in type(spec).__dataclass_fields__.items()}
    said = [
        f"{name.replace('_', ' ')} {value}" for name, value in spec.fields().items()
        if value != usual[name] and isinstance(value, (str, int, float))
    ]  # fmt: skip
    return type(spec).__name__ + (f" ({', '.join(said)})" if said else "")


def _inputs(deployment: Deployment, trace: Trace, phases: Sequence[str]) -> dict[str, Any]:
    """The first inputs from before and of each phase, where they are pictures; how tokens are read, where they are."""
    first: dict[str, int] = {}
    for entry in trace:
        first.setdefault(entry.where, entry.step * deployment.plan.window)
    try:
        assert deployment.before is not None
        stream = open_stream(deployment)
        before = deployment.before.read()
        found = [("from before", _pictures(before, 0))]
        for where, place in first.items():
            name = phases[int(where)] if where.isdecimal() and int(where) < len(phases) else where or "the stream"
            window = place // deployment.plan.window
            found.append((f"{name}, from window {window} on", _pictures(stream, place)))
    except HomeostatError:
        # The data may be gone when a report is written again; the rest of it does not need them.
        return {}
    return {"examples": [(name, x) for name, x in found if x is not None], "words": words_of(before, stream)}


def words_of(*data: Data) -> Words | None:
    """What reads the tokens of data that know their texts; None where none do."""
    tokenizers = [part.tokenizer for part in data if isinstance(part, Tokenized)]
    return next((made.decode for made in tokenizers if hasattr(made, "decode")), None)


def _pictures(data: Data, start: int) -> Tensor | None:
    x: Any = data.fetch(torch.arange(start, min(start + PICTURES, len(data)))).x
    fits = isinstance(x, Tensor) and x.is_floating_point() and x.ndim == 4 and x.shape[1] in (1, 3) and len(x) > 0
    return x if fits and bool((x >= 0).all() and (x <= 1).all()) else None
