"""Data sets of the Hugging Face `datasets` library, read row by row when they are asked for."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homeostat.core.data import Batch, Data, hash_tensor
from homeostat.core.errors import DtypeError, InputError, MissingExtra, MissingPart, nearest
from homeostat.data.pictures import check_size, picture, stack
from homeostat.data.pixels import class_labels
from homeostat.data.strings import Strings

_IMAGES, _TEXTS, _LABELS = ("image", "img"), ("text", "sentence"), ("label", "labels", "fine_label")


class HubImages(Data):
    """What `huggingface` returns for images: rows are decoded when they are fetched; `classes` in label order."""

    def __init__(self, rows: Any, x: str, y: str | None, size: int | None, grey: bool):
        check_size(size)
        self.rows, self.x, self.y, self.size, self.grey = rows, x, y, size, grey
        self.classes = _classes(rows, y)
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, positions: Tensor) -> Batch:
        if len(positions) == 0:
            return self.fetch(torch.zeros(1, dtype=torch.int64))[:0]
        rows: Mapping[str, Sequence[Any]] = self.rows[positions.tolist()]
        names = [f"row {i}" for i in positions.tolist()]
        pictures = [self._picture(value, name) for value, name in zip(rows[self.x], names, strict=True)]
        y = None if self.y is None else _labels(rows[self.y], len(self.classes), self.y)
        return Batch(stack(pictures, names), y, positions.clone())

    def _picture(self, value: Any, name: str) -> Tensor:
        if value is None:
            raise InputError(f"{name} has no image; drop it: dataset.filter(lambda row: row[{self.x!r}] is not None)")
        if hasattr(value, "convert"):
            return picture(value, self.size, self.grey, name)
        array = np.asarray(value)
        if array.dtype != np.uint8 or array.ndim not in (2, 3):
            raise DtypeError(f"{name}: column {self.x!r} holds a {type(value).__name__}; images are wanted")
        from PIL import Image

        return picture(Image.fromarray(array), self.size, self.grey, name)

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            sha = hashlib.sha256()
            for batch in self.batches(256):
                hash_tensor(sha, "x", batch.x)  # type: ignore[arg-type]
                if batch.y is not None:
                    hash_tensor(sha, "y", batch.y)  # type: ignore[arg-type]
            self._fingerprint = sha.hexdigest()
        return self._fingerprint


def huggingface(
    dataset: Any, x: str | None = None, y: str | None = None, size: int | None = None, grey: bool = False
) -> HubImages | Strings:
    """A Hugging Face data set of images, or of texts, with a column of labels.

    Args:
        dataset: one split, a `datasets.Dataset`, or the folder one was saved to with `save_to_disk`.
        x: column of the inputs; default the first of `image`, `img`, `text`, `sentence`.
        y: column of the labels; default the first of `label`, `labels`, `fine_label` if there is one.
        size: for images, scale the shorter side to this and keep the middle square; needed when sizes differ.
        grey: for images, one channel instead of three.

    Returns:
        Images: data that decodes a row when it is fetched, float32 `[batch, channels, height, width]` in 0..1. Texts:
        `Strings`, to be tokenised. An id is the row.

    Raises:
        MissingExtra: a folder is given and `datasets` is not installed. MissingPart: no such folder.
        InputError: empty, several splits, no such column, labels out of range.
    """
    rows = _opened(Path(dataset)) if isinstance(dataset, (str, Path)) else dataset
    if isinstance(rows, Mapping):
        raise InputError(f"this data set has splits {', '.join(rows)}; give one: dataset[{next(iter(rows), '...')!r}]")
    if not hasattr(rows, "column_names") or not hasattr(rows, "__len__"):
        raise DtypeError(f"a {type(rows).__name__} is no data set with columns and a length; give a datasets.Dataset")
    if len(rows) == 0:
        raise InputError("the data set is empty; at least one row is needed")
    x = _column(rows, x, (*_IMAGES, *_TEXTS), "x")
    y = None if y is None and not any(name in rows.column_names for name in _LABELS) else _column(rows, y, _LABELS, "y")
    if isinstance(rows[0][x], str):
        classes = _classes(rows, y)
        return Strings(list(rows[x]), None if y is None else _labels(rows[y], len(classes), y), classes)
    return HubImages(rows, x, y, size, grey)


def _opened(folder: Path) -> Any:
    if not folder.is_dir():
        raise MissingPart(f"there is no folder {folder}; of the hub, give datasets.load_dataset(name, split=...)")
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise MissingExtra("reading a saved data set needs datasets: pip install 'homeostat[datasets]'") from None
    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises whatever its readers raise
        raise InputError(f"{folder} cannot be read as a saved data set: {error}") from error


def _column(rows: Any, name: str | None, usual: Sequence[str], argument: str) -> str:
    names = list(rows.column_names)
    found = next((n for n in usual if n in names), None) if name is None else name
    if found is None or found not in names:
        said = f"no column {name!r}.{nearest(name, names)}" if name else f"none of the columns {', '.join(usual)}"
        raise InputError(f"the data set has {said} It has: {', '.join(names)}. Say which with {argument}=")
    return found


def _classes(rows: Any, y: str | None) -> tuple[str, ...]:
    feature = None if y is None else (getattr(rows, "features", None) or {}).get(y)
    return tuple(getattr(feature, "names", None) or ())


def _labels(values: Any, classes: int, name: str) -> Tensor:
    try:
        labels = torch.as_tensor(np.asarray(list(values)))
    except TypeError:
        raise DtypeError(f"column {name!r} holds no numbers; use dataset.class_encode_column({name!r})") from None
    return class_labels(labels, len(labels), classes, f"column {name!r}")
