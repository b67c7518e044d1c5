"""Tensors by memory map: equal to the reference reader's, and damaged files are refused at the door."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from homeostat.core.errors import CheckpointError
from homeostat.core.mapped import INDEX, Mapped


def test_equals_the_reference_reader_for_files_and_folders(tmp_path):
    parts = [
        {"a": torch.randn(3, 4), "n": torch.tensor(7)},
        {"b": torch.randn(5).bfloat16(), "empty": torch.ones(0, 2)},
    ]
    for i, part in enumerate(parts):
        save_file(part, tmp_path / f"model-{i}.safetensors", metadata={"format": "pt"})
    where = {name: f"model-{i}.safetensors" for i, part in enumerate(parts) for name in part}
    for index in (False, True):
        if index:
            (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
        opened = Mapped(tmp_path)
        assert set(opened) == set(where) and len(opened) == 4 and opened.metadata == {"format": "pt"}
        for i, part in enumerate(parts):
            read = load_file(tmp_path / f"model-{i}.safetensors")
            assert all(
                torch.equal(opened[name], read[name]) and opened[name].shape == read[name].shape for name in part
            )
    alone = Mapped(tmp_path / "model-0.safetensors")
    assert set(alone) == {"a", "n"}


def test_a_whole_file_goes_before_others_beside_it(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    save_file({"w": torch.zeros(2), "v": torch.zeros(2)}, tmp_path / "consolidated.safetensors")
    assert Mapped(tmp_path)["w"].tolist() == [1, 1] and list(Mapped(tmp_path)) == ["w"]


def test_writing_into_a_tensor_changes_neither_the_file_nor_another_reader(tmp_path):
    save_file({"w": torch.zeros(4096)}, tmp_path / "w.safetensors")
    opened = Mapped(tmp_path / "w.safetensors")
    opened["w"].fill_(3.0)
    assert float(Mapped(tmp_path / "w.safetensors")["w"].sum()) == 0
    opened.release("w")


@pytest.mark.parametrize("damage", ["cut", "head", "beyond", "dtype", "empty", "size"])
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    file = tmp_path / "w.safetensors"
    save_file({"w": torch.zeros(16)}, file)
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    if damage == "cut":
        file.write_bytes(content[:-1])
    elif damage == "head":
        file.write_bytes(content[:20])
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        header["w"] |= {
            "beyond": {"data_offsets": [64, 128]}, "dtype": {"dtype": "Q4"}, "size": {"shape": [15]}
        }[damage]  # fmt: skip
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
    with pytest.raises(CheckpointError, match=r"w\.safetensors cannot be read"):
        Mapped(file)


def test_a_folder_that_is_not_whole_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no safetensors file and no folder that holds one"):
        Mapped(tmp_path / "nothing")
    save_file({"w": torch.zeros(2)}, tmp_path / "a.safetensors")
    save_file({"w": torch.zeros(2)}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="w lies in"):
        Mapped(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"w": "a.safetensors", "v": "a.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"names v \(1 in all\), which a\.safetensors lacks"):
        Mapped(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"w": "a.safetensors", "v": "c.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"c\.safetensors cannot be read"):
        Mapped(tmp_path)
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(CheckpointError, match="no index of a checkpoint"):
        Mapped(tmp_path)
    with pytest.raises(CheckpointError, match="Did you mean 'w'"):
        Mapped(tmp_path / "a.safetensors")["W"]
