"""A loop that was stopped goes on as if it had not; what it commits is on disk before it is served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from homeostat.adapt import BatchNormBlend, Tent
from homeostat.core.data import Tensors
from homeostat.core.errors import (
    CheckpointError,
    StoreError,
)
from homeostat.core.fork import fork
from homeostat.core.run import Event, Run
from homeostat.core.save import content_hash
from homeostat.core.world import World
from homeostat.loop.progress import LoopState
from homeostat.loop.store import Store


class Foreign(nn.Module):
    """A class that the library cannot build, which takes a tree."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Mapping[str, Any]) -> Tensor:
        return self.net(x["image"]) + x["more"][0]


BLEND = BatchNormBlend(blend=0.0)


def same_tensors(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return set(left) == set(right) and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("at", [1, 9, 12, 21])
def test_a_loop_that_was_stopped_goes_on_as_if_it_had_not(problem, tmp_path, at):
    plan = problem.PLAN.replace(anchor=1.0, retry=3)
    stream = problem.stream([(problem.CLEAN, 5), (problem.DARK, 12), (problem.CLEAN, 12)])
    remedies = (problem.Undoing(), Tent(), BLEND)
    with problem.loop(tmp_path / "whole", problem.net, remedies, plan=plan) as whole:
        whole.run(stream, labels=8)
        expected = problem.told(whole)
    assert next(row[0] for row in expected if row[1] == "commit") in (8, 9, 10, 11), "the second stop is in a trial"

    class Stopped(Exception):
        pass

    def stop(event: Event) -> None:
        if event.name == "window" and event.step == at:
            raise Stopped

    first = problem.loop(tmp_path / "parts", problem.net, remedies, plan=plan, run=Run(watch=stop))
    with first, pytest.raises(Stopped):
        first.run(stream, labels=8)
    with problem.loop(tmp_path / "parts", problem.net, remedies, plan=plan) as second:
        assert 0 < at - second.progress.at <= plan.snapshot or at == second.progress.at
        second.run(stream, labels=8)
        assert problem.told(second) == expected
        assert same_tensors(second.state, whole.state) and second.progress == whole.progress
        assert [len(b) for b in second.controller.recent] == [problem.WINDOW] * plan.kept


def test_a_commit_is_in_the_journal_only_together_with_the_state_that_serves_it(problem, drift, tmp_path, monkeypatch):
    plan = problem.PLAN.replace(snapshot=1000)
    with problem.loop(tmp_path, problem.net, (BLEND,), plan=plan) as loop, pytest.raises(StoreError, match="full"):

        def keep(model: nn.Module) -> str:
            if isinstance(model, LoopState):
                raise StoreError("the disk is full")
            return Store.keep(loop.store, model)

        monkeypatch.setattr(loop.store, "keep", keep)
        loop.run(drift, labels=8)
    assert loop.progress.served == "BatchNormBlend", "it failed after the switch, while writing"
    with problem.loop(tmp_path, problem.net, (BLEND,), plan=plan) as again:
        assert problem.rows(again, "commit") == [] and again.progress.served == "source"
        again.run(drift, labels=8)
        (commit,) = problem.rows(again, "commit")
    with problem.loop(tmp_path, problem.net, (BLEND,)) as last:
        assert last.progress.served == "BatchNormBlend" and content_hash(last.state.served) == commit.checkpoint


def test_a_commit_serves_on_when_the_process_ends_right_after_it(problem, drift, tmp_path):
    plan = problem.PLAN.replace(snapshot=1000)
    loop = problem.loop(tmp_path, problem.net, (BLEND,), plan=plan)
    for batch in drift.batches(problem.WINDOW):
        loop.step(batch)
        if loop.progress.served == "BatchNormBlend":
            break
    loop.store.close()  # as a kill would: what waits in memory is not written
    with problem.loop(tmp_path, problem.net, (BLEND,), plan=plan) as again:
        assert again.progress.served == "BatchNormBlend" and again.progress.at == loop.progress.at
        assert same_tensors(again.state, loop.state) and len(problem.rows(again, "commit")) == 1


def test_a_network_of_a_foreign_class_that_takes_a_tree_is_served_committed_and_resumed(problem, tmp_path):
    def tree(x: Tensor) -> dict[str, Any]:
        return {"image": x, "more": (torch.zeros(len(x), 1),)}

    net, batch = Foreign(problem.net).eval(), problem.images(200, 2).load()
    world = World(source=Tensors(tree(batch.x), batch.y))
    stream = problem.stream([(problem.CLEAN, 3), (problem.DARK, 8)]).load()
    stream = Tensors(tree(stream.x), stream.y)
    with problem.loop(tmp_path / "whole", net, world=world) as whole:
        whole.run(stream, labels=8)
        assert problem.rows(whole, "commit")
        expected = problem.told(whole)
    with problem.loop(tmp_path / "parts", net, world=world) as first:
        for part in list(stream.batches(problem.WINDOW))[:3]:
            first.step(part.replace(y=None))
        first.snapshot()
    with problem.loop(tmp_path / "parts", net, world=world) as second:
        assert second.progress.at == 3 and torch.equal(
            second.controller.recent[0].x["image"], first.controller.recent[0].x["image"]
        )
        second.run(stream, labels=8)
        assert [row[1] for row in problem.told(second) if row[1] != "snapshot"] == [
            row[1] for row in expected if row[1] != "snapshot"
        ]
    with problem.loop(tmp_path / "whole", net, world=world) as third:
        assert third.progress.served == whole.progress.served and same_tensors(third.state, whole.state)


def test_a_store_of_another_network_is_refused_and_stays_as_it_is(problem, tmp_path):
    with problem.loop(tmp_path, problem.net) as loop:
        before = problem.told(loop)
    other = fork(problem.net, own="*")
    with torch.no_grad():
        other[5].bias.add_(0.001)
    with pytest.raises(StoreError, match="another network"):
        problem.loop(tmp_path, other)
    with problem.loop(tmp_path, problem.net) as loop:
        assert problem.told(loop) == before


def test_a_resumed_loop_without_the_remedy_it_serves_goes_on_serving_it(problem, drift, tmp_path):
    with problem.loop(tmp_path, problem.net, (BLEND,), simulate=problem.SIMULATED) as loop:
        loop.run(drift)
        assert loop.progress.served == "BatchNormBlend"
    with problem.loop(tmp_path, problem.net, (Tent(),), simulate=problem.SIMULATED) as loop:
        for batch in problem.stream([(problem.DARK, 4)], seed=9).batches(problem.WINDOW):
            loop.step(batch.replace(y=None))
        assert loop.progress.served == "BatchNormBlend" and loop.progress.at == 24


def test_a_lost_snapshot_is_named_when_a_loop_resumes(problem, drift, tmp_path):
    with problem.loop(tmp_path, problem.net) as loop:
        loop.run(drift)
        name = problem.rows(loop, "snapshot")[-1].checkpoint
    file = tmp_path / "checkpoints" / name / "model.json"
    file.rename(file.with_name("gone"))
    with pytest.raises(CheckpointError):
        problem.loop(tmp_path, problem.net)
    Store(tmp_path).close()


def test_a_snapshot_taken_between_serving_and_learning_does_not_lose_the_one_before(problem, tmp_path):
    with problem.loop(tmp_path, problem.net) as loop:
        for batch in problem.stream([(problem.CLEAN, 7)]).batches(problem.WINDOW):
            loop.step(batch)
        loop.state.carry["monitor.center"] += 0.25
        loop.snapshot()
    with problem.loop(tmp_path, problem.net) as loop:
        assert loop.progress.at == 7
