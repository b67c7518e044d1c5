"""NumPy archives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from homeostat.core.errors import DtypeError, InputError, MissingPart, NonFiniteError
from homeostat.data.archives import npz


def test_bytes_are_images_whatever_their_layout(tmp_path):
    rng = np.random.default_rng(0)
    grey, last = rng.integers(0, 256, (4, 5, 6), np.uint8), rng.integers(0, 256, (4, 5, 6, 3), np.uint8)
    path = tmp_path / "a.npz"
    np.savez(path, grey=grey, last=last, first=last.transpose(0, 3, 1, 2), y=np.array([[0], [2], [1], [0]], np.uint8))
    batch = npz(path, "grey").load()
    assert batch.x.shape == (4, 1, 5, 6) and batch.y.tolist() == [0, 2, 1, 0] and batch.y.dtype == torch.int64
    assert torch.equal(npz(path, "last").load().x, npz(path, "first").load().x)
    assert torch.equal(
        torch.as_tensor(npz(path, "first").load().x) * 255, torch.from_numpy(last).permute(0, 3, 1, 2).float()
    )
    assert npz(path, "grey", None).load().y is None


def test_other_numbers_stay_and_doubles_become_single(tmp_path):
    x = np.random.default_rng(0).normal(size=(3, 2)).astype(">f8")
    np.savez_compressed(tmp_path / "a.npz", x=x, y=np.array([0.5, 1.5, np.nan]))
    batch = npz(tmp_path / "a.npz").load()
    assert torch.equal(batch.x, torch.tensor(x.astype(np.float32)))
    assert batch.y[:2].tolist() == [0.5, 1.5] and batch.y.dtype == torch.float32
    assert batch.id.tolist() == [0, 1, 2]


def test_pickled_objects_are_never_read(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a file ran code",))

    np.savez(tmp_path / "a.npz", x=np.array([Trap()], dtype=object), y=np.zeros(1, int))
    with pytest.raises(DtypeError, match="Python objects"):
        npz(tmp_path / "a.npz")


def test_a_wrong_name_suggests_the_nearest(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 2)), labels=np.zeros(2, int))
    with pytest.raises(InputError, match=r"no array 'image'. Did you mean 'images'\? It has: images, labels"):
        npz(tmp_path / "a.npz", "image", "labels")


@pytest.mark.parametrize("kept", [0, 10, 200, 350])
def test_a_truncated_archive_is_refused_by_name(tmp_path, kept):
    path = tmp_path / "cut.npz"
    np.savez(path, x=np.zeros((2, 2)), y=np.zeros(2, int))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"cut\.npz"):
        npz(path)


def test_what_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    bad = {
        "x": np.zeros((3, 2)),
        "short": np.zeros(2, int),
        "negative": np.array([0, -1, 2]),
        "text": np.array(["a"] * 3),
    }
    np.savez(path, **bad, empty=np.zeros((0, 2)), nan=np.array([1.0, np.nan, 0.0]))
    for y, kind in (("short", InputError), ("negative", InputError), ("text", DtypeError)):
        with pytest.raises(kind):
            npz(path, "x", y)
    with pytest.raises(InputError, match="at least one sample"):
        npz(path, "empty", None)
    with pytest.raises(NonFiniteError, match="1 values"):
        npz(path, "nan", None)
    with pytest.raises(MissingPart, match="no file"):
        npz(tmp_path / "none.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(InputError, match="one array"):
        npz(tmp_path / "one.npy")
