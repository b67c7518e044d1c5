"""Data by what people type."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import homeostat as hs
from homeostat.core.errors import InputError, MissingPart, SpecError, UnknownName
from homeostat.data import NPZ, Digits, HuggingFace, ImageFolder, as_reader, npz, write_npz
from homeostat.loop import open_data
from homeostat.shift import Corrupt


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", x=np.arange(6.0)[:, None], y=np.arange(6) % 2)
    np.savez("bare.npz", x=np.arange(6.0)[:, None])
    return tmp_path


def test_a_reader_as_text_has_its_paths_from_here(here):
    assert as_reader("Digits") == Digits() and as_reader(Digits(stop=3)) == Digits(stop=3)
    assert as_reader("NPZ('a.npz', y=None, stop=3)") == NPZ(str(here / "a.npz"), y=None, stop=3)
    assert as_reader("{NPZ: {path: a.npz}}") == NPZ(str(here / "a.npz"))


def test_archives_with_and_without_labels(here):
    assert as_reader("a.npz") == NPZ(str(here / "a.npz")) and as_reader(here / "bare.npz") == NPZ(
        str(here / "bare.npz"), y=None
    )
    assert len(as_reader("a.npz").read()) == 6 and not as_reader("bare.npz").read().has_labels()


def test_folders(here, monkeypatch):
    (here / "pictures" / "cat").mkdir(parents=True)
    Image.new("L", (4, 4)).save(here / "pictures" / "cat" / "1.png")
    assert as_reader("pictures") == ImageFolder(str(here / "pictures"))
    (here / "saved").mkdir()
    (here / "saved" / "dataset_info.json").write_text("{}")
    assert as_reader("saved") == HuggingFace(str(here / "saved"))
    monkeypatch.setenv("PLACE", str(here))
    assert as_reader("$PLACE/pictures") == as_reader("pictures")
    # A folder that is called like a reader is the folder.
    (here / "Digits" / "cat").mkdir(parents=True)
    assert as_reader("Digits") == ImageFolder(str(here / "Digits"))


def test_yaml_files_and_their_fields(here, tmp_path):
    (here / "sub").mkdir()
    (here / "sub" / "data.yaml").write_text("NPZ: {path: ../a.npz}\n")
    assert as_reader("sub/data.yaml") == NPZ(str(here / "a.npz"))
    (here / "d.yaml").write_text(
        "Deployment:\n  model: m\n  before: {Digits: {stop: 100}}\n  stream: {Digits: {start: 100, stop: 200}}\n"
        "  shift: {Corrupt: {name: contrast}}\n  remedies: [EATA]\n  seed: 4\n"
    )
    assert as_reader("d.yaml") == Digits(start=100, stop=200) and as_reader("d.yaml", "before") == Digits(stop=100)
    assert as_reader("d.yaml:before") == Digits(stop=100)
    # A deployment's stream is what is served, shift and all.
    expected = Corrupt("contrast")(Digits(start=100, stop=200).read(), run=hs.Run(seed=4)).load().x
    assert torch.equal(open_data("d.yaml").load().x, expected)
    assert torch.equal(open_data("d.yaml:before").load().x, Digits(stop=100).read().load().x)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("none.npz", MissingPart, "data: there is no none.npz; give an .npz file"),
        ("Digts", UnknownName, "no file Digts and no reader of this name. Did you mean 'Digits'"),
        ("EATA()", SpecError, "EATA is not a Reader"),
        ("a.csv", InputError, "none of the files that are read"),
        ("empty", InputError, "no sub-folders of images"),
        ("net", InputError, "is a network's checkpoint"),
        ("store", InputError, "is a store"),
        ("splits", InputError, "holds splits test, train; give one: splits/test"),
        ("d.yaml:plan", InputError, "holds a Plan without a reader in 'plan'; none of its fields is a reader"),
        ("$NOWHERE/x.npz", InputError, r"\$NOWHERE, which is not set"),
        ("", InputError, "the text is empty"),
        (3, SpecError, "data is a int"),
    ],
)
def test_what_is_no_data_is_told_so(here, text, error, said):
    (here / "a.csv").write_text("a")
    (here / "d.yaml").write_text("Plan: {}\n")
    for folder, file in (("empty", ""), ("net", "model.json"), ("splits", "dataset_dict.json"), ("store", "")):
        (here / folder).mkdir()
        if file:
            (here / folder / file).write_text(json.dumps({}))
    for inner in ("splits/train", "splits/test", "store/checkpoints"):
        (here / inner).mkdir()
    with pytest.raises(error, match=said):
        as_reader(text)


# -------------------------------------------------------------------------------------------------------- write_npz


def test_what_is_written_is_read_back(here):
    data = Digits(stop=70).read()
    seen = []
    write_npz(data, "sub/d.npz", batch=32, run=hs.Run(watch=lambda event: seen.append((event.step, event.total))))
    back = npz("sub/d.npz").load()
    assert torch.equal(back.x, data.load().x) and torch.equal(back.labels, data.load().labels)
    assert seen == [(32, 70), (64, 70), (70, 70)] and [p.name for p in (here / "sub").iterdir()] == ["d.npz"]
    assert np.load("sub/d.npz")["id"].tolist() == list(range(70))


def test_what_cannot_be_written_leaves_the_file_as_it_was(here):
    was = (here / "a.npz").read_bytes()
    tree = hs.Tensors({"input_ids": torch.zeros(3, 2), "mask": torch.zeros(3, 2)})
    with pytest.raises(InputError, match="a tree of them"):
        write_npz(tree, "a.npz")
    with pytest.raises(InputError, match=r"does not end in \.npz"):
        write_npz(torch.zeros(3, 1), "a.zip")
    assert (here / "a.npz").read_bytes() == was and sorted(p.name for p in here.iterdir()) == ["a.npz", "bare.npz"]
