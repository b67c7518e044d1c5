from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from homeostat.adapt import BatchNormBlend
from homeostat.core.data import Batch
from homeostat.core.fork import fork
from homeostat.core.method import Remedy
from homeostat.core.online import Bag, Online
from homeostat.core.part import Part
from homeostat.core.probe import Outputs
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.loop import Monitor
from homeostat.loop.ledger import Arrived
from homeostat.loop.monitor import evidence_of_one
from homeostat.loop.probation import Probation


def outputs(count: int, spread: float, seed: int) -> Outputs:
    """Logits whose certainty grows with `spread`."""
    draws = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(count, 4, generator=draws)
    return Outputs(logits, None, torch.arange(count), features=logits)


def test_windows_like_the_reference_give_little_evidence_and_other_ones_much():
    """Over 400 windows: a mean of at most 1, so that one in twenty at most comes to 20."""
    monitor, state = Monitor(block=1), Bag()
    monitor.begin(outputs(2000, 2.0, 0), state, 0.1)
    same = torch.tensor([evidence_of_one(monitor, outputs(50, 2.0, seed), state) for seed in range(1, 401)])
    other = torch.tensor([evidence_of_one(monitor, outputs(50, 0.6, seed), state) for seed in range(1, 41)])
    assert float(same.mean()) <= 1.0 and float((same >= 20).double().mean()) <= 0.05
    assert float((other >= 20).double().mean()) == 1.0


def test_looking_at_one_window_changes_nothing():
    monitor, state = Monitor(), Bag()
    monitor.begin(outputs(500, 2.0, 0), state, 0.1)
    monitor.look(outputs(50, 2.0, 1), None, state)
    before = {name: state[name].clone() for name in state}
    evidence_of_one(monitor, outputs(50, 0.5, 2), state)
    assert set(before) == set(state) and all(torch.equal(before[name], state[name]) for name in state)


@pytest.fixture
def back(problem):
    """Dark, and then at once as before."""
    return problem.stream([(problem.CLEAN, 4), (problem.DARK, 14), (problem.CLEAN, 6)])


def trace_of(problem, folder, stream, hedge: float, simulate=()):
    plan = problem.PLAN.replace(hedge=hedge, anchor=1.0, monitor=Monitor(run_length=200, block=1))
    undoing = problem.Undoing()
    with problem.loop(folder, problem.net, (undoing,), plan=plan, simulate=simulate) as loop:
        trace = loop.run(stream, labels=problem.WINDOW)
        return trace, problem.rows(loop, "commit"), problem.rows(loop, "window")


def test_the_first_windows_of_another_world_are_answered_by_the_deployed_network(problem, back, tmp_path):
    """What was committed in the dark is asked in the light, unless somebody looks first."""
    hasty, (commit,), _ = trace_of(problem, tmp_path / "hasty", back, 0.0)
    careful, (again,), windows = trace_of(problem, tmp_path / "careful", back, 0.05)
    assert commit.step == again.step < 17
    first = 18
    lost = [[e["accuracy"].value - e["frozen"].value for e in trace][first] for trace in (hasty, careful)]
    assert lost[0] < -0.2 and lost[1] == 0
    said = {row.step: row.content.get("hedged", "") for row in windows}
    assert "unlike those on which it was verified" in said[first]
    assert not any(said[step] for step in range(commit.step + 1, first)), "while the world stays, what helps answers"
    gained = [[e["accuracy"].value - e["frozen"].value for e in t][commit.step + 1 : first] for t in (hasty, careful)]
    assert gained[0] == gained[1] and sum(gained[0]) > 0


def test_where_the_estimate_is_a_loss_no_other_evidence_is_needed(problem, back, tmp_path):
    """At a hedge of 1e-12 no window is unlike enough; the remedy's own signs tell that it has nothing to undo."""
    trace, (commit,), windows = trace_of(problem, tmp_path, back, 1e-12, problem.NEAR)
    said = {row.step: row.content.get("hedged", "") for row in windows}
    entry = list(trace)[18]
    assert "seems to do harm" in said[18] and entry["accuracy"].value == entry["frozen"].value
    assert not any(said[step] for step in range(commit.step + 1, 18))


class LoopTestLag(Online):
    """Inputs are given the light from before, by what light the last windows had."""

    def __init__(self, model: nn.Module, mean: float, spread: float):
        super().__init__(model)
        self.mean, self.spread = mean, spread
        self.carry["light"] = torch.tensor([mean, spread])

    def forward(self, x: Tensor) -> Tensor:
        mean, spread = self.carry["light"]
        return self.model((x - mean) / spread * self.spread + self.mean)

    def adapt(self, batch: Batch) -> Tensor:
        out = self(batch.x)
        self.carry["light"] = torch.lerp(self.carry["light"], torch.stack([batch.x.mean(), batch.x.std()]), 0.4)
        return out


@dataclass(frozen=True)
class LoopTestLagging(Remedy):
    """Adapts to the light, and needs some windows for it; `mean` and `spread` are those of the light before."""

    mean: float
    spread: float

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return LoopTestLag(model, self.mean, self.spread)


def test_what_a_remedy_brings_from_another_world_is_rehearsed(problem, back, tmp_path):
    """It helps in the dark, and harms in the first windows of the light, where it still undoes the dark."""
    plan = problem.PLAN.replace(hedge=1e-12, anchor=1.0, monitor=Monitor(run_length=200, block=1))
    before = problem.images(200, 2).load().x
    remedy = LoopTestLagging(float(before.mean()), float(before.std()))
    with problem.loop(tmp_path, problem.net, (remedy,), plan=plan, simulate=problem.NEAR) as loop:
        trace = list(loop.run(back))
        (commit,) = problem.rows(loop, "commit")
        said = {row.step: row.content.get("hedged", "") for row in problem.rows(loop, "window")}
    gains = [entry["accuracy"].value - entry["frozen"].value for entry in trace]
    assert commit.step < 17 and sum(gains[commit.step + 1 : 18]) > 0
    assert "seems to do harm" in said[18] and min(gains[18:]) >= 0


class LoopTestBlind(Part):
    """Undoes the dark, and sees nothing in the light."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        out = self.model((x + 0.2) / 0.4)
        return torch.eye(3)[0].expand_as(out) if float(x.mean()) > 0.2 else out


@dataclass(frozen=True)
class LoopTestBlinding(Remedy):
    """As good as undoing where it was found, and of no use anywhere else."""

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return LoopTestBlind(fork(model))


def test_what_may_not_be_served_does_not_answer_first(problem, back, tmp_path):
    """There is no estimate, and at a hedge of 1e-12 no window is unlike enough: the guard alone speaks."""
    plan = problem.PLAN.replace(hedge=1e-12, anchor=1.0, monitor=Monitor(run_length=200, block=1))
    with problem.loop(tmp_path, problem.net, (LoopTestBlinding(),), plan=plan) as loop:
        entry = list(loop.run(back, labels=problem.WINDOW))[18]
        said = {row.step: row.content.get("hedged", "") for row in problem.rows(loop, "window")}
        (rollback,) = problem.rows(loop, "rollback")
    assert "predicts only 1.0 classes" in said[18] and entry["accuracy"].value == entry["frozen"].value
    assert rollback.step == 18 and "predicts only" in rollback.content["why"]


@pytest.fixture
def further(problem):
    """Dark, and then at once much too bright: batch statistics help in both, and what is known of one says nothing."""
    return problem.stream([(problem.CLEAN, 4), (problem.DARK, 14), (problem.Light(2.5, 1.0), 10)])


def answered(problem, folder, further, labels: int):
    """Rows of windows by step, rollbacks, and what was gained by window."""
    plan = problem.PLAN.replace(anchor=1.0, monitor=Monitor(run_length=200, block=1))
    with problem.loop(folder, problem.net, (BatchNormBlend(blend=0.0),), plan=plan) as loop:
        trace = list(loop.run(further[: 18 * problem.WINDOW], labels=problem.WINDOW))
        assert loop.progress.served == "BatchNormBlend"
        trace += list(loop.run(further, labels=labels))
        windows = {row.step: row.content for row in problem.rows(loop, "window")}
        return windows, problem.rows(loop, "rollback"), [e["accuracy"].value - e["frozen"].value for e in trace]


def test_labels_show_that_what_is_hedged_helps_in_the_new_world(problem, further, tmp_path):
    """Without labels it is taken back at the alarm; with them it is never taken back, and answers again."""
    windows, (rollback,), _ = answered(problem, tmp_path / "blind", further, 0)
    assert rollback.step == 18 and windows[18]["hedged"] and not any("vouched" in said for said in windows.values())
    windows, rollbacks, gains = answered(problem, tmp_path / "seeing", further, problem.WINDOW)
    vouched = [step for step, said in windows.items() if "vouched" in said]
    assert not rollbacks and 18 <= vouched[0] <= 20 and all(windows[step]["hedged"] for step in range(18, vouched[0]))
    assert gains[18] == 0 and min(gains[vouched[-1] + 1 :]) > 0.1


def test_one_that_is_no_better_is_seldom_vouched_for():
    """Over 2,000 runs of 40 hedged windows with 16 labels each, and 200 of one that gains 30 points."""
    draws, vouched = torch.Generator().manual_seed(0), {0.0: 0, 0.3: 0}
    for gain, runs in ((0.0, 2000), (0.3, 200)):
        for _ in range(runs):
            probation = Probation()
            for at in range(40):
                chance = torch.rand(16, generator=draws)
                better, worse = chance < 0.1 + gain, chance > 0.9
                none = torch.empty(0, dtype=torch.int64)
                step = torch.full((16,), at)
                probation.add(at, -0.1, Arrived(none, step, none, worse, better, better, none))
                if probation.evidence.capital >= 20:
                    vouched[gain] += 1
                    break
    assert vouched[0.0] <= 0.05 * 2000 and vouched[0.3] == 200


def test_what_labels_add_to_an_estimate_is_what_it_lacked():
    none, probation = torch.empty(0, dtype=torch.int64), Probation()
    for at, right in ((7, True), (8, False)):
        served = torch.full((10,), right)
        probation.add(at, -0.2, Arrived(none, torch.full((10,), at), none, served & False, served, served, none))
    before = torch.full((4,), 6)  # labels that come late, of windows that were not hedged, say nothing here
    probation.add(9, -0.2, Arrived(none, before, none, before == 6, before == 0, before == 0, none))
    assert probation.since == 7 and probation.windows == 3 and probation.evidence.count == 20
    assert probation.excess == pytest.approx(0.5 + 0.2)
    assert Probation.from_dict(json.loads(json.dumps(asdict(probation)))) == probation
