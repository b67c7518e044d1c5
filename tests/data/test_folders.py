"""Folders of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from homeostat.core.errors import InputError, MissingPart
from homeostat.data.folders import image_folder


def paint(path, color, size=(6, 4), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


@pytest.fixture
def folder(tmp_path):
    paint(tmp_path / "dog" / "b.png", (0, 0, 255))
    paint(tmp_path / "cat" / "z.png", (255, 0, 0))
    paint(tmp_path / "cat" / "deep" / "a.png", (0, 255, 0))
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "cat" / ".hidden.png").write_text("not an image")
    (tmp_path / ".git").mkdir()
    return tmp_path


def test_a_class_is_a_folder_and_images_come_by_position(folder):
    data = image_folder(folder)
    assert data.classes == ("cat", "dog") and len(data) == 3
    batch = data.load()
    assert batch.x.shape == (3, 3, 4, 6) and batch.x.dtype == torch.float32
    assert batch.x[:, :, 0, 0].tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert batch.y.tolist() == [0, 0, 1] and batch.id.tolist() == [0, 1, 2]
    some = data.fetch(torch.tensor([2, 0]))
    assert some.y.tolist() == [1, 0] and torch.equal(some.x, batch.x[[2, 0]])
    assert data.fetch(torch.tensor([], dtype=torch.int64)).x.shape == (0, 3, 4, 6)


def test_nothing_is_read_before_it_is_asked_for(folder):
    (folder / "dog" / "b.png").write_bytes(b"no image at all")
    data = image_folder(folder)
    assert data[:2].load().y.tolist() == [0, 0]
    with pytest.raises(InputError, match=r"b\.png is no image"):
        data.load()


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_truncated_image_is_refused_by_name(folder, kind):
    path = folder / "dog" / f"noise.{kind}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(InputError, match=rf"noise\.{kind} is no image that can be read"):
        image_folder(folder, size=4).load()


def test_size_scales_the_shorter_side_and_keeps_the_middle(folder):
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 8, 3), np.uint8))
    wide.save(folder / "dog" / "b.png")
    x = image_folder(folder, size=2).load().x
    scaled = np.array(wide.resize((4, 2), Image.Resampling.BILINEAR))[:, 1:3]
    assert x.shape == (3, 3, 2, 2)
    assert torch.equal(torch.as_tensor(x[2]) * 255, torch.from_numpy(scaled).permute(2, 0, 1).float())


def test_sizes_that_differ_are_refused_unless_size_is_given(folder):
    paint(folder / "dog" / "b.png", (9, 9, 9), size=(5, 5))
    with pytest.raises(InputError, match=r"a\.png is 6 x 4, .*b\.png is 5 x 5; give size="):
        image_folder(folder).load()
    assert image_folder(folder, size=3).load().x.shape == (3, 3, 3, 3)
    with pytest.raises(InputError, match="size = 0"):
        image_folder(folder, size=0)


def test_grey_is_the_luma_of_the_colours(folder):
    x = image_folder(folder, grey=True).load().x
    assert x.shape == (3, 1, 4, 6)
    assert (torch.as_tensor(x)[:, 0, 0, 0] * 255).tolist() == pytest.approx(
        [0.587 * 255, 0.299 * 255, 0.114 * 255], abs=0.51
    )


def test_photographs_are_turned_upright(folder):
    image = Image.new("RGB", (6, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(folder / "dog" / "b.png", exif=exif)
    assert image_folder(folder)[2:].load().x.shape == (1, 3, 6, 4)


def test_images_of_more_than_8_bit_are_refused(folder):
    Image.fromarray(np.full((4, 6), 40000, np.uint16)).save(folder / "dog" / "b.png")
    with pytest.raises(InputError, match="more than 8 bit"):
        image_folder(folder).load()


def test_the_fingerprint_follows_content_and_options(folder):
    first = image_folder(folder).fingerprint()
    assert image_folder(str(folder)).fingerprint() == first
    assert image_folder(folder, grey=True).fingerprint() != first
    paint(folder / "dog" / "b.png", (0, 0, 254))
    assert image_folder(folder).fingerprint() != first


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(MissingPart, match="no folder"):
        image_folder(tmp_path / "none")
    with pytest.raises(InputError, match="no sub-folders"):
        image_folder(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(InputError, match="cat holds no image"):
        image_folder(tmp_path)
