"""The loop on the strict device of the tests: what it serves and writes there is what it does on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from homeostat.adapt import BatchNormBlend, PriorCorrection, Tent
from homeostat.core.data import Tensors
from homeostat.core.errors import InputError
from homeostat.core.fork import versions
from homeostat.core.place import device_of, placed
from homeostat.core.run import Event, Run
from homeostat.core.save import content_hash
from homeostat.core.world import World
from homeostat.loop import Loop, demo
from homeostat.loop.operate import in_short, rollback
from homeostat.loop.progress import LoopState
from homeostat.probe import ShiftKind

CANDIDATES = (*demo.CANDIDATES, PriorCorrection())


class Served:
    """What loops on one stream answered, window by window, and what their journal says; loops may end and go on."""

    def __init__(self, problem: Any, folder: Path, kits: Path, stream: Tensors, remedies: Any, **more: Any):
        self.problem, self.folder, self.kits = problem, folder, kits
        self.stream, self.remedies, self.more = stream, remedies, more
        self.answers, self.journal = dict[int, Tensor](), list[Any]()

    def go(self, device: str | None, labels: int, until: int | None = None) -> Loop:
        def watch(event: Event) -> None:
            if event.name == "window" and event.step == until:
                raise InterruptedError

        run = Run(device=device, watch=watch, scratch=self.kits)
        with self.problem.loop(self.folder, self.problem.net, self.remedies, run=run, **self.more) as loop:
            predict = loop.predict

            def noted(batch: Any) -> Tensor:
                out = predict(batch)
                self.answers[loop.progress.at] = out
                return out

            loop.predict = noted  # type: ignore[method-assign]
            try:
                loop.run(self.stream, labels=labels)
            except InterruptedError:
                loop.store.close()  # as a kill would: what waits in memory is not written
                return loop
            self.journal = [row for row in self.problem.told(loop) if row[1] != "device"]
        return loop


@pytest.fixture(scope="module")
def kits(tmp_path_factory) -> Path:
    """What was prepared once, on whatever device, serves all runs."""
    return tmp_path_factory.mktemp("kits")


@pytest.fixture
def shifting(problem) -> Tensors:
    """A stream that goes dark, then has one class alone."""
    one = type(problem.SIMULATED[-1])()
    return problem.stream([(problem.CLEAN, 4), (problem.DARK, 6), (one, 6)])


def same(here: Served, there: Served) -> None:
    assert there.answers.keys() == here.answers.keys()
    for step, out in here.answers.items():
        assert there.answers[step].device.type == "cpu" and torch.equal(there.answers[step], out), step
    assert there.journal == here.journal


@pytest.mark.parametrize("labels", [0, 20])
def test_every_candidate_of_the_demonstration_runs_there_as_on_the_cpu(problem, shifting, tmp_path, strict, labels):
    """Kits, rehearsals and the diagnosis are prepared on either device, and nothing is shared."""
    plan = problem.PLAN.replace(candidates=5, passes=None, diagnose=ShiftKind(simulations=6, reference=60))
    more = {"plan": plan, "simulate": problem.SIMULATED[3:]}
    here = Served(problem, tmp_path / "here", tmp_path / "kits", shifting, CANDIDATES, **more)
    there = Served(problem, tmp_path / "there", tmp_path / "more kits", shifting, CANDIDATES, **more)
    here.go(None, labels)
    loop = there.go(strict.NAME, labels)
    same(here, there)
    tried = {name for row in there.journal if row[1] == "propose" for name in row[3]["tried"]}
    assert tried >= {type(remedy).__name__ for remedy in CANDIDATES if labels or type(remedy).__name__ != "Fit"}, tried
    assert "commit" in {row[1] for row in there.journal}
    everything = {name: tensor.device.type for name, tensor in loop.state.state_dict().items()}
    assert {kind for name, kind in everything.items() if not name.startswith("carry.")} <= {strict.NAME, "cpu"}
    assert {kind for name, kind in everything.items() if name.startswith("carry.")} == {"cpu"}
    assert device_of(loop.frozen).type == device_of(loop.state.served).type == strict.NAME


@pytest.mark.parametrize(("first", "stops"), [("strict", (8, 9)), (None, (9, 17))])
def test_it_goes_on_on_another_device_and_back(problem, tmp_path, kits, strict, first, stops):
    stream = problem.stream([(problem.CLEAN, 5), (problem.DARK, 10), (problem.CLEAN, 6)])
    remedies, more = (problem.Undoing(), Tent()), {"plan": problem.PLAN.replace(anchor=1.0, retry=3, snapshot=2)}
    here = Served(problem, tmp_path / "here", kits, stream, remedies, **more)
    here.go(None, 20)
    kinds = [row[1] for row in here.journal]
    assert kinds.count("commit") >= 1
    there = Served(problem, tmp_path / "there", kits, stream, remedies, **more)
    other = None if first else "strict"
    for device, until in zip((first, other, first), (*stops, None), strict=True):
        loop = there.go(device, 20, until)
        assert device_of(loop.state.served).type == (device or "cpu")
    same(here, there)


def test_the_journal_says_from_which_window_on_networks_lay_elsewhere(problem, drift, tmp_path, kits, strict):
    made = Served(problem, tmp_path, kits, drift, (), plan=problem.PLAN.replace(snapshot=1))
    for device, until in ((None, 2), ("strict", 4), ("strict", 5)):
        made.go(device, 0, until)
    for device in (None, "strict", None, None):
        with problem.loop(tmp_path, problem.net, (), run=Run(device=device)) as loop:
            rows = list(loop.store.rows("device"))
    assert [(row.step, row.content["from"], row.content["to"]) for row in rows] == [
        (2, "cpu", "strict:0"), (5, "strict:0", "cpu"), (5, "cpu", "strict:0"), (5, "strict:0", "cpu"),
    ]  # fmt: skip
    assert in_short(rows[0]) == "the networks lie on strict:0 from here on, before on cpu"


def test_a_window_goes_there_once_and_answers_come_back_once(problem, tmp_path, kits, strict):
    """Two tensors go, inputs and ids; from the network come logits and features, from a candidate its logits."""
    plan = problem.PLAN.replace(snapshot=1000, trial=2, patience=30, verify=20)
    stream = problem.stream([(problem.CLEAN, 3), (problem.DARK, 12)])
    shadows = dict[int, int]()
    run = Run(device="strict", scratch=kits)
    with problem.loop(tmp_path, problem.net, (BatchNormBlend(), Tent()), plan=plan, run=run) as loop:
        for step, batch in enumerate(stream.batches(problem.WINDOW)):
            strict.moves.clear()
            running = len(loop.progress.trials) if loop.progress.phase == "trial" else 0
            loop.predict(batch.replace(y=None, meta={}))
            assert strict.moves == {"to the device": 2, "to the CPU": 2}
            strict.moves.clear()
            loop.learn()
            if running or step < 3:
                assert strict.moves == ({"to the CPU": running} if running else {}), step
                shadows[step] = running
    assert shadows[0] == 0 and set(shadows.values()) == {0, 2}


def test_the_given_network_stays_where_it_is_and_one_that_lies_there_is_followed(problem, tmp_path, strict):
    before, held = versions(problem.net), content_hash(problem.net)
    with problem.loop(tmp_path / "a", problem.net, (), run=Run(device="strict")) as loop:
        assert device_of(loop.frozen).type == "strict"
    assert versions(problem.net) == before and content_hash(problem.net) == held
    with problem.loop(tmp_path / "b", placed(problem.net, "strict"), ()) as loop:
        assert device_of(loop.frozen).type == "strict"
        assert loop.step(problem.images(25, 9).load()).device.type == "cpu"


def test_windows_and_labels_may_lie_anywhere(problem, shifting, tmp_path, kits, strict):
    here, there = (Served(problem, tmp_path / name, kits, shifting, (Tent(),)) for name in ("here", "there"))
    here.go(None, 20)
    whole = shifting.load()
    there.stream = Tensors(whole.x.to("strict"), whole.y.to("strict"), whole.id, whole.meta)
    there.go(None, 20)
    same(here, there)
    window = problem.images(25, 9).load()
    with problem.loop(tmp_path / "late", problem.net, (), run=Run(device="strict")) as loop:
        loop.step(window.replace(y=None).to("strict"))
        loop.feedback(window.labels.to("strict"), window.id.to("strict"))
        loop.step(window.replace(y=None, id=window.id + 100))
        loop.flush()
        assert [row.content.get("labels", 0) for row in loop.store.rows("window")] == [0, 25]


def test_what_cannot_be_is_refused_before_anything_is_written(problem, tmp_path, strict):
    with pytest.raises(InputError, match="device nowhere cannot be used here"):
        problem.loop(tmp_path / "a", problem.net, (), run=Run(device="nowhere"))
    data = problem.images(200, 2).load()
    world = World(source=(data.x.to("strict"), data.y.to("strict")))
    with pytest.raises(InputError, match=r"data from before lie on strict:0; give them on the CPU"):
        problem.loop(tmp_path / "b", problem.net, (), world=world)
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_rolled_back_by_hand_wherever_it_was_served(problem, drift, tmp_path, kits, strict):
    made = Served(problem, tmp_path, kits, drift, (BatchNormBlend(blend=0.0),))
    assert made.go("strict", 8).progress.served == "BatchNormBlend"
    rollback(tmp_path, base=placed(problem.net, "strict"))
    with problem.loop(tmp_path, problem.net, (BatchNormBlend(blend=0.0),), run=Run(device="strict")) as loop:
        assert loop.progress.served == "source" and content_hash(loop.state.served) == content_hash(problem.net)
        assert isinstance(loop.state, LoopState) and device_of(loop.state.served).type == "strict"
