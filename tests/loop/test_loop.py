"""The loop: commits what helps, refuses what harms, serves through failures, and resumes as if it had not stopped."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from homeostat.adapt import BatchNormBlend, Tent
from homeostat.core.data import UNKNOWN, Batch, Tensors
from homeostat.core.errors import (
    CheckpointError,
    DtypeError,
    HomeostatError,
    InputError,
    MissingPart,
    ModelError,
    NonFiniteError,
    StoreError,
)
from homeostat.core.fork import fork, versions
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Online
from homeostat.core.part import Part
from homeostat.core.run import Event, Run
from homeostat.core.save import content_hash
from homeostat.core.task import Regress
from homeostat.core.weights import fingerprint
from homeostat.core.world import World
from homeostat.loop import Loop
from homeostat.loop.progress import LoopState
from homeostat.loop.store import SWITCHES, Store
from homeostat.nn.norms import blend_batchnorm


class LoopTestConstant(Part):
    """One class whatever comes."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) * 0 + torch.tensor([9.0, 0.0, 0.0])


class LoopTestFuse(Online):
    """Batch statistics, until it has seen `after` windows; then it fails in one way or another."""

    def __init__(self, model: nn.Module, after: int, how: str):
        super().__init__(model)
        self.after, self.how = after, how
        self.carry["seen"] = torch.tensor(0)

    def adapt(self, batch: Batch) -> Tensor:
        self.carry["seen"] = self.carry["seen"] + 1
        if int(self.carry["seen"]) <= self.after:
            return self.model(batch.x)
        if self.how == "ours":
            raise ModelError("the fuse has blown")
        return self.model(batch.x[:, :0]) if self.how == "shape" else self.model(batch.x) * float("nan")


@dataclass(frozen=True)
class LoopTestCollapsing(Remedy):
    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return LoopTestConstant(fork(model))


@dataclass(frozen=True)
class LoopTestRefusing(Remedy):
    how: str = "ours"

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        if self.how == "ours":
            raise ModelError("it does not fit")
        return model(torch.zeros(1, 2))


@dataclass(frozen=True)
class LoopTestFusing(Remedy):
    after: int = 100
    how: str = "nan"

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return LoopTestFuse(blend_batchnorm(model, blend=0.0), self.after, self.how)


@dataclass(frozen=True)
class LoopTestNosy(Remedy):
    """Asks for what a loop cannot give."""

    card: ClassVar[Card] = Card(needs=frozenset({"parts.cloud.x"}))

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return fork(model)


class Foreign(nn.Module):
    """A class that the library cannot build, which takes a tree."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Mapping[str, Any]) -> Tensor:
        return self.net(x["image"]) + x["more"][0]


BLEND = BatchNormBlend(blend=0.0)


def rows(loop: Loop, *kinds: str) -> list[Any]:
    loop.flush()
    return list(loop.store.rows(*kinds))


def verdicts(loop: Loop, name: str) -> list[dict[str, Any]]:
    found = [v for row in rows(loop, "decision") for v in row.content["verdicts"] if v["name"] == name]
    assert found, f"{name} was never judged"
    return found


def mean(trace: Any, name: str, where: str) -> float:
    seen = [entry[name].value for entry in trace if entry.where == where]
    return sum(seen) / len(seen)


@pytest.fixture
def drift(problem):
    return problem.stream([(problem.CLEAN, 6), (problem.DARK, 14)])


# -- commits, and what is not committed


@pytest.mark.parametrize(("labels", "simulated"), [(8, False), (0, True), (8, True)])
def test_a_helpful_candidate_is_committed_and_serves_better(problem, drift, tmp_path, labels, simulated):
    with problem.loop(tmp_path, problem.net, simulate=problem.SIMULATED if simulated else ()) as loop:
        trace = loop.run(drift, labels=labels)
        (commit,) = rows(loop, "commit")
        (alarm,) = rows(loop, "alarm")
    assert 6 <= alarm.step < commit.step <= 15 and commit.content["from"] == "source"
    assert commit.content["to"] in ("BatchNormBlend", "Tent")
    after = [entry for entry in trace if entry.step > commit.step]
    gain = sum(e["accuracy"].value - e["frozen"].value for e in after) / len(after)
    assert gain > 0.2 and {e.subject for e in after} == {commit.content["to"]}
    before = [entry for entry in trace if entry.step <= commit.step]
    assert all(e["accuracy"].value == e["frozen"].value and e.subject == "source" for e in before)


def test_without_labels_and_without_simulated_shifts_nothing_is_ever_committed(problem, tmp_path):
    long = problem.stream([(problem.CLEAN, 5), (problem.DARK, 40)])
    with problem.loop(tmp_path, problem.net) as loop:
        loop.run(long)
        assert len(rows(loop, "decision")) >= 2, "candidates were tried, more than once"
        assert rows(loop, "commit", "rollback") == []
        assert {v["word"] for v in verdicts(loop, "Tent")} == {"not shown"}
        assert fingerprint(loop.state.served) == fingerprint(problem.net)
        waits = [row.step for row in rows(loop, "alarm")]
    gaps = [later - sooner for sooner, later in itertools.pairwise(waits)]
    assert all(later > sooner for sooner, later in itertools.pairwise(gaps)), "retries come ever more seldom"


@pytest.mark.parametrize("labels", [0, 25])
def test_a_collapsing_candidate_is_refused_whatever_labels_say(problem, tmp_path, labels):
    """Nothing but class 0 in the labels: the collapsed candidate is right every time, and is refused all the same."""
    stream = problem.stream([(problem.CLEAN, 6), (problem.DARK, 12)])
    y = torch.where(torch.arange(len(stream)) >= 6 * problem.WINDOW, 0, stream.load().labels)
    plan = problem.PLAN.replace(few=0.8, anchor=1.0)
    with problem.loop(tmp_path, problem.net, (LoopTestCollapsing(),), plan=plan, simulate=problem.SIMULATED) as loop:
        loop.run(Tensors(stream.load().x, y), labels=labels)
        assert {v["word"] for v in verdicts(loop, "LoopTestCollapsing")} == {"refused"}
        assert "predicts only 1.0 classes" in verdicts(loop, "LoopTestCollapsing")[0]["why"]
        assert rows(loop, "commit") == []


def test_what_is_served_is_not_tried_against_itself(problem, tmp_path):
    stream = problem.stream([(problem.CLEAN, 5), (problem.DARK, 12), (problem.DARK, 8)])
    undoing, y = problem.Undoing(), stream.load().labels.clone()
    plan = problem.PLAN.replace(anchor=1.0)
    y[17 * problem.WINDOW :] = (y[17 * problem.WINDOW :] + 1) % 3  # no candidate helps against another rule
    with problem.loop(tmp_path, problem.net, (undoing, BLEND), plan=plan, simulate=problem.NEAR) as loop:
        loop.run(Tensors(stream.load().x, y), labels=25)
        commits = [row for row in rows(loop, "commit") if row.content["to"] == "LoopTestUndoing"]
        assert commits, "it was committed while it helped"
        later = [row.content for row in rows(loop, "propose") if row.step > commits[0].step]
        while_served = [said for said in later if "source" in said["tried"]]
        assert while_served, "an alarm went off while it was served"
        assert all("LoopTestUndoing" not in said["tried"] for said in while_served)
        assert while_served[0]["left"]["LoopTestUndoing"] == "it is what is served"


def test_a_candidate_that_forgets_data_from_before_is_refused_beyond_the_anchor(problem, drift, tmp_path):
    for anchor, word in ((0.1, "refused"), (1.0, "better")):
        plan = problem.PLAN.replace(anchor=anchor)
        with problem.loop(tmp_path / str(anchor), problem.net, (problem.Undoing(),), plan=plan) as loop:
            loop.run(drift, labels=25)
            first = verdicts(loop, "LoopTestUndoing")[0]
            assert first["word"] == word, first
            assert anchor == 1.0 or "on data from before" in first["why"]


@pytest.mark.parametrize("how", ["ours", "torch"])
def test_a_candidate_that_cannot_be_applied_is_refused_and_its_rival_goes_on(problem, drift, tmp_path, how):
    with problem.loop(tmp_path, problem.net, (LoopTestRefusing(how), BLEND)) as loop:
        loop.run(drift, labels=8)
        assert verdicts(loop, "LoopTestRefusing")[0]["word"] == "refused"
        assert "it failed" in verdicts(loop, "LoopTestRefusing")[0]["why"]
        assert [row.content["to"] for row in rows(loop, "commit")] == ["BatchNormBlend"]


@pytest.mark.parametrize("how", ["ours", "nan", "shape"])
def test_a_candidate_that_fails_in_shadow_is_refused_and_its_rival_goes_on(problem, drift, tmp_path, how):
    with problem.loop(tmp_path, problem.net, (LoopTestFusing(4, how), BLEND)) as loop:
        loop.run(drift, labels=8)
        found = verdicts(loop, "LoopTestFusing")[0]
        assert found["word"] == "refused" and ("NaN" if how == "nan" else "it failed") in found["why"]
        assert [row.content["to"] for row in rows(loop, "commit")] == ["BatchNormBlend"]


def test_a_candidate_that_fails_on_simulated_shifts_has_no_estimate_and_the_loop_goes_on(problem, drift, tmp_path):
    remedies = (LoopTestFusing(4, "nan"), LoopTestFusing(4, "ours"), BLEND)
    with problem.loop(tmp_path, problem.net, remedies, simulate=problem.SIMULATED) as loop:
        names = list(loop.repertoire.remedies)
        estimates = [loop.repertoire.estimate(name) for name in names]
        assert [estimate.known for estimate in estimates] == [False, False, True]
        loop.run(drift)
        assert [row.content["to"] for row in rows(loop, "commit")] == ["BatchNormBlend"]


def test_candidates_whose_needs_the_loop_cannot_meet_are_left_out(problem, drift, tmp_path):
    with problem.loop(tmp_path, problem.net, (LoopTestNosy(), BLEND)) as loop:
        loop.run(drift, labels=8)
        (proposed, *_) = rows(loop, "propose")
        assert proposed.content["tried"] == ["BatchNormBlend"] and list(proposed.content["left"]) == ["LoopTestNosy"]
        assert "parts.cloud" in proposed.content["left"]["LoopTestNosy"]
        assert [row.content["to"] for row in rows(loop, "commit")] == ["BatchNormBlend"]


# -- serving


def test_on_a_stream_that_never_alarms_predictions_are_those_of_the_network_bit_for_bit(problem, tmp_path):
    stream = problem.stream([(problem.CLEAN, 30)], seed=8)
    with problem.loop(tmp_path, problem.net, simulate=problem.SIMULATED) as loop, torch.no_grad():
        for batch in stream.batches(problem.WINDOW):
            assert torch.equal(loop.step(batch), problem.net(batch.x))
        assert rows(loop, "alarm", "commit") == [] and len(rows(loop, "window")) == 30


@pytest.mark.parametrize(("how", "why"), [("nan", "NaN"), ("ours", "the fuse has blown"), ("shape", "it failed")])
def test_when_what_is_served_fails_the_network_as_deployed_serves_and_is_gone_back_to(problem, tmp_path, how, why):
    stream = problem.stream([(problem.CLEAN, 6), (problem.DARK, 24)])
    with problem.loop(tmp_path, problem.net, (LoopTestFusing(12, how),)) as loop, torch.no_grad():
        for batch in stream.batches(problem.WINDOW):
            out = loop.step(batch)
            assert bool(torch.isfinite(out).all()) and out.shape == (problem.WINDOW, 3)
            if rolled := rows(loop, "rollback"):
                assert torch.equal(out, problem.net(batch.x)), "the very window in which it failed is served"
                break
        assert rolled and why in rolled[0].content["why"]
        assert rolled[0].content["from"] == "LoopTestFusing" and loop.progress.served == "source"
        assert rolled[0].step == rows(loop, "window")[-1].step
        assert content_hash(loop.state.served) == rolled[0].checkpoint == rows(loop, "start")[0].checkpoint


@pytest.mark.parametrize("labels", [0, 8, 25])
def test_when_the_world_returns_the_network_as_deployed_serves_again(problem, tmp_path, labels):
    stream = problem.stream([(problem.CLEAN, 6), (problem.DARK, 14), (problem.CLEAN, 18)])
    plan, simulate = problem.PLAN.replace(anchor=1.0), () if labels else problem.NEAR
    with problem.loop(tmp_path, problem.net, (problem.Undoing(),), plan=plan, simulate=simulate) as loop:
        trace = loop.run(stream, labels=labels)
        assert len(rows(loop, "commit")) == 1
        rollback = rows(loop, "rollback")[0]
        assert 20 <= rollback.step <= (23 if labels == 25 else 28) and rollback.content["to"] == "source"
        if labels == 25:
            assert "the frozen network is better by" in rollback.content["why"]
        if labels == 0:
            assert "estimated gain over the frozen network was negative" in rollback.content["why"]
    assert all(e["accuracy"].value == e["frozen"].value == 1.0 for e in trace if e.step > rollback.step)
    assert mean(trace, "accuracy", "1") > mean(trace, "frozen", "1") + 0.1


def test_at_an_alarm_what_was_shown_to_help_in_another_world_gives_way_at_once(problem, tmp_path):
    """Labels showed that it helps in the dark; of the glare nothing is known, and it is tried again there."""
    stream = problem.stream([(problem.CLEAN, 6), (problem.DARK, 14), (problem.Light(1.8, 0.4), 10)])
    plan = problem.PLAN.replace(anchor=1.0, few=0.0)
    with problem.loop(tmp_path, problem.net, (problem.Undoing(),), plan=plan) as loop:
        loop.run(stream[: 20 * problem.WINDOW], labels=8)
        loop.run(stream)  # no label comes any more
        (commit, *_), (rollback, *_) = rows(loop, "commit"), rows(loop, "rollback")
        alarm = next(row for row in rows(loop, "alarm") if row.step >= 20)
    assert commit.step < 20 <= rollback.step == alarm.step <= 22
    assert rollback.content["why"] == "the world changed, and nothing shows that it helps now"


def test_a_switch_and_the_state_that_serves_it_are_written_together_also_where_a_trial_begins(
    problem, tmp_path, monkeypatch
):
    stream = problem.stream([(problem.CLEAN, 6), (problem.DARK, 14), (problem.Light(1.8, 0.4), 6)])
    plan, written = problem.PLAN.replace(anchor=1.0, few=0.0), list[list[str]]()
    with problem.loop(tmp_path, problem.net, (problem.Undoing(),), plan=plan) as loop:
        write = loop.store.write
        monkeypatch.setattr(loop.store, "write", lambda rows: (written.append([r.kind for r in rows]), write(rows)))
        loop.run(stream[: 20 * problem.WINDOW], labels=8)
        loop.run(stream)
    switched = [kinds for kinds in written if {"commit", "rollback"} & set(kinds)]
    assert len(switched) >= 2 and all("snapshot" in kinds for kinds in switched)
    assert any({"rollback", "propose"} <= set(kinds) for kinds in switched), "a rollback and a trial in one window"


def test_where_its_estimate_holds_in_the_new_world_what_is_served_stays(problem, tmp_path):
    stream = problem.stream([(problem.CLEAN, 6), (problem.DARK, 12), (problem.Light(0.5, -0.2), 10)])
    with problem.loop(tmp_path, problem.net, (BLEND,), simulate=problem.SIMULATED) as loop:
        trace = loop.run(stream)
        assert rows(loop, "commit") and rows(loop, "rollback") == []
        assert [row for row in rows(loop, "alarm") if row.step >= 18], "the second change is noticed"
    assert mean(trace, "accuracy", "2") > mean(trace, "frozen", "2") + 0.1


def test_the_given_network_is_untouched_and_may_be_in_training_mode(problem, drift, tmp_path):
    net = fork(problem.net, own="*").train()
    before, weights = versions(net), fingerprint(net)
    with problem.loop(tmp_path, net) as loop:
        loop.run(drift, labels=25)
        assert rows(loop, "commit")
    assert versions(net) == before and fingerprint(net) == weights and net.training


def test_the_journal_has_a_row_for_every_window_that_says_what_was_served(problem, drift, tmp_path):
    with problem.loop(tmp_path, problem.net) as loop:
        trace = loop.run(drift, labels=7)
        windows = rows(loop, "window")
    assert [row.step for row in windows] == list(range(20)) == [entry.step for entry in trace]
    assert [row.content["served"] for row in windows] == [entry.subject for entry in trace]
    assert {row.content["labels"] for row in windows} == {7}
    for row, entry in zip(windows, trace, strict=True):
        assert 0 <= row.content["right"] <= 7 and row.content["ms"] >= 0
        assert abs(row.content["right"] / 7 - entry["accuracy"].value) < 0.6
    assert [entry.where for entry in trace] == ["0"] * 6 + ["1"] * 14


# -- labels


def test_labels_that_are_hidden_do_not_change_what_the_loop_does(problem, drift, tmp_path):
    batch = drift.load()
    order = torch.randperm(len(drift), generator=torch.Generator().manual_seed(0))
    seen = []
    for name, y in (("true", batch.labels), ("mixed", batch.labels[order]), ("none", None)):
        with problem.loop(tmp_path / name, problem.net, simulate=problem.SIMULATED) as loop:
            loop.run(Tensors(batch.x, y), labels=0)
            seen.append(problem.told(loop))
    assert "commit" in {row[1] for row in seen[0]} and seen[0] == seen[1] == seen[2]


def test_as_many_labels_as_were_asked_for_are_shown_and_unknown_ones_judge_nothing(problem, tmp_path):
    stream = problem.stream([(problem.CLEAN, 3)]).load()
    y = stream.labels.clone()
    y[: problem.WINDOW] = UNKNOWN
    y[problem.WINDOW + 3 : 2 * problem.WINDOW] = UNKNOWN
    with problem.loop(tmp_path, problem.net) as loop:
        trace = loop.run(Tensors(stream.x, y), labels=problem.WINDOW)
        assert [row.content.get("labels", 0) for row in rows(loop, "window")] == [0, 3, problem.WINDOW]
    assert [r.name for r in trace.entries[0].readings if r.name != "memory"] == ["seconds"]
    assert [entry["accuracy"].value for entry in trace.entries[1:]] == [1.0, 1.0]
    with problem.loop(tmp_path / "b", problem.net) as loop, pytest.raises(InputError, match="0 or more; got -1"):
        loop.run(Tensors(stream.x, y), labels=-1)


def test_samples_from_before_without_a_label_are_left_out(problem, tmp_path):
    batch = problem.images(200, 2).load()
    y = torch.where(torch.arange(200) % 2 == 0, UNKNOWN, batch.labels)
    with problem.loop(tmp_path, problem.net, world=World(source=Tensors(batch.x, y))) as loop:
        assert loop.controller.error_before == 0.0 and len(loop.repertoire.before) == 100


# -- stop and go on


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
        assert rows(again, "commit") == [] and again.progress.served == "source"
        again.run(drift, labels=8)
        (commit,) = rows(again, "commit")
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
        assert same_tensors(again.state, loop.state) and len(rows(again, "commit")) == 1


def test_a_network_of_a_foreign_class_that_takes_a_tree_is_served_committed_and_resumed(problem, tmp_path):
    def tree(x: Tensor) -> dict[str, Any]:
        return {"image": x, "more": (torch.zeros(len(x), 1),)}

    net, batch = Foreign(problem.net).eval(), problem.images(200, 2).load()
    world = World(source=Tensors(tree(batch.x), batch.y))
    stream = problem.stream([(problem.CLEAN, 3), (problem.DARK, 8)]).load()
    stream = Tensors(tree(stream.x), stream.y)
    with problem.loop(tmp_path / "whole", net, world=world) as whole:
        whole.run(stream, labels=8)
        assert rows(whole, "commit")
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
        name = rows(loop, "snapshot")[-1].checkpoint
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


# -- bad input


def spoilt(net: nn.Module) -> nn.Module:
    made = fork(net, own="*")
    with torch.no_grad():
        made[5].weight[0, 0] = torch.nan
    return made


BAD = {
    "nothing from before": (lambda p: {"world": World()}, MissingPart, "labelled data from before"),
    "no labels": (lambda p: {"world": World(source=torch.rand(60, 1, 8, 8))}, MissingPart, "labelled data from before"),
    "only unknown labels": (
        lambda p: {"world": World(source=(p.images(60, 1).load().x, torch.full((60,), UNKNOWN)))},
        MissingPart, "labelled data from before",
    ),
    "labels out of range": (
        lambda p: {"world": World(source=(p.images(60, 1).load().x, torch.full((60,), 3)))}, InputError, "outside 0..2",
    ),
    "labels that are floats": (
        lambda p: {"world": World(source=(p.images(60, 1).load().x, torch.rand(60)))}, DtypeError, "integers",
    ),
    "inputs of another width": (
        lambda p: {"world": World(source=(torch.rand(60, 2, 8, 8), torch.zeros(60, dtype=torch.long)))},
        InputError, "cannot take these inputs",
    ),
    "inputs that are not numbers": (
        lambda p: {"world": World(source=(torch.full((60, 1, 8, 8), torch.nan), torch.zeros(60, dtype=torch.long)))},
        NonFiniteError, "NaN",
    ),
    "weights that are not numbers": (lambda p: {"net": spoilt(p.net)}, NonFiniteError, "weights hold NaN"),
    "a network that adapts already": (lambda p: {"net": Tent()(p.net)}, ModelError, "adapts while it serves"),
    "no classifier": (
        lambda p: {"world": World(source=p.images(60, 1), task=Regress())}, ModelError, "serves classifiers",
    ),
    "no logits": (lambda p: {"net": nn.Sequential(*p.net[:4])}, ModelError, "float logits"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_our_error_before_anything_is_written(problem, tmp_path, name):
    make, error, text = BAD[name]
    given = {"net": problem.net, **make(problem)}
    with pytest.raises(error, match=text):
        problem.loop(tmp_path / "store", **given)
    assert issubclass(error, HomeostatError) and not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"world": "few"}, "at least 50"),
        ({"simulate": 2}, "at least 3 shifts"),
    ],
)
def test_what_is_found_later_leaves_an_empty_journal_and_no_lock(problem, tmp_path, more, text):
    if "world" in more:
        more = {"world": World(source=problem.images(49, 1))}
    else:
        more = {"simulate": problem.SIMULATED[: more["simulate"]]}
    with pytest.raises(InputError, match=text):
        problem.loop(tmp_path, problem.net, **more)
    with Store(tmp_path) as store:
        assert list(store.rows()) == [] and list((tmp_path / "checkpoints").iterdir()) == []
    with problem.loop(tmp_path, problem.net) as loop:
        assert [row.kind for row in rows(loop)] == ["start"]


def image(value: float) -> Tensor:
    return torch.full((4, 1, 8, 8), value)


@pytest.mark.parametrize(
    ("window", "error", "text"),
    [
        (Batch(image(0.5)[:0]), InputError, "empty"),
        (image(0.5)[:0], InputError, "empty"),
        (image(torch.nan), NonFiniteError, "NaN"),
        (image(torch.inf), NonFiniteError, "NaN"),
        (image(3e38), NonFiniteError, "as deployed gives NaN"),
        (torch.rand(4, 2, 8, 8), InputError, "cannot take these inputs"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.long), InputError, "cannot take these inputs"),
        ((image(0.5), torch.tensor([0, 1, 2, 3])), InputError, "outside 0..2"),
        ((image(0.5), torch.tensor([0, 1, 2, -1])), InputError, "outside 0..2"),
        ((image(0.5), torch.rand(4)), DtypeError, "integers"),
        (Batch(image(0.5), torch.tensor([0, 1])), InputError, "one label per prediction"),
    ],
)
@pytest.mark.parametrize("committed", [False, True])
def test_a_bad_window_is_refused_and_changes_nothing(problem, tmp_path, window, error, text, committed):
    with problem.loop(tmp_path, problem.net, (Tent(),)) as loop:
        if committed:
            loop.run(problem.stream([(problem.CLEAN, 5), (problem.DARK, 9)]), labels=25)
            assert loop.progress.served == "Tent"
        before, state, said = loop.progress.as_dict(), content_hash(loop.state), problem.told(loop)
        with pytest.raises(error, match=text):
            loop.step(window)
        assert content_hash(loop.state) == state or "as deployed" in text
        assert loop.progress.as_dict() == before and problem.told(loop) == said
        with pytest.raises(InputError, match="call predict first"):
            loop.learn()
        loop.step(problem.images(problem.WINDOW, 3)[:10])
        assert loop.progress.at == before["at"] + 1


def test_labels_of_a_stream_out_of_range_are_our_error_and_what_came_before_is_kept(problem, tmp_path):
    stream = problem.stream([(problem.CLEAN, 6)]).load()
    y = stream.labels.clone()
    y[4 * problem.WINDOW + 2] = 3
    with problem.loop(tmp_path, problem.net) as loop, pytest.raises(InputError, match=r"stream\.y has labels outside"):
        loop.run(Tensors(stream.x, y))
    with problem.loop(tmp_path, problem.net) as loop:
        assert [row.step for row in rows(loop, "window")] == [0, 1, 2, 3]
        loop.run(stream)
        assert [row.step for row in rows(loop, "window")] == list(range(6))


def test_windows_are_served_one_by_one_before_they_are_learnt_from(problem, tmp_path):
    with problem.loop(tmp_path, problem.net) as loop:
        with pytest.raises(InputError, match="call predict first"):
            loop.learn()
        batch = problem.images(problem.WINDOW, 4).load()
        with torch.no_grad():
            assert torch.equal(loop.predict(batch.x), problem.net(batch.x)) and loop.progress.at == 0
        loop.learn()
        assert loop.progress.at == 1
        with pytest.raises(InputError, match="call predict first"):
            loop.learn()


def test_every_switch_names_a_checkpoint_that_loads(problem, tmp_path):
    stream = problem.stream([(problem.CLEAN, 6), (problem.DARK, 14), (problem.CLEAN, 18)])
    plan = problem.PLAN.replace(anchor=1.0)
    with problem.loop(tmp_path, problem.net, (problem.Undoing(),), plan=plan) as loop:
        loop.run(stream, labels=25)
        switches = rows(loop, *SWITCHES)
        assert [row.kind for row in switches] == ["start", "commit", "rollback"]
        for row in switches:
            assert content_hash(loop.store.load(row.checkpoint, base=problem.net)) == row.checkpoint
        kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
        assert kept == {row.checkpoint for row in [*switches, rows(loop, "snapshot")[-1]]}
