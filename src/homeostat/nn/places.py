"""Where files lie on this machine: the data folder that `HOMEOSTAT_DATA` names, and the user's cache.

>>> locate("no-such-data-set")
Traceback (most recent call last):
...
homeostat.core.errors.MissingPart: there is no no-such-data-set: ...
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from homeostat.core.errors import MissingPart

VARIABLE = "HOMEOSTAT_DATA"


def data_folder() -> Path | None:
    """The folder that `HOMEOSTAT_DATA` names, or None when it is not set."""
    value = os.environ.get(VARIABLE)
    return Path(value).expanduser() if value else None


def locate(name: str, *places: Path, ways: str = "") -> Path:
    """A file or folder by its name below `HOMEOSTAT_DATA`, or the first of other places that exists.

    Args:
        name: path below `HOMEOSTAT_DATA`, such as `"mnist"` or `"weights/resnet20-cifar10.safetensors"`.
        places: full paths to try after that.
        ways: for the error's text, other ways to get it.

    Raises:
        MissingPart: it is in none of these places; the text names them.
    """
    root = data_folder()
    for path in ([] if root is None else [root / name], places):
        for candidate in path:
            if candidate.exists():
                return candidate
    said = f"{VARIABLE} is not set" if root is None else f"{VARIABLE} is {root}, which does not hold it"
    said += "".join(f", nor is it at {place}" for place in places)
    other = f", or {ways}" if ways else ""
    raise MissingPart(f"there is no {name}: {said}. Set {VARIABLE} to a folder that holds {name}{other}")


def cache_folder() -> Path:
    """The user's cache folder for this library, by the platform's convention; it may not exist yet.

    `$XDG_CACHE_HOME/homeostat` where that is set, else `~/.cache/homeostat`, on macOS `~/Library/Caches/homeostat`, on
    Windows `%LOCALAPPDATA%\\homeostat`.
    """
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if xdg and Path(xdg).is_absolute():  # the convention says that relative paths are to be ignored
        return Path(xdg) / "homeostat"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "homeostat"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "homeostat"
    return Path.home() / ".cache" / "homeostat"
