"""Memory of a benchmark's process."""

from __future__ import annotations

import sys
from pathlib import Path


def resident() -> float:
    """Resident memory of this process in MB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        sys.exit("this reads /proc/self/status, which only Linux has")
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024 / 1e6
