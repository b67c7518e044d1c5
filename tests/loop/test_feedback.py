"""Labels that come late, in part or for samples long gone, and limits on time and cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from homeostat.adapt import BatchNormBlend, Tent
from homeostat.core.errors import DtypeError, InputError, SpecError
from homeostat.core.fork import fork
from homeostat.core.method import Card, Remedy
from homeostat.core.run import Event, Run
from homeostat.core.world import World
from homeostat.fit import Fit, Recipe, Supervised
from homeostat.loop import OnDemand
from homeostat.nn.optimizers import Adam

BLEND = BatchNormBlend(blend=0.0)


@dataclass(frozen=True)
class LoopTestDear(Remedy):
    """Costs more than it gives."""

    card: ClassVar[Card] = Card(passes=50.0)

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return fork(model)


@pytest.fixture
def drift(problem):
    return problem.stream([(problem.CLEAN, 6), (problem.DARK, 22)])


@pytest.mark.parametrize("delay", [1, 4])
def test_labels_that_come_late_commit_what_helps_as_labels_that_come_at_once_do(problem, drift, tmp_path, delay):
    with problem.loop(tmp_path, problem.net, (BLEND,)) as loop:
        trace = loop.run(drift, labels=10, delay=delay)
        (commit,) = problem.rows(loop, "commit")
        windows = problem.rows(loop, "window")
    assert "labels" not in windows[delay - 1].content and windows[delay].content["labels"] == 10
    assert sum(row.content.get("labels", 0) for row in windows) == 10 * (len(windows) - delay)
    assert loop.progress.lag == delay and "labels" in commit.content["why"]
    after = [entry for entry in trace if entry.step > commit.step]
    assert sum(e["accuracy"].value - e["frozen"].value for e in after) / len(after) > 0.2


@pytest.mark.parametrize("delay", [0, 3])
def test_labels_on_demand_are_few_while_it_watches_and_many_in_a_trial(problem, drift, tmp_path, delay):
    policy = OnDemand(calm=2, trial=12)
    with problem.loop(tmp_path / "whole", problem.net, (BLEND,)) as loop:
        loop.run(drift, labels=policy, delay=delay)
        (commit,), (tried,) = problem.rows(loop, "commit"), problem.rows(loop, "propose")
        asked = {row.step: row.content.get("labels", 0) for row in problem.rows(loop, "window")}
        whole = [row for row in problem.told(loop) if row[1] != "snapshot"]
    in_trial = range(tried.step + 1, commit.step + 1)
    assert all(asked[step] == (12 if step in in_trial else 2) for step in asked if step >= delay)
    assert len(in_trial) > 0 and "labels" in commit.content["why"]
    for steps in (tried.step + 1, len(asked)):
        with problem.loop(tmp_path / "stopped", problem.net, (BLEND,)) as loop:
            loop.run(drift[: steps * problem.WINDOW], labels=policy, delay=delay)
    with problem.loop(tmp_path / "stopped", problem.net, (BLEND,)) as loop:
        assert [row for row in problem.told(loop) if row[1] != "snapshot"] == whole


def test_what_late_labels_count_is_what_was_said_when_the_sample_was_served(problem, drift, tmp_path):
    """Right answers of the journal, window by window, are those of the trace, moved by the delay."""
    size = problem.WINDOW
    with problem.loop(tmp_path, problem.net, (BLEND,)) as loop:
        trace = loop.run(drift, labels=size, delay=3)
        told = [row.content for row in problem.rows(loop, "window")]
        assert problem.rows(loop, "commit"), "what is served changes on the way"
    for now, then in zip(told[3:], trace, strict=False):
        assert now["right"] == round(size * then["accuracy"].value)
        assert now["frozen_right"] == round(size * then["frozen"].value)


@pytest.mark.parametrize("at", [3, 11, 17])
def test_a_loop_with_late_labels_that_was_stopped_goes_on_as_if_it_had_not(problem, drift, tmp_path, at):
    class Stopped(Exception):
        pass

    def stop(event: Event) -> None:
        if event.name == "window" and event.step == at:
            raise Stopped

    with problem.loop(tmp_path / "whole", problem.net, (BLEND, Tent())) as whole:
        whole.run(drift, labels=8, delay=2)
        expected = problem.told(whole)
        assert "commit" in {row[1] for row in expected}
    first = problem.loop(tmp_path / "parts", problem.net, (BLEND, Tent()), run=Run(watch=stop))
    with first, pytest.raises(Stopped):
        first.run(drift, labels=8, delay=2)
    with problem.loop(tmp_path / "parts", problem.net, (BLEND, Tent())) as second:
        second.run(drift, labels=8, delay=2)
        assert problem.told(second) == expected


def test_a_refit_uses_labels_that_came_late_for_inputs_that_are_still_kept(problem, drift, tmp_path):
    refit = Fit(objective=Supervised(on="target"), recipe=Recipe(epochs=20, batch=25, optimizer=Adam(lr=0.02)))
    for memory, tried in ((3, False), (6, True)):
        plan = problem.PLAN.replace(memory=memory)
        with problem.loop(tmp_path / str(memory), problem.net, (refit,), plan=plan) as loop:
            loop.run(drift, labels=problem.WINDOW, delay=4)
            assert {"Fit" in row.content["tried"] for row in problem.rows(loop, "propose")} == {tried}


def test_labels_of_samples_that_are_not_kept_are_counted_as_lost(problem, drift, tmp_path):
    batch = drift.load()[: problem.WINDOW]
    with problem.loop(tmp_path, problem.net, plan=problem.PLAN.replace(wait=2)) as loop:
        for _ in range(4):
            loop.step(batch.replace(y=None))
        loop.feedback(batch.labels[:5], batch.id[:5], step=0)
        loop.feedback(batch.labels[:4], torch.tensor([0, 1, 2, 9_999]))
        loop.step(batch.replace(y=None))
        last = problem.rows(loop, "window")[-1].content
    assert last["labels"] == 3 and last["lost"] == 6


def test_feedback_that_does_not_fit_is_refused_and_changes_nothing(problem, drift, tmp_path):
    with problem.loop(tmp_path, problem.net) as loop:
        loop.step(drift.load()[: problem.WINDOW].replace(y=None))
        for labels, ids, error in (
            (torch.tensor([3]), torch.tensor([0]), "labels.* 0..2"),
            (torch.tensor([0, 1]), torch.tensor([0]), "labels"),
            (torch.tensor([0]), torch.tensor([0.5]), "one integer a sample"),
        ):
            with pytest.raises((InputError, DtypeError), match=error):
                loop.feedback(labels, ids)
        loop.step(drift.load()[: problem.WINDOW].replace(y=None))
        assert all("labels" not in row.content for row in problem.rows(loop, "window"))
        with pytest.raises(InputError, match="windows of delay are 0 or more"):
            loop.run(drift, delay=-1)


# -- limits


def test_candidates_that_cost_more_passes_than_are_left_are_left_out(problem, drift, tmp_path):
    plan = problem.PLAN.replace(passes=2.0)
    with problem.loop(tmp_path, problem.net, (LoopTestDear(), BLEND), plan=plan) as loop:
        loop.run(drift, labels=8)
        (proposed, *_) = problem.rows(loop, "propose")
        assert proposed.content["tried"] == ["BatchNormBlend"]
        assert proposed.content["left"]["LoopTestDear"] == "it costs 50 passes, and 2 are left"


def test_candidates_slower_than_the_limit_are_refused_and_what_became_slow_is_taken_back(problem, drift, tmp_path):
    slow = problem.PLAN.replace(latency_ms=1e-6)
    with problem.loop(tmp_path / "a", problem.net, (BLEND,), plan=slow) as loop:
        loop.run(drift, labels=8)
        assert problem.rows(loop, "commit") == []
        assert "are allowed" in problem.rows(loop, "decision")[0].content["verdicts"][0]["why"]
    with problem.loop(tmp_path / "b", problem.net, (BLEND,), plan=problem.PLAN.replace(latency_ms=1e6)) as loop:
        loop.run(drift, labels=8)
        assert loop.progress.served == "BatchNormBlend"
        loop.controller.plan = slow
        for batch in list(drift.batches(problem.WINDOW))[-slow.verify :]:
            loop.step(batch.replace(y=None))
        assert loop.progress.served == "source"
        assert "it took longer than" in problem.rows(loop, "rollback")[0].content["why"]


def test_a_memory_shorter_than_a_trial_is_refused(problem):
    with pytest.raises(SpecError, match=r"Plan\.memory = 2"):
        problem.PLAN.replace(memory=2)


# -- by hand


def test_a_person_can_go_back_at_any_time(problem, drift, tmp_path):
    with problem.loop(tmp_path, problem.net, (BLEND,)) as loop:
        with pytest.raises(InputError, match="served already"):
            loop.rollback()
        loop.run(drift, labels=8)
        assert loop.progress.served == "BatchNormBlend"
        loop.rollback("the owner said so")
        batch = drift.load()[-problem.WINDOW :].replace(y=None)
        with torch.no_grad():
            assert torch.equal(loop.predict(batch), problem.net(batch.x))
    with problem.loop(tmp_path, problem.net, (BLEND,)) as again:
        assert again.progress.served == "source"
        assert problem.rows(again, "rollback")[-1].content["why"] == "the owner said so"
