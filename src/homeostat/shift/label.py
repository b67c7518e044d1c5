"""Shifts of labels and of order: another class balance, and streams in which neighbours are of one class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from homeostat.core.data import UNKNOWN, Data
from homeostat.core.errors import InputError, MissingPart
from homeostat.core.method import Card, Shift
from homeostat.core.run import Run
from homeostat.core.spec import Count, Index, NonNegative, Positive


@dataclass(frozen=True)
class LabelShift(Shift):
    """Another class balance: samples are drawn so that classes come in the given shares; inputs of a class stay.

    Attributes:
        prior: a share for each class, 0 or more, in any unit; when empty, the shares of the classes that occur are
            drawn from a Dirichlet distribution.
        concentration: of that distribution; small is far from balance.
        size: samples drawn, with replacement where a class has too few; 0 takes as many as there are without any.

    >>> data = LabelShift(prior=(3.0, 1.0))((torch.zeros(40, 1), torch.arange(40) % 2))
    >>> data.load().y.bincount().tolist()
    [20, 6]
    """

    prior: tuple[NonNegative, ...] = ()
    concentration: Positive = 1.0
    size: Index = 0

    card: ClassVar[Card] = Card(handles=frozenset({"label"}))

    def apply(self, data: Data, model: nn.Module | None, run: Run) -> Data:
        rows = _by_class(data, "LabelShift")
        rows += [rows[0][:0]] * (len(self.prior) - len(rows))
        counts = torch.tensor([len(row) for row in rows], dtype=torch.float64)
        prior = self._shares(counts, run)
        absent = torch.nonzero((prior > 0) & (counts == 0)).flatten().tolist()
        if absent:
            raise InputError(f"the prior has shares for classes {absent}, of which there are no samples; set them to 0")
        # A whole number may come out of the division a rounding error too small.
        size = self.size or int((counts[prior > 0] / prior[prior > 0]).min() + 1e-6)
        wanted = _whole(prior * size)
        generator, chosen = run.rng("label-shift"), list[Tensor]()
        for row, count in zip(rows, wanted.tolist(), strict=True):
            turns = -(-count // max(1, len(row)))
            order = [row[torch.randperm(len(row), generator=generator)] for _ in range(turns)]
            chosen += [torch.cat(order)[:count]] if order else []
        picked = torch.cat(chosen)
        return data[picked[torch.randperm(len(picked), generator=generator)]]

    def _shares(self, counts: Tensor, run: Run) -> Tensor:
        if not self.prior:
            drawn, present = torch.zeros_like(counts), counts > 0
            drawn[present] = _dirichlet(self.concentration, int(present.sum()), run.rng("label-prior"))
            return drawn
        if len(self.prior) < len(counts):
            raise InputError(
                f"the prior has {len(self.prior)} shares, and the data have classes up to {len(counts) - 1}; "
                f"give {len(counts)} shares, 0 for classes to leave out"
            )
        shares = torch.tensor(self.prior, dtype=torch.float64)
        total = float(shares.sum())
        if not 0 < total < math.inf:
            raise InputError(f"the prior's shares add up to {total:g}; give finite ones, at least one above 0")
        return shares / total


@dataclass(frozen=True)
class CorrelatedOrder(Shift):
    """The same samples in an order in which neighbours tend to be of one class.

    Each class spreads its samples over `slots` parts of the stream in shares drawn from a Dirichlet distribution; the
    parts follow each other, mixed within. Small concentrations give nearly sorted streams, large ones a shuffle.

    Attributes:
        concentration: of the Dirichlet distribution; 0 sorts by class.
        slots: parts of the stream.

    Reference: Gong et al., NOTE, NeurIPS 2022; Boudiaf et al., LAME, CVPR 2022 (concentration 0.1).
    """

    concentration: NonNegative = 0.1
    slots: Count = 10

    card: ClassVar[Card] = Card(handles=frozenset({"correlated"}))

    def apply(self, data: Data, model: nn.Module | None, run: Run) -> Data:
        rows, generator = _by_class(data, "CorrelatedOrder"), run.rng("order")
        if self.concentration == 0:
            return data[torch.cat([row[torch.randperm(len(row), generator=generator)] for row in rows])]
        slots: list[list[Tensor]] = [[] for _ in range(self.slots)]
        for row in rows:
            shares = _dirichlet(self.concentration, self.slots, generator)
            edges = (shares.cumsum(0) * len(row)).round().long().clamp(max=len(row)).tolist()
            mixed, low = row[torch.randperm(len(row), generator=generator)], 0
            for slot, high in zip(slots, [*edges[:-1], len(row)], strict=True):
                slot.append(mixed[low:high])
                low = high
        parts = [torch.cat(slot) for slot in slots]
        return data[torch.cat([part[torch.randperm(len(part), generator=generator)] for part in parts])]


def _by_class(data: Data, who: str) -> list[Tensor]:
    """Positions of each class's samples."""
    if not data.has_labels():
        raise MissingPart(f"{who} arranges samples by their labels, and these data have none")
    y = data.all_labels().cpu()
    if y.ndim != 1 or y.is_floating_point():
        raise InputError(f"{who} wants one integer label a sample; got {y.dtype} {tuple(y.shape)}")
    if bool((y == UNKNOWN).any()):
        raise InputError(f"{who} cannot place samples whose label is unknown ({UNKNOWN})")
    if int(y.min()) < 0:
        raise InputError(f"{who} wants labels from 0 on; got {int(y.min())}")
    return [torch.nonzero(y == k).flatten() for k in range(int(y.max()) + 1)]


def _dirichlet(concentration: float, count: int, generator: torch.Generator) -> Tensor:
    """Shares of `count` parts, float64, drawn from a symmetric Dirichlet distribution."""
    # Gamma variables of a small shape a underflow, which would make all shares equal. Gamma(a) is distributed like
    # Gamma(a + 1) U^(1/a), whose logarithm is safe.
    a = min(concentration, 1e300)
    gamma = torch._standard_gamma(torch.full((count,), a + 1, dtype=torch.float64), generator=generator)
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    return (gamma.log() + uniform.log() / a).softmax(0)


def _whole(wanted: Tensor) -> Tensor:
    """Whole numbers near the wanted ones with the same rounded sum (largest remainders; of equal ones the first)."""
    low = wanted.floor()
    missing = int(wanted.sum().round() - low.sum())
    low[(wanted - low).argsort(descending=True, stable=True)[:missing]] += 1
    return low.long()
