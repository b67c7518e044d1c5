"""What the process of one claim does: read the data once, measure every seed, tell each as a line of JSON.

`homeostat.evidence.running` starts it, `python -m homeostat.evidence.measuring`, with the order on its standard input.
A process of its own gives a claim its own memory and threads, and a crash of one ends no other. What a claim prints
goes to the error stream.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from homeostat.core.errors import HomeostatError, InputError, MissingExtra, MissingPart


def main() -> None:
    """Measure what standard input orders."""
    order = json.load(sys.stdin)
    # The library below torch may print, too, so the stream itself is moved away, and not just `sys.stdout`.
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        _measure(order, told)
    except (MissingPart, MissingExtra) as error:
        _tell(told, "skipped", why=str(error))
    except Exception as error:
        said = str(error) if isinstance(error, HomeostatError) else f"{type(error).__name__}: {error}"
        _tell(told, "failed", why=" ".join(said.split()))
        raise


def versions() -> dict[str, str]:
    """Of what computes here, and the machine; numbers are only alike to the last digits where all are the same."""
    import torch

    found = {"python": platform.python_version()}
    for name in ("homeostat", "torch", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    kernels = torch.backends.cpu.get_cpu_capability()
    return found | {"machine": f"{platform.system()} {platform.machine()}, {_processor()}, {kernels} kernels"}


def _measure(order: dict[str, Any], told: TextIO) -> None:
    import torch

    from homeostat.core.run import Run
    from homeostat.evidence.finding import read_claims

    torch.set_num_threads(1)
    claim = next(one.claim for one in read_claims(order["file"]) if one.claim.full_name == order["claim"])
    wall, cpu = time.perf_counter(), time.process_time()
    data = [reader.read() for reader in claim.data]
    _tell(told, "data", hashes=[part.fingerprint() for part in data])
    names: set[str] = set()
    for seed in order["seeds"]:
        arms = claim.measure(Run(seed=seed, scratch=Path(order["scratch"])), *data)
        checked = _checked(claim, arms, names)
        names = names or set(checked)
        _tell(told, "seed", seed=seed, arms=checked)
    _tell(
        told, "done", seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu,
        peak_memory_mib=_peak(), versions=versions(),
    )  # fmt: skip


def _checked(claim: Any, arms: Any, names: set[str]) -> dict[str, float]:
    """What a claim gave for a seed, where ours and the baseline are there and all are finite."""
    who = f"claim {claim.full_name}"
    if not isinstance(arms, dict) or not arms:
        raise InputError(f"{who} gave {type(arms).__name__}; a number for each arm is wanted, by its name")
    for arm in (claim.ours, claim.baseline):
        if arm not in arms:
            raise InputError(f"{who} gave no {arm!r}, only {', '.join(map(repr, arms))}; ours and baseline are wanted")
    made = {}
    for arm, value in arms.items():
        try:
            made[str(arm)] = float(value)
        except (TypeError, ValueError):
            raise InputError(f"{who} gave {type(value).__name__} for {arm!r}; a number is wanted") from None
        if not math.isfinite(made[str(arm)]):
            raise InputError(f"{who} gave {value} for {arm!r}; a finite number is wanted")
    if names and set(made) != names:
        raise InputError(
            f"{who} gave the arms {sorted(made)} after {sorted(names)}; the same for every seed are wanted"
        )
    return made


def _tell(told: TextIO, event: str, **values: Any) -> None:
    told.write(json.dumps({"event": event, **values}) + "\n")
    told.flush()


def _peak() -> float:
    """Most resident memory of this process in MiB; 0 where the system does not say."""
    try:
        # Not `ru_maxrss`: in a process that was started by a large one it is that one's.
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


if __name__ == "__main__":
    main()
