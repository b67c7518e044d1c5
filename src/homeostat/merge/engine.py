"""The engine of all merges: walks tensors, reads them block by block, and writes what a method makes of them."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from homeostat.core.errors import NonFiniteError
from homeostat.core.run import Run
from homeostat.merge.merging import Copy, Group, Merge, check_donors

WHOLE = 1 << 22
"""Elements from which tensors that are wanted whole are merged one at a time."""


COPIED = 1 << 20
"""Elements of a tensor that are copied at a time."""


class Sink(ABC):
    """Where merged tensors go."""

    @abstractmethod
    def write(self, name: str, start: int, values: Tensor) -> None:
        """Elements of a tensor from a place on, flat and in the dtype to write."""

    def finish(self, name: str, note: Mapping[str, Any] | None = None) -> None:
        """All of a tensor is written; `note` is what its method says of it."""
        return


class Held(Sink):
    """Merged tensors in memory.

    Attributes:
        tensors: by name.
    """

    def __init__(self, groups: Sequence[Group]):
        self.tensors = {group.name: torch.empty(group.shape, dtype=group.dtype) for group in groups}

    def write(self, name: str, start: int, values: Tensor) -> None:
        self.tensors[name].view(-1)[start : start + len(values)] = values


def merge_groups(
    work: Sequence[tuple[Merge, Sequence[Group]]],
    sink: Sink,
    *,
    done: Mapping[str, Mapping[str, Any] | None] = MappingProxyType({}),
    threads: int = 2,
    run: Run = Run(),
) -> None:
    """Merge groups into a sink.

    Args:
        work: methods, each with the groups that it merges. What a method surveys are its groups.
        sink: takes the result.
        done: names that are in the sink already, with the notes that came with them.
        threads: tensors at a time.
        run: `watch` hears of "survey", in tensors looked at, and of "merge", in bytes read and written.

    Raises:
        NonFiniteError: tensors hold NaN or infinity, or the merged values do not fit the dtype to write; all of them
            are named, and the sink then holds nothing of use.
    """
    total = sum(_traffic(group) for _, groups in work for group in groups)
    gone, lock, whole = [0], threading.Lock(), threading.Lock()
    wrong = dict[str, list[str]]()

    def one(method: Merge, group: Group, constants: Any) -> None:
        grain = method.grain_of(group.shape)
        if grain == "tensor" and group.count >= WHOLE:
            with whole:
                found = _merge(method, group, grain, constants, None if wrong else sink)
        elif isinstance(method, Copy):
            found = _copy(group, None if wrong else sink)
        else:
            found = _merge(method, group, grain, constants, None if wrong else sink)
        if found:
            wrong[group.name] = found
        group.release()

    def first(method: Merge, group: Group, survey: Any) -> None:
        if group.name not in done:
            one(method, group, method.constants(group, survey))
            if not wrong:
                sink.finish(group.name, method.note(group, survey))
        elif (note := done[group.name]) is not None:
            method.recall(group, survey, note)
        with lock:
            gone[0] += _traffic(group)
            run.emit("merge", gone[0], total, tensor=group.name)

    # Each worker computes on one thread; together they are the threads asked for.
    with ThreadPoolExecutor(max(threads, 1), initializer=torch.set_num_threads, initargs=(1,)) as pool:

        def each(call: Any, groups: Sequence[Group]) -> list[Any]:
            return list(pool.map(torch.no_grad()(call), groups))

        def look(call: Any, groups: Sequence[Group]) -> list[Any]:
            found = []
            for number, made in enumerate(pool.map(torch.no_grad()(call), groups), 1):
                found.append(made)
                run.emit("survey", number, len(groups))
            return found

        for method, groups in work:
            survey = method.survey(groups, look, run)
            each(lambda group, m=method, s=survey: first(m, group, s), groups)
            if not wrong:
                again = list(method.settle(survey))
                list(pool.map(torch.no_grad()(lambda item, m=method: one(m, *item)), again))
    if wrong:
        told = [f"{name} ({', '.join(where)})" for name, where in sorted(wrong.items())]
        raise NonFiniteError(
            f"{len(told)} tensors hold NaN or infinity: {'; '.join(told[:8])}{'; ...' if len(told) > 8 else ''}"
        )


def _traffic(group: Group) -> int:
    """Bytes read and written, as if the inputs were of the output's dtype."""
    return group.count * group.dtype.itemsize * (len(group.donors) + 2)


def _merge(method: Merge, group: Group, grain: Any, constants: Any, sink: Sink | None) -> list[str]:
    """Merge a tensor; where in it are values that are not finite, if any."""
    total = torch.zeros((), dtype=torch.float64)
    for block in group.blocks(grain, base=method.reads_base):
        made = method.combine(block, constants).to(group.dtype)
        # Sums of eight-bit floats are not implemented; those of others are fastest in their own dtype.
        total += made.sum() if made.itemsize > 1 else made.float().sum()
        if sink is not None:
            sink.write(group.name, block.start, made.reshape(-1))
    # A sum that is no number is rare, and tells of large values, too; then we look closely.
    return [] if bool(torch.isfinite(total)) else _not_finite(method, group, grain, constants)


def _copy(group: Group, sink: Sink | None) -> list[str]:
    base, _ = group.read()
    for start in range(0, group.count if sink is not None else 0, COPIED):
        sink.write(group.name, start, base[start : start + COPIED].to(group.dtype))  # type: ignore[union-attr]
    return []


def _not_finite(method: Merge, group: Group, grain: Any, constants: Any) -> list[str]:
    base, donors = group.read()
    names = ["the base", *group.called]
    found = [name for name, t in zip(names, (base, *donors), strict=True) if not _finite(t)]
    if not found and any(
        not _finite(method.combine(block, constants).to(group.dtype))
        for block in group.blocks(grain, base=method.reads_base)
    ):
        return [f"the result does not fit {group.dtype}"]
    return found


def _finite(tensor: Tensor) -> bool:
    return all(bool(torch.isfinite(part).all()) for part in tensor.reshape(-1).split(1 << 20))


def merge_weights(
    method: Merge,
    base: Mapping[str, Tensor],
    donors: Mapping[str, Mapping[str, Tensor]] | Sequence[Mapping[str, Tensor]],
    *,
    run: Run = Run(),
) -> dict[str, Tensor]:
    """Merge tensors in memory.

    Args:
        method: how.
        base: floating tensors by name, all of which are merged.
        donors: mappings that hold the same names in the same shapes, by a name for messages.
        run: its watcher.

    Returns:
        Merged tensors by name, in the base's dtype; computed in float32, in float64 where the base is.

    Raises:
        InputError: there are no donors, or not as many as the method takes. CheckpointError: donors lack tensors, or
        have them in other shapes. NonFiniteError: NaN or infinity in base or donors.
    """
    named = dict(donors) if isinstance(donors, Mapping) else {f"donor {i + 1}": d for i, d in enumerate(donors)}
    check_donors(base, named)
    method.check(len(named))
    called = tuple(named)
    groups = [
        Group(name, (base, name), tuple((held, name) for held in named.values()), t.dtype, tuple(t.shape), called)
        for name, t in base.items()
    ]
    held = Held(groups)
    merge_groups([(method, groups)], held, threads=torch.get_num_threads(), run=run)
    return held.tensors
