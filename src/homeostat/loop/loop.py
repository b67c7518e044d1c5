"""The loop: serve, monitor, diagnose, propose, trial, verify, commit or roll back, journal; window after window.

The network as deployed (the *frozen* one) is kept and is the sensor. What is *served* starts as it and changes only by
a commit. Every decision, its evidence and the checkpoint it leads to are in the journal; what a killed process had
committed is there when it resumes, and the resumed run goes on as the uninterrupted one would have.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.core.data import UNKNOWN, Batch, Data, check_finite
from homeostat.core.errors import InputError, ModelError, StoreError
from homeostat.core.fork import fork, unwrap
from homeostat.core.intake import as_data
from homeostat.core.method import Remedy, Shift
from homeostat.core.online import Online
from homeostat.core.place import HOME, check_device, device_of, placed
from homeostat.core.probe import Outputs
from homeostat.core.run import Run
from homeostat.core.save import content_hash
from homeostat.core.task import Classify, check_labels
from homeostat.core.trace import Trace
from homeostat.core.weights import check_weights
from homeostat.core.world import World
from homeostat.loop.asking import OnDemand
from homeostat.loop.controller import Controller
from homeostat.loop.hedge import doubt
from homeostat.loop.plan import Plan
from homeostat.loop.progress import LoopState, Progress
from homeostat.loop.repertoire import Repertoire, labelled_before
from homeostat.loop.samples import Samples
from homeostat.loop.sensor import Sensor
from homeostat.loop.store import SWITCHES, Row, Store
from homeostat.loop.stream import follow
from homeostat.loop.verify import attempt
from homeostat.loop.window import Window


class Loop:
    """Keeps a classifier within its limits while the world moves.

    Args:
        model: the network as deployed; untouched.
        world: needs labelled `source` (or `calibration`): data from before that the network was not trained on.
        remedies: candidates, in order of preference where neither rehearsals nor the record say anything.
        store: folder of the journal and checkpoints. An existing one is resumed.
        simulate: shifts on which candidates' estimates are calibrated; without them only labels can commit.
        plan: how the loop works.
        run: seed, watcher, `scratch` for caches (default: inside the store), and `device` for the networks (default:
            where the given one lies). Windows and labels may lie anywhere; answers come on the CPU.

    Attributes:
        frozen: the network as deployed, a fork of the given one.
        seen: its outputs for the window that was learnt from last.

    Raises:
        MissingPart: there are no labelled data from before.
        StoreError: another process holds the store, or it was begun with another network.
        ModelError, NonFiniteError: the network is not a classifier, adapts already, or is not sound.
        InputError: data from before do not fit the network, or are fewer than 50 samples; or there is no such device.
    """

    def __init__(
        self,
        model: nn.Module,
        world: World,
        remedies: Sequence[Remedy],
        store: Store | str | Path,
        *,
        simulate: Sequence[Shift] = (),
        plan: Plan = Plan(),
        run: Run = Run(),
    ):
        if not isinstance(world.task, Classify):
            raise ModelError(f"the loop serves classifiers; the world's task is {type(world.task).__name__}")
        check_device(run.device)
        self.frozen = placed(fork(unwrap(model)).eval(), run.device)
        check_weights(self.frozen)
        if any(isinstance(module, Online) for module in self.frozen.modules()):
            raise ModelError("the model adapts while it serves; give the plain network, and its method as a remedy")
        self.sensor = Sensor(self.frozen, world.task)
        data = labelled_before(world)
        self.plan, self.world = plan, world
        where = store.path if isinstance(store, Store) else Path(store)
        self.setup = run if run.scratch is not None else run.replace(scratch=where / "cache")
        # Nothing is written before this has shown that data and network fit.
        before = self.sensor.read_kept(data, "source", self.setup)
        self.classes = before.logits.shape[-1]
        self.store = store if isinstance(store, Store) else Store(store)
        self._rows: list[Row] = []
        self._late: list[tuple[Tensor, Tensor, int | None]] = []
        self.seen: Outputs | None = None
        self._now: tuple[Batch, Batch, Tensor, Tensor, str, str, float, Outputs | None] | None = None
        try:
            self.repertoire = Repertoire(remedies, self.sensor, world, data, before, simulate, plan, self.setup)
            self.controller = Controller(self.frozen, before, self.repertoire, plan, self.setup, self._say)
            self._start()
        except BaseException:
            if self.store is not store:
                self.store.close()
            raise

    @property
    def state(self) -> LoopState:
        """The tensors: what is served, candidates in shadow, and all that the loop remembers."""
        return self.controller.state

    @property
    def progress(self) -> Progress:
        """Where the loop stands."""
        return self.controller.progress

    # -- start, snapshot, resume

    def _start(self) -> None:
        snapshot, start = self.store.last("snapshot"), self.store.last("start")
        if start is not None and start.checkpoint != content_hash(self.state.served):
            raise StoreError(f"{self.store.path} was begun with another network; give that one, or another folder")
        if snapshot is not None:
            self._resume(snapshot)
        elif start is None:
            name = self.store.keep(self.state.served)
            right = round(1 - self.controller.error_before, 6)
            said = {"served": "source", "accuracy_before": right, "plan": self.plan.to_config()}
            self.store.write([Row(0, "start", said, name)])
        self._note_device()

    def _note_device(self) -> None:
        """A row where networks lie elsewhere than so far: numbers may then differ in their last digits."""
        earlier = list(self.store.rows("device"))
        was, now = earlier[-1].content["to"] if earlier else str(HOME), str(device_of(self.frozen) or HOME)
        if now != was:
            # The number tells rows apart: one that equals an earlier one is not written again.
            self.store.write([Row(self.progress.at, "device", {"from": was, "to": now, "number": len(earlier) + 1})])

    def _resume(self, row: Row) -> None:
        state = self.store.load(str(row.checkpoint), base=self.frozen, device=HOME)
        assert isinstance(state, LoopState)
        state.served, state.shadows = (placed(m, device_of(self.frozen)) for m in (state.served, state.shadows))
        made = self.controller
        made.state, made.progress = state, Progress.from_dict(row.content)
        made.recent = state.recent(made.progress.recent, self.repertoire.before.fetch(torch.arange(1)).x)
        for earlier in self.store.rows("decision"):
            if earlier.step < made.progress.at:
                made.remember(earlier.step, earlier.content)

    def snapshot(self) -> None:
        """Write all state to the store; a resumed run starts from the last snapshot."""
        self.state.put_recent(self.controller.recent)
        self.progress.recent = len(self.controller.recent)
        name = self.store.keep(self.state)
        self._rows.append(Row(self.progress.at, "snapshot", self.progress.as_dict(), name))
        self.flush()
        self.store.collect([name], self.plan.checkpoints)

    def flush(self) -> None:
        """Write the journal rows that wait; they are also written at every decision and snapshot."""
        if self._rows:
            self.store.write(self._rows)
            self._rows = []

    def _say(self, kind: str, content: dict[str, Any], model: nn.Module | None) -> None:
        # Written at the end of the window: a switch with the snapshot, so that a resumed process serves what the
        # journal says; and what cannot be written must not leave a window half learnt from.
        name = None if model is None else self.store.keep(model)
        self._rows.append(Row(self.progress.at, kind, content, name))
        if kind == "alarm" and not content["again"] and self.plan.samples:
            recent, since, before = self.controller.recent, content["since"][0], self.repertoire.before
            Samples(self.store.path).keep(self.progress.at, recent, max(1, since), before, self.plan.samples)

    # -- serve

    def predict(self, batch: Batch | Any) -> Tensor:
        """Serve a window: predictions at once, from the served model, on the CPU; an online one learns from the inputs.

        Should the served model fail, or give NaN or infinity, the frozen network's predictions are served instead, and
        `learn` rolls back. So they are for a window that is unlike those on which what is served was verified, see
        `Plan.hedge`.

        Raises:
            NonFiniteError: NaN or infinity in the inputs, or given by the frozen network.
            InputError: the window is empty or does not fit, or labels are out of range. Nothing changes then.
        """
        made = batch if isinstance(batch, Batch) else as_data(batch).load()
        if len(made) == 0:
            raise InputError("the window is empty; at least one sample is needed")
        check_finite(made.x, "x")
        if made.y is not None:
            check_labels(made.labels, self.classes, "y", (len(made),))
        began, seen, failed, hedged = time.perf_counter(), None, "", ""
        there = made.replace(y=None).to(device_of(self.frozen))
        if self.progress.served == "source":
            seen = self.sensor(made, there.x)
            out: Tensor | None = seen.logits
        else:
            out, failed, _ = attempt(self.state.served, there)
            if out is None or self.plan.hedge:
                seen = self.sensor(made, there.x)
            if out is not None and seen is not None:
                made_of = (self.plan, self.progress, self.repertoire, self.state.carry)
                hedged = doubt(*made_of, out, seen)
        own = out
        if out is None or hedged:
            assert seen is not None
            out = seen.logits
        self._now = (
            made,
            there,
            out,
            out if own is None else own,
            failed,
            hedged,
            1000 * (time.perf_counter() - began),
            seen,
        )
        return out

    def step(self, batch: Batch | Any) -> Tensor:
        """Serve a window, then monitor, try, verify, decide and journal. Labels in `batch.y` may be partly unknown."""
        out = self.predict(batch)
        self.learn()
        return out

    def feedback(self, labels: Tensor | Any, ids: Tensor | Any, step: int | None = None) -> None:
        """Labels that come late: they are used at the next `learn`.

        Args:
            labels: int64 `[samples]`, in any number and order; `UNKNOWN` (-100) ones are passed over.
            ids: int64 `[samples]`, the `id`s that these samples had in their window.
            step: number of that window (`loop.progress.at` before it was learnt from); needed only where ids come
                again, since the newest sample of an id that has no label yet is taken.

        Raises:
            InputError: labels are out of range, or not as many as ids.
        """
        given, numbers = torch.as_tensor(labels, device=HOME), torch.as_tensor(ids, device=HOME)
        if numbers.ndim != 1 or numbers.is_floating_point():
            raise InputError(f"ids are one integer a sample; got {numbers.dtype} {tuple(numbers.shape)}")
        check_labels(given, self.classes, "labels", (len(numbers),))
        self._late.append((given, numbers, step))

    def learn(self) -> None:
        """Everything that follows serving, for the window that was served last.

        Raises:
            InputError: no window was served since the last call.
            NonFiniteError: the frozen network, which is the sensor, gives NaN or infinity for it.
        """
        if self._now is None:
            raise InputError("there is no served window to learn from; call predict first")
        (made, there, out, own, failed, hedged, ms, seen), self._now = self._now, None
        labels = made.y if isinstance(made.y, Tensor) else torch.full((len(made),), UNKNOWN)
        seen = self.sensor(made, there.x) if seen is None else seen
        late, self._late = self._late, []
        self.seen = seen
        batch = made.replace(y=labels.long(), meta={}).to(HOME)
        self.controller.turn(Window(batch, there.replace(meta={}), out, own, seen, failed, hedged, ms, late))
        kinds = {row.kind for row in self._rows}
        if self.progress.at % self.plan.snapshot == 0 or kinds & set(SWITCHES):
            self.snapshot()
        elif kinds & {"alarm", "propose", "decision", "keep"}:
            self.flush()

    def rehearse(self) -> None:
        """Fit the diagnosis and calibrate the candidates now; else this is done when first needed, within a `learn`.

        It takes seconds to minutes, and its result is kept in the store.
        """
        self.repertoire.rehearse()

    def rollback(self, why: str = "asked for") -> None:
        """Put the network as deployed back, whatever the evidence; a trial under way ends."""
        if self.progress.served == "source":
            raise InputError("the network as deployed is served already; there is nothing to go back from")
        self.controller.switch("rollback", "source", fork(self.frozen), why)
        self.progress.by_hand += 1
        self.snapshot()

    # -- whole streams, and what happened

    def run(self, stream: Data | Any, *, labels: int | OnDemand = 0, delay: int = 0) -> Trace:
        """Run over a stream from where the store stands, and return the trace of what was served.

        Args:
            stream: data in order; `meta["phase"]` (int), when there, names phases. If it has labels they judge: the
                trace then has served and frozen accuracy, which the loop itself never sees.
            labels: how many random labels a window are revealed to the loop; `OnDemand` goes by what it is doing.
            delay: how many windows later they come.

        Returns:
            An entry per window: readings `accuracy` and `frozen` (where labels judge) and `seconds`.
        """
        return follow(self, as_data(stream, "stream"), labels, delay)

    def history(self) -> list[Row]:
        """The journal's switches, alarms and decisions, in order."""
        self.flush()
        return list(self.store.rows(*SWITCHES, "alarm", "propose", "decision", "keep"))

    def close(self) -> None:
        """Write what waits and let go of the store."""
        try:
            # A switch waits only where its snapshot could not be written: it did not happen, and will be decided again.
            if not any(row.kind in SWITCHES for row in self._rows):
                self.flush()
        finally:
            self.store.close()

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
