"""Data by what people type: a reader as text, an archive, a folder, or a YAML file.

>>> as_reader("Digits(shuffle=0, stop=1000)")
Digits(start=0, stop=1000, shuffle=0, repeat=1)
"""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any

from homeostat.core.configfile import read_spec
from homeostat.core.errors import InputError, MissingPart, SpecError, UnknownName, nearest
from homeostat.core.outline import outline
from homeostat.core.spec import Spec
from homeostat.core.spectext import parse_spec
from homeostat.data.reader import NPZ, HuggingFace, ImageFolder, Reader, _filled, below

YAMLS = (".yaml", ".yml", ".json")
_WAYS = (
    "an .npz file, a folder of class folders, a folder that save_to_disk wrote, a YAML file, or such as Digits(stop=9)"
)


def as_reader(text: str | Path | Reader | Any, field: str = "stream", what: str = "data") -> Reader:
    """The reader that a text stands for.

    Args:
        text: a reader as text, `NPZ(path="a.npz", y=None)`; a path to an `.npz` file, to a folder with a sub-folder a
            class, or to a folder that `save_to_disk` of `datasets` wrote; or a YAML file with a reader, or with
            something that has one in `field`, such as a deployment. `file.yaml:before` names the field.
        field: which one of a YAML file.
        what: what it is, for errors.

    Raises:
        MissingPart: there is no such file. InputError: it is nothing that is read. SpecError, UnknownName: a text, or
        a YAML file, is wrong.
    """
    if isinstance(text, Reader):
        return text
    if isinstance(text, Spec) or not isinstance(text, (str, Path)):
        raise SpecError(f"{what} is a {type(text).__name__}; give {_WAYS}")
    text = str(text)
    if not text.strip():
        raise InputError(f"{what}: the text is empty; give {_WAYS}")
    if is_written(text, "Reader"):
        return below(parse_spec(text, Reader), Path.cwd())
    path, named = split_field(text)
    if path.suffix.lower() in YAMLS:
        return _in_file(path, named or field, what)
    if path.is_dir():
        return _of_folder(path, what)
    if not path.exists():
        known = [entry.name for entry in outline("Reader")]
        if re.fullmatch(r"\w+", text):
            raise UnknownName(f"{what}: there is no file {text} and no reader of this name.{nearest(text, known)}")
        raise MissingPart(f"{what}: there is no {path}; give {_WAYS}")
    if path.suffix.lower() != ".npz":
        raise InputError(f"{what}: {path} is none of the files that are read; give {_WAYS}")
    return NPZ(str(path.absolute()), y="y" if _has_labels(path) else None)


def is_written(text: str, base: str) -> bool:
    """Whether a text is a Spec that is written out, or the name of a registered one of this base, and not a path."""
    bare = text.strip()
    if bare.startswith("{") or re.match(r"\w+\s*\(", bare) or re.match(r"\w+:\s", bare):
        return True
    return bool(re.fullmatch(r"\w+", bare)) and not Path(bare).exists() and _named(bare, base)


def split_field(text: str) -> tuple[Path, str]:
    """The path of a text, with `~` and variables filled in, and the field after the colon, if there is one."""
    head, _, field = text.rpartition(":")
    if Path(head).suffix.lower() in YAMLS and re.fullmatch(r"\w+", field):
        return _filled(head), field
    return _filled(text), ""


def _named(text: str, base: str) -> bool:
    return any(entry.name == text for entry in outline(base))


def _in_file(path: Path, field: str, what: str) -> Reader:
    made = below(read_spec(path), path.absolute().parent)
    if isinstance(made, Reader):
        return made
    has = [name for name, value in made.fields().items() if isinstance(value, Reader)]
    found = made.fields().get(field)
    if not isinstance(found, Reader):
        says = f"it has {', '.join(has)}: {path}:{has[0]}" if has else "none of its fields is a reader"
        raise InputError(f"{what}: {path} holds a {type(made).__name__} without a reader in {field!r}; {says}")
    return found


def _of_folder(path: Path, what: str) -> Reader:
    if (path / "model.json").is_file():
        raise InputError(f"{what}: {path} is a network's checkpoint, and data are wanted")
    if (path / "checkpoints").is_dir():
        raise InputError(f"{what}: {path} is a store, and data are wanted")
    if (path / "dataset_dict.json").is_file():
        parts = sorted(part.name for part in path.iterdir() if part.is_dir())
        raise InputError(f"{what}: {path} holds splits {', '.join(parts)}; give one: {os.path.join(path, parts[0])}")
    if (path / "dataset_info.json").is_file() or (path / "state.json").is_file():
        return HuggingFace(str(path.absolute()))
    if not any(part.is_dir() and not part.name.startswith(".") for part in path.iterdir()):
        raise InputError(f"{what}: {path} has no sub-folders of images, one a class, and no saved data set")
    return ImageFolder(str(path.absolute()))


def _has_labels(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return "y.npy" in archive.namelist() or "x.npy" not in archive.namelist()
    except (OSError, zipfile.BadZipFile):  # `npz` says what is wrong with it
        return True
