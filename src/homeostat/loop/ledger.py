"""Predictions that wait for their labels, which may come at once, late, in part, or never.

For each sample of the last windows the predicted classes of the frozen network, of what was served, and of the
candidates that ran in shadow are kept, so that a label that comes later judges what was said then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from homeostat.core.data import UNKNOWN
from homeostat.core.online import Bag

_ID, _STEP, _LABEL, _FROZEN, _SERVED, _TRIED = range(6)
_NONE = -1
_TENSORS = ("id", "step", "label", "frozen", "served", "tried")


@dataclass(frozen=True)
class Arrived:
    """Samples whose labels came.

    Attributes:
        id: of the samples.
        step: int64 `[samples]`, the windows in which they were served.
        label: their labels.
        frozen, served: boolean, whether the frozen network and what was served were right.
        tried: int64 `[samples, candidates]`, 1 where a candidate of the trial under way was right, 0 where it was not,
            -1 where it did not answer.
        lost: how many labels came for samples that nothing is kept of.
    """

    id: Tensor
    step: Tensor
    label: Tensor
    frozen: Tensor
    served: Tensor
    tried: Tensor
    lost: int = 0

    def __len__(self) -> int:
        return len(self.step)

    def __add__(self, other: Arrived) -> Arrived:
        joined = (torch.cat([getattr(self, k), getattr(other, k)]) for k in _TENSORS)
        return Arrived(*joined, lost=self.lost + other.lost)


class Ledger:
    """The predictions, as one int64 tensor `ledger` in a bag that is saved with the loop's state.

    Args:
        bag: where the tensor is, or will be.
        width: most candidates at once.
    """

    def __init__(self, bag: Bag, width: int):
        self.bag, self.width = bag, width
        if "ledger" not in bag:
            bag["ledger"] = torch.empty(0, _TRIED + width, dtype=torch.int64)

    @property
    def rows(self) -> Tensor:
        """`[samples, columns]`, oldest first."""
        return self.bag["ledger"]

    def add(self, step: int, ids: Tensor, frozen: Tensor, served: Tensor, tried: Sequence[Tensor | None]) -> None:
        """Note what was predicted for a window; logits `[window, classes]`, None for a candidate that gave none."""
        made = torch.full((len(ids), _TRIED + self.width), _NONE)
        made[:, _ID], made[:, _STEP], made[:, _LABEL] = ids, step, UNKNOWN
        made[:, _FROZEN], made[:, _SERVED] = frozen.argmax(-1), served.argmax(-1)
        for column, logits in enumerate(tried):
            if logits is not None:
                made[:, _TRIED + column] = logits.argmax(-1)
        self.bag["ledger"] = torch.cat([self.rows, made])

    def settle(self, labels: Tensor, ids: Tensor | None = None, step: int | None = None) -> Arrived:
        """Judge samples by their labels, each once.

        Args:
            labels: `[samples]`; unknown ones are passed over.
            ids: of the samples; None when the labels are those of the newest window, in order.
            step: the window in which they were served; None takes the newest unjudged sample of an id.
        """
        rows = self.rows
        if bool((labels == UNKNOWN).all()):
            none = torch.empty(0, dtype=torch.int64)
            return Arrived(none, none, none, none.bool(), none.bool(), none.view(0, 1).expand(0, self.width))
        if ids is None:
            places = torch.arange(len(rows) - len(labels), len(rows))
        else:
            open_ = rows[:, _LABEL] == UNKNOWN
            open_ &= True if step is None else rows[:, _STEP] == step
            positions = torch.nonzero(open_).flatten()
            # Later samples of an id overwrite earlier ones.
            newest = dict(zip(rows[positions, _ID].tolist(), positions.tolist(), strict=True))
            places = torch.tensor([newest.pop(number, _NONE) for number in ids.tolist()], dtype=torch.int64)
        usable = (labels != UNKNOWN) & (places >= 0)
        lost = int(((labels != UNKNOWN) & (places < 0)).sum())
        places, labels = places[usable], labels[usable]
        rows[places, _LABEL] = labels
        found, label = rows[places], labels[:, None]
        tried = torch.where(found[:, _TRIED:] >= 0, (found[:, _TRIED:] == label).long(), _NONE)
        frozen, served = found[:, _FROZEN] == labels, found[:, _SERVED] == labels
        return Arrived(found[:, _ID], found[:, _STEP], labels, frozen, served, tried, lost)

    def wrong(self, since: int) -> Tensor:
        """Boolean `[labels]`: where the frozen network erred, of samples served from a window on whose label came."""
        rows = self.rows[(self.rows[:, _STEP] >= since) & (self.rows[:, _LABEL] != UNKNOWN)]
        return rows[:, _FROZEN] != rows[:, _LABEL]

    def begin_trial(self) -> None:
        """Forget what earlier candidates said: evidence is about those of the trial that begins."""
        self.rows[:, _TRIED:] = _NONE

    def forget(self, before: int) -> None:
        """Drop what was served before a window."""
        if len(self.rows) and int(self.rows[0, _STEP]) < before:
            self.bag["ledger"] = self.rows[self.rows[:, _STEP] >= before].clone()
