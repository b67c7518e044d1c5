"""How what was written beside a place comes to it: in one step, and over nothing but an older checkpoint."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

from homeostat.core.errors import InputError
from homeostat.core.save import _put_back, _swap, sync_folder


def staging_of(out: Path) -> Path:
    """The folder in which a checkpoint lies until it is whole."""
    return out.with_name(f".{out.name}.merging")


def check_free(out: Path, overwrite: bool) -> None:
    """Raise `InputError` where something is at a path that must not be replaced."""
    _put_back(out)
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise InputError(
            f"{out} is there already; give another place, or say that it may be replaced (overwrite=True, --overwrite)"
        )
    if out.is_symlink():
        raise InputError(f"{out} is a link, which is never replaced; give the place that it points to, or another")
    if out.is_dir() != (out.suffix != ".safetensors"):
        raise InputError(f"{out} is a {'folder' if out.is_dir() else 'file'} of another kind; give another place")
    if out.is_dir() and any(out.iterdir()) and not any(out.glob("*.safetensors")):
        raise InputError(f"{out} is a folder with other things than a checkpoint, which is never replaced")


def bring(made: Path, out: Path) -> None:
    """Bring a file or folder under its name; what was there goes."""
    if not out.is_dir():
        made.replace(out)
    elif _exchanged(made, out):
        sync_folder(out.parent)
        shutil.rmtree(made, ignore_errors=True)
    else:
        _swap(made, out)


def _exchanged(a: Path, b: Path) -> bool:
    """Swap two names in one step, where the system can."""
    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return swap(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0
