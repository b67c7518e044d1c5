"""Images in folders, one folder a class, read when they are asked for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from homeostat.core.data import Batch, Data
from homeostat.core.errors import InputError, MissingPart
from homeostat.data.pictures import check_size, open_picture, stack

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")


class ImageFolder(Data):
    """What `image_folder` returns: `classes` in label order, `files` and `labels` in position order."""

    def __init__(self, path: Path, size: int | None, grey: bool):
        check_size(size)
        if not path.is_dir():
            raise MissingPart(f"there is no folder {path}")
        folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not folders:
            raise InputError(f"{path} has no sub-folders; one a class is wanted")
        self.path, self.size, self.grey = path, size, grey
        self.classes = tuple(folder.name for folder in folders)
        self.files: list[Path] = []
        labels: list[int] = []
        for label, folder in enumerate(folders):
            files = [p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
            if not files:
                raise InputError(f"{folder} holds no image ({', '.join(SUFFIXES)}); remove it or fill it")
            self.files += sorted(files, key=lambda p: p.relative_to(path).as_posix())
            labels += [label] * len(files)
        self.labels = torch.tensor(labels)
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.files)

    def fetch(self, positions: Tensor) -> Batch:
        files = [self.files[i] for i in positions.tolist()]
        if not files:
            first = self.fetch(torch.zeros(1, dtype=torch.int64))
            return first[:0]
        pictures = [open_picture(file, self.size, self.grey) for file in files]
        return Batch(stack(pictures, [str(f) for f in files]), self.labels[positions], positions.clone())

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            sha = hashlib.sha256(f"{self.size};{self.grey};".encode())
            for file, label in zip(self.files, self.labels.tolist(), strict=True):
                content = file.read_bytes()
                sha.update(f"{label}:{len(content)};".encode())
                sha.update(content)
            self._fingerprint = sha.hexdigest()
        return self._fingerprint


def image_folder(path: str | Path, size: int | None = None, grey: bool = False) -> ImageFolder:
    """Images on disk, one sub-folder a class; a file is read when a batch asks for it.

    Classes are numbered by their folder's name in alphabetical order; images may lie deeper. Files whose name starts
    with a dot or does not end like an image's are passed over.

    Args:
        path: the folder of class folders.
        size: if given, the shorter side is scaled to it and the middle square is kept; needed when sizes differ.
        grey: one channel instead of three.

    Returns:
        Images float32 `[batch, 3 or 1, height, width]` in 0..1, labels int64; an id is the position in the sorted list.

    Raises:
        MissingPart: no such folder. InputError: no classes, a class without images; when fetched: an unreadable image,
        one of more than 8 bit, or sizes that differ.
    """
    return ImageFolder(Path(path), size, grey)
