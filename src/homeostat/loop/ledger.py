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

_ID, _STEP, _LABEL, _FROZEN, _SERVED, _ANSWERED, _TRIED = range(7)
_NONE = -1
_TENSORS = ("id", "step", "label", "frozen", "served", "answered", "tried")


@dataclass(frozen=True)
class Arrived:
    """Samples whose labels came.

    Attributes:
        id: of the samples.
        step: int64 `[samples]`, the windows in which they were served.
        label: their labels.
        frozen, served: boolean, whether the frozen network and what was served were right.
        answered: boolean, whether the answer was, which the frozen network gives where a window is hedged.
        tried: int64 `[samples, candidates]`, 1 where a candidate of the trial under way was right, 0 where it was not,
            -1 where it did not answer.
        lost: how many labels came for samples that nothing is kept of.
    """

    id: Tensor
    step: Tensor
    label: Tensor
    frozen: Tensor
    served: Tensor
    answered: Tensor
    tried: Tensor
    lost: int = 0

    def __len__(self) -> int:
        return len(self.step)

    def __add__(self, other: Arrived) -> Arrived:
        joined = (torch.cat([getattr(self, k), getattr(other, k)]) for k in _TENSORS)
        return Arrived(*joined, lost=self.lost + other.lost)


class Ledger:
    """The predictions, an int64 tensor `ledger.STEP` a window in a bag that is saved with the loop's state.

    Args:
        bag: where the tensors are, or will be.
        width: most candidates at once.
    """

    def __init__(self, bag: Bag, width: int):
        self.bag, self.width = bag, width

    @property
    def steps(self) -> list[int]:
        """Windows that something is kept of, oldest first."""
        return sorted(int(name.removeprefix("ledger.")) for name in self.bag if name.startswith("ledger."))

    def rows(self, steps: Sequence[int]) -> Tensor:
        """`[samples, columns]` of these windows."""
        empty = torch.empty(0, _TRIED + self.width, dtype=torch.int64)
        return torch.cat([empty, *(self.bag[f"ledger.{step}"] for step in steps)])

    def add(
        self,
        step: int,
        ids: Tensor,
        frozen: Tensor,
        served: Tensor,
        tried: Sequence[Tensor | None],
        answered: Tensor | None = None,
    ) -> None:
        """Note what was predicted for a window; logits `[window, classes]`, None for a candidate that gave none.

        What is served answered, where nothing else is said.
        """
        made = torch.full((len(ids), _TRIED + self.width), _NONE)
        made[:, _ID], made[:, _STEP], made[:, _LABEL] = ids, step, UNKNOWN
        made[:, _FROZEN] = frozen.argmax(-1)
        made[:, _SERVED] = made[:, _FROZEN] if served is frozen else served.argmax(-1)
        made[:, _ANSWERED] = made[:, _SERVED] if answered is None or answered is served else answered.argmax(-1)
        for column, logits in enumerate(tried):
            if logits is not None:
                made[:, _TRIED + column] = logits.argmax(-1)
        self.bag[f"ledger.{step}"] = made

    def settle(self, labels: Tensor, ids: Tensor | None = None, step: int | None = None) -> Arrived:
        """Judge samples by their labels, each once.

        Args:
            labels: `[samples]`; unknown ones are passed over.
            ids: of the samples; None when the labels are those of the newest window, in order.
            step: the window in which they were served; None takes the newest unjudged sample of an id.
        """
        if bool((labels == UNKNOWN).all()):
            none = torch.empty(0, dtype=torch.int64)
            wrong = none.bool()
            return Arrived(none, none, none, wrong, wrong, wrong, none.view(0, 1).expand(0, self.width))
        steps = self.steps if ids is not None else self.steps[-1:]
        rows = self.rows(steps)
        if ids is None:
            places = torch.arange(len(labels))
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
        for kept in steps:
            self.bag[f"ledger.{kept}"] = rows[rows[:, _STEP] == kept]
        found, label = rows[places], labels[:, None]
        tried = torch.where(found[:, _TRIED:] >= 0, (found[:, _TRIED:] == label).long(), _NONE)
        frozen, served, answered = (found[:, column] == labels for column in (_FROZEN, _SERVED, _ANSWERED))
        return Arrived(found[:, _ID], found[:, _STEP], labels, frozen, served, answered, tried, lost)

    def wrong(self, since: int) -> Tensor:
        """Boolean `[labels]`: where the frozen network erred, of samples served from a window on whose label came."""
        rows = self.rows([step for step in self.steps if step >= since])
        rows = rows[rows[:, _LABEL] != UNKNOWN]
        return rows[:, _FROZEN] != rows[:, _LABEL]

    def begin_trial(self) -> None:
        """Forget what earlier candidates said: evidence is about those of the trial that begins."""
        for step in self.steps:
            self.bag[f"ledger.{step}"][:, _TRIED:] = _NONE

    def forget(self, before: int) -> None:
        """Drop what was served before a window."""
        while f"ledger.{(before := before - 1)}" in self.bag:
            del self.bag[f"ledger.{before}"]
