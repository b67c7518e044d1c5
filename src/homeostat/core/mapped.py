"""Tensors of safetensors files by memory map: nothing is read before it is touched, and nothing stays.

A checkpoint of any size is opened by its headers alone. What a tensor's pages hold is read by the operating system when
an operation touches them, counts as file cache and not as memory of the process, and is let go by `release`. The map
is private: writing into a tensor changes neither the file nor what others see.

>>> import tempfile
>>> from safetensors.torch import save_file
>>> with tempfile.TemporaryDirectory() as folder:
...     save_file({"w": torch.arange(6.0).view(2, 3)}, f"{folder}/model.safetensors")
...     opened = Mapped(folder)
...     list(opened), opened.places["w"].shape, opened["w"][1].tolist()
(['w'], (2, 3), [3.0, 4.0, 5.0])

Reference: the safetensors format, version 0.4: eight bytes of header length, a JSON header, and the data.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from homeostat.core.errors import CheckpointError, nearest

INDEX = "model.safetensors.index.json"
"""Where a checkpoint of several files says which holds what."""

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""The format's names of dtypes."""

LONGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies.

    Attributes:
        file: that holds it.
        dtype, shape: of it.
        start, stop: bytes from the beginning of the file.
    """

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def count(self) -> int:
        """Its elements."""
        return math.prod(self.shape)


class Mapped(Mapping[str, Tensor]):
    """The tensors of a safetensors file, or of a folder of them, in the order in which they lie there.

    Args:
        path: a `.safetensors` file, or a folder with an index or with such files.

    Attributes:
        places: where each tensor lies, by name.
        metadata: the strings that the files' headers hold beside tensors.
        index: what the folder's index says, as it stands there; empty without one.

    Raises:
        CheckpointError: a file is missing, cut off, or not safetensors, or two of them hold one name.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.places: dict[str, Place] = {}
        self.metadata: dict[str, str] = {}
        self.index: dict[str, Any] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        for file in self._files():
            places, metadata = read_header(file)
            if twice := sorted(set(places) & set(self.places)):
                raise CheckpointError(
                    f"{twice[0]} lies in {self.places[twice[0]].file} and in {file}; remove one of them"
                )
            self.places |= places
            self.metadata |= metadata
        wanted = self.index.get("weight_map", {})
        if lost := sorted(set(wanted) - set(self.places)):
            raise CheckpointError(
                f"{self.path / INDEX} names {lost[0]} ({len(lost)} in all), which {wanted[lost[0]]} lacks"
            )

    def _files(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        index = self.path / INDEX
        if index.is_file():
            try:
                self.index = json.loads(index.read_text())
                return [self.path / name for name in sorted(set(self.index["weight_map"].values()))]
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise CheckpointError(
                    f"{index} is no index of a checkpoint ({type(error).__name__}: {error})"
                ) from None
        if (whole := self.path / "model.safetensors").is_file():
            return [whole]  # beside it may lie the same weights in another layout
        found = sorted(self.path.glob("*.safetensors")) if self.path.is_dir() else []
        if found := [file for file in found if file.name != "carry.safetensors"]:
            return found
        raise CheckpointError(f"{self.path} is no safetensors file and no folder that holds one")

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.places:
            raise CheckpointError(f"{self.path} has no tensor {name!r}.{nearest(name, self.places)}")
        place = self.places[name]
        if not place.count:
            return torch.empty(place.shape, dtype=place.dtype)
        flat = torch.frombuffer(self._map(place.file), dtype=place.dtype, count=place.count, offset=place.start)
        return flat.view(place.shape)

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def release(self, name: str) -> None:
        """Let a tensor's pages go; they are read again when it is touched."""
        place = self.places[name]
        start = -(-place.start // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = place.stop // mmap.PAGESIZE * mmap.PAGESIZE
        if start < stop and place.file in self._maps:
            with contextlib.suppress(OSError, ValueError, AttributeError):  # a hint: not every system takes it
                self._maps[place.file].madvise(mmap.MADV_DONTNEED, start, stop - start)

    def _map(self, file: Path) -> mmap.mmap:
        if file not in self._maps:
            with open(file, "rb") as opened:
                self._maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[file]


def read_header(file: Path) -> tuple[dict[str, Place], dict[str, str]]:
    """Where a safetensors file's tensors lie, in that order, and its metadata.

    Raises:
        CheckpointError: it is missing, cut off, or not safetensors.
    """
    try:
        size = os.stat(file).st_size
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= min(size - 8, LONGEST_HEADER):
                raise ValueError("its header is cut off, or it is another format")
            header = json.loads(opened.read(length))
        metadata = header.pop("__metadata__", None) or {}
        found = []
        for name, about in header.items():
            start, stop = (8 + length + offset for offset in about["data_offsets"])
            place = Place(Path(file), DTYPES[about["dtype"]], tuple(about["shape"]), start, stop)
            if not 8 + length <= start <= stop <= size or stop - start != place.count * place.dtype.itemsize:
                raise ValueError(f"{name} reaches beyond the file's {size} bytes; it may be truncated")
            found.append((start, name, place))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror})") from None
    except KeyError as error:
        raise CheckpointError(f"{file} cannot be read as safetensors: {error} is not known") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} cannot be read as safetensors: {error}") from None
    return {name: place for _, name, place in sorted(found, key=lambda item: item[:2])}, metadata
