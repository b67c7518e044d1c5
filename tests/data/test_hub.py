"""Data sets with columns, as the `datasets` library has them."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from homeostat.core.errors import DtypeError, InputError, MissingExtra, MissingPart
from homeostat.data.hub import HubImages, huggingface
from homeostat.data.strings import Strings


class Columns:
    """The part of `datasets.Dataset` that is used; it notes which rows were asked for."""

    def __init__(self, names=(), **columns):
        self.columns, self.asked = columns, []
        self.column_names = list(columns)
        self.features = {"label": SimpleNamespace(names=list(names))} if names else {}

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index):
        if isinstance(index, str):
            return self.columns[index]
        rows = index if isinstance(index, list) else [index]
        self.asked += rows
        picked = {name: [values[i] for i in rows] for name, values in self.columns.items()}
        return picked if isinstance(index, list) else {name: values[0] for name, values in picked.items()}


def images(count=4, **more):
    made = [Image.fromarray(np.full((3, 5, 3), 10 * i, np.uint8)) for i in range(count)]
    return Columns(names=("cat", "dog"), image=made, label=[i % 2 for i in range(count)], **more)


def test_images_are_decoded_when_fetched():
    rows = images()
    data = huggingface(rows)
    assert isinstance(data, HubImages) and data.classes == ("cat", "dog")
    rows.asked.clear()
    batch = data.fetch(torch.tensor([3, 1]))
    assert rows.asked == [3, 1]
    assert batch.x.shape == (2, 3, 3, 5) and torch.equal(batch.x[:, 0, 0, 0], torch.tensor([30, 10]) / 255)
    assert batch.y.tolist() == [1, 1] and batch.id.tolist() == [3, 1]
    assert len(data.fetch(torch.tensor([], dtype=torch.int64))) == 0
    assert huggingface(rows, size=2, grey=True).load().x.shape == (4, 1, 2, 2)


def test_texts_become_strings():
    found = huggingface(Columns(names=("no", "yes"), text=["a", "b c"], label=[1, 0]))
    assert isinstance(found, Strings)
    assert found.texts == ("a", "b c") and found.labels.tolist() == [1, 0] and found.classes == ("no", "yes")
    assert huggingface(Columns(text=["a"])).labels is None


def test_columns_can_be_named():
    rows = Columns(photo=[np.zeros((2, 2), np.uint8)], kind=[3])
    batch = huggingface(rows, x="photo", y="kind").load()
    assert batch.x.shape == (1, 3, 2, 2) and batch.y.tolist() == [3]
    with pytest.raises(InputError, match="Say which with x="):
        huggingface(rows)
    with pytest.raises(InputError, match="Did you mean 'photo'"):
        huggingface(rows, x="photos")


def test_the_fingerprint_follows_the_content():
    first = huggingface(images()).fingerprint()
    assert huggingface(images()).fingerprint() == first
    assert huggingface(images(5)).fingerprint() != first


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="splits train"):
        huggingface({"train": images()})
    with pytest.raises(InputError, match="empty"):
        huggingface(Columns(image=[], label=[]))
    with pytest.raises(DtypeError, match="no data set with columns"):
        huggingface([1, 2])
    with pytest.raises(InputError, match=r"row 1 has no image"):
        huggingface(Columns(image=[images(1)["image"][0], None])).load()
    with pytest.raises(DtypeError, match="images are wanted"):
        huggingface(Columns(image=[3.5])).load()
    with pytest.raises(InputError, match="label"):
        huggingface(Columns(names=("a",), text=["x"], label=[1]))
    with pytest.raises(DtypeError, match="class_encode_column"):
        huggingface(Columns(text=["x"], label=["dog"]))


def test_a_saved_folder_needs_the_library(tmp_path, monkeypatch):
    with pytest.raises(MissingPart, match="load_dataset"):
        huggingface(tmp_path / "none")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"pip install 'homeostat\[datasets\]'"):
        huggingface(tmp_path)


def test_the_library_itself_fits(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the datasets extra is not installed")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = datasets.Dataset.from_dict({name: images()[name] for name in ("image", "label")}, features=features)
    data = huggingface(rows)
    assert data.classes == ("cat", "dog")
    assert torch.equal(data.load().x, huggingface(images()).load().x)
    texts = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]})
    texts.save_to_disk(str(tmp_path / "saved"))
    assert huggingface(tmp_path / "saved").texts == ("a", "b")
    with pytest.raises(InputError, match="cannot be read"):
        huggingface(tmp_path)
    with pytest.raises(InputError, match="splits train"):
        huggingface(datasets.DatasetDict({"train": texts}))
