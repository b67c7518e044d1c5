"""Hugging Face data sets in memory, as a user has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from homeostat.core.errors import DtypeError
from homeostat.core.intake import as_data
from homeostat.core.probe import read
from homeostat.core.world import World
from homeostat.data import ByteTokenizer, frame, huggingface
from homeostat.probe import Accuracy
from homeostat.shift import Corrupt

datasets = pytest.importorskip("datasets", reason="the datasets extra is not installed")
LABELS = [0, 1, 1, 0, 1, 0]


def pictures():
    """Dark ones are class 0 and bright ones class 1."""
    made = [Image.fromarray(np.full((36, 40), 40 + 160 * y, np.uint8)) for y in LABELS]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "bright"])})
    return datasets.Dataset.from_dict({"image": made, "label": LABELS}, features=features)


class Bright(nn.Module):
    """Class 1 where the mean is above one half."""

    def forward(self, x):
        mean = x.mean((1, 2, 3))[:, None]
        return torch.cat([0.5 - mean, mean - 0.5], 1)


def test_pictures_are_a_world_that_can_be_shifted_and_read():
    data = huggingface(pictures(), size=36, grey=True)
    assert data.load().x.shape == (6, 1, 36, 36) and data.classes == ("dark", "bright")
    assert read([Accuracy()], Bright(), World(held=data))[0].value == 1.0
    shifted = Corrupt("brightness", 5)(World(held=data))
    assert shifted.held.load().x.mean() > data.load().x.mean() + 0.1


def test_texts_become_tokens():
    texts = datasets.Dataset.from_dict({"text": ["yes", "no", "yes!"], "label": [1, 0, 1]})
    batch = huggingface(texts).tokenized(ByteTokenizer(), 8).load()
    assert batch.x["input_ids"].shape == (3, 8) and batch.y.tolist() == [1, 0, 1]


def test_numbers_are_data_as_they_are_and_columns_go_by_a_frame():
    rows = datasets.Dataset.from_dict({"x": [[0.5, 1.0], [2.0, 3.0]], "label": [1, 0]})
    for form in (rows, rows.with_format("torch"), rows.with_format("numpy")):
        batch = as_data(form).load()
        assert batch.x.tolist() == [[0.5, 1.0], [2.0, 3.0]] and batch.y.tolist() == [1, 0]
    loader = torch.utils.data.DataLoader(rows.with_format("torch"), batch_size=1)
    assert as_data(loader).load().y.tolist() == [1, 0]
    pytest.importorskip("pandas", reason="pandas is not installed")
    columns = datasets.Dataset.from_dict({"age": [1, 3], "city": ["a", "b"], "label": ["no", "yes"]})
    assert frame(columns.to_pandas(), label="label").load().x.tolist() == [[-1, 1, 0], [1, 0, 1]]


def test_pictures_and_texts_as_they_are_name_what_reads_them():
    for rows in (pictures(), datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})):
        with pytest.raises(DtypeError, match=r"homeostat\.data\.huggingface\(dataset\)"):
            as_data(rows)
