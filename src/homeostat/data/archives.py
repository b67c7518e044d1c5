"""NumPy archives (`.npz`)."""

from __future__ import annotations

import uuid
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homeostat.core.data import Data, Tensors, check_finite
from homeostat.core.errors import DtypeError, InputError, MissingPart, StoreError, nearest
from homeostat.core.intake import as_data
from homeostat.core.run import Run
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


def write_npz(data: Data | Any, path: str | Path, *, batch: int = 256, run: Run = Run()) -> Path:
    """Write data to a NumPy archive that `npz` reads back: `x`, `y` where there are labels, `id`, and what `meta` has.

    Samples are read and written a batch at a time; nothing but the labels is held in memory.

    Args:
        data: with inputs in one tensor.
        path: ends in `.npz`; it is replaced when all is written, and left as it is when something fails.
        batch: samples at a time.
        run: whose watcher is told of progress.

    Returns:
        The path.

    Raises:
        InputError: the path is another kind of file, or inputs are no single tensor of one shape.
    """
    data, path = as_data(data), Path(path)
    if path.suffix != ".npz":
        raise InputError(f"{path} does not end in .npz; give such a name")
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    others: dict[str, list[np.ndarray]] = {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(staging, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            with archive.open("x.npy", "w", force_zip64=True) as file:
                _write_inputs(data, file, batch, others, run)
            for name, parts in others.items():
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, np.concatenate(parts), allow_pickle=False)
        staging.replace(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        staging.unlink(missing_ok=True)
    return path


def _write_inputs(data: Data, file: Any, batch: int, others: dict[str, list[np.ndarray]], run: Run) -> None:
    first: Tensor | None = None
    for done, piece in enumerate(data.batches(batch)):
        x = piece.x
        if not isinstance(x, Tensor) or not (piece.y is None or isinstance(piece.y, Tensor)):
            raise InputError(
                "an .npz file holds inputs in one tensor, and these are a tree of them; shift them in Python"
            )
        if first is None:
            first = x
            head = {"descr": np.lib.format.dtype_to_descr(_numbers(x).dtype), "fortran_order": False}
            np.lib.format.write_array_header_2_0(file, {**head, "shape": (len(data), *x.shape[1:])})
        if x.shape[1:] != first.shape[1:] or x.dtype != first.dtype:
            raise InputError(f"inputs are {tuple(first.shape[1:])} and {tuple(x.shape[1:])}; one shape is wanted")
        file.write(_numbers(x).tobytes())
        more = {"id": piece.id, **piece.meta} | ({} if piece.y is None else {"y": piece.y})
        for name, tensor in more.items():
            others.setdefault(name, []).append(_numbers(tensor))
        run.emit("write", min((done + 1) * batch, len(data)), len(data))


def _numbers(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).contiguous().numpy()
