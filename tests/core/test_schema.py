"""The JSON schema accepts what is read, refuses what is not, and is one for editors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from homeostat.core.configfile import read_yaml
from homeostat.core.errors import HomeostatError, SpecError, UnknownName
from homeostat.core.schema import DRAFT, schema
from homeostat.core.spec import Spec, from_config, registered
from homeostat.loop import Plan
from homeostat.loop.monitor import Monitor

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
WHOLE = schema()
TYPES: dict[str, Any] = {"object": dict, "array": list, "string": str, "null": type(None), "boolean": bool}


def fits(value: Any, node: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether a value is valid, for the words of JSON schema that are used here; an unknown word is an error."""
    words = set(node) - {"description", "default", "title", "$schema", "$defs"}
    checks = {
        "$ref": lambda w: fits(value, root["$defs"][w.removeprefix("#/$defs/")], root),
        "anyOf": lambda w: any(fits(value, arm, root) for arm in w),
        "enum": lambda w: any(type(value) is type(one) and value == one for one in w),
        "type": lambda w: any(typed(value, one) for one in ([w] if isinstance(w, str) else w)),
        "properties": lambda w: all(fits(value[k], w[k], root) for k in value or () if k in w),
        "additionalProperties": lambda w: w or set(value or ()) <= set(node["properties"]),
        "required": lambda w: set(w) <= set(value or ()),
        "minProperties": lambda w: len(value) >= w,
        "maxProperties": lambda w: len(value) <= w,
        "items": lambda w: all(fits(item, w, root) for item in value),
        "prefixItems": lambda w: all(fits(item, arm, root) for item, arm in zip(value, w, strict=False)),
        "minItems": lambda w: len(value) >= w,
        "maxItems": lambda w: len(value) <= w,
        "minimum": lambda w: value >= w,
        "maximum": lambda w: value <= w,
        "exclusiveMinimum": lambda w: value > w,
        "exclusiveMaximum": lambda w: value < w,
    }
    assert words <= set(checks), words - set(checks)
    ordered = sorted(words, key=lambda word: word != "type")
    return all(checks[word](node[word]) for word in ordered)


def typed(value: Any, name: str) -> bool:
    if name in ("number", "integer"):
        whole = name == "number" or isinstance(value, int)
        return whole and isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, TYPES[name])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_valid(path):
    assert EXAMPLES and fits(read_yaml(path.read_text())[0], made := schema("Deployment"), made)


def test_what_every_spec_writes_of_itself_is_valid():
    count = 0
    for cls in registered(Spec):
        if not cls.__module__.startswith("homeostat."):
            continue  # what other tests define is registered too
        try:
            made = cls()
        except (HomeostatError, TypeError):
            continue
        assert fits(json.loads(json.dumps(made.to_config())), WHOLE, WHOLE), cls
        count += 1
    assert count > 60 and not fits("Remedy", WHOLE, WHOLE)


CONFIGS = [
    "EATA", {"EATA": None}, {"EATA": {}}, {"EATA": {"margin": 1}}, {"EATA": {"margin": 0}}, {"EATA": {"margin": "1"}},
    {"EATA": {"margin": True}}, {"EATA": {"margin": "inf"}}, {"EATA": {"margin": "-inf"}}, {"EATA": {"margins": 1}},
    {"EATA": {"backward": "subset"}}, {"EATA": {"backward": "sub"}}, {"EATA": {"optimizer": "SGD"}},
    {"EATA": {"optimizer": {"SGD": {"lr": 0.1}}}}, {"EATA": {"optimizer": {"SGD": {"lr": -1}}}},
    {"EATA": {"optimizer": "Tent"}}, {"EATA": {"fisher_batch": 1.5}}, {"EATA": {"fisher_batch": 0}},
    {"EATA": {}, "Tent": {}}, {}, [], "EATTA", 3, None, {"Adam": {"betas": [0.9, 0.99]}}, {"Adam": {"betas": [0.9]}},
    {"Adam": {"betas": [0.9, 1.0]}}, {"Adam": {"betas": [0.9, 0.9, 0.9]}}, {"Chain": {"remedies": ["Tent", "Corrupt"]}},
    {"Chain": {"remedies": ["Tent", {"EATA": {"margin": 2}}]}}, {"Digits": {"stop": None}}, {"Digits": {"stop": -1}},
    {"Corrupt": {"name": "fog"}}, {"Corrupt": {"name": "fogg"}}, {"Corrupt": {"severity": 6}}, "NPZ",
    {"NPZ": {"path": "a.npz"}}, {"NPZ": {"path": "a.npz", "y": None}}, {"NPZ": {"y": "y"}},
    {"Rotate": {"degrees": "inf"}}, {"Rotate": {"degrees": -500}}, {"BatchNormBlend": {"blend": None}}, {"Webhook": {}},
    {"Webhook": {"url": "https://a.b", "on": ["commit"]}}, {"Webhook": {"url": "https://a.b", "on": ["comit"]}},
    {"Plan": {"monitor": {"Monitor": {"block": 3}}}},
    {"Plan": {"monitor": "EATA"}}, "Remedy", {"Remedy": {}}, {"Clean": {"x": 1}}, "Clean",
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=json.dumps)
def test_the_schema_accepts_what_is_read_and_nothing_else(config):
    try:
        read = isinstance(from_config(config), Spec)
    except HomeostatError:
        read = False
    assert fits(config, WHOLE, WHOLE) == read


def test_a_schema_is_of_what_is_asked_for():
    assert fits("EATA", made := schema("Remedy"), made) and not fits("Clean", made, made)
    assert fits({"Plan": {"window": 50}}, made := schema("Plan"), made) and not fits("EATA", made, made)
    with pytest.raises(UnknownName, match="Did you mean 'Plan'"):
        schema("Plam")
    with pytest.raises(SpecError, match="ResNet is no Spec"):
        schema("ResNet")


def test_fields_come_with_their_meaning_default_and_bounds():
    fields = WHOLE["$defs"]["Plan"]["properties"]
    assert WHOLE["$schema"] == DRAFT and fields["window"]["default"] == Plan().window
    assert "samples looked at together" in fields["window"]["description"] and fields["window"]["minimum"] == 1
    assert (
        fields["monitor"]["default"] == Monitor().to_config()
        and fields["gain"]["anyOf" if "anyOf" in fields["gain"] else "maximum"]
    )
    assert WHOLE["$defs"]["Deployment"]["required"] == ["model", "before", "stream", "remedies"]
    assert "fog" in WHOLE["$defs"]["Corrupt"]["properties"]["name"]["enum"]


def test_it_is_json_with_finite_numbers_and_every_reference_is_there():
    text = json.dumps(WHOLE, allow_nan=False)

    def check(node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node if isinstance(node, list) else ()):
            if key == "$ref":
                assert value.removeprefix("#/$defs/") in WHOLE["$defs"]
            if isinstance(value, float):
                assert math.isfinite(value)
            check(value)

    check(json.loads(text))


def test_it_is_a_sound_schema_by_its_standard_and_judges_the_same():
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(WHOLE)
    judge = jsonschema.Draft202012Validator(WHOLE)
    for config in CONFIGS:
        assert judge.is_valid(config) == fits(config, WHOLE, WHOLE), config
