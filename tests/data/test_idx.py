"""IDX files: what is in them, and what is refused."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from homeostat.core.errors import InputError, MissingPart
from homeostat.data.idx import read_idx, read_images


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bytes_and_shape_come_back(tmp_path, write_idx, suffix):
    array = np.arange(2 * 3 * 5).reshape(2, 3, 5)
    found = read_idx(write_idx(tmp_path / f"a{suffix}", array), 3)
    assert found.dtype == torch.uint8
    assert torch.equal(found, torch.from_numpy(array).to(torch.uint8))


def test_images_are_floats_in_0_to_1_with_labels_and_positions(tmp_path, write_split):
    data = read_images(write_split(tmp_path, 12), "train", tuple("0123456789"))
    batch = data[3:6].load()
    assert batch.x.shape == (3, 1, 2, 2) and batch.x.dtype == torch.float32
    assert torch.equal(batch.x[:, 0, 0, 0], torch.tensor([3, 4, 5]) / 255)
    assert batch.y.tolist() == [3, 4, 5] and batch.y.dtype == torch.int64
    assert batch.id.tolist() == [3, 4, 5]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("kept", [3, 12, 20])
def test_a_truncated_file_is_refused_by_name_and_size(tmp_path, write_idx, suffix, kept):
    path = write_idx(tmp_path / f"cut{suffix}", np.random.default_rng(0).integers(0, 256, (40, 2, 2)))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=f"cut{suffix}"):
        read_idx(path, 3)


def test_a_short_body_names_the_size_that_the_header_announces(tmp_path, write_idx):
    path = write_idx(tmp_path / "cut", np.zeros((40, 2, 2)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"cut has 175 bytes, but.*40 x 2 x 2 = 160 bytes after the first 16"):
        read_idx(path.rename(path), 3) if path.stat().st_size < 160 else read_idx(_shorter(path, 0), 3)


def _shorter(path, by):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - by])
    return path
