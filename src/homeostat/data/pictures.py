"""Image files and Pillow images as tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from homeostat.core.errors import InputError

_DEEP = ("I", "F")  # modes of more than 8 bit start so; Pillow would cut their values


def check_size(size: int | None) -> None:
    """Raise `InputError` for a side below 1."""
    if size is not None and size < 1:
        raise InputError(f"size = {size}, but images have a side of at least 1 pixel")


def open_picture(path: Path, size: int | None, grey: bool) -> Tensor:
    """An image file as uint8 `[channels, height, width]`; see `picture`."""
    try:
        with Image.open(path) as image:
            return picture(image, size, grey, str(path))
    except InputError:
        raise
    # What Pillow's readers raise on damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is no image that can be read ({error}); replace it") from None


def picture(image: Any, size: int | None, grey: bool, name: str) -> Tensor:
    """A Pillow image as uint8 `[channels, height, width]`, turned upright as its EXIF note says.

    Args:
        image: any 8-bit mode; palettes are looked up, transparency is dropped.
        size: if given, the shorter side is scaled to it (bilinear, antialiased) and the middle square is kept.
        grey: one channel (ITU-R 601 luma) instead of three.
        name: what to call it in errors.
    """
    if image.mode.startswith(_DEEP):
        raise InputError(f"{name} has more than 8 bit a channel (mode {image.mode}); convert it to 8 bit first")
    image = ImageOps.exif_transpose(image).convert("L" if grey else "RGB")
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if grey else pixels.permute(2, 0, 1)


def stack(pictures: list[Tensor], names: list[str]) -> Tensor:
    """Equal-sized pictures as float32 `[batch, channels, height, width]` in 0..1.

    Raises:
        InputError: they differ in size; two of them are named.
    """
    for picture_, name in zip(pictures, names, strict=True):
        if picture_.shape != pictures[0].shape:
            a, b = (f"{n} is {t.shape[2]} x {t.shape[1]}" for n, t in ((names[0], pictures[0]), (name, picture_)))
            raise InputError(f"images of one batch differ in size: {a}, {b}; give size= to bring them to one")
    return torch.stack(pictures).float().div_(255)
