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


def test_a_truncated_file_is_told_apart_by_what_its_header_announces(tmp_path, write_idx):
    plain = write_idx(tmp_path / "cut", np.zeros((40, 2, 2)))
    plain.write_bytes(plain.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"cut has 175 bytes, but.* 40 x 2 x 2 = 160 bytes after the first 16"):
        read_idx(plain, 3)
    packed = tmp_path / "cut.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(InputError, match=r"40 x 2 x 2 = 160 bytes after the first 16, but it holds only 159"):
        read_idx(packed, 3)


def test_bytes_left_over_are_refused(tmp_path, write_idx):
    path = write_idx(tmp_path / "long.gz", np.zeros((3, 2, 2)))
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"x"))
    with pytest.raises(InputError, match="holds more"):
        read_idx(path, 3)


def test_a_gzip_file_with_a_flipped_bit_is_refused(tmp_path, write_idx):
    path = write_idx(tmp_path / "bad.gz", np.random.default_rng(0).integers(0, 256, (40, 2, 2)))
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # in the checksum
    path.write_bytes(content)
    with pytest.raises(InputError, match="truncated or damaged"):
        read_idx(path, 3)


def test_a_header_that_announces_more_than_can_be_is_refused_before_anything_is_read(tmp_path):
    for suffix in ("", ".gz"):
        head = bytes([0, 0, 8, 3]) + b"\xff" * 12
        path = tmp_path / f"huge{suffix}"
        path.write_bytes(gzip.compress(head) if suffix else head)
        with pytest.raises(InputError, match="truncated or damaged"):
            read_idx(path, 3)


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"GIF89a" + bytes(40), b"\0\0\x0d\x03" + bytes(40)])
def test_other_formats_are_refused(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(InputError, match="no IDX file of unsigned bytes in 3 dimensions"):
        read_idx(path, 3)


@given(content=st.binary(max_size=64))
def test_whatever_a_file_holds_the_answer_is_a_tensor_or_our_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "file"
    for name in ("file", "file.gz"):
        target = path.with_name(name)
        target.write_bytes(content)
        try:
            assert read_idx(target, 1).ndim == 1
        except InputError as error:
            assert name in str(error)


def test_images_and_labels_must_be_as_many(tmp_path, write_split, write_idx):
    write_split(tmp_path, 5)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(4))
    with pytest.raises(InputError, match="5 samples"):
        read_images(tmp_path, "train", ("a",))


def test_labels_beyond_the_classes_are_refused(tmp_path, write_split):
    with pytest.raises(InputError, match=r"outside 0\.\.2"):
        read_images(write_split(tmp_path, 5), "train", ("a", "b", "c"))


def test_an_absent_split_says_which_files_are_wanted(tmp_path, write_split):
    with pytest.raises(MissingPart, match="t10k-images-idx3-ubyte"):
        read_images(write_split(tmp_path, 5), "test", ())
    with pytest.raises(InputError, match="'train' or 'test'"):
        read_images(tmp_path, "valid", ())
