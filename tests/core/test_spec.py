from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
import yaml
from hypothesis import given, strategies as st

from homeostat.core import spec
from homeostat.core.errors import SpecError, UnknownName
from homeostat.core.spec import Count, Fraction, Positive, Spec, from_config
from homeostat.fit import Fit, Recipe
from homeostat.nn.optimizers import SGD, Adam


@dataclass(frozen=True)
class Inner(Spec, register=False):
    rate: Positive = 1.0


@dataclass(frozen=True)
class Outer(Spec, register=False):
    share: Fraction = 0.5
    count: Count = 3
    mode: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[float, float] = (0.0, 1.0)
    name: str | None = None
    inner: Inner = Inner()


def test_fields_are_checked_when_an_object_is_made():
    for wrong in ({"share": 1.5}, {"count": 0}, {"count": 2.5}, {"mode": "c"}, {"sizes": ("x",)}, {"pair": (1.0,)}):
        with pytest.raises(SpecError, match=rf"Outer.{next(iter(wrong))}(\[0\])? ="):
            Outer(**wrong)


def test_integers_become_floats_and_lists_become_tuples():
    made = Outer(share=1, sizes=[3, 4], pair=[1, 2])  # type: ignore[arg-type]
    assert made.share == 1.0 and isinstance(made.share, float)
    assert made.sizes == (3, 4) and made.pair == (1.0, 2.0)


def test_booleans_are_not_numbers():
    with pytest.raises(SpecError, match="count = True"):
        Outer(count=True)


@given(st.floats(0, 1), st.integers(1, 99), st.lists(st.integers(-9, 9)), st.floats(1e-6, 1e6))
def test_equal_fields_give_equal_hashes_and_other_fields_others(share, count, sizes, rate):
    made = Outer(share=share, count=count, sizes=tuple(sizes), inner=Inner(rate))
    again = Outer(share=share, count=count, sizes=tuple(sizes), inner=Inner(rate))
    assert made.digest() == again.digest() and made == again
    assert made.replace(count=count + 1).digest() != made.digest()
    assert made.replace(inner=Inner(rate * 2)).digest() != made.digest()


def test_a_raised_revision_changes_the_hash_also_of_what_holds_the_spec(monkeypatch):
    before = Outer().digest()
    monkeypatch.setattr(Inner, "revision", 2)
    assert Outer().digest() != before


def test_configuration_survives_yaml():
    made = Fit(recipe=Recipe(optimizer=Adam(betas=(0.8, 0.9)), epochs=3))
    assert from_config(yaml.safe_load(yaml.safe_dump(made.to_config()))) == made


def test_a_bare_name_is_an_object_with_defaults():
    assert from_config("SGD") == SGD()
    assert from_config({"Recipe": {"optimizer": "Adam"}}) == Recipe(optimizer=Adam())


def test_unknown_names_and_fields_suggest_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'SGD'"):
        from_config("SDG")
    with pytest.raises(SpecError, match=r"SGD has no field 'momentun'\. Did you mean 'momentum'"):
        from_config({"SGD": {"momentun": 0.9}})
    with pytest.raises(SpecError, match="has no field 'learning'"):
        SGD().replace(learning=1.0)


def test_an_object_of_another_kind_is_refused():
    with pytest.raises(SpecError, match="SGD is not a Fit"):
        from_config("SGD", Fit)
    with pytest.raises(SpecError, match="one name"):
        from_config({"SGD": {}, "Adam": {}})


def test_two_classes_of_one_name_are_refused():
    with pytest.raises(SpecError, match="the name 'SGD' is taken"):
        type("SGD", (Spec,), {"__module__": "elsewhere"})


def test_every_public_name_is_found_and_unique():
    names = spec.names()
    assert len(names) == len(set(names))
    for name in ("Fit", "LoRA", "Chain", "Supervised"):
        assert spec.find(name).__name__ == name
