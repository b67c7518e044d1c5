"""Which modules code reaches, and what changes its hash."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from homeostat.adapt import EATA, PeriodicReset
from homeostat.core import reach
from homeostat.core.reach import code_digest, modules_of, reached


def test_imports_are_followed_through_lazy_packages_and_attributes(tmp_path: Path) -> None:
    lazy, dotted, inner = tmp_path / "a.py", tmp_path / "b.py", tmp_path / "c.py"
    lazy.write_text("from homeostat.adapt import Tent\n")
    dotted.write_text("import homeostat as hs\nx = hs.adapt.Tent\n")
    inner.write_text("def f():\n    from homeostat.adapt.tent import Tent\n    return Tent\n")
    for file in (lazy, dotted, inner):
        found = reached([], [file])
        assert {"homeostat.adapt.tent", "homeostat.core.online", "homeostat.nn.norms"} <= set(found)
        assert not any(name.startswith("homeostat.merge") or name == "homeostat.adapt.eata" for name in found)


def test_what_only_type_checkers_read_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from homeostat.adapt import Tent\n")
    assert reached([], [file]) == []


def test_a_package_of_the_user_is_followed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "method.py").write_text("from . import inner\nfrom .deep import thing\nimport numpy\n")
    (folder / "inner.py").write_text("x = 1\n")
    (folder / "deep.py").write_text("from homeostat.core.errors import InputError\nthing = 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = reached(["mine.method"])
    assert {"mine.method", "mine.inner", "mine.deep", "homeostat.core.errors"} <= set(found)
    assert not any(name.startswith("numpy") for name in found)


def test_comments_docstrings_and_blank_lines_do_not_count_and_code_does(tmp_path: Path) -> None:
    file = tmp_path / "a.py"

    def said(text: str) -> str:
        file.write_text(text)
        for cached in (reach._said, reach._imports):
            cached.cache_clear()
        return code_digest([], [file])

    plain = said('def f(x):\n    return x + 1  # more\n\ny = "# no comment"\n')
    assert said('"""About."""\n\n\ndef f(x):\n    """One more."""\n    return x + 1\ny = "# no comment"\n') == plain
    assert said('def f(x):\n    return x + 2\ny = "# no comment"\n') != plain
    assert said('def f(x):\n    return x + 1\ny = "# another"\n') != plain


def test_a_change_deep_down_changes_the_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep_module.py").write_text("x = 1\n")
    (tmp_path / "top_module.py").write_text("import deep_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = code_digest(["top_module", "deep_module"])
    (tmp_path / "deep_module.py").write_text("x = 2\n")
    reach._said.cache_clear()
    assert code_digest(["top_module", "deep_module"]) != before


def test_the_modules_of_specs_are_those_of_all_within() -> None:
    found = modules_of(PeriodicReset(EATA(), every=3))
    assert {"homeostat.adapt.periodic_reset", "homeostat.adapt.eata"} <= set(found)


def test_a_missing_module_is_an_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        reached(["no_such_module"])
    assert "no_such_module" not in sys.modules
