"""A healthy deployment passes every check, and each of six defects is found by its own check and no other (S236)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from homeostat.core.data import Tensors
from homeostat.core.part import Part
from homeostat.core.world import World
from homeostat.loop import audit
from homeostat.loop.practices import CHECKS
from homeostat.loop.record import record


class Scaled(Part):
    """The same answers with another certainty."""

    def __init__(self, model: nn.Module, factor: float):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) * self.factor


@pytest.fixture(scope="module")
def served(problem, tmp_path_factory) -> Path:
    """The store of a loop that committed a remedy and rolled it back."""
    folder = tmp_path_factory.mktemp("audit") / "store"
    stream = problem.stream([(problem.CLEAN, 5), (problem.DARK, 10), (problem.CLEAN, 8)])
    with problem.loop(folder, problem.net) as loop:
        loop.run(stream, labels=problem.WINDOW)
        assert problem.rows(loop, "commit") and problem.rows(loop, "rollback")
    return folder


@pytest.fixture(scope="module")
def healthy(problem) -> dict[str, Any]:
    def images(seed: int) -> Tensors:
        batch = problem.images(400, seed).load()
        return Tensors(batch.x.clamp(0, 1), batch.labels)

    return {"model": problem.net, "source": images(2), "target": images(9)}


def found(made: dict[str, Any], store: Path) -> dict[str, str]:
    world = World(source=made["source"], target=made["target"])
    return {check.name: check.state for check in audit(made["model"], world, store=store).checks}


@pytest.mark.exact("S236")
def test_a_healthy_deployment_passes_every_check(healthy, served):
    assert found(healthy, served) == dict.fromkeys(CHECKS, "pass")


def of_one_class(data: Tensors) -> Tensors:
    batch = data.load()
    rows = torch.cat([torch.nonzero(batch.labels == 0).flatten(), torch.nonzero(batch.labels != 0).flatten()[:30]])
    mixed = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    return Tensors(batch.x[mixed], batch.labels[mixed])


def with_nan(data: Tensors) -> Tensors:
    x = data.load().x.clone()
    x[[7, 70]] = float("nan")
    return Tensors(x, data.load().labels)


@pytest.mark.exact("S236")
@pytest.mark.parametrize(
    ("defect", "flagged"),
    [
        ("schema change", "schema"), ("covariate drift", "drift"), ("label shift", "balance"),
        ("miscalibration", "calibration"), ("missing rollback", "rollback"), ("silent NaN", "finite"),
    ],
)  # fmt: skip
def test_each_defect_is_found_by_its_own_check_and_no_other(problem, healthy, served, tmp_path, defect, flagged):
    made, store = dict(healthy), served
    if defect == "schema change":
        batch = made["target"].load()
        made["target"] = Tensors(255 * batch.x, batch.labels)
    elif defect == "covariate drift":
        made["target"] = problem.DARK(made["target"])
    elif defect == "label shift":
        made["target"] = of_one_class(made["target"])
    elif defect == "miscalibration":
        made["model"] = Scaled(problem.net, 0.1)
    elif defect == "missing rollback":
        store = tmp_path / "store"
        shutil.copytree(served, store)
        with record(store) as journal:
            shutil.rmtree(store / "checkpoints" / str(journal.last("start").checkpoint))
    else:
        made["target"] = with_nan(made["target"])
    assert [name for name, state in found(made, store).items() if state == "fail"] == [flagged]


def test_what_cannot_be_checked_is_not_passed(healthy):
    made = audit(healthy["model"], World(source=healthy["source"].unlabelled()))
    states = {check.name: check.state for check in made.checks}
    assert set(states.values()) == {"not checked"} and made.failed == ()
    assert "World(target=...)" in made["schema"].said and "labels" in made["calibration"].said


def test_a_network_that_breaks_off_is_not_checked_and_the_other_checks_are_made(healthy):
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("out of order\nand more")

    world = World(source=healthy["source"], target=healthy["target"])
    made = audit(Broken(), world)
    assert made["schema"].state == "pass" and made["finite"].state == "pass"
    assert made["calibration"].state == "not checked" and "out of order" in made["calibration"].said
    assert "more" not in made["calibration"].said and "pass" not in {made[n].state for n in ("corruption", "fallback")}
