from __future__ import annotations

import math
import re

import pytest

from homeostat.core.configfile import read_spec, read_yaml, write_spec
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
        ("[]", SpecError, "line 1: an object is a mapping with one name"),
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


DEEP = """\
Chain:
  remedies:
    - Tent
    - PeriodicReset:
        every: 3
        remedy:
          EATA:
            optimizer:
              Adam:
                betas:
                  - 0.9
                  - HERE
"""


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("1.5", "line 12: Adam.betas[1] = 1.5, but it must be < 1"),
        ("high", "line 12: Adam.betas[1] = 'high', but it must be a float"),
        ("true", "line 12: Adam.betas[1] = True, but it must be a float"),
        ("[0.9]", "line 12: Adam.betas[1] = (0.9,), but it must be a float"),
    ],
)
def test_a_fault_far_inside_is_found_by_its_line(tmp_path, wrong, said):
    path = tmp_path / "deep.yaml"
    path.write_text(DEEP.replace("HERE", wrong))
    with pytest.raises(SpecError, match=re.escape(said)):
        read_spec(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Chain:\n  remedies:\n    - Tent\n    - Corrupt:\n        name: fog\n", "line 4: Chain.remedies[1] = Corru"),
        ("Plan:\n  plan: 3\n  window: 3\n  window: 4\n", "line 4: window is there already, in line 3; keep one"),
        ("Plan:\n  monitor:\n    Monitor: 3\n", "line 3: Monitor: its fields are a mapping; got 3"),
        ("Plan:\n  monitor:\n    ResNet: {}\n", "line 3: ResNet is not configurable; it is a Part"),
        ("Plan:\n  window: '50'\n", "line 2: Plan.window = '50', but it must be an int"),
        ("Plan:\n  memory: many\n", "line 2: Plan.memory = 'many', but it must be an int or must be None"),
        ("Plan:\n  monitor:\n    Monitor:\n      signals: [entropy,\n        confidense]\n", "line 5: Monitor.signals"),
        ("Chain: &a\n  remedies: [*a]\n", "line 1: this holds itself"),
        ("? [a]\n: 3\n", "line 1: a key is a word"),
        ("model: a\nbefore: b\n", "line 1: an object is a mapping with one name, as in {PGD: {eps: 0.03}}; got one"),
        ("# nothing\n", "line 1: the file is empty"),
        ("Plan: {}\n---\nPlan: {}\n", "line 2: this is not YAML: expected a single document"),
        ("Plan: !!python/object/apply:os.getcwd []\n", "line 1: this is not YAML: could not determine a constructor"),
        ("[" * 3000, "line 1: this is nested too deeply"),
        ("Plan: \0", "this is not YAML"),
    ],
)  # fmt: skip
def test_what_yaml_itself_lets_pass_is_refused_with_its_line(tmp_path, text, said):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=re.escape(said)) as caught:
        read_spec(path)
    assert "\n" not in str(caught.value)


def test_words_are_those_of_yaml_1_2():
    found, _ = read_yaml(
        "on: [off, yes, no, true, ~, 1e-3, 010, 0x1f, 1_000, .inf, 2020-01-01, 1:30, '', -5, 1., +.5]\nb:\n"
    )
    assert found["on"] == [
        "off", "yes", "no", True, None, 1e-3, 10, 31, 1000, math.inf, "2020-01-01", "1:30", "", -5, 1.0, 0.5,
    ]  # fmt: skip
    assert [type(found["on"][i]) for i in (6, 7, 8, 13)] == [int] * 4 and found["b"] is None


def test_merged_keys_are_no_second_ones_and_keep_their_line(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("Fit:\n  recipe:\n    Recipe: &r {epochs: 2,\n      optimizer: Adam}\n")
    assert read_spec(path, Fit).recipe.optimizer == Adam()
    assert read_yaml("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\n")[0]["b"] == {"x": 3, "y": 2}


def test_a_file_that_is_no_text_or_far_too_large_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"a\.yaml is no text"):
        read_spec(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("#" * 5_000_001)
    with pytest.raises(InputError, match=r"b\.yaml is larger than 5 MB"):
        read_spec(tmp_path / "b.yaml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_spec(tmp_path)
