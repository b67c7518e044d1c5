"""Looking at a store, and rolling it back, from outside the process that serves.

Reading takes no lock and writes nothing, so that it works while another process serves. What it sees is what that
process has written: alarms and decisions at once, other windows with the next snapshot.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homeostat.core.errors import CheckpointError, InputError, StoreError, UnknownName, nearest
from homeostat.loop.journal import SWITCHES, Row
from homeostat.loop.record import check_store, journal_url, record, serving, windows_in_all

if TYPE_CHECKING:
    from torch import nn

EVENTS = ("start", "device", "alarm", "propose", "decision", "commit", "rollback", "keep")
"""Kinds of row that tell what happened. `window` and `snapshot` come besides, as a matter of course."""
DEPLOYED = "the network as deployed"


@dataclass(frozen=True)
class Status:
    """How a store stands; JSON-ready by `dataclasses.asdict`.

    Attributes:
        store: its folder.
        process: who serves from it now; None for nobody, 0 where the number is not known.
        served, since, checkpoint: what is served, from which window on, and the hash of its checkpoint.
        phase: `"watch"`, `"trial"` or, where nothing was served yet, `"new"`.
        windows, of: windows served, as far as they are written, and those of the whole stream where it is known.
        written: when the last row was written, in seconds since 1970.
        alarms, commits, rollbacks, unchanged: how many; `unchanged` counts trials after which nothing changed.
        last_alarm: its `step` and what it said, or None.
        trial: while there is one, its first window and what was gathered of each candidate up to the last snapshot.
        breach: labelled evidence that the network as deployed is better than what is served.
        accuracy_before: of the network as deployed, on data from before.
        journal_bytes, rows, checkpoints, checkpoint_bytes: what the store takes. `journal_bytes` is None where the
            journal is in a database elsewhere.
    """

    store: str
    process: int | None
    served: str
    since: int
    checkpoint: str
    phase: str
    windows: int
    of: int | None
    written: float
    alarms: int
    commits: int
    rollbacks: int
    unchanged: int
    last_alarm: dict[str, Any] | None
    trial: dict[str, Any] | None
    breach: dict[str, Any]
    accuracy_before: float | None
    journal_bytes: int | None
    rows: int
    checkpoints: int
    checkpoint_bytes: int

    @property
    def finished(self) -> bool:
        """Whether its stream is at its end."""
        return self.of is not None and self.windows >= self.of


def status(path: str | Path) -> Status:
    """How a store stands.

    Raises:
        StoreError: there is no store, or a row of its journal is corrupt.
    """
    with record(path) as journal:
        counts = journal.counts()
        switch, start, snapshot = journal.last(*SWITCHES), journal.last("start"), journal.last("snapshot")
        turn = journal.last("propose", "keep", "commit", "rollback")
        window, alarm = journal.last("window"), journal.last("alarm")
        newest = max((row.time for row in (switch, snapshot, turn, window, alarm) if row is not None), default=0.0)
        again = sum(bool(row.content.get("again")) for row in journal.rows("alarm"))
    kept = snapshot.content if snapshot is not None else {}
    trial, phase = None, "new" if switch is None else "watch"
    if turn is not None and turn.kind == "propose":
        phase = "trial"
        trial = {"since": turn.step, "tried": turn.content.get("tried", []), "seen": _seen(kept.get("trials", []))}
    files = list((Path(path) / "checkpoints").glob("[!.]*"))
    last = max(window.step + 1 if window is not None else 0, int(kept.get("at", 0)))
    journal_files = list(Path(path).glob("journal.sqlite*"))
    return Status(
        store=str(path), process=serving(path), served=_to(switch), since=_first_window(switch),
        checkpoint=(switch.checkpoint or "") if switch is not None else "", phase=phase, windows=last,
        of=windows_in_all(path), written=newest, alarms=counts.get("alarm", 0) - again,
        commits=counts.get("commit", 0), rollbacks=counts.get("rollback", 0), unchanged=counts.get("keep", 0),
        last_alarm=None if alarm is None else {"step": alarm.step, **alarm.content}, trial=trial,
        breach=dict(kept.get("breach", {})), accuracy_before=start.content.get("accuracy_before") if start else None,
        journal_bytes=sum(map(_size, journal_files)) if journal_files else None, rows=sum(counts.values()),
        checkpoints=len(files), checkpoint_bytes=sum(_size(file) for folder in files for file in folder.rglob("*")),
    )  # fmt: skip


def history(path: str | Path, kinds: Sequence[str] = EVENTS, last: int | None = None) -> list[Row]:
    """The journal's rows of these kinds in order, or the last of them.

    Raises:
        UnknownName: no row can be of such a kind. InputError: fewer than one is asked for.
    """
    if last is not None and last < 1:
        raise InputError(f"at least one row is asked for; got {last}")
    with record(path) as journal:
        known = sorted({*EVENTS, "window", "snapshot", *journal.counts()})
        for kind in kinds:
            if kind not in known:
                raise UnknownName(f"no row is of kind {kind!r}.{nearest(kind, known)} Kinds: {', '.join(known)}")
        return list(journal.rows(*kinds)) if last is None else journal.newest(last, *kinds)[::-1]


def in_short(row: Row) -> str:
    """A row of the journal in a line."""
    said = row.content

    def named(key: str) -> str:
        return DEPLOYED if said.get(key) == "source" else str(said.get(key, ""))

    def listed(names: Any) -> str:
        return ", ".join(DEPLOYED if name == "source" else str(name) for name in names)

    if row.kind == "start":
        return f"begun; {DEPLOYED} was right on {said.get('accuracy_before', 0):.1%} of the data from before"
    if row.kind == "device":
        return f"the networks lie on {said.get('to', '')} from here on, before on {said.get('from', '')}"
    if row.kind == "alarm":
        again = "the last one's cause is still there: " if said.get("again") else ""
        looks = f"; diagnosis: {said['shift']}" if said.get("shift") else ""
        return f"{again}{said.get('text', '')}{_for_how_long(said)}{looks}"
    if row.kind == "propose":
        left = said.get("left") or {}
        reasons = [f"{name} ({left[name]})" if isinstance(left, Mapping) else str(name) for name in left]
        out = f"; left out: {'; '.join(reasons)}" if reasons else ""
        return f"tries {listed(said.get('tried', ())) or 'nothing'}{out}"
    if row.kind == "decision":
        return "; ".join(f"{listed([v.get('name')])}: {v.get('word')}" for v in said.get("verdicts", ()))
    if row.kind in ("commit", "rollback"):
        return f"{named('to')} in place of {named('from')}: {said.get('why', '')}"
    if row.kind == "keep":
        why = str(said.get("why", ""))
        return f"nothing changed, {named('served')} goes on: {why[:99] + '…' * (len(why) > 99)}"
    if row.kind == "snapshot":
        return f"everything written, to go on at window {said.get('at')}"
    if row.kind == "window":
        labels = f"; labels {said['labels']}, right {said.get('right')}" if said.get("labels") else ""
        lost = f"; labels lost {said['lost']}" if said.get("lost") else ""
        who = f"answered by {named('served')}"
        if said.get("failed"):
            who = f"answered by {DEPLOYED}, because {named('served')} could not: {said['failed']}"
        elif said.get("hedged"):
            who = f"answered by {DEPLOYED} in place of {named('served')}, because {said['hedged']}"
        return f"{who}, entropy {said.get('entropy')}{labels}{lost}"
    return str(said.get("text") or said.get("why") or json.dumps(said))


def _for_how_long(said: Mapping[str, Any]) -> str:
    """For how many windows it had been so at an alarm, where the row of the alarm itself says it."""
    since = said.get("since")
    if said.get("again") or not isinstance(since, (list, tuple)) or len(since) != 3:
        return ""
    return f"; for about {since[0]} window{'s' * (since[0] != 1)} ({since[1]} to {since[2]})"


def rollback(path: str | Path, to: int | None = None, why: str = "", base: nn.Module | None = None) -> Row:
    """Put the network as deployed back, or what was served after an earlier switch.

    The next loop on the store serves it. A trial in progress is dropped. The monitor goes on as it stands, so that the
    loop may change what is served again when its evidence says so.

    Args:
        path: the store's folder, which nobody serves from.
        to: window of the switch after which it was served; None is the network as deployed.
        why: for the journal.
        base: the network as deployed, where it is of a class that this library cannot build.

    Returns:
        The journal's row.

    Raises:
        StoreError: there is no store, another process serves from it, or nothing was served yet.
        InputError: there was no such switch, or nothing would change.
        CheckpointError: what is wanted is not kept any more, or damaged.
    """
    from torch import nn

    from homeostat.core.fork import fork
    from homeostat.core.spec import from_config
    from homeostat.loop.plan import Plan
    from homeostat.loop.probation import Probation
    from homeostat.loop.progress import LoopState, Progress
    from homeostat.loop.store import Store
    from homeostat.loop.verify import Paired

    path = check_store(path)
    with Store(path, url=journal_url(path)) as store:
        start, snapshot = store.last("start"), store.last("snapshot")
        if start is None or snapshot is None:
            raise StoreError(f"{path} has served no window that it wrote down; there is nothing to roll back")
        target = start if to is None else _switch_at(list(store.rows(*SWITCHES)), to)
        name = _to(target)
        if name == "source" and snapshot.content.get("served") == "source":
            raise InputError(f"{DEPLOYED} is served already; there is nothing to roll back")
        if not (path / "checkpoints" / str(target.checkpoint)).is_dir():
            raise CheckpointError(f"what was served after window {target.step} is not kept any more; {_kept(store)}")
        frozen = store.load(str(start.checkpoint), base=base)
        state = store.load(str(snapshot.checkpoint), base=frozen)
        assert isinstance(state, LoopState)
        progress = Progress.from_dict(snapshot.content)
        model = fork(frozen) if name == "source" else store.load(str(target.checkpoint), base=frozen)
        before, state.served, state.shadows = progress.served, model, nn.Sequential()
        # A row that equals an earlier one is not written again. These two must be: they count rollbacks by hand.
        by_hand = progress.by_hand + 1
        progress = dataclasses.replace(
            progress, served=name, switched=progress.at, phase="watch", since=0, trials=[], retry_at=-1,
            breach=Paired(), probation=Probation(), bias=0.0, low=0, slow=0, by_hand=by_hand,
        )  # fmt: skip
        said = {"from": before, "to": name, "why": why or "asked for", "by": "hand", "number": by_hand}
        kept = store.keep(state)
        row = Row(max(0, progress.at - 1), "rollback", said, store.keep(model))
        store.write([row, Row(progress.at, "snapshot", progress.as_dict(), kept)])
        if (written := store.last("snapshot")) is None or written.checkpoint != kept:
            raise StoreError(f"the rollback is not what {path} will go on from; restore the journal from a copy")
        store.collect([kept], from_config(start.content["plan"], Plan).checkpoints)
    return row


def _switch_at(switches: Sequence[Row], step: int) -> Row:
    found = [row for row in switches if row.step == step]
    if not found:
        steps = ", ".join(f"{row.step} ({_to(row)})" for row in switches[-12:])
        raise InputError(f"nothing was put in service at window {step}; that happened at {steps}")
    return found[-1]


def _kept(store: Any) -> str:
    held = {path.name for path in (store.path / "checkpoints").iterdir()}
    return "kept are " + ", ".join(f"{r.step} ({_to(r)})" for r in store.rows(*SWITCHES) if r.checkpoint in held)


def _to(switch: Row | None) -> str:
    return "" if switch is None else "source" if switch.kind == "start" else str(switch.content.get("to", ""))


def _first_window(switch: Row | None) -> int:
    return 0 if switch is None or switch.kind == "start" else switch.step + 1


def _seen(trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"name": t.get("name"), "refused": t.get("refused", ""), **t.get("evidence", {})} for t in trials]


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # removed while we look
        return 0
