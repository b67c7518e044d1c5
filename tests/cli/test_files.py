"""`init`, `convert` and `schema`: what they write is taken by the rest, and what they say."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import homeostat as hs
from homeostat.adapt import Tent
from homeostat.core.configfile import read_spec
from homeostat.core.schema import schema
from homeostat.data import NPZ, Digits
from homeostat.loop import draft, read_deployment
from homeostat.loop.network import Network
from homeostat.nn import MLP

# ------------------------------------------------------------------------------------------------------------ init


def test_init_writes_a_file_that_is_read_and_says_the_next_command(here, tmp_path, prints):
    file = tmp_path / "sub" / "shop.yaml"
    text = prints(
        "init", str(file), "--model", "net", "--before", "before.npz", "--stream", "bare.npz", "--labels", "5"
    )
    assert dict(line.split("\t") for line in text.splitlines()) == {
        "written": str(file), "to do": "stream has no labels to show the loop; they are the `y` of its archive, or its "
        "class folders", "next": f"homeostat run {file}",
    }  # fmt: skip
    made = read_deployment(file)
    assert made.model == str(here / "net") and made.labels == 5 and made.store == str(file.parent / "runs" / "shop")
    assert made.before == NPZ(str(here / "before.npz")) and made.stream == NPZ(str(here / "bare.npz"), y=None)
    assert [type(remedy).__name__ for remedy in made.remedies] == ["EATA", "BatchNormBlend"] and len(made.simulate) >= 3
    words = file.read_text()
    assert words.count("#") > 10 and "homeostat schema Deployment" in words


def test_paths_near_the_file_are_written_from_its_folder(here, tmp_path, prints):
    prints("init", "a.yaml", "--model", "net", "--before", "before.npz", "--stream", "now.npz", "--store", "runs/x")
    try:
        text = Path("a.yaml").read_text()
        assert "model: net\n" in text and "{NPZ: {path: before.npz}}" in text and "store: runs/x\n" in text
    finally:
        Path("a.yaml").unlink()


def test_a_network_as_text_goes_into_the_file_with_what_is_not_as_usual(here, tmp_path, prints):
    net = "Network(ResNet(8, in_channels=1), data=Digits(stop=900, shuffle=0), mean=(0.3,), std=(0.4,))"
    file = tmp_path / "a.yaml"
    prints("init", str(file), "--model", net, "--before", "Digits(start=900)", "--stream", "Digits")
    made = read_deployment(file)
    assert made.model == Network(
        {"ResNet": {"depth": 8, "in_channels": 1}}, data=Digits(stop=900, shuffle=0), mean=(0.3,), std=(0.4,)
    )
    assert "model: {Network: {layout: {ResNet: {depth: 8, in_channels: 1}}, mean: [0.3], std: [0.4]" in file.read_text()
    again = draft(tmp_path / "b.yaml", model=str(file), before=str(file), stream=str(file)).deployment
    assert (again.model, again.before, again.stream) == (made.model, made.before, made.stream)


def test_what_is_not_there_yet_or_does_not_fit_is_told_as_to_do(here, tmp_path):
    found = draft(tmp_path / "a.yaml", model="nets/later", before="bare.npz", stream="color.npz", labels=3).doubts
    assert any("no checkpoint at nets/later" in text or "there is no checkpoint at" in text for text in found)
    assert any(text.startswith("before has no labels") for text in found)
    hs.save(Tent()(hs.load("net")), tmp_path / "online")
    (doubt,) = draft(tmp_path / "c.yaml", model=str(tmp_path / "online"), before="before.npz", stream="now.npz").doubts
    assert "adapts while it serves; give the plain network" in doubt
    (doubt,) = draft(tmp_path / "b.yaml", model="net", before="color.npz", stream="now.npz").doubts
    assert doubt.startswith("the network does not take the samples of before: images have 3 channels")


def test_remedies_and_shifts_fit_the_network_and_the_data(tmp_path, here):
    hs.save(MLP(64, 10), tmp_path / "mlp")
    import numpy as np

    np.savez(tmp_path / "flat.npz", x=np.random.default_rng(0).random((60, 64), dtype="f"), y=np.arange(60) % 10)
    flat = str(tmp_path / "flat.npz")
    made = draft(tmp_path / "a.yaml", model=str(tmp_path / "mlp"), before=flat, stream=flat).deployment
    assert [type(remedy).__name__ for remedy in made.remedies] == ["LAME", "PriorCorrection"] and made.simulate == ()
    for remedy in made.remedies:
        remedy(MLP(64, 10), hs.World(target=NPZ(flat).read()))


def in_a_terminal(answers: list[str], *arguments: str, folder: Path) -> tuple[int, str]:
    """The command, with a terminal to ask in: exit code and what was seen there."""
    parent, child = pty.openpty()
    code = f"import sys; sys.argv = {['homeostat', *arguments]!r}; from homeostat.cli import main; main()"
    running = subprocess.Popen(
        [sys.executable, "-c", code], stdin=child, stdout=child, stderr=child, cwd=folder, close_fds=True
    )
    os.close(child)
    seen = ""
    waiting = list(answers)
    while True:
        try:
            seen += os.read(parent, 4096).decode(errors="replace")
        except OSError:  # the other side is closed
            break
        if waiting and re.search(r": $", seen):
            os.write(parent, (waiting.pop(0) + "\n").encode())
            seen += "\n"
    os.close(parent)
    return running.wait(timeout=60), seen


def test_in_a_terminal_it_asks_for_what_is_left_open_until_it_can_be_read(here, tmp_path):
    answers = ["beforre.npz", str(here / "before.npz"), str(here / "now.npz"), "7", "store"]
    code, seen = in_a_terminal(answers, "init", "a.yaml", "--model", str(here / "net"), folder=tmp_path)
    assert code == 0 and "there is no beforre.npz" in seen and "homeostat run a.yaml" in seen, seen
    made = read_deployment(tmp_path / "a.yaml")
    assert made.labels == 7 and made.store == str(tmp_path / "store") and made.stream == NPZ(str(here / "now.npz"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("init",), "--model, --before, --stream must be given where nobody can be asked"),
        (("init", "now.npz"), "now.npz is there already"),
        (("init", "a.txt", "--model", "net", "--before", "Digits", "--stream", "Digits"), r"does not end in \.yaml"),
        (("init", "a.yaml", "--model", "now.npz", "--before", "Digits", "--stream", "Digits"), "now.npz is a file"),
        (("init", "a.yaml", "--model", "net", "--before", "none", "--stream", "Digits"), "before: there is no"),
        (
            ("init", "a.yaml", "--model", "net", "--before", "Digits", "--stream", "Digits(a=1)"),
            "Digits has no field 'a'",
        ),
        (("convert", "none.pt", "--out", "a.safetensors"), "there is no file none.pt"),
        (("convert", "now.npz", "--out", "a.safetensors"), "neither safetensors nor a file that torch.save wrote"),
        (("convert", "net", "--out", "a.safetensors"), "is a homeostat checkpoint already"),
        (("convert", "net/weights.safetensors", "--out", "a"), r"ends in \.safetensors"),
        (("convert", "net/weights.safetensors", "--out", "a", "--layout", "ResNt(8)"), "Did you mean 'ResNet'"),
        (("convert", "net/weights.safetensors", "--out", "a", "--layout", "ResNet(7)"), "depth = 7"),
        (("convert", "net/weights.safetensors", "--out", "a", "--layout", "EATA"), "EATA is no network"),
        (("convert", "net/weights.safetensors", "--out", "a", "--layout", "ResNet(8)"), "does not fit the ResNet: "),
        (("convert", "net/weights.safetensors", "--out", "a.safetensors", "--mean", "1"), "belong together"),
        (("schema", "Deplyment"), "Did you mean 'Deployment'"),
        (("schema", "ResNet"), "ResNet is no Spec"),
        (("schema", "--out", "/proc/none/a.json"), "cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_wrong_ends_with_code_2_and_one_line(arguments, message, here, ends):
    before = sorted(path.name for path in here.iterdir())
    code, out, err = ends(*arguments)
    assert code == 2 and not out and re.search(message, err), err
    assert err.startswith("homeostat: ") and err.count("\n") == 1 and "Traceback" not in err
    assert sorted(path.name for path in here.iterdir()) == before


# --------------------------------------------------------------------------------------------------------- convert


def test_convert_makes_a_checkpoint_and_says_what_it_trusts_and_what_not(here, tmp_path, prints):
    inner = hs.load("net").model  # type: ignore[union-attr]
    save_file(
        {f"module.{name}": tensor.clone() for name, tensor in hs.weights(inner).items()}, tmp_path / "w.safetensors"
    )
    layout = ("--layout", "ResNet(8, in_channels=1, width=4)", "--mean", "0.3", "--std", "0.37")
    lines = [
        line.split("\t")
        for line in prints(
            "convert", str(tmp_path / "w.safetensors"), *layout, "--out", str(tmp_path / "net")
        ).splitlines()
    ]
    assert [line[0] for line in lines] == ["source", "source", "unchecked", "written", "next"]
    assert "no code" in lines[0][1] and "'module.'" in lines[1][1] and "normalised" in lines[2][1]
    assert hs.fingerprint(hs.load(tmp_path / "net")) == hs.fingerprint(hs.load("net"))
    found = json.loads(
        prints("convert", str(tmp_path / "w.safetensors"), "--out", str(tmp_path / "plain.safetensors"), "--json")
    )
    assert found["tensors"] == len(hs.weights(inner)) and set(hs.Weights(found["path"])) == set(hs.weights(inner))


def test_convert_reads_what_torch_save_wrote(tmp_path, prints):
    torch.save({"model": MLP(4, 3, seed=3).state_dict(), "epoch": 1}, tmp_path / "a.pth")
    found = json.loads(
        prints("convert", str(tmp_path / "a.pth"), "--layout", "MLP(4, 3)", "--out", str(tmp_path / "net"), "--json")
    )
    assert hs.fingerprint(hs.load(tmp_path / "net")) == hs.fingerprint(MLP(4, 3, seed=3))
    assert any("'model'" in note for note in found["notes"]) and any("epoch" in note for note in found["notes"])


# ---------------------------------------------------------------------------------------------------------- schema


def test_schema_prints_json_or_writes_it_and_says_how_to_use_it(tmp_path, prints):
    assert json.loads(prints("schema", "Plan")) == schema("Plan")
    text = prints("schema", "Deployment", "--out", str(tmp_path / "s.json"))
    assert json.loads((tmp_path / "s.json").read_text()) == schema("Deployment")
    assert f"# yaml-language-server: $schema={tmp_path / 's.json'}" in text


def test_what_init_writes_is_a_spec_of_the_register(here, tmp_path, prints):
    prints("init", str(tmp_path / "a.yaml"), "--model", "net", "--before", "before.npz", "--stream", "now.npz")
    assert type(read_spec(tmp_path / "a.yaml")).__name__ == "Deployment"
