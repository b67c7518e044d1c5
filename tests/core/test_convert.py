"""Weights from elsewhere: what is read, what is refused without running it, and what is said of misfits."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import homeostat as hs
from homeostat.core.convert import convert, read_foreign
from homeostat.core.errors import CheckpointError, InputError, MissingPart, SpecError
from homeostat.nn import MLP, Normalized


@pytest.fixture
def net() -> nn.Module:
    return MLP(4, 3, seed=7).eval()


def state(net: nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor.clone() for name, tensor in net.state_dict().items()}


def test_weights_of_torch_save_become_a_checkpoint_that_computes_the_same(net, tmp_path):
    torch.save(state(net), tmp_path / "net.pt")
    made = convert(tmp_path / "net.pt", tmp_path / "out", MLP(4, 3, seed=1))
    x = torch.rand(5, 4)
    assert torch.equal(hs.load(tmp_path / "out")(x), net(x))
    assert made.tensors == len(state(net)) and made.numbers == sum(t.numel() for t in state(net).values())
    assert any("no code was run" in note for note in made.notes) and made.unchecked


def test_safetensors_and_a_file_of_any_name_are_known_by_their_head(net, tmp_path):
    for name in ("net.safetensors", "pytorch_model.bin"):
        save_file(state(net), tmp_path / name)
        foreign = read_foreign(tmp_path / name)
        assert foreign.notes[0].startswith("read as safetensors") and set(foreign.tensors) == set(state(net))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "module.net."])
def test_prefixes_of_wrappers_go_and_are_told(net, tmp_path, prefix):
    torch.save({"state_dict": state(net, prefix), "epoch": 3}, tmp_path / "net.pth")
    made = convert(tmp_path / "net.pth", tmp_path / "out", MLP(4, 3))
    assert hs.fingerprint(hs.load(tmp_path / "out")) == hs.fingerprint(net)
    told = " ".join(made.notes)
    assert "under 'state_dict'" in told and "left aside: epoch" in told
    assert [word in told for word in re.findall(r"\w+\.", prefix)] == [True] * prefix.count(".")


def test_a_prefix_that_is_a_name_of_the_network_stays(tmp_path):
    wrapped = Normalized(MLP(4, 3), [0.0], [1.0])
    torch.save(state(wrapped), tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "out", Normalized(MLP(4, 3, seed=4), [0.0], [1.0]))
    assert hs.fingerprint(hs.load(tmp_path / "out")) == hs.fingerprint(wrapped)


def test_several_sets_of_weights_are_chosen_from_by_key(net, tmp_path):
    other = MLP(4, 3, seed=9)
    torch.save({"ema": {"model": state(other)}, "model": state(net)}, tmp_path / "two.pt")
    assert torch.equal(read_foreign(tmp_path / "two.pt").tensors["linear.weight"], net.get_parameter("linear.weight"))
    found = read_foreign(tmp_path / "two.pt", "ema.model").tensors
    assert torch.equal(found["linear.weight"], other.get_parameter("linear.weight"))
    with pytest.raises(SpecError, match=r"no weights under 'ema'.*It has them under: model, ema\.model"):
        read_foreign(tmp_path / "two.pt", "ema")


def test_half_precision_becomes_the_layouts_and_is_told(net, tmp_path):
    save_file({name: tensor.half() for name, tensor in state(net).items()}, tmp_path / "half.safetensors")
    made = convert(tmp_path / "half.safetensors", tmp_path / "out", MLP(4, 3))
    assert all(tensor.dtype == torch.float32 for tensor in hs.weights(hs.load(tmp_path / "out")).values())
    assert any("float16" in note for note in made.notes)


def test_without_a_network_a_plain_file_is_written(net, tmp_path):
    torch.save(state(net, "module."), tmp_path / "net.pt")
    made = convert(tmp_path / "net.pt", tmp_path / "sub" / "net.safetensors")
    found = load_file(made.path)
    assert (
        all(torch.equal(found[name], tensor) for name, tensor in state(net).items()) and "layout" in made.unchecked[0]
    )


def test_it_is_wrapped_before_it_is_saved(tmp_path):
    torch.save(state(MLP(4, 3, seed=2)), tmp_path / "net.pt")
    convert(tmp_path / "net.pt", tmp_path / "out", MLP(4, 3), around=lambda inner: Normalized(inner, [0.1], [2.0]))
    loaded = hs.load(tmp_path / "out")
    assert isinstance(loaded, Normalized) and hs.fingerprint(loaded.model) == hs.fingerprint(MLP(4, 3, seed=2))


class Runs:
    """What a malicious pickle does: it runs a command when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_file_that_runs_code_is_refused_and_does_not_run_it(tmp_path):
    torch.save({"state_dict": Runs(tmp_path / "hit"), "w": torch.zeros(2)}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"running what it names \(posix\.system\), which is refused"):
        read_foreign(tmp_path / "evil.pt")
    assert not (tmp_path / "hit").exists()


def test_whole_networks_and_programs_are_refused_with_what_to_do(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear.*torch\.save\(model\.state_dict"):
        read_foreign(tmp_path / "whole.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "program.pt")
    with pytest.raises(CheckpointError, match="TorchScript program"):
        read_foreign(tmp_path / "program.pt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "neither safetensors nor a file that torch.save wrote"),
        (b"hello", "neither safetensors nor a file that torch.save wrote"),
        (b"PK\x03\x04 not a zip", "neither safetensors nor"),
        (b"\x10\0\0\0\0\0\0\0{" + b" " * 30, "cannot be read as safetensors"),
    ],
)
def test_other_files_are_refused(tmp_path, content, said):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        read_foreign(tmp_path / "file.pt")


def test_files_without_weights_are_refused(net, tmp_path):
    for content, said in (([1, 2], "but a list"), ({"epoch": 3}, "but keys epoch"), ({}, "but keys")):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=said):
            read_foreign(tmp_path / "a.pt")
    with pytest.raises(MissingPart, match="there is no file"):
        read_foreign(tmp_path / "none.pt")
    hs.save(net, tmp_path / "net")
    with pytest.raises(CheckpointError, match="is a homeostat checkpoint already"):
        read_foreign(tmp_path / "net")
    torch.save({"w": torch.tensor([1.0, float("nan")])}, tmp_path / "nan.pt")
    with pytest.raises(CheckpointError, match="holds NaN or infinity in w"):
        read_foreign(tmp_path / "nan.pt")


def test_every_misfit_is_named_at_once_and_nothing_is_written(net, tmp_path):
    tensors = state(net)
    tensors["extra.weight"] = torch.zeros(2)
    tensors["linear.bias"] = torch.zeros(5)
    gone = next(name for name in tensors if name.startswith("layers"))
    del tensors[gone]
    torch.save(tensors, tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as caught:
        convert(tmp_path / "a.pt", tmp_path / "out", MLP(4, 3))
    said = str(caught.value)
    assert f"1 missing ({gone})" in said and "1 unknown (extra.weight)" in said
    assert "1 of another shape (linear.bias is (5,), (3,) wanted)" in said and not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match="such as classes or width, may be others"):
        torch.save(state(net), tmp_path / "b.pt")
        convert(tmp_path / "b.pt", tmp_path / "out", MLP(4, 9))


def test_what_is_there_is_not_replaced_unasked(net, tmp_path):
    torch.save(state(net), tmp_path / "a.pt")
    (tmp_path / "out.safetensors").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        convert(tmp_path / "a.pt", tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_text() == "mine"
    convert(tmp_path / "a.pt", tmp_path / "out.safetensors", force=True)
    assert set(load_file(tmp_path / "out.safetensors")) == set(state(net))
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        convert(tmp_path / "a.pt", tmp_path / "out")
