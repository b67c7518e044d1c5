"""SlidingWindow: adapt on streams that come one sample, or a few, at a time.

Methods that look at a batch have nothing to look at when samples come one by one. This wrapper keeps the last `size`
samples in a ring. A sample is put where the oldest one lies and answered together with all that is in the ring, so that
BatchNorm's statistics are the ring's; and when the place behind the ring's last is reached, when all of it is new, the
method inside sees the ring as one batch and learns from it, once. At place t of a stream:

    ring[t mod size] <- x_t
    answer = observe(ring)[t mod size]   if t mod size = size - 1        the method answers, then learns
    answer = forward(ring)[t mod size]   otherwise                       nothing is learnt

so that a stream of batches of `size` is served exactly as the method serves it by itself, and every sample is learnt
from once. Before the ring has filled, what is there is the context: the first sample has no other. Samples that come
together are put in together, as many as fit before the ring turns, and answered together, which saves passes and lets
each see those that came with it. `forward` answers in the same way, from the ring as it is, and keeps nothing.

The ring keeps inputs, class labels (where some were shown) and ids; `meta` is left behind. A sample costs a pass over
`size` samples, and once in `size` a step besides. Default 64; the peer benchmark takes the size of its batches.

It is no cure for order: while a stream is sorted by class, so is the ring, and the statistics of one class mislead as
they do in batches. And an answer never sees what was learnt from its own ring.

>>> import torch
>>> net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)).eval()
>>> tent, x = SlidingWindow(Tent(), size=4)(net), torch.randn(8, 2)
>>> answers = [tent.observe(one) for one in x.split(1)]
>>> bool((tent.model.model[1].weight == net[1].weight).all())  # learnt twice
False

Reference: Marsden, Döbler, Yang, Universal test-time adaptation through weight ensembling, diversity weighting, and
prior correction, WACV 2024, whose code answers single samples so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from homeostat.adapt.tent import Tent
from homeostat.adapt.wrapped import Wrapped, Wrapper
from homeostat.core.data import UNKNOWN, Batch
from homeostat.core.errors import InputError
from homeostat.core.method import Card, Remedy
from homeostat.core.run import Run
from homeostat.core.spec import Count
from homeostat.core.tree import Tree, cat, map_tree, named_leaves
from homeostat.core.world import World


class WindowedOnline(Wrapped):
    """An adapting network that meets single samples in a ring of the last ones.

    Args:
        model: the adapting network.
        size: of the ring.
    """

    def __init__(self, model: nn.Module, size: int = 64):
        self.size = size
        super().__init__(model)

    def begin(self) -> None:
        self.carry["place"] = torch.tensor(0)

    def forward(self, x: Tree) -> Tree:
        """Answers in the ring as it is; nothing is kept or learnt."""
        return self._served(Batch(x), learn=False)

    def adapt(self, batch: Batch) -> Tree:
        return self._served(batch, learn=True)

    def _served(self, batch: Batch, learn: bool) -> Tree:
        place, rows, answers = int(self.carry["place"]), self.carry.under("ring"), []
        while len(batch):
            part, batch = batch[: self.size - place], batch[self.size - place :]
            rows, ring = _put(part, rows, place)
            start, place = place, (place + len(part)) % self.size
            if learn and place == 0:
                out = self.model.observe(ring)
            else:
                with torch.no_grad():
                    out = self.model(ring.x)
            answers.append(map_tree(lambda t, start=start, count=len(part): t[start : start + count], out))
            if learn:
                self.carry["place"] = torch.tensor(place)
                self.carry.put("ring", rows)
        return cat(answers)


def _put(part: Batch, rows: dict[str, Tensor], place: int) -> tuple[dict[str, Tensor], Batch]:
    """The rows with some samples put in from a place on, and the ring that they make."""
    end, made = place + len(part), dict[str, Tensor]()
    new = dict(named_leaves(part.x, "x")) | {"id": part.id, "label": _labels(part)}
    if rows and new.keys() != rows.keys():
        raise InputError(f"the ring holds inputs {', '.join(sorted(rows))}; these are {', '.join(sorted(new))}")
    for name, tensor in new.items():
        old = rows.get(name, tensor[:0])
        if old.shape[1:] != tensor.shape[1:] or old.dtype != tensor.dtype:
            raise InputError(
                f"the ring holds samples of {old.dtype} {tuple(old.shape[1:])}; these are {tensor.dtype} "
                f"{tuple(tensor.shape[1:])}. Samples of a stream have one shape and type"
            )
        made[name] = torch.cat([old[:place], tensor, old[end:]])
    names = iter(new)
    x = map_tree(lambda _: made[next(names)], part.x)
    known = bool((made["label"] != UNKNOWN).any())
    return made, Batch(x, made["label"] if known else None, made["id"])


def _labels(part: Batch) -> Tensor:
    if part.y is None:
        return torch.full_like(part.id, UNKNOWN)
    if not isinstance(part.y, Tensor) or part.y.ndim != 1 or part.y.is_floating_point():
        raise InputError("a ring keeps class labels, one whole number a sample; leave other targets out of the stream")
    return part.y.to(part.id)


@dataclass(frozen=True)
class SlidingWindow(Wrapper):
    """Another remedy, on a ring of the last `size` samples.

    Attributes:
        remedy: a method that adapts while it serves.
        size: of the ring; the method learns once every so many samples.
    """

    remedy: Remedy = Tent()
    size: Count = 64

    card: ClassVar[Card] = Card(
        paper="Marsden et al., Universal Test-Time Adaptation, WACV 2024",
        handles=frozenset({"covariate"}),
        passes=66.0,
        batch_coupled=True,
    )

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return WindowedOnline(self.remedy.apply(model, world, kit, run), self.size)
