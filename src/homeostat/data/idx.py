"""The IDX format of MNIST and Fashion-MNIST, plain or gzip.

A file is two zero bytes, a type code (8: unsigned bytes, the only one used by images and labels), the number of
dimensions, each dimension as a big-endian 32-bit number, and the bytes.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import torch
from torch import Tensor

from homeostat.core.errors import InputError, MissingPart
from homeostat.data.pixels import Pixels

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
"""The published names of images and labels of each split."""
_PIECE = 1 << 22
_BEST_RATIO = 1032  # no gzip stream expands further


def read_idx(path: Path, ndim: int) -> Tensor:
    """The unsigned bytes of an IDX file as uint8, with `ndim` dimensions.

    Raises:
        InputError: not IDX, other types or dimensions, truncated, damaged, or with bytes left over; the text names the
            file and the size its header announces.
    """
    packed = path.suffix == ".gz"
    try:
        with gzip.open(path, "rb") if packed else open(path, "rb") as file:
            head = file.read(4 + 4 * ndim)
            if len(head) < 4 + 4 * ndim or head[:3] != b"\0\0\x08" or head[3] != ndim:
                raise InputError(
                    f"{path} is no IDX file of unsigned bytes in {ndim} dimensions (it starts with "
                    f"{head[:4].hex(' ')}); get it again"
                )
            shape = [int.from_bytes(head[i : i + 4], "big") for i in range(4, len(head), 4)]
            want = torch.Size(shape).numel()
            size = path.stat().st_size
            said = f"its header announces {' x '.join(map(str, shape))} = {want} bytes after the first {len(head)}"
            if want > (size * _BEST_RATIO if packed else size - len(head)):
                raise InputError(f"{path} has {size} bytes, but {said}; it is truncated or damaged. Get it again")
            body = bytearray()
            while piece := file.read(min(_PIECE, want + 1 - len(body))):
                body += piece
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is no whole gzip file ({error}); it is truncated or damaged. Get it again") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if len(body) != want:
        more = "more" if len(body) > want else f"only {len(body)}"
        raise InputError(f"{path}: {said}, but it holds {more}; it is truncated or damaged. Get it again")
    return torch.frombuffer(body, dtype=torch.uint8).reshape(shape) if want else torch.empty(shape, dtype=torch.uint8)


def find_idx(folder: Path, split: str) -> tuple[Path, Path] | None:
    """The files of images and labels of a split in a folder, plain or gzip, or None when one is missing."""
    found = []
    for name in FILES[check_split(split)]:
        path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
        if path is None:
            return None
        found.append(path)
    return found[0], found[1]


def read_images(folder: Path, split: str, classes: tuple[str, ...]) -> Pixels:
    """Grey images and labels of a split that lies in a folder.

    Raises:
        MissingPart: a file is not there. InputError: a file is damaged, or images and labels do not fit.
    """
    files = find_idx(folder, split)
    if files is None:
        names = " and ".join(FILES[split])
        raise MissingPart(f"{folder} does not hold the {split} split: {names} are wanted, plain or .gz")
    images, labels = read_idx(files[0], 3), read_idx(files[1], 1)
    if len(images) == 0:
        raise InputError(f"{files[0]} holds no image")
    return Pixels(images[:, None], labels, classes, name=f"{files[0]}")


def check_split(split: str) -> str:
    """The split's name, or `InputError`."""
    if split not in FILES:
        raise InputError(f"the split is 'train' or 'test'; got {split!r}")
    return split
