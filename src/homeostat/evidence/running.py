"""Running claims: each in a process of its own, seed after seed, on one thread, and judged when all are done."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homeostat.core.errors import InputError
from homeostat.core.run import Run
from homeostat.evidence.claiming import TIERS
from homeostat.evidence.finding import Found
from homeostat.evidence.recorded import Evidence, judge, nine

FEWEST = 5
"""Seeds that evidence wants."""


@dataclass(frozen=True)
class Outcome:
    """What came of running a claim; one of `evidence`, `skipped` and `failed` is there.

    Attributes:
        found: the claim.
        evidence: what it gave.
        skipped: what is missing here, data or an extra.
        failed: what is wrong with it.
    """

    found: Found
    evidence: Evidence | None = None
    skipped: str = ""
    failed: str = ""


def run_claim(found: Found, seeds: Sequence[int] = range(FEWEST), *, run: Run = Run()) -> Outcome:
    """Measure a claim with these seeds, and judge it.

    Args:
        found: the claim and its file.
        seeds: at least two; evidence wants five.
        run: its watcher is told of each seed; with a scratch folder, claims keep trained networks there and find those
            of others, and their seconds are then too few.

    Raises:
        InputError: fewer than two seeds, or one comes twice.
    """
    seeds = [int(seed) for seed in seeds]
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds are {seeds}; at least two are wanted, each once")
    code = found.code()
    with _scratch(run.scratch) as scratch:
        told, error = _told(found, seeds, scratch, run)
    last = told[-1] if told else {"event": "failed", "why": error}
    if last["event"] == "skipped":
        return Outcome(found, skipped=last["why"])
    if last["event"] != "done":
        return Outcome(found, failed=last.get("why") or f"its process ended early: {error}")
    return Outcome(found, evidence=_evidence(found, seeds, told, code))


def _scratch(given: Path | None) -> Any:
    return tempfile.TemporaryDirectory(prefix="claim-") if given is None else _kept(given)


@contextmanager
def _kept(folder: Path) -> Iterator[str]:
    yield str(folder)


def _told(found: Found, seeds: Sequence[int], scratch: str, run: Run) -> tuple[list[dict[str, Any]], str]:
    """What the claim's process told, and why it ended where it did not end well."""
    order = {"file": str(found.file.absolute()), "claim": found.claim.full_name, "seeds": seeds, "scratch": scratch}
    library = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, (library, os.environ.get("PYTHONPATH"))))
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    told, done = list[dict[str, Any]](), 0
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        with subprocess.Popen(
            [sys.executable, "-m", "homeostat.evidence.measuring"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=errors, env={**os.environ, **threads, "PYTHONPATH": paths}, encoding="utf-8",
        ) as process:  # fmt: skip
            assert process.stdin is not None and process.stdout is not None
            try:
                with process.stdin:
                    json.dump(order, process.stdin)
                for line in process.stdout:
                    told.append(json.loads(line))
                    done += told[-1]["event"] == "seed"
                    run.emit(found.claim.full_name, done, len(seeds))
            except BrokenPipeError:
                pass
            except BaseException:
                process.kill()
                raise
        errors.seek(0)
        lines = errors.read().strip().splitlines()
    return told, f"exit code {process.returncode}" + (f", {lines[-1].strip()}" if lines else "")


def _evidence(found: Found, seeds: Sequence[int], told: Sequence[dict[str, Any]], code: str) -> Evidence:
    claim, done = found.claim, told[-1]
    rows = [line["arms"] for line in told if line["event"] == "seed"]
    arms = {arm: tuple(nine(row[arm]) for row in rows) for arm in rows[0]}
    judged = judge(arms[claim.ours], arms[claim.baseline], claim.better, claim.least)
    notes = []
    if len(seeds) < FEWEST:
        notes.append(f"{len(seeds)} seeds are too few for evidence; {FEWEST} are wanted")
    if len(set(judged.differences)) == 1:
        notes.append("all seeds gave the same difference, so that the interval says nothing of chance")
    if done["cpu_seconds"] > TIERS[claim.tier]:
        notes.append(f"took {done['cpu_seconds']:.0f} s of processor time; its tier is {claim.tier}")
    return Evidence(
        claim.id, claim.name, found.statement, tuple(seeds), arms, tuple(map(nine, judged.differences)),
        nine(judged.effect), (nine(judged.interval[0]), nine(judged.interval[1])), judged.verdict, tuple(notes),
        round(done["seconds"], 1), round(done["cpu_seconds"], 1), round(done["peak_memory_mib"], 1), done["versions"],
        next(tuple(line["hashes"]) for line in told if line["event"] == "data"), code,
        datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )  # fmt: skip
