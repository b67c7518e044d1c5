"""A merge of checkpoints as a list of work, and how it is carried out."""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from homeostat.core.errors import InputError, NonFiniteError
from homeostat.core.mapped import INDEX, Mapped
from homeostat.core.run import Run
from homeostat.core.spec import digest
from homeostat.core.spectext import short_text
from homeostat.core.weights import hash_tensors, is_carry
from homeostat.merge.engine import merge_groups
from homeostat.merge.merging import BLOCK, Copy, Group, Merge
from homeostat.merge.opening import Checkpoint
from homeostat.merge.publishing import check_free
from homeostat.merge.reports import MergeReport, Watched
from homeostat.merge.selection import ROOM
from homeostat.merge.trimming import HELD, SAMPLE
from homeostat.merge.writing import CheckpointSink, Slot

FORMAT = 1
"""Of what a merge writes; raised when its numbers change, so that what an older version began is begun anew."""

RECORD = "merge.json"
"""The file beside a merged checkpoint that says what it was made of."""

SMALL = (".json", ".txt", ".model", ".jinja", ".py", ".tiktoken", ".spm", ".bpe", ".vocab")
NOT_COPIED = (INDEX, "model.json", RECORD, "adapter_config.json", "trainer_state.json", "all_results.json")
LARGEST = 200_000_000
"""Bytes of a small file."""


@dataclass
class Job:
    """A merge that is known to fit.

    Attributes:
        work: methods with the groups that they merge.
        base: lends the small files and the order of tensors.
        inputs: all checkpoints, by what they are called.
        dtype: to write; None is the base's own.
        config: keys of `config.json` that change.
        record: what the merge is, for `merge.json`.
        notes: what is worth knowing.
        order: names in the order in which they are to lie; by default the base's.
    """

    work: list[tuple[Merge, list[Group]]]
    base: Checkpoint
    inputs: Mapping[str, Checkpoint]
    dtype: torch.dtype | None = None
    config: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    order: list[str] = field(default_factory=list)

    def groups(self) -> list[Group]:
        """All of them."""
        return [group for _, groups in self.work for group in groups]


def carry_out(
    job: Job,
    out: str | Path,
    *,
    shard: int,
    threads: int,
    overwrite: bool,
    resume: bool,
    sync: bool,
    dry_run: bool,
    run: Run,
) -> MergeReport:
    """Do a job; see `merge_checkpoints`."""
    out = Path(out).expanduser()
    _check_place(job, out)
    check_free(out.absolute(), overwrite)
    if shard < 1 or threads < 1:
        raise InputError(f"shards of {shard} bytes and {threads} threads; both must be at least 1")
    report = _expected(job, out, threads)
    if dry_run:
        return report
    place = {name: i for i, name in enumerate(job.order or job.base.tensors)}
    slots = [Slot(g.name, g.dtype, g.shape) for g in job.groups()]
    slots.sort(key=lambda slot: place.get(slot.name, len(place)))
    began = time.perf_counter()
    sink = CheckpointSink(
        out, slots, key=_key(job, slots, shard, run), shard=shard, overwrite=overwrite, resume=resume, sync=sync,
        file="weights.safetensors" if job.base.note else "model.safetensors",
    )  # fmt: skip
    with Watched() as watched:
        try:
            merge_groups(job.work, sink, done=sink.done, threads=threads, run=run)
            sink.publish(_small_files(job, sink))
        except NonFiniteError as error:
            sink.discard()
            raise NonFiniteError(f"nothing was written: {error}") from None
        finally:
            sink.close()
    done = {"seconds": time.perf_counter() - began, "peak": watched.most, "resumed": len(sink.done), "dry": False}
    return MergeReport(**{**vars(report), **done, "tensors": dict(sorted(sink.notes.items()))})


def _check_place(job: Job, out: Path) -> None:
    for called, held in job.inputs.items():
        mine = out.resolve()
        if held.path.resolve() in (mine, mine.parent if out.suffix == ".safetensors" else mine):
            raise InputError(f"{out} is {called}, or within it, which is read; give another place")


def _expected(job: Job, out: Path, threads: int) -> MergeReport:
    groups = job.groups()
    copied = [g for method, groups in job.work if isinstance(method, Copy) for g in groups]
    merging = [(method, part) for method, part in job.work if not isinstance(method, Copy) and part]
    methods = Counter[str]()
    for method, part in merging:
        methods[short_text(method)] += len(part)
    return MergeReport(
        out=out, methods=dict(methods.most_common()), merged=len(groups) - len(copied), copied=len(copied),
        numbers=sum(g.count for g in groups),
        read=sum(_read(m, g) for m, part in job.work for g in part),
        written=sum(g.count * g.dtype.itemsize for g in groups),
        memory=max((_held(method, part, threads) for method, part in merging), default=0),
        notes=tuple(job.notes), dry=True,
    )  # fmt: skip


def _read(method: Merge, group: Group) -> int:
    donors = sum(held[name].element_size() for held, name in group.donors)
    base = group.base[0][group.base[1]].element_size() if method.reads_base else 0
    return group.count * (base + donors) * (2 if method.looks_first() else 1)


def _held(method: Merge, groups: Sequence[Group], threads: int) -> int:
    """Bytes that merging holds at a time: some copies of a block in each thread, and what a selection draws."""
    largest = max(groups, key=lambda group: group.count)
    copies = (len(largest.donors) + 8) * largest.wide.itemsize
    if method.grain_of(largest.shape) == "tensor":
        return largest.count * copies
    step = BLOCK if method.grain_of(largest.shape) == "element" else max(BLOCK, largest.count // largest.shape[0])
    return step * copies * threads + (_drawn(method, groups, largest, threads) if method.looks_first() else 0)


def _drawn(method: Merge, groups: Sequence[Group], largest: Group, threads: int) -> int:
    """Bytes that selections hold: the sizes of tensors that have few, of others a sample and what lies near the cut."""
    model = getattr(method, "scope", "") == "model"
    count, at_once = (sum(group.count for group in groups), 1) if model else (largest.count, threads)
    held = 0 if model and count > HELD else 3 * min(count, HELD) * largest.wide.itemsize
    drawn = min(max(SAMPLE, count // 256), 1 << 20) * 8 * len(largest.donors) + min(count // 50, ROOM) * 16
    return max(held, drawn if count > HELD else 0) * at_once


def _key(job: Job, slots: Sequence[Slot], shard: int, run: Run) -> str:
    """Of all that the result follows from."""
    version = (FORMAT, importlib.metadata.version("homeostat"), str(torch.__version__))
    work = [
        (method.to_config(), method.revision, [_names(g, job.inputs) for g in groups]) for method, groups in job.work
    ]
    files = {called: held.state() for called, held in job.inputs.items()}
    laid = [(slot.name, str(slot.dtype), slot.shape) for slot in slots]
    return digest(version, work, files, laid, shard, run.seed)


def _names(group: Group, inputs: Mapping[str, Checkpoint]) -> list[Any]:
    called = {id(held.tensors): name for name, held in inputs.items()}
    return [group.name, [[called[id(held)], name] for held, name in (group.base, *group.donors)]]


def _small_files(job: Job, sink: CheckpointSink) -> dict[str, bytes | Path]:
    """What lies beside the tensors: the base's small files, its configuration as it now is, and what was merged."""
    folder = job.base.folder
    if folder is None or sink.single:
        return {}
    found: dict[str, bytes | Path] = {
        path.name: path for path in sorted(folder.iterdir())
        if path.is_file() and (path.suffix in SMALL or path.name.startswith(("LICENSE", "NOTICE")))
        and path.name not in NOT_COPIED and not path.name.endswith(".index.json")
        and path.stat().st_size <= LARGEST
    }  # fmt: skip
    if job.base.config:
        found["config.json"] = (json.dumps(_config(job), indent=2) + "\n").encode()
    if job.base.note:
        if (carry := folder / "carry.safetensors").is_file():
            found[carry.name] = carry
        found["model.json"] = json.dumps({**job.base.note, "hash": _hash(job, sink)}, indent=1).encode()
    found[RECORD] = (json.dumps(job.record, indent=1) + "\n").encode()
    return found


def _config(job: Job) -> dict[str, Any]:
    made = {**job.base.config, **job.config}
    if job.dtype is not None:
        written = str(job.dtype).removeprefix("torch.")
        for part in (made, *(v for v in made.values() if isinstance(v, dict))):
            for key in ("torch_dtype", "dtype"):
                if key in part:
                    part[key] = written
        if not {"torch_dtype", "dtype"} & made.keys():
            made["torch_dtype"] = written
    return made


def _hash(job: Job, sink: CheckpointSink) -> str:
    """What names the checkpoint among those of `hs.save`: its recipe, weights and state."""
    tensors = dict(sink.made())
    if job.base.folder and (carry := job.base.folder / "carry.safetensors").is_file():
        tensors |= dict(Mapped(carry))
    tensors |= {name: tensors[other] for name, other in job.base.note["tied"].items()}
    state = {name: tensor for name, tensor in tensors.items() if is_carry(name)}
    weights = {name: tensor for name, tensor in tensors.items() if not is_carry(name)}
    return digest(job.base.note["recipe"], hash_tensors(weights), hash_tensors(state))
