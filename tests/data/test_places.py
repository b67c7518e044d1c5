"""Where files are looked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from homeostat.core.errors import MissingPart
from homeostat.nn.places import cache_folder, data_folder, locate


def test_a_name_is_found_below_the_data_folder_before_other_places(tmp_path, monkeypatch):
    monkeypatch.setenv("HOMEOSTAT_DATA", str(tmp_path / "data"))
    other = tmp_path / "other"
    other.mkdir()
    assert locate("set", other) == other
    (tmp_path / "data" / "set").mkdir(parents=True)
    assert locate("set", other) == tmp_path / "data" / "set"


def test_what_is_nowhere_is_one_error_that_names_every_place_and_way(tmp_path, monkeypatch):
    monkeypatch.setenv("HOMEOSTAT_DATA", str(tmp_path))
    with pytest.raises(MissingPart) as caught:
        locate("set/file", tmp_path / "elsewhere", ways="apt install it")
    for part in ("set/file", str(tmp_path), "elsewhere", "HOMEOSTAT_DATA", "apt install it"):
        assert part in str(caught.value)


@pytest.mark.parametrize("value", [None, ""])
def test_without_the_variable_the_error_says_that_it_is_not_set(monkeypatch, value):
    monkeypatch.delenv("HOMEOSTAT_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("HOMEOSTAT_DATA", value)
    assert data_folder() is None
    with pytest.raises(MissingPart, match="HOMEOSTAT_DATA is not set"):
        locate("set")


def test_the_cache_follows_the_platforms_convention(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "homeostat"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the convention: to be ignored
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == tmp_path / ".cache" / "homeostat"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == tmp_path / "Library" / "Caches" / "homeostat"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "local")
    assert cache_folder() == Path("local") / "homeostat"
