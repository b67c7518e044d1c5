"""CIFAR-10 in its published binary version: rows of one label byte and 3,072 pixel bytes, channel first.

Reference: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from homeostat.core.errors import InputError, MissingPart
from homeostat.data.idx import check_split
from homeostat.data.pixels import Pixels
from homeostat.nn.places import locate

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = "cifar-10-batches-bin"
_ROW = 1 + 3 * 32 * 32
_MOST = 10_000


def cifar10(split: str = "train") -> Pixels:
    """CIFAR-10: colour 32x32 images of 10 kinds of things.

    Read from `HOMEOSTAT_DATA/cifar-10-batches-bin`: `test_batch.bin`, or those of `data_batch_1.bin` to
    `data_batch_5.bin` that are there, in this order; a published file has 10,000 rows, shorter ones are fine.

    Args:
        split: `"train"` or `"test"`.

    Returns:
        Images float32 `[samples, 3, 32, 32]` in 0..1, labels int64. A test image's id is its position in the file, a
        training image's `10000 (k - 1)` plus its position in `data_batch_k.bin`, also when other files are absent.

    Raises:
        MissingPart: the files are not there. InputError: a file is truncated or damaged.
    """
    check_split(split)
    folder = locate(FOLDER)
    names = ["test_batch.bin"] if split == "test" else [f"data_batch_{k}.bin" for k in range(1, 6)]
    found = [(k, folder / name) for k, name in enumerate(names) if (folder / name).is_file()]
    if not found:
        raise MissingPart(f"{folder} does not hold the {split} split: {names[0]} is wanted")
    rows = [read_rows(path) for _, path in found]
    ids = [torch.arange(len(part)) + _MOST * k for (k, _), part in zip(found, rows, strict=True)]
    joined = rows[0] if len(rows) == 1 else torch.cat(rows)
    pixels = joined[:, 1:].reshape(-1, 3, 32, 32)
    return Pixels(pixels, joined[:, 0], CLASSES, id=torch.cat(ids), name=f"{folder} ({split})")


def read_rows(path: Path) -> Tensor:
    """The rows of a binary CIFAR-10 file, uint8 `[rows, 3073]`.

    Raises:
        InputError: it is empty, not made of whole rows, longer than published, or a label is not 0..9.
    """
    content = bytearray(path.read_bytes())
    whole, rest = divmod(len(content), _ROW)
    if not content or rest or whole > _MOST:
        raise InputError(
            f"{path} has {len(content)} bytes; 1 to {_MOST} rows of {_ROW} bytes are wanted ({whole} rows are "
            f"{whole * _ROW} bytes). It is truncated or damaged; get it again"
        )
    rows = torch.frombuffer(content, dtype=torch.uint8).reshape(-1, _ROW)
    wrong = (rows[:, 0] >= len(CLASSES)).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        raise InputError(f"{path}: row {row} has label {int(rows[row, 0])}; 0..9 are wanted. Get it again")
    return rows
