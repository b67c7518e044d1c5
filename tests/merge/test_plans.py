"""Merge plans: settings by layer and name, the arithmetic of mergekit's methods, and what is said of wrong plans.

The expected numbers follow from definitions written out here; on the same plans the tool itself gives, in float32, what
is merged here to within rounding.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from homeostat.core.errors import CheckpointError, InputError, SpecError
from homeostat.core.mapped import Mapped
from homeostat.merge import merge_plan
from homeostat.merge.dialect import KNOWN
from homeostat.merge.settings import evaluate
from tests.merge.on_disk import llama, put

Tensors = dict[str, Tensor]
NETS = {name: llama(4, seed) for seed, name in enumerate(("base", "a", "b", "c"))}
for _name in ("a", "b", "c"):
    NETS[_name] = {n: NETS["base"][n] + 0.1 * t for n, t in NETS[_name].items()}


@pytest.fixture
def nets(tmp_path, monkeypatch) -> Path:
    for name, tensors in NETS.items():
        put(tmp_path / name, tensors, shards=2)
    return tmp_path


def merged(folder: Path, text: str) -> Tensors:
    (folder / "plan.yaml").write_text(text)
    merge_plan(folder / "plan.yaml", folder / "out", overwrite=True, sync=False)
    return dict(Mapped(folder / "out"))


def check(found: Tensors, wanted: Callable[[str], Tensor], atol: float = 2e-6) -> None:
    assert found.keys() == NETS["base"].keys()
    for name, tensor in found.items():
        assert torch.allclose(tensor, wanted(name), atol=atol, rtol=0), name


def deltas(name: str, nets: str) -> list[Tensor]:
    return [NETS[net][name] - NETS["base"][name] for net in nets]


def largest(delta: Tensor, keep: int, drop: int = 0) -> Tensor:
    """Only the `keep` largest changes after the `drop` largest."""
    order = delta.flatten().abs().sort(descending=True).indices[drop : drop + keep]
    return torch.zeros(delta.numel()).index_copy(0, order, delta.flatten()[order]).view_as(delta)


def elected(vectors: list[Tensor], weights: list[float], mean: bool) -> Tensor:
    weighted = torch.stack([w * v for w, v in zip(weights, vectors, strict=True)])
    sign = torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
    agree = (weighted.sign() == sign).float()
    total = (weighted * agree).sum(0)
    if not mean:
        return total
    share = sum(w * a for w, a in zip(weights, agree, strict=True))
    return total / torch.where(share == 0, torch.ones(()), share)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- arithmetic


def test_linear_normalizes_its_weights_unless_told_not_to(nets):
    plan = "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 0.1}}\n"
    plan += "- {model: b, parameters: {weight: 1}}\n"
    check(merged(nets, plan), lambda n: (0.1 * NETS["a"][n] + NETS["b"][n]) / 1.1)
    plan += "parameters: {normalize: false}\n"
    check(merged(nets, plan), lambda n: 0.1 * NETS["a"][n] + NETS["b"][n])


def test_linear_counts_a_base_that_is_not_among_the_models(nets):
    plan = "merge_method: linear\nbase_model: base\nmodels:\n- a\nparameters: {weight: 2}\n"
    check(merged(nets, plan), lambda n: (NETS["a"][n] + NETS["base"][n]) / 2)


def test_task_arithmetic_adds_weighted_changes(nets):
    plan = """
merge_method: task_arithmetic
base_model: base
models:
- model: base
- {model: a, parameters: {weight: 0.5}}
- {model: b, parameters: {weight: -0.25}}
parameters: {lambda: 0.8}
"""
    wanted = lambda n: NETS["base"][n] + 0.8 * (0.5 * deltas(n, "ab")[0] - 0.25 * deltas(n, "ab")[1])  # noqa: E731
    check(merged(nets, plan), wanted)
    check(
        merged(nets, plan.replace("lambda: 0.8", "normalize: true")),
        lambda n: NETS["base"][n] + (0.5 * deltas(n, "ab")[0] - 0.25 * deltas(n, "ab")[1]) / 0.25,
    )


@pytest.mark.parametrize("mean", [True, False])
def test_ties_trims_by_tensor_rounds_down_and_gives_even_votes_to_the_positive(nets, mean):
    plan = f"""
merge_method: ties
base_model: base
models:
- {{model: a, parameters: {{weight: 0.5, density: 0.27}}}}
- {{model: b, parameters: {{weight: 0.3, density: 0.51}}}}
- {{model: c, parameters: {{weight: 0.2, density: 0}}}}
parameters: {{normalize: {str(mean).lower()}, lambda: 1.2, int8_mask: true}}
"""

    def wanted(name: str) -> Tensor:
        a, b, c = deltas(name, "abc")
        count = a.numel()
        thin = [largest(a, max(1, int(0.27 * count))), largest(b, int(0.51 * count)), torch.zeros_like(c)]
        return NETS["base"][name] + 1.2 * elected(thin, [0.5, 0.3, 0.2], mean)

    check(merged(nets, plan), wanted)


@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
@pytest.mark.parametrize("mean", [True, False])
def test_breadcrumbs_drop_outliers_by_tensor(nets, method, mean):
    plan = f"""
merge_method: {method}
base_model: base
models:
- {{model: a, parameters: {{weight: 0.5, density: 0.8, gamma: 0.04}}}}
- {{model: b, parameters: {{weight: 0.3, density: 0.6, gamma: 0.1}}}}
parameters: {{normalize: {str(mean).lower()}}}
"""

    def wanted(name: str) -> Tensor:
        thin = []
        for delta, density, gamma in zip(deltas(name, "ab"), (0.8, 0.6), (0.04, 0.1), strict=True):
            count = delta.numel()
            keep = int(density * count)
            thin.append(largest(delta, keep, min(int(gamma * count), count - keep)))
        if method == "breadcrumbs":
            total = (0.5 * thin[0] + 0.3 * thin[1]) / (0.8 if mean else 1)
            return NETS["base"][name] + total
        return NETS["base"][name] + elected(thin, [0.5, 0.3], mean)

    check(merged(nets, plan), wanted)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_what_is_drawn_at_random_is_all_there_at_full_density_and_fair_below(nets, method):
    head = f"merge_method: {method}\nbase_model: base\nmodels:\n"
    full = "".join(f"- {{model: {m}, parameters: {{weight: 0.5, density: 1}}}}\n" for m in "ab")
    votes, mean = "linear" not in method, method == "della"
    whole = merged(nets, head + full)

    def wanted(name: str) -> Tensor:
        a, b = deltas(name, "ab")
        return NETS["base"][name] + (elected([a, b], [0.5, 0.5], mean) if votes else 0.5 * (a + b))

    check(whole, wanted)
    half = merged(nets, head + "- {model: a, parameters: {weight: 1, density: 0.5}}\n")
    same = sum(int((half[n] == NETS["base"][n]).sum()) for n in half) / sum(t.numel() for t in half.values())
    assert 0.45 < same < 0.55
    kept = torch.cat([((half[n] - NETS["base"][n]) / deltas(n, "a")[0]).flatten() for n in half])
    kept = kept[kept != 0]
    # Divided by the share or the probability that it stays with.
    low, high = (2, 2) if "dare" in method else (1 / 0.65, 1 / 0.35)
    assert float(kept.median()) == pytest.approx(2, abs=0.15)
    assert float(kept.quantile(0.02)) > low - 0.1 and float(kept.quantile(0.98)) < high + 0.1


def test_slerp_goes_by_layer_and_name(nets):
    """t of the published example, with values per layer worked out by hand for four layers."""
    plan = """
slices:
- sources:
  - {model: a, layer_range: [0, 4]}
  - {model: b, layer_range: [0, 4]}
merge_method: slerp
base_model: b
parameters:
  t:
  - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
  - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
  - value: 0.25
dtype: float32
"""
    attention, mlp = (0, 0.5 - 0.2 / 3, 0.3 + 0.4 * 2 / 3, 1), (1, 0.5 + 0.2 / 3, 0.7 - 0.4 * 2 / 3, 0)

    def wanted(name: str) -> Tensor:
        layer = int(name.split(".")[2]) if "layers" in name else 0
        t = attention[layer] if "self_attn" in name else mlp[layer] if "mlp" in name else 0.25
        x, y = NETS["b"][name].double(), NETS["a"][name].double()
        cosine = float((x * y).sum() / x.norm() / y.norm())
        if cosine > 0.9995:
            return ((1 - t) * x + t * y).float()
        angle = torch.tensor(cosine).acos()
        return ((((1 - t) * angle).sin() * x + (t * angle).sin() * y) / angle.sin()).float()

    check(merged(nets, plan), wanted)


@pytest.mark.parametrize("base", [True, False])
def test_nuslerp_takes_its_place_on_the_arc_from_the_weights(nets, base):
    plan = (
        "merge_method: nuslerp\nmodels:\n- {model: a, parameters: {weight: 3}}\n- {model: b, parameters: {weight: 1}}\n"
    )
    plan += "base_model: base\n" if base else ""

    def wanted(name: str) -> Tensor:
        origin = NETS["base"][name].double() if base else torch.zeros(())
        x, y = NETS["a"][name].double() - origin, NETS["b"][name].double() - origin
        angle = ((x * y).sum() / x.norm() / y.norm()).acos()
        return (origin + ((0.75 * angle).sin() * x + (0.25 * angle).sin() * y) / angle.sin()).float()

    check(merged(nets, plan), wanted, atol=2e-4 if not base else 2e-6)  # nearly parallel ones go by the line here


def test_model_stock_by_its_formula(nets):
    plan = "merge_method: model_stock\nbase_model: base\nmodels: [a, b, c]\n"

    def wanted(name: str) -> Tensor:
        flat = [d.flatten().double() for d in deltas(name, "abc")]
        pairs = [(0, 1), (0, 2), (1, 2)]
        cosine = sum(float(flat[i] @ flat[j] / flat[i].norm() / flat[j].norm()) for i, j in pairs) / 3
        t = 3 * cosine / (1 + 2 * cosine)
        mean = sum(NETS[n][name] for n in "abc") / 3
        return t * mean + (1 - t) * NETS["base"][name]  # type: ignore[operator]

    check(merged(nets, plan), wanted, atol=2e-5)


def test_settings_run_over_the_layers_and_are_looked_for_in_the_model_then_in_the_plan(nets):
    plan = """
merge_method: linear
models:
- model: a
  parameters: {weight: [0, 0.3, 0.9]}
- model: b
  parameters:
    weight:
    - {filter: mlp, value: 5}
parameters:
  normalize: false
  weight:
  - {filter: q_proj, value: 2}
  - {filter: "*", value: 1}
"""
    run = (0, 0.2, 0.5, 0.9)

    def wanted(name: str) -> Tensor:
        a = run[int(name.split(".")[2])] if "layers" in name else 0
        b = 5 if "mlp" in name else 2 if "q_proj" in name else 1
        return a * NETS["a"][name] + b * NETS["b"][name]

    check(merged(nets, plan), wanted)


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6), st.floats(0, 1))
def test_a_list_is_a_line_between_its_numbers(values, at):
    found = evaluate(values, "w", at)
    assert min(values) - 1e-9 <= found <= max(values) + 1e-9
    assert evaluate(values, "w", 0.0) == values[0] and evaluate(values, "w", 1.0) == values[-1]
    line = evaluate([2 * v + 1 for v in values], "w", at)
    assert line == pytest.approx(2 * found + 1)


def test_truths_and_choices_of_settings():
    assert evaluate([True, False, True], "w", 0.49) is True and evaluate([True, False, True], "w", 0.5) is False
    choices = [{"filter": "mlp", "value": [0, 1]}, {"filter": "q", "value": 7}]
    assert evaluate(choices, "x.mlp", 0.25) == 0.25 and evaluate(choices, "q", 0.25) == 7
    assert evaluate(choices, "norm", 0.25) is None and evaluate({"filter": "a", "value": 3}, "abc", 0.0) == 3


# ----------------------------------------------------------------------------------------------------------- layers


def test_layers_are_stacked_with_the_first_and_last_slice_lending_what_is_around_them(nets):
    for name, kinds in {"a": "ABCD", "b": "EFGH"}.items():
        config = json.loads((nets / name / "config.json").read_text())
        (nets / name / "config.json").write_text(json.dumps({**config, "layer_types": list(kinds)}))
    plan = """
slices:
- sources: [{model: a, layer_range: [0, 3]}]
- sources:
  - model: b
    layer_range: [1, 4]
    parameters:
      scale:
      - {filter: o_proj, value: 0.0}
      - {filter: down_proj, value: [1.0, 3.0]}
      - value: 1.0
merge_method: passthrough
dtype: bfloat16
"""
    found = merged(nets, plan)
    a, b = NETS["a"], NETS["b"]
    assert len(found) == 3 + 6 * 9
    assert torch.equal(found["model.embed_tokens.weight"], a["model.embed_tokens.weight"].bfloat16())
    assert torch.equal(found["lm_head.weight"], b["lm_head.weight"].bfloat16())
    assert torch.equal(found["model.norm.weight"], b["model.norm.weight"].bfloat16())
    taken = [(a, 0), (a, 1), (a, 2), (b, 1), (b, 2), (b, 3)]
    for layer, (net, old) in enumerate(taken):
        for part, scale in {"self_attn.q_proj": 1, "self_attn.o_proj": 0, "mlp.down_proj": 1 + (layer - 3)}.items():
            scale = scale if net is b else 1
            made, was = (f"model.layers.{i}.{part}.weight" for i in (layer, old))
            assert torch.equal(found[made], (scale * net[was]).bfloat16()), made
    config = json.loads((nets / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 6 and config["torch_dtype"] == "bfloat16"
    assert config["layer_types"] == ["A", "B", "C", "F", "G", "H"]


def test_slices_may_be_merged_each_with_settings_of_its_own(nets):
    plan = """
merge_method: task_arithmetic
base_model: base
slices:
- sources:
  - {model: base, layer_range: [0, 2]}
  - {model: a, layer_range: [2, 4], parameters: {weight: [0, 1]}}
- sources:
  - {model: base, layer_range: [2, 4]}
  - {model: b, layer_range: [2, 4]}
  parameters: {weight: 0.5}
"""

    def wanted(name: str) -> Tensor:
        base = NETS["base"][name]
        layer = int(name.split(".")[2]) if "layers" in name else -1
        if layer in (0, 1):
            other = name.replace(f".{layer}.", f".{layer + 2}.")
            return base + layer * (NETS["a"][other] - base)
        return base + 0.5 * (NETS["b"][name] - base) if layer > 1 or "embed" not in name else base

    check(merged(nets, plan), wanted)


def test_layers_that_are_not_there_are_refused(nets):
    plan = "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [2, 6]}]\n"
    with pytest.raises(CheckpointError, match=r"a has 4 layers, so there is no layer_range \[2, 6\]"):
        merged(nets, plan)


# ------------------------------------------------------------------------------------------ shapes of published plans

PUBLISHED = {
    "linear": "models:\n  - {model: a, parameters: {weight: 1.0}}\n  - {model: b, parameters: {weight: 0.3}}\n"
    "  - {model: c, parameters: {weight: 0.5}}\nmerge_method: linear\ndtype: float16\n",
    "gradient ties": """
models:
  - model: a
    parameters:
      density: [1, 0.7, 0.1]  # density gradient
      weight: 1.0
  - model: b
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1]  # weight gradient
  - model: c
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: base
parameters:
  normalize: true
  int8_mask: true
dtype: float16
""",
    "dare": """
models:
  - model: base
  - model: a
    parameters: {density: 0.53, weight: 0.4}
  - model: b
    parameters: {density: 0.53, weight: 0.3}
merge_method: dare_ties
tokenizer_source: base
base_model: base
parameters: {int8_mask: true, rescale: true}
dtype: bfloat16
""",
    "stack": """
slices:
  - sources:
    - model: a
      layer_range: [0, 3]
  - sources:
    - model: b
      layer_range: [1, 4]
merge_method: passthrough
dtype: float16
""",
    "gradient slerp": """
slices:
  - sources:
      - model: a
        layer_range: [0, 4]
      - model: b
        layer_range: [0, 4]
merge_method: slerp
base_model: a
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # fallback for rest of tensors
dtype: float16
""",
    "breadcrumbs": "models:\n  - {model: a, parameters: {weight: 0.5}}\n  - {model: b, parameters: {weight: 0.5}}\n"
    "merge_method: breadcrumbs_ties\nbase_model: base\nparameters: {density: 0.9, gamma: 0.01}\ndtype: bfloat16\n",
    "della": "models:\n  - {model: a, parameters: {weight: 0.5, density: 0.6, epsilon: 0.1}}\n"
    "  - {model: b, parameters: {weight: 0.5, density: 0.5, epsilon: 0.1}}\nmerge_method: della\nbase_model: base\n"
    "parameters: {lambda: 1.1}\nout_dtype: bfloat16\ndtype: float32\ntokenizer: {source: base}\n",
    "stock": "models:\n  - model: a\n  - model: b\nmerge_method: model_stock\nbase_model: base\ndtype: bfloat16\n",
    "nuslerp": "models:\n  - {model: a, parameters: {weight: 0.5}}\n  - {model: b, parameters: {weight: 0.5}}\n"
    "merge_method: nuslerp\n",
}  # fmt: skip


@pytest.mark.parametrize("shape", PUBLISHED)
def test_plans_of_the_published_shapes_are_read_and_merged(nets, shape):
    found = merged(nets, PUBLISHED[shape])
    assert all(bool(torch.isfinite(t).all()) for t in found.values())
    layers = 6 if shape == "stack" else 4
    assert len(found) == 3 + 9 * layers
    out = "bfloat16" if "out_dtype" in PUBLISHED[shape] else None
    told = json.loads((nets / "out" / "config.json").read_text())["torch_dtype"]
    assert str(found["model.norm.weight"].dtype) == f"torch.{told}" and out in (None, told)
    record = json.loads((nets / "out" / "merge.json").read_text())
    assert record["plan"]["merge_method"] in KNOWN


# ------------------------------------------------------------------------------------------------------- wrong plans


def said(folder: Path, text: str) -> str:
    with pytest.raises(SpecError) as error:
        merged(folder, text)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_everything_wrong_is_said_at_once_with_its_line(nets):
    text = said(
        nets,
        """
merge_method: tees
base_modle: base
models:
- {model: a, parameters: {densty: 0.5, weight: yes}}
- {path: b}
dtype: bfloat61
chat_template: chatml
tokenizer_source: union
modules: {}
""",
    )
    for part in (
        "line 2: merge_method 'tees' is not known. Did you mean 'ties'",
        "line 3: base_modle is not known. Did you mean 'base_model'", "line 7: dtype bfloat61",
        "line 8: chat_template is not supported", "line 9: a tokenizer of all models",
        "line 10: modules is not supported",
    ):  # fmt: skip
        assert part in text, (part, text)
    text = said(
        nets,
        """
merge_method: ties
models:
- {model: a, parameters: {densty: 0.5, weight: yes}}
- {path: b}
- {model: c+adapter, weight: 2}
- model: a
  parameters: {density: [{value: 1}, 2], weight: [[1]], lambda: {filter: x}}
""",
    )
    for part in (
        "line 2: ties needs a base_model", "line 4: the parameter densty is not known. Did you mean 'density'",
        "line 4: weight: a number is wanted, not 'yes'", "line 5: a model is given as",
        "line 6: c+adapter is a network with", "line 6: weight is not known here",
        "line 8: density: a list is one of numbers", "line 8: weight: a list is one of", "a comes twice",
    ):  # fmt: skip
        assert part in text, (part, text)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[1]", "a plan is a mapping"),
        ("merge_method: karcher\nmodels: [a]", "line 1: merge_method karcher is not supported; there are linear"),
        ("models: [a]", "a plan names its merge_method"),
        ("merge_method: linear", "either models or slices"),
        ("merge_method: slerp\nbase_model: base\nmodels: [a, b]", "slerp takes 1 at most beside the base; there are 2"),
        ("merge_method: model_stock\nbase_model: base\nmodels: [base, a]", "2 or more beside the base; there are 1"),
        ("merge_method: passthrough\nslices: [{sources: [{model: a}]}]", "a source needs its layer_range"),
        ("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [3, 1]}]}]", "needs its layer_range"),
        ("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 1]}], residual_weight: 1}]",
         "residual_weight of a slice is not supported"),
        ("merge_method: linear\nslices:\n- sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 2]}]",
         "the same number of layers"),
        ("merge_method: ties\nbase_model: base\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]",
         "the base model base is not among the sources"),
        ("merge_method: linear\nmodels: [a]\ntokenizer: {source: base, pad_to_multiple_of: 8}", "pad_to_multiple_of"),
        ("merge_method: linear\nmodels: [a]\ntokenizer_source: b", "the tokenizer is the base's"),
        ("merge_method: linear\n---\nmerge_method: ties\n", "several plans"),
        ("merge_method: [", "this is not YAML"),
        ("merge_method: ties\nmerge_method: linear", "line 2: merge_method is there already"),
        ("merge_method: linear\nmodels: [{model: {model: {path: a, revision: x}}}]", "a revision of a model"),
    ],
)  # fmt: skip
def test_a_wrong_plan_is_refused(nets, text, match):
    assert match in said(nets, text)
    assert not (nets / "out").exists()


def test_settings_that_are_missing_or_do_not_fit_a_tensor_are_said_with_the_tensors(nets):
    plan = "merge_method: ties\nbase_model: base\nmodels:\n"
    plan += "- {model: a, parameters: {weight: {filter: mlp, value: 1}}}\n- b\n"
    with pytest.raises(
        CheckpointError, match=r"weight of a is not given, and ties needs it, for .*weight of b is .* and 31 more"
    ):
        merged(nets, plan)
    plan = "merge_method: slerp\nbase_model: base\nmodels: [a]\nparameters: {t: [0, 1.5]}\n"
    with pytest.raises(CheckpointError, match=r"SLERP\.t = 1\.5, but it must be <= 1.*layers\.3"):
        merged(nets, plan)
    plan = "merge_method: linear\nmodels: [a, b]\nparameters: {weight: 0}\n"
    with pytest.raises(CheckpointError, match="add up to 0"):
        merged(nets, plan)
    plan = "merge_method: ties\nbase_model: base\nmodels: [a]\nparameters: {weight: 1, rescale: true}\n"
    with pytest.raises(CheckpointError, match="rescale: true is not supported"):
        merged(nets, plan)


def test_models_are_looked_for_from_the_plans_folder_and_from_here(nets, monkeypatch, tmp_path_factory):
    plan = nets / "plan.yaml"
    plan.write_text("merge_method: linear\nmodels: [a, b]\nparameters: {weight: 1}\n")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    assert merge_plan(plan, elsewhere / "one", dry_run=True).merged == 39
    (elsewhere / "plan.yaml").write_text(plan.read_text())
    monkeypatch.chdir(nets)
    assert merge_plan(elsewhere / "plan.yaml", elsewhere / "two", dry_run=True).merged == 39
    monkeypatch.chdir(elsewhere)
    with pytest.raises(CheckpointError, match=r"\(1\) a: a is not there.*\(2\) b: b is not there"):
        merge_plan(elsewhere / "plan.yaml", elsewhere / "three")
    with pytest.raises(InputError, match="cannot be read"):
        merge_plan(nets / "none.yaml", elsewhere / "three")


def test_a_plan_may_be_written_in_python_and_tells_what_has_no_effect(nets, monkeypatch):
    monkeypatch.chdir(nets)
    plan = {
        "merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1, "density": 0.3}}, "b"],
        "parameters": {"weight": 1.0, "int8_mask": True},
    }  # fmt: skip
    report = merge_plan(plan, "out", dry_run=True, dtype="bfloat16")
    assert set(report.notes) == {"density has no effect with linear", "int8_mask has no effect with linear"}
    assert report.methods == {"Average(weights=(1, 1))": 39} and report.written == 2 * report.numbers
    with pytest.raises(SpecError, match=r"models\.0: a model is given as"):
        merge_plan({"merge_method": "linear", "models": [3]}, "out")


def test_whole_numbers_and_statistics_of_the_base_stay(nets):
    for name in ("base", "a"):
        tensors = {**NETS[name], "steps": torch.tensor(3 if name == "base" else 4), "bn.running_var": torch.ones(2)}
        if name == "a":
            tensors["bn.running_var"] = torch.zeros(2)
        put(nets / f"{name}2", tensors)
    plan = "merge_method: ties\nbase_model: base2\nmodels: [a2]\nparameters: {weight: 1}\n"
    found = merged(nets, plan)
    assert int(found["steps"]) == 3 and found["bn.running_var"].tolist() == [1, 1]
    assert torch.allclose(found["model.norm.weight"], NETS["a"]["model.norm.weight"], atol=1e-6)
