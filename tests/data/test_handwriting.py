"""MNIST and scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from homeostat.core.errors import InputError, MissingPart
from homeostat.data.handwriting import digits, mnist
from homeostat.nn.places import data_folder


def test_mnist_is_read_from_the_data_folder(tmp_path, write_split, monkeypatch):
    monkeypatch.setenv("HOMEOSTAT_DATA", str(tmp_path))
    with pytest.raises(MissingPart, match="mnist"):
        mnist()
    write_split(tmp_path / "mnist", 6, split="test")
    data = mnist()
    assert data.load().x.shape == (6, 1, 2, 2) and data.classes == tuple("0123456789")
    with pytest.raises(MissingPart, match="train split"):
        mnist("train")
    with pytest.raises(InputError, match="split"):
        mnist("validation")


REAL = (data_folder() or Path("none")) / "mnist"


@pytest.mark.skipif(not REAL.is_dir(), reason="HOMEOSTAT_DATA holds no MNIST")
def test_the_real_test_set_has_its_published_counts_and_mean():
    data = mnist("test")
    assert data.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert float((data.pixels.float() / 255).mean()) == pytest.approx(0.1325, abs=1e-4)


def test_digits_are_scikit_learns_in_0_to_1():
    batch = digits().load()
    found = load_digits()
    assert torch.equal(batch.x[:, 0].double() * 16, torch.from_numpy(found.images))
    assert batch.y.tolist() == found.target.tolist()
    assert float(batch.x.max()) == 1.0 and batch.id.tolist() == list(range(1797))
