"""Images kept as the 8-bit numbers they came as, handed out as float32 in 0..1.

That is a quarter of the memory of floats; the conversion costs less than one pass over the batch.

>>> data = Pixels(torch.tensor([[[[0, 255]]], [[[51, 102]]]], dtype=torch.uint8), torch.tensor([1, 0]))
>>> data.load().x.flatten().tolist()
[0.0, 1.0, 0.2, 0.4]
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from homeostat.core.data import Batch, Data, hash_tensor
from homeostat.core.errors import DtypeError, InputError
from homeostat.core.task import check_labels


class Pixels(Data):
    """8-bit images in memory.

    Args:
        pixels: uint8 `[samples, channels, height, width]`.
        labels: integers `[samples]`, or None.
        classes: names of the classes; labels are checked against their number when it is given.
        id: int64 `[samples]`; default, the position.
        top: the number that becomes 1.
        name: what to call the data in errors.

    Raises:
        DtypeError: pixels are not uint8 or labels no integers. InputError: shapes or labels do not fit.
    """

    def __init__(
        self, pixels: Any, labels: Any = None, classes: Sequence[str] = (), *, id: Any = None, top: int = 255,
        name: str = "the images",
    ):  # fmt: skip
        self.pixels: Tensor = torch.as_tensor(pixels)
        self.classes, self.top = tuple(classes), top
        if self.pixels.dtype != torch.uint8:
            raise DtypeError(f"{name} have dtype {self.pixels.dtype}; uint8 is wanted (floats: Tensors(x, y))")
        if self.pixels.ndim != 4:
            raise InputError(
                f"{name} have shape {tuple(self.pixels.shape)}; [samples, channels, height, width] is wanted"
            )
        self.labels = None if labels is None else class_labels(labels, len(self.pixels), len(self.classes), name)
        self.id = torch.arange(len(self.pixels)) if id is None else torch.as_tensor(id, dtype=torch.int64)
        if self.id.shape != (len(self.pixels),):
            raise InputError(f"{name} are {len(self.pixels)}, but there are ids of shape {tuple(self.id.shape)}")
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def fetch(self, positions: Tensor) -> Batch:
        count = len(positions)
        index: Tensor | slice = positions
        if count and bool((positions.diff() == 1).all()):
            index = slice(int(positions[0]), int(positions[0]) + count)
        y = None if self.labels is None else self.labels[index]
        return Batch(self.pixels[index].float().div_(self.top), y, self.id[index])

    def all_labels(self) -> Tensor:
        return super().all_labels() if self.labels is None else self.labels

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            sha = hashlib.sha256(f"top:{self.top};".encode())
            for name, tensor in (("x", self.pixels), ("y", self.labels), ("id", self.id)):
                if tensor is not None:
                    hash_tensor(sha, name, tensor)
            self._fingerprint = sha.hexdigest()
        return self._fingerprint


def class_labels(labels: Any, count: int, classes: int, name: str) -> Tensor:
    """Labels as int64 `[count]`, checked; `classes = 0` checks only that none is negative but `UNKNOWN`.

    Raises:
        DtypeError: not integers. InputError: not one a sample, or out of range.
    """
    made = torch.as_tensor(labels)
    if made.ndim == 2 and made.shape[1] == 1:
        made = made[:, 0]
    if not made.is_floating_point():
        made = made.long()
    if made.shape != (count,):
        raise InputError(f"{name} are {count} samples, but their labels have shape {tuple(made.shape)}")
    check_labels(made, classes or torch.iinfo(torch.int64).max, f"the labels of {name}")
    return made
