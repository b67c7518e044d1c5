"""Small files in the published formats."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def write_idx() -> Callable[[Path, np.ndarray], Path]:
    """Writes an array of bytes as an IDX file, gzip when the name ends so."""

    def write(path: Path, array: np.ndarray) -> Path:
        head = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
        content = head + array.astype(np.uint8).tobytes()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        return path

    return write


@pytest.fixture
def write_split(write_idx: Callable[[Path, np.ndarray], Path]) -> Callable[..., Path]:
    """Writes `count` images of 2x2 pixels (image i is filled with i) and labels i % 10 under the published names."""

    def write(folder: Path, count: int, split: str = "train", suffix: str = ".gz") -> Path:
        stem = {"train": "train", "test": "t10k"}[split]
        images = np.broadcast_to(np.arange(count)[:, None, None], (count, 2, 2))
        write_idx(folder / f"{stem}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte{suffix}", np.arange(count) % 10)
        return folder

    return write
