"""The outline of the source files says the same as the register, and imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

from homeostat.core import spec
from homeostat.core.fieldtext import field_texts, in_words
from homeostat.core.method import Remedy, Shift
from homeostat.core.outline import outline
from homeostat.core.probe import Probe
from homeostat.core.spec import Spec
from homeostat.data import Reader


@pytest.mark.parametrize("base", [Spec, Remedy, Shift, Probe, Reader])
def test_it_has_what_the_register_has_with_its_first_line(base):
    own = [
        cls for cls in spec.registered(base)
        if cls.__module__.startswith("homeostat.") and not getattr(cls, "__abstractmethods__", None)
    ]  # fmt: skip
    found = {entry.name: entry for entry in outline(base.__name__)}
    assert list(found) == sorted(cls.__name__ for cls in own)
    for cls in own:
        does = (cls.__doc__ or "").strip().partition("\n")[0].rstrip(".")
        # A dataclass without a docstring is given its signature.
        assert found[cls.__name__].does in (does, "")
        bases = {base.__name__ for base in cls.__mro__[1:] if base.__module__.startswith("homeostat.")}
        assert bases <= set(found[cls.__name__].bases)


def test_it_imports_no_torch():
    code = "import sys; from homeostat.core.outline import outline; outline(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_every_field_of_a_remedy_or_shift_has_a_meaning():
    for cls in spec.registered((Remedy, Shift)):
        names = [field.name for field, _ in spec.field_hints(cls)] if cls.__module__.startswith("homeostat.") else []
        missing = set(names) - set(field_texts(cls)) - {"remedies"}
        assert not missing, (cls, missing)


def test_what_fields_hold_in_words():
    def words(cls: str) -> dict[str, str]:
        return {field.name: in_words(hint) for field, hint in spec.field_hints(spec.find(cls))}

    assert words("EATA") == {
        "fisher_alpha": "number >= 0",
        "margin": "number > 0",
        "div_margin": "number >= 0 <= 1",
        "optimizer": "Optimizer",
        "backward": "masked|subset",
        "fisher_samples": "whole number >= 1",
        "fisher_batch": "whole number >= 1",
    }
    assert (
        words("Compose")["shifts"] == "list of Shift" and words("Adam")["betas"] == "number >= 0 < 1, number >= 0 < 1"
    )
    assert (
        words("NPZ")["y"] == "text"
        and words("Rotate")["degrees"] == "number"
        and words("Adam")["amsgrad"] == "true|false"
    )
