"""NumPy archives (`.npz`)."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from homeostat.core.data import Data, Tensors, check_finite
from homeostat.core.errors import DtypeError, InputError, MissingPart, nearest
from homeostat.data.pixels import Pixels, class_labels


def npz(path: str | Path, x: str = "x", y: str | None = "y") -> Data:
    """Samples from two arrays of a NumPy archive. Pickled objects in it are refused.

    8-bit arrays are images: `[samples, height, width]` becomes one channel, channels that are last become first, and
    values become float32 in 0..1. Other arrays are taken as they are, 64-bit floats as float32. Labels may be
    `[samples]` or `[samples, 1]`; float ones are targets of a regression.

    Args:
        path: the archive.
        x: name of the inputs' array.
        y: name of the labels' array; None for data without labels.

    Returns:
        Data whose ids are positions.

    Raises:
        MissingPart: no such file. InputError: damaged, no such array, or arrays that do not fit together.
        DtypeError: arrays of objects or text. NonFiniteError: NaN or infinity in the inputs.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingPart(f"there is no file {path}")
    inputs = _array(path, x)
    targets = None if y is None else torch.from_numpy(_array(path, y))
    if inputs.ndim == 0 or len(inputs) == 0:
        raise InputError(f"{path}: {x} has shape {inputs.shape}; at least one sample is wanted")
    if targets is not None and not targets.is_floating_point():
        targets = class_labels(targets, len(inputs), 0, f"{path}: {x}")
    elif targets is not None:
        targets = targets.float()
    tensor = torch.from_numpy(inputs)
    if tensor.dtype == torch.uint8 and tensor.ndim in (3, 4):
        tensor = tensor[:, None] if tensor.ndim == 3 else tensor
        if tensor.shape[3] in (1, 3) and tensor.shape[1] not in (1, 3):
            tensor = tensor.permute(0, 3, 1, 2).contiguous()
        if targets is None or not targets.is_floating_point():
            return Pixels(tensor, targets, name=f"{path}: {x}")
        tensor = tensor.float() / 255
    if tensor.dtype == torch.float64:
        tensor = tensor.float()
    check_finite(tensor, f"{path}: {x}")
    return Tensors(tensor, targets)


def _array(path: Path, name: str) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(f"{path} holds one array and no names; save it with numpy.savez")
            if name not in archive.files:
                known = ", ".join(archive.files)
                raise InputError(f"{path} has no array {name!r}.{nearest(name, archive.files)} It has: {known}")
            array = archive[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        if "allow_pickle" in str(error):
            raise DtypeError(
                f"{path}: array {name!r} holds Python objects, which are never read; save numbers"
            ) from None
        raise InputError(f"{path} cannot be read as .npz ({error}); it is truncated or damaged") from None
    if array.dtype.kind not in "biuf":
        raise DtypeError(f"{path}: array {name!r} has dtype {array.dtype}; numbers are wanted")
    return array.astype(array.dtype.newbyteorder("=")) if not array.dtype.isnative else array
