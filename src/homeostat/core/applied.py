"""Applying a remedy and saying what it changed: tensors, numbers, accuracy before and after.

>>> import torch
>>> from homeostat.core.method import Chain
>>> made = applied(Chain(), nn.Linear(2, 2), World(target=(torch.zeros(5, 2), torch.zeros(5, dtype=torch.long))))
>>> made.changed, made.samples, made.before == made.after
((), 5, True)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.core.data import Data
from homeostat.core.errors import InputError
from homeostat.core.fork import fork, unwrap
from homeostat.core.method import Remedy
from homeostat.core.online import Online
from homeostat.core.place import device_of
from homeostat.core.run import Run
from homeostat.core.tree import Tree
from homeostat.core.weights import carried, weights
from homeostat.core.world import World


@dataclass(frozen=True)
class Applied:
    """A model after a remedy, and what became of it.

    Attributes:
        model: the result, in evaluation mode.
        changed: names of the tensors whose numbers changed.
        added: tensors that were not there, state aside.
        moved: tensors that are the old ones under another name, because something was put around them.
        removed: tensors that are not there any more.
        numbers: how many numbers differ or are new; `of` counts those before.
        state: how many numbers the model keeps besides its weights.
        online: whether it goes on adapting while it serves.
        samples: how many samples it was judged on, and how many an online one has observed.
        before, after: shares of right answers on the target, where its labels are known; an online model's are those
            that it gave before it learnt from the sample.
    """

    model: nn.Module
    changed: tuple[str, ...]
    added: tuple[str, ...]
    moved: tuple[str, ...]
    removed: tuple[str, ...]
    numbers: int
    of: int
    state: int
    online: bool
    samples: int
    before: float | None
    after: float | None


def applied(
    remedy: Remedy,
    model: nn.Module,
    world: World,
    *,
    observe: bool = True,
    window: int = 100,
    run: Run = Run(),
) -> Applied:
    """Apply a remedy, let the result see the target, and compare it with what was there.

    Args:
        remedy: the method.
        model: the network; it does not change.
        world: what there is. Labels of the target judge, and are shown to the remedy only if its card asks for them.
        observe: whether a result that adapts while it serves observes the target, in order and without labels.
        window: samples at a time.
        run: seed, device, and a watcher that is told of progress.

    Raises:
        What the remedy's door raises.
    """
    if window < 1:
        raise InputError(f"a window has at least one sample; got {window}")
    model, target = unwrap(model), world.target
    made = unwrap(remedy(model, world, run=run))
    online = isinstance(made, Online)
    before = after = None
    if target is not None:
        steps = 2 * -(-len(target) // window)
        before = _right(fork(model).eval(), target, world, window, run, 0, steps)
        learns = made if online and observe else None
        after = _right(made, target, world, window, run, steps // 2, steps, learns)
    if online:
        made.eval()
    return Applied(
        made, **_compared(model, made), online=online, samples=0 if target is None else len(target), before=before,
        after=after,
    )  # fmt: skip


def _right(
    net: nn.Module, data: Data, world: World, window: int, run: Run, at: int, steps: int, learns: Online | None = None
) -> float | None:
    """Share of right answers where labels are known; with `learns`, each batch is observed as it is answered."""
    device = device_of(net)
    right = known = 0
    for number, piece in enumerate(data.batches(window)):
        batch = piece.to(device)
        if learns is not None:
            out: Tree = learns.observe(batch.replace(y=None))
        else:
            with torch.no_grad():
                out = net(batch.x)
        said = None if batch.y is None else _judged(out, batch.y, world)
        if said is not None:
            right, known = right + said[0], known + said[1]
        run.emit("answer", at + number + 1, steps)
    return right / known if known else None


def _judged(out: Tree, y: Tree, world: World) -> tuple[int, int] | None:
    """How many labels are known and met; None where outputs are no classes."""
    if not isinstance(out, Tensor) or not isinstance(y, Tensor) or y.is_floating_point() or out.ndim != 2:
        return None
    world.task.check(out, y)
    seen = world.task.known(y)
    return int((world.task.predict(out)[seen] == y[seen]).sum()), int(seen.sum())


def _compared(model: nn.Module, made: nn.Module) -> dict[str, Any]:
    old, new = weights(model), weights(made)
    at_memory = {(t.data_ptr(), t.shape, t.stride()): name for name, t in old.items() if t.numel()}
    changed, added, moved, used = [], [], [], set[str]()
    numbers = 0
    for name, tensor in new.items():
        source = at_memory.get((tensor.data_ptr(), tensor.shape, tensor.stride()))
        source = source or _counterpart(name, tensor, old)
        if source is None:
            added.append(name)
            numbers += tensor.numel()
            continue
        used.add(source)
        differs = _differing(old[source], tensor)
        numbers += differs
        if differs:
            changed.append(name)
        elif source != name:
            moved.append(name)
    removed = tuple(name for name in old if name not in used)
    return {
        "changed": tuple(changed), "added": tuple(added), "moved": tuple(moved), "removed": removed, "numbers": numbers,
        "of": sum(t.numel() for t in old.values()), "state": sum(t.numel() for t in carried(made).values()),
    }  # fmt: skip


def _counterpart(name: str, tensor: Tensor, old: dict[str, Tensor]) -> str | None:
    """The tensor that was there under this name, or below the module that was put around it (`model.`)."""
    while True:
        if name in old and old[name].shape == tensor.shape:
            return name
        head, _, name = name.partition(".")
        if not name or head != "model":
            return None


def _differing(a: Tensor, b: Tensor) -> int:
    if a.dtype != b.dtype or a.device != b.device:
        a, b = a.to("cpu", torch.float64), b.to("cpu", torch.float64)
    return int(((a != b) & ~((a != a) & (b != b))).sum())
