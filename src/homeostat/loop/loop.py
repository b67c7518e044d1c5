"""The loop: serve, monitor, propose, trial, verify, commit or roll back, journal; window after window.

The network as deployed (the *frozen* one) is kept and is the sensor. What is *served* starts as it and changes only by
a commit. Every decision, its evidence and the checkpoint it leads to are in the journal; what a killed process had
committed is there when it resumes, and the resumed run goes on as the uninterrupted one would have.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.core.data import UNKNOWN, Batch, Data, check_finite, join
from homeostat.core.errors import InputError, ModelError, StoreError
from homeostat.core.fork import fork, unwrap
from homeostat.core.intake import as_data
from homeostat.core.method import Remedy, Shift
from homeostat.core.online import Online
from homeostat.core.reading import Finding, Reading
from homeostat.core.run import Run
from homeostat.core.save import content_hash
from homeostat.core.task import Classify, check_labels
from homeostat.core.trace import Entry, Trace
from homeostat.core.weights import check_weights
from homeostat.core.world import World
from homeostat.loop.monitor import normalised_entropy
from homeostat.loop.plan import Plan
from homeostat.loop.progress import LoopState, Progress
from homeostat.loop.repertoire import Repertoire, labelled_before
from homeostat.loop.store import SWITCHES, Row, Store
from homeostat.loop.stream import follow
from homeostat.loop.trial import judge
from homeostat.loop.verify import Signs, attempt, guard, shadow, share_right, sound


class Loop:
    """Keeps a classifier within its limits while the world moves.

    Args:
        model: the network as deployed; untouched.
        world: needs labelled `source` (or `calibration`): data from before that the network was not trained on.
        remedies: candidates, in order of preference where the record says nothing.
        store: folder of the journal and checkpoints. An existing one is resumed.
        simulate: shifts on which candidates' estimates are calibrated; without them only labels can commit.
        plan: how the loop works.
        run: seed, watcher, and `scratch` for caches (default: inside the store).

    Raises:
        MissingPart: there are no labelled data from before.
        StoreError: another process holds the store, or it was begun with another network.
        ModelError, NonFiniteError: the network is not a classifier, adapts already, or is not sound.
        InputError: data from before do not fit the network, or are fewer than 50 samples.
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
        self.frozen = fork(unwrap(model)).eval()
        check_weights(self.frozen)
        if any(isinstance(module, Online) for module in self.frozen.modules()):
            raise ModelError("the model adapts while it serves; give the plain network, and its method as a remedy")
        before = labelled_before(world)
        self._before = torch.cat([sound(self.frozen, batch, world.task) for batch in before.batches(256)])
        labels = before.all_labels()
        world.task.check(self._before, labels, "source.y")
        self.right_before = share_right(self._before, labels)
        self.plan, self.world = plan, world
        self.store = store if isinstance(store, Store) else Store(store)
        self.setup = run if run.scratch is not None else run.replace(scratch=self.store.path / "cache")
        self.trace = Trace()
        try:
            self.repertoire = Repertoire(remedies, self.frozen, world, before, simulate, plan, self.setup)
            self._start()
        except BaseException:
            if self.store is not store:
                self.store.close()
            raise

    # -- start, snapshot, resume

    def _start(self) -> None:
        self.state, self.progress = LoopState(fork(self.frozen)), Progress(wait=self.plan.retry)
        self.recent: list[Batch] = []
        self._rows: list[Row] = []
        self._now: tuple[Batch, Tensor, str, float] | None = None
        self.plan.monitor.begin(normalised_entropy(self._before), 1 - self.right_before, self.state.carry)
        snapshot, start = self.store.last("snapshot"), self.store.last("start")
        if start is not None and start.checkpoint != content_hash(self.state.served):
            raise StoreError(f"{self.store.path} was begun with another network; give that one, or another folder")
        if snapshot is not None:
            self._resume(snapshot)
        elif start is None:
            name = self.store.keep(self.state.served)
            said = {"served": "source", "accuracy_before": self.right_before, "plan": self.plan.to_config()}
            self.store.write([Row(0, "start", said, name)])

    def _resume(self, row: Row) -> None:
        state = self.store.load(str(row.checkpoint), base=self.frozen)
        assert isinstance(state, LoopState)
        self.state, self.progress = state, Progress.from_dict(row.content)
        self.recent = state.recent(self.progress.recent, self.repertoire.before.fetch(torch.arange(1)).x)
        for earlier in self.store.rows("decision"):
            if earlier.step < self.progress.at:
                self._remember(earlier)

    def snapshot(self) -> None:
        """Write all state to the store; a resumed run starts from the last snapshot."""
        self.state.put_recent(self.recent)
        self.progress.recent = len(self.recent)
        name = self.store.keep(self.state)
        self._say("snapshot", self.progress.as_dict(), name)
        self.flush()
        self.store.collect([name])

    def flush(self) -> None:
        """Write the journal rows that wait; they are also written at every decision and snapshot."""
        if self._rows:
            self.store.write(self._rows)
            self._rows = []

    def _say(self, kind: str, content: dict[str, Any], checkpoint: str | None = None) -> None:
        self._rows.append(Row(self.progress.at, kind, content, checkpoint))

    # -- serve

    def predict(self, batch: Batch | Any) -> Tensor:
        """Serve a window: predictions at once, from the served model; an online one learns from the inputs.

        Should the served model fail, or give NaN or infinity, the frozen network's predictions are served instead, and
        `learn` rolls back.

        Raises:
            NonFiniteError: NaN or infinity in the inputs, or given by the frozen network.
            InputError: the window is empty or does not fit, or labels are out of range. Nothing changes then.
        """
        made = batch if isinstance(batch, Batch) else as_data(batch).load()
        if len(made) == 0:
            raise InputError("the window is empty; at least one sample is needed")
        check_finite(made.x, "x")
        if made.y is not None:
            check_labels(made.labels, self._before.shape[-1], "y", (len(made),))
        began = time.perf_counter()
        out, failed = attempt(self.state.served, made)
        if out is None:
            out = sound(self.frozen, made, self.world.task)
        self._now = (made, out, failed, time.perf_counter() - began)
        return out

    def step(self, batch: Batch | Any) -> Tensor:
        """Serve a window, then monitor, try, verify, decide and journal. Labels in `batch.y` may be partly unknown."""
        out = self.predict(batch)
        self.learn()
        return out

    def learn(self) -> None:
        """Everything that follows serving, for the window that was served last.

        Raises:
            InputError: no window was served since the last call.
            NonFiniteError: the frozen network, which is the sensor, gives NaN or infinity for it.
        """
        if self._now is None:
            raise InputError("there is no served window to learn from; call predict first")
        (made, out, failed, seconds), self._now = self._now, None
        now = self.progress
        frozen = out if failed or now.served == "source" else sound(self.frozen, made, self.world.task)
        labels = made.y if isinstance(made.y, Tensor) else torch.full((len(made),), UNKNOWN)
        known = labels != UNKNOWN
        right, frozen_right = (logits.argmax(-1)[known].eq(labels[known]).int() for logits in (out, frozen))
        self.recent = [*self.recent, made.replace(y=labels, meta={})][-self.plan.trial :]
        entropy = normalised_entropy(frozen)
        said: dict[str, Any] = {"served": now.served, "ms": round(1000 * seconds, 2)}
        said["entropy"] = round(float(entropy.mean()), 4)
        if count := int(known.sum()):
            said |= {"labels": count, "right": int(right.sum()), "frozen_right": int(frozen_right.sum())}
        self._say("window", said)
        finding = self.plan.monitor.look(entropy, 1 - frozen_right, self.state.carry)
        # A breach ends a trial too: what is served is watched whatever else goes on.
        if now.served != "source" and (why := failed or self._breached(out, frozen, frozen_right - right)):
            self._switch("rollback", "source", fork(self.frozen), why)
        elif now.phase == "trial":
            self._shadow(made, out, frozen, labels, known)
        elif finding is not None or now.at == now.retry_at:
            self._alarm(finding)
        self.progress.at += 1
        if self.progress.at % self.plan.snapshot == 0 or any(row.kind in SWITCHES for row in self._rows):
            self.snapshot()

    # -- propose and try

    def _alarm(self, finding: Finding | None) -> None:
        now = self.progress
        if finding is not None:
            now.wait = self.plan.retry
            now.diagnosis = {key: getattr(finding, key) for key in ("kind", "text", "effect", "since")}
        self._say("alarm", {**now.diagnosis, "again": finding is None})
        names = self.repertoire.propose(self.recent, self.trace)
        left = [name for name in self.repertoire.remedies if name not in names]
        # Going back is always an option; staying as it is needs no trial.
        names += ["source"] if now.served != "source" else []
        now.trials, self.state.shadows = self.repertoire.apply(names, self.recent, now.at)
        now.since = now.at
        self._say("propose", {"tried": names, "left": left})
        if any(not trial.refused for trial in now.trials):
            now.phase = "trial"
        else:
            self._reject("; ".join(f"{t.name}: {t.refused}" for t in now.trials) or "no candidate fits")
        self.flush()

    def _shadow(self, made: Batch, served: Tensor, frozen: Tensor, labels: Tensor, known: Tensor) -> None:
        now = self.progress
        for trial, model in zip(now.trials, self.state.shadows.children(), strict=True):
            if trial.refused:
                continue
            out, trial.refused = attempt(model, made)
            if out is not None:
                trial.see(out, served, frozen, labels, known, self.plan.few)
        if (done := now.at - now.since) >= self.plan.verify:
            self._decide(final=done >= self.plan.patience)

    # -- verify, commit, roll back

    def _decide(self, final: bool) -> None:
        now, plan, known = self.progress, self.plan, self.repertoire
        models = dict(zip((t.name for t in now.trials), self.state.shadows.children(), strict=True))
        alpha = plan.alpha / len(now.trials)
        verdicts = [
            judge(
                trial, known.estimate(trial.name), known.estimate(now.served), wanted=plan.gain, alpha=alpha,
                lost=0.0 if trial.refused else known.loss_before(models[trial.name]), anchor=plan.anchor,
            )
            for trial in now.trials
        ]  # fmt: skip
        winners = [v for v in verdicts if v.word == "better"]
        if not winners and not final and any(v.word == "undecided" for v in verdicts):
            return
        for verdict in verdicts:
            if verdict.word == "undecided":
                verdict.word, verdict.why = "not shown", verdict.why + "; the evidence did not decide in time"
        self._say("decision", {"verdicts": [v.as_dict() for v in verdicts]})
        self._remember(self._rows[-1])
        if winners:
            best = max(winners, key=lambda v: v.gain or 0.0)
            self._switch("rollback" if best.name == "source" else "commit", best.name, models[best.name], best.why)
        else:
            self._reject("; ".join(f"{v.name}: {v.why}" for v in verdicts))

    def _breached(self, out: Tensor, frozen: Tensor, worse: Tensor) -> str | None:
        """Why what is served is no longer better than the frozen network, or None."""
        now = self.progress
        if why := guard(out, frozen, self.plan.few):
            return why
        now.breach.watch(worse)
        if now.breach.capital >= self.plan.monitor.run_length:
            return f"the frozen network is better by {now.breach.mean:.1%} on {now.breach.count} labels"
        estimate = self.repertoire.estimate(now.served)
        below = estimate.margin < math.inf and estimate.gain(Signs.of(out, frozen)) < 0
        # Labels that came in this window and speak for what is served outweigh an estimate that speaks against it.
        below = below and int(worse.sum()) >= 0
        now.low = now.low + 1 if below else 0
        if now.low >= self.plan.verify:
            return f"its estimated gain over the frozen network was negative for {now.low} windows"
        return None

    def _switch(self, kind: str, name: str, model: nn.Module, why: str) -> None:
        now = self.progress
        # Written with the snapshot that ends this window, so that a resumed process serves what the journal says.
        self._say(kind, {"from": now.served, "to": name, "why": why}, self.store.keep(model))
        self.state.served, self.state.shadows = model, nn.Sequential()
        self.progress = Progress(now.at, name, diagnosis=now.diagnosis, wait=self.plan.retry)
        self._settle()
        self.setup.emit(kind, now.at, served=name, why=why)

    def _reject(self, why: str) -> None:
        now = self.progress
        self._say("keep", {"served": now.served, "why": why})
        self.flush()
        self.state.shadows = nn.Sequential()
        self.progress = Progress(
            now.at, now.served, diagnosis=now.diagnosis, retry_at=now.at + now.wait, wait=2 * now.wait,
            breach=now.breach, low=now.low,
        )  # fmt: skip
        self._settle()

    def _settle(self) -> None:
        """The monitor takes the recent windows as its reference, so that a shift is not reported again and again."""
        recent = join(self.recent)
        if len(recent) < 50:
            return
        logits, known = shadow(self.frozen, recent), recent.labels != UNKNOWN
        error = 1 - self.right_before
        if int(known.sum()) >= 10:
            error = max(error, 1 - share_right(logits[known], recent.labels[known]))
        self.plan.monitor.begin(normalised_entropy(logits), error, self.state.carry)

    def _remember(self, row: Row) -> None:
        for verdict in row.content["verdicts"]:
            gain = -self.plan.gain if verdict["word"] == "refused" else verdict["gain"]
            if gain is not None:
                reading = Reading("gain", gain, unit="fraction", better="higher")
                self.trace = self.trace.add(Entry(row.step, verdict["name"], "", (reading,), verdict["why"]))

    # -- whole streams, and what happened

    def run(self, stream: Data | Any, *, labels: int = 0) -> Trace:
        """Run over a stream from where the store stands, and return the trace of what was served.

        Args:
            stream: data in order; `meta["phase"]` (int), when there, names phases. If it has labels they judge: the
                trace then has served and frozen accuracy, which the loop itself never sees.
            labels: how many random labels a window are revealed to the loop.

        Returns:
            An entry per window: readings `accuracy` and `frozen` (where labels judge) and `seconds`.
        """
        return follow(self, as_data(stream, "stream"), labels)

    def history(self) -> list[Row]:
        """The journal's switches, alarms and decisions, in order."""
        self.flush()
        return list(self.store.rows(*SWITCHES, "alarm", "propose", "decision", "keep"))

    def close(self) -> None:
        """Write what waits and let go of the store."""
        # A switch waits only where its snapshot could not be written: it did not happen, and will be decided again.
        if not any(row.kind in SWITCHES for row in self._rows):
            self.flush()
        self.store.close()

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
