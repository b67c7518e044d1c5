"""Handwritten digits: MNIST's and the small ones that come with scikit-learn."""

from __future__ import annotations

import torch

from homeostat.data.idx import check_split, read_images
from homeostat.data.pixels import Pixels
from homeostat.nn.places import locate

_DIGITS = tuple("0123456789")


def mnist(split: str = "test") -> Pixels:
    """MNIST: grey 28x28 images of handwritten digits, 60,000 to train and 10,000 to test.

    Read from `HOMEOSTAT_DATA/mnist`, in the published IDX files, plain or `.gz`.

    Args:
        split: `"train"` or `"test"`.

    Returns:
        Images float32 `[samples, 1, 28, 28]` in 0..1, labels int64; a sample's id is its position in the file.

    Raises:
        MissingPart: the files are not there. InputError: a file is truncated or damaged.
    """
    check_split(split)
    return read_images(locate("mnist"), split, _DIGITS)


def digits() -> Pixels:
    """The 1,797 grey 8x8 images of handwritten digits that come with scikit-learn; they need no file.

    Returns:
        Images float32 `[1797, 1, 8, 8]` in 0..1 (levels 0..16 divided by 16), labels int64; an id is a position.

    >>> batch = digits()[:2].load()
    >>> batch.x.shape, batch.y.tolist()
    (torch.Size([2, 1, 8, 8]), [0, 1])
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    levels = torch.from_numpy(found.images).to(torch.uint8)[:, None]  # type: ignore[union-attr]
    return Pixels(levels, found.target, _DIGITS, top=16, name="scikit-learn's digits")  # type: ignore[union-attr]
