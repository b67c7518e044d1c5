from __future__ import annotations

import pytest
import torch
from torch import nn

from homeostat.core.errors import MissingPart, SpecError
from homeostat.core.save import save
from homeostat.core.weights import Weights
from homeostat.core.world import World

X, Y = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])


def test_only_declared_parts_are_present_and_undeclared_labels_are_stripped():
    world = World(source=(X, Y), target=(X, Y), held=(X, Y), parts={"forget": (X, Y), "retain": X}, env=object())
    seen = world.only({"source.x", "target.y", "parts.forget.x", "model.batchnorm"})
    assert seen.held is None and seen.calibration is None and seen.env is None and set(seen.parts) == {"forget"}
    assert seen.source.load().y is None and seen.target.load().y is not None  # type: ignore[union-attr]
    assert seen.parts["forget"].load().y is None
    assert set(world.only({"parts.*.x", "env"}).parts) == {"forget", "retain"}


def test_all_missing_parts_are_named_at_once_with_how_to_give_them():
    with pytest.raises(MissingPart) as caught:
        World(target=X).check({"target.y", "source.x", "models.cloud", "parts.forget.x", "calibration.x?"}, "EATA")
    text = str(caught.value)
    for said in ("EATA needs", "World(target=(x, y))", "World(source=x)", "models={'cloud'", "parts={'forget': x}"):
        assert said in text
    assert "calibration" not in text


def test_a_misspelt_need_or_field_is_an_error():
    with pytest.raises(SpecError, match="starts with source"):
        World().check({"sauce.x"}, "EATA")
    with pytest.raises(SpecError, match="Did you mean 'target'"):
        World().replace(taget=X)


def test_models_given_as_paths_are_read_lazily(tmp_path):
    save(nn.Linear(2, 2), tmp_path / "a")
    world = World(models={"donor": tmp_path / "a"})
    assert isinstance(world.models["donor"], Weights)
    assert set(world.only({"models.donor"}).models) == {"donor"} and not world.only({"models.other"}).models


def test_fingerprints_follow_data_and_models():
    a = World(source=(X, Y), models={"m": nn.Linear(2, 2)})
    assert a.fingerprint() == a.replace().fingerprint()
    assert a.fingerprint() != a.replace(source=(X + 1, Y)).fingerprint()
    assert a.fingerprint() != a.replace(models={"m": nn.Linear(2, 2)}).fingerprint()
