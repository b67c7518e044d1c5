"""Fetch a file once, checked by its SHA-256, with a progress bar; a kill leaves no half file under the final name."""

from __future__ import annotations

import hashlib
import os
import sys
import urllib.request
import uuid
from pathlib import Path

from homeostat.core.errors import InputError

_PIECE = 1 << 16


def download(url: str, path: Path, sha256: str, size: int, timeout: float = 15.0) -> Path:
    """Fetch `url` to `path`, unless it is there, and return the path.

    Args:
        url: http or https address.
        path: where it goes; missing folders are made.
        sha256: what the content must hash to, as hex.
        size: its size in bytes; nothing beyond it is read.
        timeout: seconds to wait for an answer or for the next piece.

    Raises:
        InputError: what came is not what was asked for; nothing is kept.
        OSError: the address or the folder cannot be reached.
    """
    if path.is_file():
        return path
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
        console=Console(file=sys.stderr), transient=True, disable=not sys.stderr.isatty(),
    )  # fmt: skip
    sha, got = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer, open(staging, "wb") as file, bar:
            task = bar.add_task(path.name, total=size)
            while piece := answer.read(_PIECE):
                got += len(piece)
                if got > size:
                    break
                sha.update(piece)
                file.write(piece)
                bar.advance(task, len(piece))
            file.flush()
            os.fsync(file.fileno())
        if got != size or sha.hexdigest() != sha256:
            more = "more than " if got > size else ""
            raise InputError(
                f"{url} gave {more}{min(got, size)} bytes with SHA-256 {sha.hexdigest()[:12]}; {size} bytes with "
                f"{sha256[:12]} were wanted. Nothing was kept"
            )
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)
    return path
