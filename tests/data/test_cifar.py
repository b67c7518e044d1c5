"""CIFAR-10 rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from homeostat.core.errors import InputError, MissingPart
from homeostat.data.cifar import CLASSES, cifar10, read_rows
from homeostat.nn.places import data_folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOMEOSTAT_DATA", str(tmp_path))
    made = tmp_path / "cifar-10-batches-bin"
    made.mkdir()
    return made


def rows(count, seed=0):
    made = np.random.default_rng(seed).integers(0, 256, (count, 3073)).astype(np.uint8)
    made[:, 0] = np.arange(count) % 10
    return made


def test_rows_become_images_channel_first(folder):
    content = rows(5)
    (folder / "test_batch.bin").write_bytes(content.tobytes())
    batch = cifar10("test").load()
    assert batch.y.tolist() == [0, 1, 2, 3, 4] and batch.id.tolist() == [0, 1, 2, 3, 4]
    red, green = batch.x[2, 0, 0, 1], batch.x[2, 1, 31, 31]
    assert red == torch.tensor(content[2, 1 + 1] / 255, dtype=torch.float32)
    assert green == torch.tensor(content[2, 1 + 1024 + 1023] / 255, dtype=torch.float32)


def test_training_ids_do_not_depend_on_which_files_are_there(folder):
    (folder / "data_batch_3.bin").write_bytes(rows(2, 3).tobytes())
    alone = cifar10("train").load()
    (folder / "data_batch_1.bin").write_bytes(rows(3, 1).tobytes())
    both = cifar10("train").load()
    assert both.id.tolist() == [0, 1, 2, 20000, 20001]
    assert alone.id.tolist() == [20000, 20001]
    assert torch.equal(both.x[3:], alone.x)


@pytest.mark.parametrize("size", [0, 1, 3072, 3074, 2 * 3073 - 1])
def test_a_file_that_is_not_whole_rows_is_refused_by_name_and_size(folder, size):
    path = folder / "test_batch.bin"
    path.write_bytes(bytes(size))
    with pytest.raises(InputError, match=rf"test_batch.bin has {size} bytes; .* rows of 3073 bytes"):
        cifar10("test")


def test_a_label_out_of_range_names_the_row(folder):
    content = rows(4)
    content[2, 0] = 10
    (folder / "test_batch.bin").write_bytes(content.tobytes())
    with pytest.raises(InputError, match="row 2 has label 10"):
        cifar10("test")


def test_absent_files_are_missing_parts(folder, monkeypatch):
    with pytest.raises(MissingPart, match=r"test_batch\.bin"):
        cifar10("test")
    with pytest.raises(MissingPart, match=r"data_batch_1\.bin"):
        cifar10("train")
    monkeypatch.delenv("HOMEOSTAT_DATA")
    with pytest.raises(MissingPart, match="HOMEOSTAT_DATA is not set"):
        cifar10("test")
    with pytest.raises(InputError, match="'train' or 'test'"):
        cifar10("all")


REAL = (data_folder() or Path("none")) / "cifar-10-batches-bin" / "test_batch.bin"


@pytest.mark.skipif(not REAL.is_file(), reason="HOMEOSTAT_DATA holds no CIFAR-10")
def test_the_real_files_hold_every_class():
    data = cifar10("test")
    assert len(data) == len(read_rows(REAL))
    counts = data.labels.bincount(minlength=10) / len(data)
    assert data.classes == CLASSES and float(counts.min()) > 0.08
    assert float(data[:500].load().x.mean()) == pytest.approx(0.47, abs=0.03)
