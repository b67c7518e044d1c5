from __future__ import annotations

import pytest

from homeostat.core.configfile import read_spec, write_spec
from homeostat.core.errors import InputError, SpecError, UnknownName
from homeostat.fit import Fit, Recipe
from homeostat.loop import Plan
from homeostat.nn.optimizers import Adam


def test_a_spec_survives_a_file(tmp_path):
    made = Fit(recipe=Recipe(optimizer=Adam(lr=0.5), epochs=7))
    write_spec(made, tmp_path / "fit.yaml")
    assert read_spec(tmp_path / "fit.yaml", Fit) == made


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("Plan:\n  window: 50\n  trail: 3\n", SpecError, "line 3: Plan has no field 'trail'. Did you mean 'trial'?"),
        ("Plan:\n  gain: 2.0\n", SpecError, "line 2: Plan.gain = 2.0, but it must be <= 1"),
        ("Plan:\n  monitor:\n    Monitor:\n      blok: 3\n", SpecError, "line 4: Monitor has no field 'blok'"),
        ("Plan:\n  monitor: Moniter\n", UnknownName, "line 2: no method, shift, probe or layer is called 'Moniter'"),
        ("Plam: {}\n", UnknownName, "line 1: no method, shift, probe or layer is called 'Plam'. Did you mean 'Plan'"),
        ("Plan:\n  window: [1\n", SpecError, "this is not YAML"),
        ("SGD: {}\n", SpecError, "line 1: SGD is not a Plan"),
        ("", SpecError, "line 1: an object is a mapping with one name"),
    ],
)
def test_errors_point_at_the_line(tmp_path, text, error, said):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(error) as caught:
        read_spec(path, Plan)
    assert said in str(caught.value) and "plan.yaml" in str(caught.value)


def test_a_fault_inside_a_list_is_found_by_its_line(tmp_path):
    path = tmp_path / "chain.yaml"
    path.write_text("Chain:\n  remedies:\n    - Tent\n    - EATA:\n        margn: 0.4\n")
    with pytest.raises(SpecError, match="line 5: EATA has no field 'margn'"):
        read_spec(path)


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml cannot be read"):
        read_spec(tmp_path / "nowhere.yaml")
