"""How much of the machine's memory this process holds, as Linux says it in `/proc`; a GPU's memory is not in it.

>>> now, most = resident(), peak()
>>> now is None or most is None or 0 < now <= most
True
"""

from __future__ import annotations

from pathlib import Path

STATUS = Path("/proc/self/status")


def resident() -> int | None:
    """Bytes held now; None where the system does not say."""
    return _said("VmRSS")


def peak() -> int | None:
    """Most bytes ever held, or since the peak was reset; None where the system does not say."""
    return _said("VmHWM")


def _said(field: str) -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
        return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        return None
