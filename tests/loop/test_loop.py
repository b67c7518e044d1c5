"""The loop: commits what helps, refuses what harms, serves through failures, and resumes as if it had not stopped."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from homeostat.adapt import BatchNormBlend
from homeostat.core.data import UNKNOWN, Batch, Tensors
from homeostat.core.errors import (
    InputError,
    ModelError,
)
from homeostat.core.fork import fork, versions
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Online
from homeostat.core.part import Part
from homeostat.core.run import Run
from homeostat.core.save import content_hash
from homeostat.core.weights import fingerprint
from homeostat.core.world import World
from homeostat.loop import Loop
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


BLEND = BatchNormBlend(blend=0.0)


def verdicts(problem: Any, loop: Loop, name: str) -> list[dict[str, Any]]:
    found = [v for row in problem.rows(loop, "decision") for v in row.content["verdicts"] if v["name"] == name]
    assert found, f"{name} was never judged"
    return found


def mean(trace: Any, name: str, where: str) -> float:
    seen = [entry[name].value for entry in trace if entry.where == where]
    return sum(seen) / len(seen)


# -- commits, and what is not committed


@pytest.mark.parametrize(("labels", "simulated"), [(8, False), (0, True), (8, True)])
def test_a_helpful_candidate_is_committed_and_serves_better(problem, drift, tmp_path, labels, simulated):
    with problem.loop(tmp_path, problem.net, simulate=problem.SIMULATED if simulated else ()) as loop:
        trace = loop.run(drift, labels=labels)
        (commit,) = problem.rows(loop, "commit")
        (alarm,) = problem.rows(loop, "alarm")
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
        assert len(problem.rows(loop, "decision")) >= 2, "candidates were tried, more than once"
        assert problem.rows(loop, "commit", "rollback") == []
        assert {v["word"] for v in verdicts(problem, loop, "Tent")} == {"not shown"}
        assert fingerprint(loop.state.served) == fingerprint(problem.net)
        waits = [row.step for row in problem.rows(loop, "alarm")]
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
        assert {v["word"] for v in verdicts(problem, loop, "LoopTestCollapsing")} == {"refused"}
        assert "predicts only 1.0 classes" in verdicts(problem, loop, "LoopTestCollapsing")[0]["why"]
        assert problem.rows(loop, "commit") == []


def test_what_is_served_is_not_tried_against_itself(problem, tmp_path):
    stream = problem.stream([(problem.CLEAN, 5), (problem.DARK, 12), (problem.DARK, 8)])
    undoing, y = problem.Undoing(), stream.load().labels.clone()
    plan = problem.PLAN.replace(anchor=1.0)
    y[17 * problem.WINDOW :] = (y[17 * problem.WINDOW :] + 1) % 3  # no candidate helps against another rule
    with problem.loop(tmp_path, problem.net, (undoing, BLEND), plan=plan, simulate=problem.NEAR) as loop:
        loop.run(Tensors(stream.load().x, y), labels=25)
        commits = [row for row in problem.rows(loop, "commit") if row.content["to"] == "LoopTestUndoing"]
        assert commits, "it was committed while it helped"
        later = [row.content for row in problem.rows(loop, "propose") if row.step > commits[0].step]
        while_served = [said for said in later if "source" in said["tried"]]
        assert while_served, "an alarm went off while it was served"
        assert all("LoopTestUndoing" not in said["tried"] for said in while_served)
        assert while_served[0]["left"]["LoopTestUndoing"] == "it is what is served"


def test_a_candidate_that_forgets_data_from_before_is_refused_beyond_the_anchor(problem, drift, tmp_path):
    for anchor, word in ((0.1, "refused"), (1.0, "better")):
        plan = problem.PLAN.replace(anchor=anchor)
        with problem.loop(tmp_path / str(anchor), problem.net, (problem.Undoing(),), plan=plan) as loop:
            loop.run(drift, labels=25)
            first = verdicts(problem, loop, "LoopTestUndoing")[0]
            assert first["word"] == word, first
            assert anchor == 1.0 or "on data from before" in first["why"]


@pytest.mark.parametrize("how", ["ours", "torch"])
def test_a_candidate_that_cannot_be_applied_is_refused_and_its_rival_goes_on(problem, drift, tmp_path, how):
    with problem.loop(tmp_path, problem.net, (LoopTestRefusing(how), BLEND)) as loop:
        loop.run(drift, labels=8)
        assert verdicts(problem, loop, "LoopTestRefusing")[0]["word"] == "refused"
        assert "it failed" in verdicts(problem, loop, "LoopTestRefusing")[0]["why"]
        assert [row.content["to"] for row in problem.rows(loop, "commit")] == ["BatchNormBlend"]


@pytest.mark.parametrize("how", ["ours", "nan", "shape"])
def test_a_candidate_that_fails_in_shadow_is_refused_and_its_rival_goes_on(problem, drift, tmp_path, how):
    with problem.loop(tmp_path, problem.net, (LoopTestFusing(4, how), BLEND)) as loop:
        loop.run(drift, labels=8)
        found = verdicts(problem, loop, "LoopTestFusing")[0]
        assert found["word"] == "refused" and ("NaN" if how == "nan" else "it failed") in found["why"]
        assert [row.content["to"] for row in problem.rows(loop, "commit")] == ["BatchNormBlend"]


def test_a_candidate_that_fails_on_simulated_shifts_has_no_estimate_and_the_loop_goes_on(problem, drift, tmp_path):
    remedies = (LoopTestFusing(4, "nan"), LoopTestFusing(4, "ours"), BLEND)
    with problem.loop(tmp_path, problem.net, remedies, simulate=problem.SIMULATED) as loop:
        names = list(loop.repertoire.remedies)
        estimates = [loop.repertoire.estimate(name) for name in names]
        assert [estimate.known for estimate in estimates] == [False, False, True]
        loop.run(drift)
        assert [row.content["to"] for row in problem.rows(loop, "commit")] == ["BatchNormBlend"]


def test_candidates_whose_needs_the_loop_cannot_meet_are_left_out(problem, drift, tmp_path):
    with problem.loop(tmp_path, problem.net, (LoopTestNosy(), BLEND)) as loop:
        loop.run(drift, labels=8)
        (proposed, *_) = problem.rows(loop, "propose")
        assert proposed.content["tried"] == ["BatchNormBlend"] and list(proposed.content["left"]) == ["LoopTestNosy"]
        assert "parts.cloud" in proposed.content["left"]["LoopTestNosy"]
        assert [row.content["to"] for row in problem.rows(loop, "commit")] == ["BatchNormBlend"]


# -- serving


def test_on_a_stream_that_never_alarms_predictions_are_those_of_the_network_bit_for_bit(problem, tmp_path):
    stream = problem.stream([(problem.CLEAN, 30)], seed=8)
    with problem.loop(tmp_path, problem.net, simulate=problem.SIMULATED) as loop, torch.no_grad():
        for batch in stream.batches(problem.WINDOW):
            assert torch.equal(loop.step(batch), problem.net(batch.x))
        assert problem.rows(loop, "alarm", "commit") == [] and len(problem.rows(loop, "window")) == 30


@pytest.mark.parametrize(("how", "why"), [("nan", "NaN"), ("ours", "the fuse has blown"), ("shape", "it failed")])
def test_when_what_is_served_fails_the_network_as_deployed_serves_and_is_gone_back_to(problem, tmp_path, how, why):
    stream = problem.stream([(problem.CLEAN, 6), (problem.DARK, 24)])
    with problem.loop(tmp_path, problem.net, (LoopTestFusing(12, how),)) as loop, torch.no_grad():
        for batch in stream.batches(problem.WINDOW):
            out = loop.step(batch)
            assert bool(torch.isfinite(out).all()) and out.shape == (problem.WINDOW, 3)
            if rolled := problem.rows(loop, "rollback"):
                assert torch.equal(out, problem.net(batch.x)), "the very window in which it failed is served"
                break
        assert rolled and why in rolled[0].content["why"]
        assert rolled[0].content["from"] == "LoopTestFusing" and loop.progress.served == "source"
        assert rolled[0].step == problem.rows(loop, "window")[-1].step
        assert content_hash(loop.state.served) == rolled[0].checkpoint == problem.rows(loop, "start")[0].checkpoint


@pytest.mark.parametrize("labels", [0, 8, 25])
def test_when_the_world_returns_the_network_as_deployed_serves_again(problem, tmp_path, labels):
    stream = problem.stream([(problem.CLEAN, 6), (problem.DARK, 14), (problem.CLEAN, 18)])
    plan, simulate = problem.PLAN.replace(anchor=1.0), () if labels else problem.NEAR
    with problem.loop(tmp_path, problem.net, (problem.Undoing(),), plan=plan, simulate=simulate) as loop:
        trace = loop.run(stream, labels=labels)
        assert len(problem.rows(loop, "commit")) == 1
        rollback = problem.rows(loop, "rollback")[0]
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
        (commit, *_), (rollback, *_) = problem.rows(loop, "commit"), problem.rows(loop, "rollback")
        alarm = next(row for row in problem.rows(loop, "alarm") if row.step >= 20)
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
        assert problem.rows(loop, "commit") and problem.rows(loop, "rollback") == []
        assert [row for row in problem.rows(loop, "alarm") if row.step >= 18], "the second change is noticed"
    assert mean(trace, "accuracy", "2") > mean(trace, "frozen", "2") + 0.1


def test_the_given_network_is_untouched_and_may_be_in_training_mode(problem, drift, tmp_path):
    net = fork(problem.net, own="*").train()
    before, weights = versions(net), fingerprint(net)
    with problem.loop(tmp_path, net) as loop:
        loop.run(drift, labels=25)
        assert problem.rows(loop, "commit")
    assert versions(net) == before and fingerprint(net) == weights and net.training


def test_the_journal_has_a_row_for_every_window_that_says_what_was_served(problem, drift, tmp_path):
    with problem.loop(tmp_path, problem.net) as loop:
        trace = loop.run(drift, labels=7)
        windows = problem.rows(loop, "window")
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
        assert [row.content.get("labels", 0) for row in problem.rows(loop, "window")] == [0, 3, problem.WINDOW]
    assert [r.name for r in trace.entries[0].readings if r.name != "memory"] == ["seconds"]
    assert [entry["accuracy"].value for entry in trace.entries[1:]] == [1.0, 1.0]
    with problem.loop(tmp_path / "b", problem.net) as loop, pytest.raises(InputError, match="0 or more; got -1"):
        loop.run(Tensors(stream.x, y), labels=-1)


def test_samples_from_before_without_a_label_are_left_out(problem, tmp_path):
    batch = problem.images(200, 2).load()
    y = torch.where(torch.arange(200) % 2 == 0, UNKNOWN, batch.labels)
    with problem.loop(tmp_path, problem.net, world=World(source=Tensors(batch.x, y))) as loop:
        assert loop.controller.error_before == 0.0 and len(loop.repertoire.before) == 100


# -- rehearsal


def test_what_was_rehearsed_before_serving_changes_no_decision_and_leaves_nothing_to_prepare(problem, drift, tmp_path):
    told, said = [], list[str]()
    run = Run(watch=lambda event: said.append(event.name))
    for name in ("late", "early"):
        with problem.loop(tmp_path / name, problem.net, (BLEND,), simulate=problem.SIMULATED, run=run) as loop:
            if name == "early":
                loop.rehearse()
                said.clear()
                kept = sorted(path for path in (tmp_path / name / "cache").rglob("*"))
            loop.run(drift)
            told.append(problem.told(loop))
    assert told[0] == told[1] and any(kind == "commit" for _, kind, *_ in told[0])
    assert "calibrate" not in said, "everything was there"
    assert kept and sorted(path for path in (tmp_path / "early" / "cache").rglob("*")) == kept
