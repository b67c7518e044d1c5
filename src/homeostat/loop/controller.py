"""What the loop does about a window after it was served: monitor, diagnose, try, verify, switch.

The controller decides and keeps no books: it says what it does, and the loop writes that down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.core.data import Batch, join
from homeostat.core.errors import HomeostatError
from homeostat.core.fork import fork
from homeostat.core.probe import Outputs
from homeostat.core.reading import Finding, Reading
from homeostat.core.run import Run
from homeostat.core.save import content_hash
from homeostat.core.trace import Entry, Trace
from homeostat.loop.ledger import Arrived, Ledger
from homeostat.loop.monitor import LEAST
from homeostat.loop.plan import Plan
from homeostat.loop.probation import Probation
from homeostat.loop.progress import LoopState, Progress
from homeostat.loop.repertoire import Repertoire
from homeostat.loop.scores import mean_entropy
from homeostat.loop.trial import judge
from homeostat.loop.verify import attempt, guard
from homeostat.loop.window import Window

Say = Callable[[str, dict[str, Any], nn.Module | None], None]
"""Told what happened: kind, content, and the model that is served from then on, where it is a switch."""

HOME = {"none": 1.0}
"""What is known of the kind of shift where nothing stands out from the data from before."""


class Controller:
    """Decides what is served; see the module's docstring.

    Args:
        frozen: the network as deployed.
        before: its outputs on labelled data from before.
        repertoire: the candidates.
        plan, run: the loop's.
        say: told what happens.

    Attributes:
        recent: the last windows' inputs, oldest first.
        tried: logits of the candidates that ran in shadow on the last window, by name.
    """

    def __init__(self, frozen: nn.Module, before: Outputs, repertoire: Repertoire, plan: Plan, run: Run, say: Say):
        self.frozen, self.before, self.repertoire = frozen, before, repertoire
        self.plan, self.run, self.say = plan, run, say
        self.error_before = 1 - float((before.logits.argmax(-1) == before.labels).float().mean())
        self.state, self.progress = LoopState(fork(frozen)), Progress(wait=plan.retry)
        self.recent: list[Batch] = []
        self.tried: dict[str, Tensor] = {}
        self.trace = Trace()
        plan.monitor.begin(before, self.state.carry, self.error_before)

    @property
    def ledger(self) -> Ledger:
        """Predictions that wait for labels."""
        return Ledger(self.state.carry, self.plan.candidates + 1)

    def turn(self, window: Window) -> None:
        """Everything that follows serving a window."""
        now, plan = self.progress, self.plan
        trial = now.phase == "trial"
        tried = self._shadow(window) if trial else []
        self.tried = {t.name: out for t, out in zip(now.trials, tried, strict=False) if out is not None}
        self.ledger.add(now.at, window.batch.id, window.seen.logits, window.own, tried, window.out)
        arrived = self._settle_labels(window)
        self._keep_inputs(window.batch, arrived)
        vouched = self._vouch(window, arrived)
        self._note(window, arrived, vouched)
        finding = plan.monitor.look(window.seen, (~arrived.frozen).float(), self.state.carry)
        # A breach ends a trial too: what is served is watched whatever else goes on.
        if now.served != "source" and (why := window.failed or self._breached(window, arrived)):
            self.switch("rollback", "source", fork(self.frozen), why)
        elif trial:
            self._weigh(arrived)
        elif finding is not None or now.at == now.retry_at:
            self._alarm(finding, window, bool(vouched))
        if vouched and now.served == self.progress.served:
            # What is served is verified on these windows now: later ones are held against them.
            self._renew(max(vouched, math.ceil(LEAST / len(window.batch))))
        self.progress.at += 1
        self.ledger.forget(self.progress.at - plan.wait)

    # -- what came

    def _settle_labels(self, window: Window) -> Arrived:
        ledger, at = self.ledger, self.progress.at
        found = None
        for labels, ids, step in window.late:
            part = ledger.settle(labels, ids, step)
            found = part if found is None else found + part
        own = ledger.settle(window.batch.labels)
        found = own if found is None else found + own
        if len(found):
            # How late labels are is remembered while they come, and forgotten slowly when they come at once again.
            self.progress.lag = max(int(at - found.step.min()), self.progress.lag - 1)
        return found

    def _keep_inputs(self, batch: Batch, arrived: Arrived) -> None:
        step = torch.full((len(batch),), self.progress.at)
        kept = [*self.recent, batch.replace(meta={"step": step})][-self.plan.kept :]
        for number, old in enumerate(kept[:-1]):
            mine = arrived.step == old.meta["step"][0]
            if bool(mine.any()):
                label = dict(zip(arrived.id[mine].tolist(), arrived.label[mine].tolist(), strict=True))
                y = [label.get(i, k) for i, k in zip(old.id.tolist(), old.labels.tolist(), strict=True)]
                kept[number] = old.replace(y=torch.tensor(y))
        self.recent = kept

    def _vouch(self, window: Window, arrived: Arrived) -> int:
        """Of how many hedged windows labels have shown, with those of this one, that what is served helps in them."""
        now = self.progress
        if not window.hedged:
            now.probation = Probation()
            return 0
        now.probation.add(now.at, self.repertoire.outlook(now, window.own, window.seen).gain, arrived)
        if now.probation.evidence.capital < 1 / self.plan.hedge:
            return 0
        windows, now.bias = now.probation.windows, max(0.0, now.bias + now.probation.excess)
        now.probation = Probation()
        return windows

    def _note(self, window: Window, arrived: Arrived, vouched: int) -> None:
        said: dict[str, Any] = {"served": self.progress.served, "ms": round(window.ms, 2)}
        said["entropy"] = round(mean_entropy(window.seen.logits), 4)
        if len(arrived):
            said |= {"labels": len(arrived), "right": int(arrived.answered.sum())}
            said["frozen_right"] = int(arrived.frozen.sum())
        if arrived.lost:
            said["lost"] = arrived.lost
        if window.hedged:
            said["hedged"] = window.hedged
        if vouched:
            said["vouched"] = vouched
        if window.failed:
            said["failed"] = window.failed
            self.run.emit("failure", self.progress.at, served=self.progress.served, text=window.failed)
        self.say("window", said, None)

    # -- alarm, diagnosis, candidates

    def _alarm(self, finding: Finding | None, window: Window, vouched: bool) -> None:
        now, plan = self.progress, self.plan
        if finding is not None:
            now.wait = plan.retry
            now.diagnosis = {key: getattr(finding, key) for key in ("kind", "text", "effect")}
            now.diagnosis["since"] = list(plan.monitor.since(self.state.carry, finding.kind))
            now.diagnosis["subjects"] = list(finding.subjects)[:5]
        self._diagnose()
        said = {**now.diagnosis, "again": finding is None}
        if finding is not None:
            said["evidence"] = plan.monitor.evidence(self.state.carry)
        self.say("alarm", said, None)
        self.run.emit("alarm", now.at, text=now.diagnosis.get("text", ""), shift=now.diagnosis.get("shift", ""))
        if finding is not None and not vouched:
            now.bias = 0.0
        if finding is not None and not vouched and now.served != "source" and (why := self._outdated(window)):
            self.switch("rollback", "source", fork(self.frozen), why)
            now = self.progress
            if now.kinds == HOME:
                # Among the recent windows are some of the world that is gone.
                plan.monitor.begin(self.before, self.state.carry, self.error_before)
                return
        likeliest = next(iter(now.kinds), "")
        self.trace = self.trace.add(Entry(now.at, "diagnosis", likeliest))
        names, left = self.repertoire.propose(self.recent, self.trace, now.kinds)
        # Going back is always an option; staying as it is needs no trial.
        names += ["source"] if now.served != "source" else []
        served = content_hash(self.state.served)
        now.trials, self.state.shadows = self.repertoire.apply(names, self.recent[-plan.trial :], now.at, served)
        left |= dict.fromkeys(set(names) - {trial.name for trial in now.trials}, "it is what is served")
        self.ledger.begin_trial()
        now.since = now.at
        passes = {trial.name: self.repertoire.passes(trial.name) for trial in now.trials}
        self.say("propose", {"tried": list(passes), "passes": passes, "left": left}, None)
        if any(not trial.refused for trial in now.trials):
            now.phase = "trial"
        else:
            # Among the recent windows may be some from before the change.
            why = "; ".join(f"{t.name}: {t.refused}" for t in now.trials) or "no candidate fits"
            self._reject(why, normal=self._since())

    def _outdated(self, window: Window) -> str | None:
        """Why, at an alarm, what is served gives way to the frozen network at once, or None.

        It was shown to be better in the world before the alarm. Unless its estimate says the same of the new one, or
        it is on probation there and labels speak for it, it would be served on evidence that is gone; if it does help,
        the trial that begins now will show it.
        """
        now = self.progress
        if now.kinds == HOME:
            return "the world looks again as it did before"
        if now.probation.evidence.mean > 0:
            return None
        outlook = self.repertoire.outlook(now, window.own, window.seen)
        if not outlook.known:
            return "the world changed, and nothing shows that it helps now"
        gain, low = outlook.gain, outlook.low
        return None if low >= 0 else f"the world changed, and its gain is estimated at {gain:+.1%}, at least {low:+.1%}"

    def _since(self) -> int:
        """How many of the last windows came after the change."""
        return max(1, int(self.progress.diagnosis.get("since", [self.plan.trial])[0]))

    def _diagnose(self) -> None:
        now = self.progress
        try:
            found, now.kinds = self.repertoire.diagnose(join(self.recent[-self._since() :]))
        except HomeostatError as error:
            now.kinds = {}
            now.diagnosis["shift"] = ""
            now.diagnosis["shift_text"] = f"the kind of shift is not known: {error}"
            return
        if found.kind == next(iter(now.kinds)) == "none" and now.diagnosis.get("kind") != "error":
            # Nothing stands out from the data from before, and nothing likelier is known: nothing is to be done.
            now.kinds = dict(HOME)
        now.diagnosis["shift"], now.diagnosis["shift_text"] = found.kind, found.text
        now.diagnosis["kinds"] = {kind: round(p, 3) for kind, p in list(now.kinds.items())[:3]}

    # -- trial and verdict

    def _shadow(self, window: Window) -> list[Tensor | None]:
        """Run the candidates on the window; their logits, None where one is refused."""
        outs = list[Tensor | None]()
        for trial, model in zip(self.progress.trials, self.state.shadows.children(), strict=True):
            out = None
            if not trial.refused:
                out, trial.refused, ms = attempt(model, window.there)
                if out is not None:
                    trial.see(out, window.own, window.seen, self.repertoire.normal, self.plan.few)
                    trial.hurry(ms, self.plan.latency_ms)
            outs.append(out)
        return outs

    def _weigh(self, arrived: Arrived) -> None:
        now = self.progress
        for column, trial in enumerate(now.trials):
            answered = arrived.tried[:, column] >= 0
            trial.evidence.add(arrived.tried[answered, column] - arrived.served[answered].long())
        if (done := now.at - now.since) >= self.plan.verify:
            self._decide(final=done >= self.plan.patience + now.lag)

    def _decide(self, final: bool) -> None:
        now, plan, known = self.progress, self.plan, self.repertoire
        models = dict(zip((t.name for t in now.trials), self.state.shadows.children(), strict=True))
        alpha = plan.alpha / len(now.trials)
        verdicts = [
            judge(
                trial, known.estimate(trial.name, now.kinds), known.estimate(now.served, now.kinds),
                wanted=plan.gain, alpha=alpha,
                lost=lambda trial=trial: known.loss_before(models[trial.name]), anchor=plan.anchor,
            )
            for trial in now.trials
        ]  # fmt: skip
        winners = [v for v in verdicts if v.word == "better"]
        # Labels that are on their way are worth waiting for.
        waiting = any(v.word == "undecided" for v in verdicts) or (now.lag > 0 and not all(v.labels for v in verdicts))
        if not winners and not final and waiting:
            return
        for verdict in verdicts:
            if verdict.word == "undecided":
                verdict.word, verdict.why = "not shown", verdict.why + "; the evidence did not decide in time"
        said = {"shift": next(iter(now.kinds), ""), "verdicts": [v.as_dict() for v in verdicts]}
        self.say("decision", said, None)
        self.remember(now.at, said)
        if winners:
            best = max(winners, key=lambda v: v.gain or 0.0)
            self.switch("rollback" if best.name == "source" else "commit", best.name, models[best.name], best.why)
        elif count := now.probation.evidence.count:
            why = f"{now.probation.evidence.mean:+.1%} on {count} labels does not show that it helps in the new world"
            self.switch("rollback", "source", fork(self.frozen), why)
        else:
            self._reject("; ".join(f"{v.name}: {v.why}" for v in verdicts))

    def remember(self, step: int, decision: Mapping[str, Any]) -> None:
        """Add a decision's verdicts to the trace that the proposer learns from."""
        for verdict in decision["verdicts"]:
            gain = -self.plan.gain if verdict["word"] == "refused" else verdict["gain"]
            if gain is not None:
                reading = Reading("gain", gain, unit="fraction", better="higher")
                entry = Entry(step, verdict["name"], decision.get("shift", ""), (reading,), verdict["why"])
                self.trace = self.trace.add(entry)

    # -- what is served

    def _breached(self, window: Window, arrived: Arrived) -> str | None:
        """Why what is served is no longer better than the frozen network, or None."""
        now, plan = self.progress, self.plan
        if why := guard(window.own, window.seen.logits, plan.few):
            return why
        mine = arrived.step >= now.switched
        worse = arrived.frozen[mine].int() - arrived.served[mine].int()
        now.breach.watch(worse)
        if now.breach.capital >= plan.monitor.run_length:
            return f"the frozen network is better by {now.breach.mean:.1%} on {now.breach.count} labels"
        outlook = self.repertoire.outlook(now, window.own, window.seen)
        # Labels that came in this window and speak for what is served outweigh an estimate that speaks against it.
        below = outlook.known and outlook.gain < 0 and int(worse.sum()) >= 0
        now.low = now.low + 1 if below else 0
        if now.low >= plan.verify:
            return f"its estimated gain over the frozen network was negative for {now.low} windows"
        now.slow = now.slow + 1 if window.ms > (plan.latency_ms or math.inf) else 0
        if now.slow >= plan.verify:
            return f"it took longer than {plan.latency_ms:g} ms for {now.slow} windows"
        return None

    def switch(self, kind: str, name: str, model: nn.Module, why: str) -> None:
        """Serve another model from the next window on."""
        now = self.progress
        self.say(kind, {"from": now.served, "to": name, "why": why}, model)
        self.state.served, self.state.shadows = model, nn.Sequential()
        self.progress = Progress(
            now.at, name, now.at + 1, diagnosis=now.diagnosis, kinds=now.kinds, wait=self.plan.retry, lag=now.lag,
            by_hand=now.by_hand,
        )  # fmt: skip
        self._renew()
        self.run.emit(kind, now.at, served=name, why=why)

    def _reject(self, why: str, normal: int | None = None) -> None:
        now = self.progress
        self.say("keep", {"served": now.served, "why": why}, None)
        self.run.emit("keep", now.at, served=now.served, why=why)
        self.state.shadows = nn.Sequential()
        self.progress = replace(now, phase="watch", since=0, trials=[], retry_at=now.at + now.wait, wait=2 * now.wait)
        self._renew(normal)

    def _renew(self, windows: int | None = None) -> None:
        """The monitor takes the recent windows as its reference, so that a shift is not reported again and again."""
        recent = join([batch.replace(meta={}) for batch in self.recent[-(windows or self.plan.trial) :]])
        if len(recent) < LEAST:
            return
        seen, error = self.repertoire.sensor(recent), self.error_before
        # Labels that come late are of earlier windows, and more of the same will come.
        first = self.progress.at + 1 - (windows or self.plan.trial) - self.progress.lag
        if len(wrong := self.ledger.wrong(first)) >= 10:
            error = max(error, float(wrong.double().mean()))
        self.plan.monitor.begin(seen, self.state.carry, error, ordered=True)
