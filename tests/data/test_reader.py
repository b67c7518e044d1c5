"""Data sets by name: what they read, in which order, and what a YAML file is told when it is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from homeostat.core import spec
from homeostat.core.configfile import read_spec
from homeostat.core.errors import InputError, MissingPart, SpecError
from homeostat.core.spec import from_config
from homeostat.data import (
    CIFAR10,
    MNIST,
    NPZ,
    Digits,
    FashionMNIST,
    Glosses,
    HuggingFace,
    ImageFolder,
    Reader,
    below,
    digits,
    glosses,
)
from homeostat.data.tokenizers import ByteTokenizer


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "ten.npz"
    np.savez(path, x=np.arange(10.0)[:, None], y=np.arange(10) % 2, seen=np.arange(10) % 3)
    return path


def numbers(reader: Reader) -> list[int]:
    return reader.read().load().x.flatten().int().tolist()


def test_every_reader_is_registered_under_its_name_and_survives_its_config(tmp_path):
    for reader in (
        FashionMNIST("train", stop=5), MNIST(), CIFAR10(shuffle=3), Digits(start=2, repeat=4), ImageFolder("a", size=8),
        NPZ("b.npz", y=None), Glosses("noun", length=12), HuggingFace("c", x="image"),
    ):  # fmt: skip
        assert spec.find(type(reader).__name__) is type(reader)
        assert from_config(reader.to_config(), Reader) == reader


def test_order_is_kept_cut_and_repeated(archive):
    assert numbers(NPZ(str(archive))) == list(range(10))
    assert numbers(NPZ(str(archive), start=2, stop=5)) == [2, 3, 4]
    assert numbers(NPZ(str(archive), start=7)) == [7, 8, 9]
    assert numbers(NPZ(str(archive), start=8, repeat=3)) == [8, 9] * 3


def test_parts_of_one_shuffled_order_share_no_sample_and_another_seed_is_another_order(archive):
    def rows(start: int, stop: int, seed: int = 4) -> list[int]:
        return numbers(NPZ(str(archive), shuffle=seed, start=start, stop=stop))

    whole = rows(0, 10)
    assert sorted(whole) == list(range(10)) and whole != list(range(10))
    assert rows(0, 6) + rows(6, 10) == whole == rows(0, 10) != rows(0, 10, seed=5)


def test_labels_and_ids_go_with_their_samples(archive):
    batch = NPZ(str(archive), y="seen", shuffle=1, start=3, stop=8).read().load()
    assert batch.labels.tolist() == [int(value) % 3 for value in batch.x.flatten()] and len(batch) == 5
    assert NPZ(str(archive), y=None).read().has_labels() is False
    assert torch.equal(Digits(start=5, stop=9).read().load().id, torch.arange(5, 9))


@pytest.mark.parametrize("cut", [{"stop": 11}, {"start": 10}, {"start": 4, "stop": 4}, {"start": 5, "stop": 3}])
def test_cuts_that_do_not_fit_are_refused_with_the_number_of_samples(archive, cut):
    with pytest.raises(InputError, match=r"NPZ has 10 samples; start = .* and stop = .* do not fit"):
        NPZ(str(archive), **cut).read()


def test_digits_are_those_of_the_function():
    assert Digits().read().fingerprint() == digits().fingerprint()


def test_published_files_are_found_by_split(tmp_path, monkeypatch, write_split):
    monkeypatch.setenv("HOMEOSTAT_DATA", str(tmp_path))
    write_split(tmp_path / "mnist", 12, "test")
    write_split(tmp_path / "fashion-mnist", 7, "train")
    assert len(MNIST().read()) == 12 and len(FashionMNIST("train", stop=3).read()) == 3
    with pytest.raises(MissingPart, match="train"):
        MNIST("train").read()
    with pytest.raises(MissingPart, match="cifar"):
        CIFAR10().read()


def test_folders_of_images(tmp_path):
    for name, grey in (("cat", 10), ("dog", 200)):
        (tmp_path / name).mkdir()
        Image.new("L", (6, 4), grey).save(tmp_path / name / "one.png")
    batch = ImageFolder(str(tmp_path), size=4, grey=True).read().load()
    assert batch.x.shape == (2, 1, 4, 4) and batch.labels.tolist() == [0, 1]


def test_texts_are_cut_before_they_are_tokenized(tmp_path, monkeypatch):
    lines = [f"{{place:08}} {18 + i % 2:02} n 01 word 0 000 | meaning number {i}  \n" for i in range(6)]
    text = ""
    for line in lines:
        text += line.format(place=len(text))
    (tmp_path / "wordnet").mkdir()
    (tmp_path / "wordnet" / "data.noun").write_text(text)
    monkeypatch.setenv("HOMEOSTAT_DATA", str(tmp_path))
    read = Glosses("noun", tokenizer="bytes", length=20, start=2, stop=5).read()
    assert read.fingerprint() == glosses("noun")[2:5].tokenized(ByteTokenizer(), 20).fingerprint()
    assert len(Glosses("noun", tokenizer="bytes", shuffle=1, repeat=2).read()) == 12


@pytest.mark.parametrize("cls", [NPZ, ImageFolder, HuggingFace])
def test_a_path_must_be_given(cls):
    with pytest.raises(SpecError, match=f"{cls.__name__} needs path"):
        cls()


def test_a_folder_that_no_library_saved_is_refused(tmp_path):
    with pytest.raises(MissingPart, match="there is no folder"):
        HuggingFace(str(tmp_path / "none")).read()


def test_paths_are_read_from_the_files_folder_and_absolute_ones_stay(tmp_path, monkeypatch):
    assert below(NPZ("sub/a.npz", start=3), tmp_path) == NPZ(str(tmp_path / "sub/a.npz"), start=3)
    assert below(NPZ("/there/a.npz"), tmp_path).path == "/there/a.npz"
    assert below(Digits(stop=3), tmp_path) == Digits(stop=3)
    monkeypatch.setenv("FED_DATA", "/far")
    monkeypatch.setenv("HOME", "/me")
    assert below(NPZ("$FED_DATA/a.npz"), tmp_path).path == "/far/a.npz"
    assert below(NPZ("~/a.npz"), tmp_path).path == "/me/a.npz"
    monkeypatch.delenv("FED_DATA")
    with pytest.raises(InputError, match=r"\$FED_DATA, which is not set"):
        below(NPZ("$FED_DATA/a.npz"), tmp_path)


def test_a_wrong_field_in_a_file_is_found_with_its_line(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text("FashionMNIST:\n  split: test\n  stopp: 5\n")
    with pytest.raises(SpecError, match=r"data.yaml, line 3: FashionMNIST has no field 'stopp'. Did you mean 'stop'"):
        read_spec(path, Reader)
    path.write_text("FashionMNIST:\n  split: tests\n")
    with pytest.raises(SpecError, match=r"data.yaml, line 2: .*'train', 'test'. Did you mean 'test'"):
        read_spec(path, Reader)
