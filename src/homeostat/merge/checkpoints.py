"""Merge checkpoints on the disk: as large as the disk is, in the memory of a few blocks.

Everything that could be wrong is looked for first, in the headers alone: tensors that are missing or of other shapes,
another vocabulary, heads tied in one and not in the other, adapters, pickles, quantised networks, a full disk. All of
it is said at once, with what to do. Then tensors are read by memory map, merged block by block, and written at their
final place; numbers that are not finite stop the merge before its result has a name. A merge that was killed goes on
where it was, and gives the same bits.

>>> import tempfile
>>> from safetensors.torch import load_file, save_file
>>> from homeostat.merge import TaskArithmetic
>>> folder = Path(tempfile.mkdtemp())
>>> for name, value in {"base": 0.0, "a": 1.0, "b": 3.0}.items():
...     save_file({"w": torch.full((2, 2), value)}, folder / f"{name}.safetensors")
>>> report = merge_checkpoints(
...     TaskArithmetic(scale=0.5), folder / "base.safetensors",
...     [folder / "a.safetensors", folder / "b.safetensors"], folder / "merged.safetensors",
... )
>>> report.merged, report.written, load_file(folder / "merged.safetensors")["w"][0]
(1, 16, tensor([2., 2.]))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from homeostat.core.errors import CheckpointError, DtypeError, InputError, nearest
from homeostat.core.fork import matches
from homeostat.core.run import Run
from homeostat.core.weights import is_carry
from homeostat.merge.jobs import Job, carry_out
from homeostat.merge.merging import Copy, Group, Merge
from homeostat.merge.opening import Checkpoint, open_checkpoint
from homeostat.merge.preflight import BUFFERS, Preflight, Row
from homeostat.merge.reports import MergeReport
from homeostat.merge.writing import SHARD

BASE = "the base"

WRITTEN = {
    "float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip
"""Dtypes in which a merge may be written."""


def merge_checkpoints(
    method: Merge | Any,
    base: str | Path,
    donors: Mapping[str, str | Path] | Sequence[str | Path],
    out: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    ignore: Sequence[str] = (),
    shard: int = SHARD,
    threads: int = 2,
    overwrite: bool = False,
    resume: bool = True,
    sync: bool = True,
    dry_run: bool = False,
    run: Run = Run(),
) -> MergeReport:
    """Merge checkpoints into a new one.

    Args:
        method: how; its `skip` names tensors that stay the base's.
        base: a folder of safetensors files with `config.json` and the like, a folder that `hs.save` wrote, or a file.
            It lends what is not merged: small files, whole numbers, statistics of BatchNorm.
        donors: the same, by a name for messages, or several.
        out: a folder, or a file where the name ends in `.safetensors`. A base that `hs.save` wrote gives a folder that
            `hs.load` reads.
        dtype: to write, such as `"bfloat16"`; default, each tensor's own in the base. All is computed in float32, or in
            float64 where that is written.
        ignore: globs of donors' tensors that are left out on purpose.
        shard: bytes of a file from which another one is begun.
        threads: tensors that are merged at a time.
        overwrite: replace a checkpoint that is at `out`.
        resume: go on with the same merge, where one was killed.
        sync: wait until all is on the disk before it gets its name; without, a power loss can spoil it.
        dry_run: look at everything, write nothing, and say what it would take.
        run: its seed, for methods that draw; its watcher hears of bytes.

    Raises:
        CheckpointError: inputs cannot be opened or do not fit, all of it listed. InputError: something is at `out`, or
            the method does not take so many donors. NonFiniteError: NaN or infinity in what is merged, or the result
            does not fit the dtype; all tensors are listed. StoreError: the disk is full or cannot be written.
    """
    if not isinstance(method, Merge):
        raise DtypeError(f"a merging method is wanted, such as TIES(); got a {type(method).__name__}")
    written = as_dtype(dtype)
    named = dict(donors) if isinstance(donors, Mapping) else dict(zip(called(donors), donors, strict=True))
    if not named:
        raise InputError("there are no donors to merge")
    inputs = open_all({BASE: base, **named})
    method.check(len(named))
    flight = Preflight(inputs, written)
    merged, copied = list[Group](), list[Group]()
    for row, as_it_is in rows_of(inputs[BASE], list(named), method.skip):
        if as_it_is:
            copied.append(flight.copied(row))
        elif group := flight.merged(row):
            merged.append(group)
    flight.check_rest(named, BASE, (*ignore, *method.skip))
    flight.refuse()
    # Names, and not files, order them, so that the result does not depend on how a checkpoint is cut into files.
    merged.sort(key=lambda group: group.name)
    where = {name: str(held.path) for name, held in inputs.items()}
    record = {"method": method.to_config(), "base": where.pop(BASE), "donors": where, "seed": run.seed}
    job = Job([(method, merged), (Copy(), copied)], inputs[BASE], inputs, written, record=record, notes=flight.said())
    return carry_out(
        job, out, shard=shard, threads=threads, overwrite=overwrite, resume=resume, sync=sync, dry_run=dry_run, run=run
    )


def rows_of(base: Checkpoint, donors: Sequence[str], skip: Sequence[str]) -> list[tuple[Row, bool]]:
    """A row for each tensor of the base, and whether it is copied."""
    skipped, found = matches(tuple(skip)), []
    for name in base.names():
        place = base.tensors.places[name]
        copied = not place.dtype.is_floating_point or name.endswith(BUFFERS) or is_carry(name) or skipped(name)
        found.append((Row(name, (BASE, name), tuple((donor, name) for donor in donors)), copied))
    return found


def open_all(paths: Mapping[str, str | Path]) -> dict[str, Checkpoint]:
    """Open checkpoints.

    Raises:
        CheckpointError: some cannot be opened; all of them are named.
    """
    found, wrong = {}, []
    for name, path in paths.items():
        try:
            found[name] = open_checkpoint(path)
        except CheckpointError as error:
            wrong.append(f"{name}: {error}")
    if wrong:
        raise CheckpointError("; ".join(f"({i}) {text}" for i, text in enumerate(wrong, 1)) if wrong[1:] else wrong[0])
    return found


def as_dtype(dtype: Any) -> torch.dtype | None:
    """A dtype that a merge may be written in, by itself or by its name.

    Raises:
        DtypeError: it is another one.
    """
    if dtype is None or dtype in WRITTEN.values():
        return dtype
    name = str(dtype).removeprefix("torch.")
    if name not in WRITTEN:
        raise DtypeError(f"a merge is not written as {name}; it can be {', '.join(WRITTEN)}.{nearest(name, WRITTEN)}")
    return WRITTEN[name]


def called(paths: Sequence[str | Path]) -> list[str]:
    """What messages call checkpoints: the last part of their paths, where that tells them apart."""
    short = [Path(path).name.removesuffix(".safetensors") for path in paths]
    made = short if len(set(short)) == len(short) else [str(path) for path in paths]
    return made if len(set(made)) == len(made) and BASE not in made else [f"donor {i + 1}" for i in range(len(made))]
