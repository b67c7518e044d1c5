"""`probe`, `apply` and `shift`: what they compute is what the library computes, and fields are options."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import homeostat as hs
from homeostat.adapt import EATA
from homeostat.core import spec
from homeostat.core.online import Online
from homeostat.core.outline import outline
from homeostat.data import NPZ, as_reader
from homeostat.loop import Deployment, Plan, deploy, open_model
from homeostat.nn.optimizers import SGD
from homeostat.probe import ECE, Accuracy, ShiftKind
from homeostat.shift import Clean, Compose, Corrupt


def right(model: torch.nn.Module, path: str) -> float:
    """Share of right answers in batches of 256, worked out by hand."""
    batch = NPZ(path).read().load()
    with torch.no_grad():
        answers = torch.cat([model(x) for x in batch.x.split(256)]).argmax(1)  # type: ignore[union-attr]
    return float((answers == batch.labels).double().mean())


# ----------------------------------------------------------------------------------------------------------- probe


def test_probe_reads_with_all_probes_that_fit_and_names_the_others_with_what_they_lack(here, prints):
    found = json.loads(prints("probe", "net", "bare.npz", "--json"))
    read, left = {row["probe"] for row in found["readings"]}, found["left"]
    assert read | set(left) == {entry.name for entry in outline("Probe")} and not read & set(left)
    assert left["Accuracy"] == "needs labels" and left["KS"] == "needs data from before"
    assert left["BBSE"] == "needs labelled data from before" and {"Entropy", "Confidence"} <= read


def test_probe_with_labels_and_data_from_before_reads_all_that_can_be_read_and_finds_the_shift(here, prints):
    found = json.loads(prints("probe", "net", "now.npz", "--before", "before.npz", "--json"))
    # Of 64 pixels it wants more resamples than it has by default, and says how many.
    assert list(found["left"]) == ["FeatureShift"] and "give bootstraps=1279" in found["left"]["FeatureShift"]
    assert found["samples"] == 400
    rows = {row["probe"]: row for row in found["readings"]}
    assert rows["Accuracy"]["value"] == pytest.approx(right(hs.load("net"), "now.npz"))
    low, high, level = rows["Accuracy"]["interval"]
    assert low < rows["Accuracy"]["value"] < high and level == 0.95
    assert rows["KS"]["finding"]["detected"] and rows["MMD"]["finding"]["detected"]


def test_probes_are_asked_for_as_text_and_the_table_has_the_same_numbers(here, prints):
    asked = ("--probe", "Accuracy", "--probe", "ECE(bins=5)")
    rows = json.loads(prints("probe", "net", "now.npz", *asked, "--json"))["readings"]
    lines = [line.split("\t") for line in prints("probe", "net", "now.npz", *asked).splitlines()]
    assert [line[0] for line in lines] == ["Accuracy", "ECE(bins=5)"] and {len(line) for line in lines} == {5}
    assert [float(line[1]) for line in lines] == pytest.approx([row["value"] for row in rows], rel=1e-3)
    model, data = hs.load("net"), NPZ("now.npz").read()
    expected = hs.read([Accuracy(), ECE(bins=5)], model, hs.World(held=data))
    assert [row["value"] for row in rows] == [reading.value for reading in expected]


def test_the_seed_decides_what_is_random(here, prints):
    def mmd(seed: int) -> float:
        found = prints("probe", "net", "now.npz", "--before", "before.npz", "--probe", "MMD(reference=50)", "--seed",
                       str(seed), "--json")  # fmt: skip
        return json.loads(found)["readings"][0]["value"]

    assert mmd(1) == mmd(1) != mmd(2)


def test_a_network_is_a_checkpoint_a_spec_as_text_or_in_a_file(here, tmp_path, prints):
    hs.save(inner := hs.load("net").model, tmp_path / "inner")  # type: ignore[union-attr]
    weights = tmp_path / "inner" / "weights.safetensors"
    text = f"Network(ResNet(8, in_channels=1, width=4), weights='{weights}', mean=(0.3,), std=(0.37,))"
    (tmp_path / "net.yaml").write_text(
        "Network:\n  layout: {ResNet: {depth: 8, in_channels: 1, width: 4}}\n"
        "  weights: inner/weights.safetensors\n  mean: [0.3]\n  std: [0.37]\n"
    )
    wanted = json.loads(prints("probe", "net", "now.npz", "--probe", "NLL", "--json"))
    for model in (text, str(tmp_path / "net.yaml")):
        assert json.loads(prints("probe", model, "now.npz", "--probe", "NLL", "--json")) == wanted
    assert right(open_model(text), "now.npz") == right(hs.load("net"), "now.npz") and inner is not None


# ----------------------------------------------------------------------------------------------------------- apply


def test_apply_says_what_changed_and_writes_a_checkpoint_that_probe_takes(here, tmp_path, prints):
    out = str(tmp_path / "adapted")
    found = json.loads(
        prints("apply", "EATA", "net", "--before", "before.npz", "--target", "now.npz", "--out", out, "--json")
    )
    assert found["online"] and found["samples"] == 400 and found["state"] > 0
    assert found["before"] == pytest.approx(right(hs.load("net"), "now.npz"))
    assert found["after"] > found["before"]
    old, new = hs.load("net"), hs.load(out)
    assert isinstance(new, Online) and hs.content_hash(new) == found["hash"]
    was, now = hs.weights(old), hs.weights(new)
    names = {name: name.removeprefix("model.") for name in now}
    differ = {name for name in now if not torch.equal(now[name], was[names[name]])}
    assert set(found["changed"]) == differ and all(".bn" in name for name in differ)
    assert found["numbers"] == sum(int((now[n] != was[names[n]]).sum()) for n in differ)
    assert found["of"] == sum(tensor.numel() for tensor in was.values()) and not found["removed"]
    value = json.loads(prints("probe", out, "now.npz", "--probe", "Accuracy", "--json"))["readings"][0]["value"]
    assert value == pytest.approx(right(new, "now.npz"))


def test_apply_is_what_the_library_does_with_the_same_windows(here, tmp_path, prints):
    out = tmp_path / "adapted"
    prints("apply", "EATA", "net", "--before", "before.npz", "--target", "now.npz", "--out", str(out), "--window", "50",
           "--margin", "0.8", "--optimizer", "SGD(lr=0.01)", "--seed", "3")  # fmt: skip
    before, now = NPZ("before.npz").read(), NPZ("now.npz").read()
    online = EATA(margin=0.8, optimizer=SGD(lr=0.01))(hs.load("net"), hs.World(source=before), run=hs.Run(seed=3))
    for batch in now.batches(50):
        online.observe(batch.replace(y=None))
    assert hs.fingerprint(online) == hs.fingerprint(hs.load(out))


def test_fields_as_options_and_as_text_are_the_same_and_options_win(here, tmp_path, prints):
    def config(*arguments: str) -> dict[str, object]:
        out = str(tmp_path / "x")
        return json.loads(prints("apply", *arguments, "--before", "before.npz", "--out", out, "--force", "--json"))[
            "remedy"
        ]

    wanted = EATA(margin=0.3, backward="subset", optimizer=SGD(lr=0.5)).to_config()
    options = ("--margin", "0.3", "--backward", "subset", "--optimizer", "{SGD: {lr: 0.5}}")
    assert config("EATA", "net", *options) == wanted
    assert config("EATA(margin=0.3, backward='subset', optimizer=SGD(lr=0.5))", "net") == wanted
    assert config("EATA(margin=0.9, backward='subset', optimizer=SGD(0.5))", "net", "--margin", "0.3") == wanted


def test_what_does_not_adapt_is_told_apart_and_unobserved_results_stay_as_they_are(here, tmp_path, prints):
    lines = dict(
        line.split("\t") for line in prints("apply", "Source", "net", "--out", str(tmp_path / "a")).splitlines()
    )
    assert lines["changed"].startswith("no number of ") and "right" not in lines and "adapts" not in lines
    found = json.loads(
        prints("apply", "Tent", "net", "--target", "now.npz", "--no-observe", "--out", str(tmp_path / "b"), "--json")
    )
    assert found["numbers"] == 0 and found["online"]
    found = json.loads(prints("apply", "LoRA", "net", "--rank", "2", "--out", str(tmp_path / "c"), "--json"))
    added = sum(hs.load(tmp_path / "c").get_parameter(name).numel() for name in found["added"])
    assert found["numbers"] == added > 0 and found["moved"] and not found["removed"]


def test_a_deployment_takes_what_does_not_adapt_and_apply_says_so_of_what_does(here, tmp_path, prints):
    prints("apply", "BatchNormBlend", "net", "--target", "now.npz", "--out", str(tmp_path / "blend"))
    made = Deployment(str(tmp_path / "blend"), NPZ("before.npz"), NPZ("now.npz"), remedies=(EATA(),),
                      store=str(tmp_path / "store"))  # fmt: skip
    loop, _ = deploy(made.replace(plan=Plan(diagnose=ShiftKind(simulations=4, reference=100))))
    loop.close()
    assert "\nnote\ta deployment's model" in prints("apply", "Tent", "net", "--out", str(tmp_path / "tent"))


def test_a_merge_takes_other_networks(here, tmp_path, prints):
    prints(
        "apply", "Fit", "net", "--before", "before.npz", "--recipe", "Recipe(epochs=1)", "--out", str(tmp_path / "d")
    )
    found = json.loads(
        prints(
            "apply",
            "TIES",
            "net",
            "--with",
            str(tmp_path / "d"),
            "--density",
            "1",
            "--out",
            str(tmp_path / "m"),
            "--json",
        )
    )
    assert found["numbers"] > 0 and not found["online"]


@pytest.mark.parametrize("name", [entry.name for entry in (*outline("Remedy"), *outline("Shift"))])
def test_help_of_each_has_every_field_with_its_default_and_meaning(name, monkeypatch, prints):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    command = "apply" if any(entry.name == name for entry in outline("Remedy")) else "shift"
    text = prints(command, name, "--help")
    cls = spec.find(name)
    for field in cls.__dataclass_fields__.values():
        if str(field._field_type) == "_FIELD":
            assert f"--{field.name.replace('_', '-')} " in text, field.name
    assert f"homeostat show {name}" in text and "--out" in text and "--seed" in text


def test_the_help_of_eata_shows_ranges_choices_and_defaults(monkeypatch, prints):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    lines = {m[1]: m[0] for m in re.finditer(r"--([a-z-]+) .*", prints("apply", "EATA", "--help"))}
    assert "number > 0" in lines["margin"] and "[default: (0.4)]" in lines["margin"]
    assert "masked|subset" in lines["backward"] and "(masked)" in lines["backward"]
    assert "Optimizer" in lines["optimizer"] and "whole number >= 1" in lines["fisher-batch"]


# ----------------------------------------------------------------------------------------------------------- shift


def test_shift_writes_what_the_library_gives_and_it_is_read_back(here, tmp_path, prints):
    out = tmp_path / "fog.npz"
    found = json.loads(
        prints(
            "shift",
            "Corrupt",
            "now.npz",
            "--name",
            "fog",
            "--severity",
            "2",
            "--seed",
            "5",
            "--out",
            str(out),
            "--json",
        )
    )
    assert found["samples"] == 400 and found["shape"] == [1, 8, 8] and found["labels"]
    expected = Corrupt("fog", 2)(NPZ("now.npz").read(), run=hs.Run(seed=5)).load()
    batch = NPZ(str(out)).read().load()
    assert torch.equal(batch.x, expected.x) and torch.equal(batch.labels, expected.labels)


def test_a_shift_of_shifts_keeps_meta_and_data_without_labels_stay_so(here, tmp_path, prints):
    out = tmp_path / "phases.npz"
    prints("shift", "Phases", "bare.npz", "--shifts", "Clean, Corrupt(name=contrast, severity=5)", "--out", str(out))
    archive = np.load(out)
    assert sorted(archive.files) == ["id", "phase", "x"] and archive["phase"].tolist() == [0] * 200 + [1] * 200
    assert not as_reader(out).read().has_labels()
    plain = NPZ("bare.npz", y=None).read().load().x.numpy()
    assert np.array_equal(archive["x"][:200], plain[:200]) and not np.array_equal(archive["x"][200:], plain[200:])
    made = json.loads(
        prints("shift", "Compose([Clean, Corrupt(fog)])", "now.npz", "--out", str(tmp_path / "c.npz"), "--json")
    )
    assert made["shift"] == Compose((Clean(), Corrupt("fog"))).to_config()


def test_an_attack_looks_at_the_network(here, tmp_path, prints):
    out = tmp_path / "hit.npz"
    prints("shift", "PGD", "before.npz", "--model", "net", "--eps", "8/255", "--steps", "3", "--out", str(out))
    assert right(hs.load("net"), str(out)) < right(hs.load("net"), "before.npz") - 0.1


# ---------------------------------------------------------------------------------------------------- what is wrong


WRONG = [
    (("probe", "net", "none.npz"), r"data: there is no none\.npz; give an \.npz file"),
    (("probe", "net", "Digts"), "no reader of this name. Did you mean 'Digits'"),
    (("probe", "net", "Digits(stp=3)"), "Digits has no field 'stp'. Did you mean 'stop'"),
    (("probe", "net", "Digits("), "cannot be read at character 7"),
    (("probe", "net", "net"), "net is a network's checkpoint, and data are wanted"),
    (("probe", "net", ""), "the text is empty"),
    (("probe", "net", "$NOWHERE/a.npz"), r"variable \$NOWHERE, which is not set"),
    (("probe", "net", "color.npz"), "images have 3 channels"),
    (("probe", "none", "now.npz"), "there is no network at none"),
    (("probe", "ResNet", "now.npz"), "a layout without weights"),
    (("probe", "now.npz", "now.npz"), "now.npz is no network"),
    (("probe", "EATA()", "now.npz"), "this is a EATA; a Network or a Deployment has a network"),
    (("probe", "net/weights.safetensors", "now.npz"), "holds weights and no layout.*homeostat convert"),
    (("probe", "net", "now.npz", "--probe", "Acuracy"), "Did you mean 'Accuracy'"),
    (("probe", "net", "now.npz", "--probe", "EATA"), "EATA is not a Probe"),
    (("probe", "net", "now.npz", "--probe", "ECE(bins=0)"), "ECE.bins = 0, but it must be >= 1"),
    (("probe", "net", "bare.npz", "--probe", "Accuracy"), "Accuracy needs labels, and the data have none"),
    (("probe", "net", "now.npz", "--probe", "KS"), r"KS needs data from before \(--before DATA\)"),
    (("probe", "net", "now.npz", "--probe", "BBSE", "--before", "bare.npz"), r"labelled data from before \(--before"),
    (("probe", "net", "now.npz", "--device", "nowhere"), "--device nowhere cannot be used here"),
    (("apply", "EATTA", "net", "--out", "x"), "no remedy is called 'EATTA'. Did you mean 'EATA'"),
    (("apply", "Corrupt", "net", "--out", "x"), "Corrupt is a Shift, and a Remedy is wanted"),
    (("apply", "EATA", "net", "--out", "net"), "net is there already; give another --out, or --force"),
    (("apply", "EATA", "net", "--out", "x"), r"EATA needs data from before \(--before DATA\)"),
    (("apply", "EATA", "net", "--out", "x", "--margin", "-1"), "EATA.margin = -1, but it must be > 0"),
    (("apply", "EATA", "net", "--out", "x", "--margin", "lots"), "EATA.margin = 'lots', but it must be a float"),
    (("apply", "EATA", "net", "--out", "x", "--backward", "mask"), "Did you mean 'masked'"),
    (("apply", "EATA", "net", "--out", "x", "--optimizer", "Adm"), "'Adm'. Did you mean 'Adam'"),
    (("apply", "EATA(mrgin=1)", "net", "--out", "x"), "EATA has no field 'mrgin'"),
    (("apply", "TIES", "net", "--out", "x"), r"TIES needs another network \(--with MODEL\)"),
    (("shift", "Fog", "now.npz", "--out", "x.npz"), "no shift is called 'Fog'"),
    (("shift", "EATA", "now.npz", "--out", "x.npz"), "EATA is a Remedy, and a Shift is wanted"),
    (("shift", "Clean", "now.npz", "--out", "x.txt"), "does not end in .npz"),
    (("shift", "Clean", "now.npz", "--out", "now.npz"), "now.npz is there already"),
    (("shift", "PGD", "now.npz", "--out", "x.npz"), "PGD attacks a model"),
    (("shift", "Corrupt", "now.npz", "--name", "fogg", "--out", "x.npz"), "Did you mean 'fog'"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_what_is_wrong_ends_with_code_2_and_one_line_and_nothing_is_written(arguments, message, here, ends):
    files = sorted(path.name for path in here.iterdir())
    code, out, err = ends(*arguments)
    assert code == 2 and not out and re.search(message, err), err
    assert err.startswith("homeostat: ") and err.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == files


@pytest.mark.parametrize(
    "arguments",
    [
        ("probe",),
        ("probe", "net"),
        ("probe", "net", "now.npz", "--batch", "0"),
        ("probe", "net", "now.npz", "--seed", "-1"),
        ("apply", "EATA"),
        ("apply", "EATA", "net", "--marign", "3"),
        ("apply", "--margin", "3", "EATA"),
        ("shift", "Clean", "now.npz"),
    ],
)
def test_a_command_that_is_typed_wrongly_ends_with_code_2(arguments, here, ends):
    code, out, err = ends(*arguments)
    assert code == 2 and not out and "Error" in err and "Traceback" not in err
