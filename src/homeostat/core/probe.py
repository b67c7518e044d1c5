"""Probes, and the one forward pass they share.

>>> import torch
>>> from torch import nn
>>> seen = outputs(nn.Linear(2, 3), World(target=(torch.zeros(5, 2), torch.zeros(5, dtype=torch.long))).target)
>>> seen.out.shape, seen.y.shape
(torch.Size([5, 3]), torch.Size([5]))
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from homeostat.core.data import Batch, Data, check_finite, revealed
from homeostat.core.errors import InputError, MissingPart
from homeostat.core.fork import fork, unwrap
from homeostat.core.intake import as_data
from homeostat.core.method import Method
from homeostat.core.online import Online
from homeostat.core.reading import Reading, Readings
from homeostat.core.run import Run
from homeostat.core.taps import tapped
from homeostat.core.task import Classify, Task
from homeostat.core.tree import Tree, cat, map_tree
from homeostat.core.world import World


@dataclass(frozen=True)
class Outputs:
    """What one pass of a model over data gave; probes read from it.

    Attributes:
        out: the model's outputs, a tree with the sample first; None for probes without a model.
        y: labels, if the data have them.
        id: int64 `[samples]`.
        x: inputs, kept only when a probe reads them.
        features: `[samples, features]`, what goes into the last linear layer; kept only when a probe reads them.
        meta: the data's further per-sample tensors.
        task: what `out` and `y` mean.
    """

    out: Tree | None
    y: Tree | None
    id: Tensor
    x: Tree | None = None
    features: Tensor | None = None
    meta: Mapping[str, Tensor] | None = None
    task: Task = Classify()

    def __len__(self) -> int:
        return len(self.id)

    @property
    def logits(self) -> Tensor:
        """`out` of a classifier, `[samples, classes]`; an error says when there is none."""
        if not isinstance(self.out, Tensor):
            raise InputError("this probe reads logits, and there are none; give a model with one tensor of outputs")
        return self.out

    @property
    def labels(self) -> Tensor:
        """`y` as one tensor; an error says when there is none."""
        if not isinstance(self.y, Tensor):
            raise MissingPart("this probe reads labels, and these data have none: give World(held=(x, y)) or (x, y)")
        return self.y

    def labelled(self) -> Outputs:
        """The samples whose label is known.

        Raises:
            MissingPart: there are no labels, or none is known.
        """
        if self.y is None:
            raise MissingPart("this probe reads labels, and these data have none: give World(held=(x, y)) or (x, y)")
        known = self.task.known(self.y)
        if not bool(known.any()):
            raise MissingPart("this probe reads labels, and none of these is known")
        return self if bool(known.all()) else self[known]

    def __getitem__(self, index: Any) -> Outputs:
        def pick(tree: Tree | None) -> Any:
            return None if tree is None else map_tree(lambda t: t[index], tree)

        meta = None if self.meta is None else {k: v[index] for k, v in self.meta.items()}
        return Outputs(pick(self.out), pick(self.y), self.id[index], pick(self.x), pick(self.features), meta, self.task)


class Probe(Method, abstract=True):
    """`(model, world) -> Reading`. Measures from shared `Outputs`; never changes a model.

    Attributes:
        reads: what it reads from `Outputs`: `"out"`, `"y"`, `"x"`, `"features"`. A probe that does not read `"out"` or
            `"features"` needs no model.
        permutable: whether the reading stays the same when samples are permuted.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"out"})
    permutable: ClassVar[bool] = True

    def __call__(
        self,
        model: nn.Module | None,
        world: World | Any,
        *,
        kit: nn.Module | None = None,
        run: Run = Run(),
    ) -> Reading:
        """Measure a model (or None, for probes of data alone) on a world's held data, else its target."""
        kits: dict[Probe, nn.Module] = {} if kit is None else {self: kit}
        return read([self], model, world, kits=kits, run=run)[0]

    @abstractmethod
    def measure(self, outputs: Outputs, world: World, kit: Any, run: Run) -> Reading:
        """The reading; `outputs` has at least what `reads` names."""


def read(
    probes: Sequence[Probe],
    model: nn.Module | None,
    world: World | Any,
    *,
    kits: Mapping[Probe, nn.Module] | None = None,
    batch: int = 256,
    run: Run = Run(),
) -> Readings:
    """Measure several probes with one forward pass.

    Args:
        probes: what to measure.
        model: the network, or None when no probe reads outputs; it does not change.
        world: a World (its held data are judged, else its target) or data.
        kits: prepared kits by probe; missing ones are prepared.
        batch: samples per forward pass.

    Returns:
        A reading per probe, in order.

    Raises:
        MissingPart: labels, a model or a part of the world is missing.
    """
    world = world if isinstance(world, World) else World(held=world)
    data = world.held if world.held is not None else world.target
    if data is None:
        raise MissingPart("there are no data to measure on: give World(held=...) or World(target=...)")
    reads = frozenset().union(*(probe.reads for probe in probes))
    if model is None and reads & {"out", "features"}:
        names = [type(p).__name__ for p in probes if p.reads & {"out", "features"}]
        raise MissingPart(f"{', '.join(names)} read a model's outputs; give a model")
    seen = outputs(model, data, reads, task=world.task, batch=batch)
    return measure(probes, seen, model, world, kits=kits, run=run)


def measure(
    probes: Sequence[Probe],
    seen: Outputs,
    model: nn.Module | None,
    world: World,
    *,
    kits: Mapping[Probe, nn.Module] | None = None,
    run: Run = Run(),
) -> Readings:
    """Measure several probes from outputs that are already there."""
    readings = Readings()
    for probe in probes:
        kit = (kits or {}).get(probe)
        kit = probe.kit(model, world, run=run) if kit is None else kit
        readings.append(probe.measure(seen, probe.door(model, world, probe.needs()), kit, run))
    return readings


def outputs(
    model: nn.Module | None,
    data: Data | Any,
    reads: Iterable[str] = ("out",),
    *,
    task: Task = Classify(),
    batch: int = 256,
    layer: str | None = None,
) -> Outputs:
    """One pure pass of a model over data, in evaluation mode and without gradients.

    Args:
        model: the network; it does not change, not even its `train()` flag.
        data: `Data` or what `as_data` takes.
        reads: also keep `"x"` and `"features"`.
        layer: name of the layer whose input is kept as features; default the last linear layer.
    """
    reads = frozenset(reads)
    net = None if model is None else fork(unwrap(model)).eval()
    rows = []
    with torch.no_grad():
        for piece in as_data(data).batches(batch):
            rows.append(_row(net, piece, reads, layer, task, net))
    return stacked(rows, task)


def prequential(
    model: nn.Module,
    data: Data | Any,
    reads: Iterable[str] = ("out",),
    *,
    task: Task = Classify(),
    batch: int = 256,
    labels: bool | int = False,
    run: Run = Run(),
) -> Outputs:
    """Predict-then-adapt over data in order, on a copy: each sample is scored once, before it is learnt from.

    Args:
        model: an `Online` adapts on a copy of itself; any other model only predicts.
        labels: whether `observe` may see the labels; a number shows so many of each batch, drawn at random.
        run: seed of that draw.
    """
    reads, net = frozenset(reads), unwrap(model)
    if not isinstance(net, Online):
        return outputs(net, data, reads, task=task, batch=batch)
    net = fork(net, own="*")
    rows = []
    for step, piece in enumerate(as_data(data).batches(batch)):
        shown = piece if labels is True else piece.replace(y=None)
        if labels and labels is not True and piece.y is not None:
            shown = piece.replace(y=revealed(piece.labels, labels, run.rng("labels", step)))
        rows.append(_row(lambda _, shown=shown: net.observe(shown), piece, reads, None, task, net))
    return stacked(rows, task)


def _row(
    call: Any, piece: Batch, reads: frozenset[str], layer: str | None, task: Task, net: nn.Module | None
) -> Outputs:
    check_finite(piece.x, "x")
    out = features = None
    if call is not None and net is not None:
        device = next((p.device for p in net.parameters()), None)
        piece = piece.to(device)
        if "features" in reads:
            out, features = tapped(call, piece.x, net, layer)
        else:
            out = call(piece.x)
        task.check(out, piece.y)
    return Outputs(out, piece.y, piece.id, piece.x if "x" in reads else None, features, piece.meta, task)


def stacked(rows: Sequence[Outputs], task: Task) -> Outputs:
    """Outputs of several batches as one.

    Raises:
        InputError: there are none.
    """
    if not rows:
        raise InputError("the data are empty; at least one sample is needed")
    if len(rows) == 1:
        return rows[0]

    def joined(name: str) -> Any:
        parts = [getattr(row, name) for row in rows]
        return None if parts[0] is None else cat(parts)

    return Outputs(joined("out"), joined("y"), joined("id"), joined("x"), joined("features"), joined("meta"), task)
