"""Bad input is our error at the door, before anything is written; windows one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from homeostat.adapt import Tent
from homeostat.core.data import UNKNOWN, Batch, Tensors
from homeostat.core.errors import (
    DtypeError,
    HomeostatError,
    InputError,
    MissingPart,
    ModelError,
    NonFiniteError,
)
from homeostat.core.fork import fork
from homeostat.core.save import content_hash
from homeostat.core.task import Regress
from homeostat.core.world import World
from homeostat.loop.store import SWITCHES, Store


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
        assert [row.kind for row in problem.rows(loop)] == ["start"]


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
        assert [row.step for row in problem.rows(loop, "window")] == [0, 1, 2, 3]
        loop.run(stream)
        assert [row.step for row in problem.rows(loop, "window")] == list(range(6))


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
        switches = problem.rows(loop, *SWITCHES)
        assert [row.kind for row in switches] == ["start", "commit", "rollback"]
        for row in switches:
            assert content_hash(loop.store.load(row.checkpoint, base=problem.net)) == row.checkpoint
        kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
        assert kept == {row.checkpoint for row in [*switches, problem.rows(loop, "snapshot")[-1]]}
