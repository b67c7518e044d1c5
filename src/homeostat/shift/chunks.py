"""Streams in chunks of equal length that hold a few classes each, class after class.

The order that TTAB uses for neighbours of one class. Let N samples of K classes go to C chunks (default C = K), sizes
n_1 .. n_C, at first 0. For each class k = 1 .. K with N_k samples, in this order:

    p ~ Dirichlet(concentration, .., concentration)   [C]
    p_j <- p_j (n_j < N / C),   p <- p / sum p            chunks that have their share get nothing more
    chunk j gets samples floor(N_k sum_{i < j} p_i) .. floor(N_k sum_{i <= j} p_i) of the class, shuffled

All is drawn again until each chunk holds `least` samples. Within a chunk, classes come one after another in random
order. `CorrelatedOrder` has slots of any length and mixes what is within them: at the same concentration neighbours
are far more alike here, as a chunk is cut into blocks.

>>> import torch
>>> y = torch.arange(400) % 4
>>> seen = ChunkedOrder(0.1)((torch.zeros(400, 1), y)).load().y
>>> bool(((seen[1:] == seen[:-1]).float().mean() > 0.95)), torch.bincount(seen).tolist()
(True, [100, 100, 100, 100])

Reference: Zhao et al., On Pitfalls of Test-Time Adaptation, ICML 2023 (the code's `class_wise_over_domain`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from homeostat.core.data import Data
from homeostat.core.errors import InputError
from homeostat.core.method import Card, Shift
from homeostat.core.run import Run
from homeostat.core.spec import Index, Positive
from homeostat.shift.label import _by_class, _dirichlet

_TURNS = 1000


@dataclass(frozen=True)
class ChunkedOrder(Shift):
    """The same samples in chunks of about equal length, each of few classes, one class after another.

    Attributes:
        concentration: of the Dirichlet distribution; smaller leaves fewer classes to a chunk.
        chunks: how many; 0 takes as many as classes occur.
        least: samples of a chunk; shares are drawn again until all chunks have them.
    """

    concentration: Positive = 0.1
    chunks: Index = 0
    least: Index = 5

    card: ClassVar[Card] = Card(
        paper="Zhao et al., On Pitfalls of Test-Time Adaptation, ICML 2023", handles=frozenset({"correlated"})
    )

    def apply(self, data: Data, model: nn.Module | None, run: Run) -> Data:
        rows, generator = [row for row in _by_class(data, "ChunkedOrder") if len(row)], run.rng("chunks")
        count = self.chunks or len(rows)
        if count * self.least > len(data):
            raise InputError(
                f"{count} chunks of {self.least} samples or more need {count * self.least}; there are {len(data)}. "
                "Give more samples, fewer chunks, or a smaller `least`"
            )
        rows = [row[torch.randperm(len(row), generator=generator)] for row in rows]
        pieces, order = self._cut(rows, count, generator), list[Tensor]()
        for chunk in range(count):
            order += [pieces[k][chunk] for k in torch.randperm(len(rows), generator=generator).tolist()]
        return data[torch.cat(order)]

    def _cut(self, rows: list[Tensor], count: int, generator: torch.Generator) -> list[list[Tensor]]:
        """What each chunk gets of each class."""
        share = sum(map(len, rows)) / count
        for _ in range(_TURNS):
            sizes, pieces = torch.zeros(count, dtype=torch.int64), list[list[Tensor]]()
            for row in rows:
                shares = _dirichlet(self.concentration, count, generator) * (sizes < share)
                # A tiny concentration may leave nothing for the chunks that are open.
                if not float(shares.sum()) > 0:
                    break
                edges = ((shares / shares.sum()).cumsum(0) * len(row)).long()[:-1]
                pieces.append(list(row.tensor_split(edges)))
                sizes += torch.tensor([len(piece) for piece in pieces[-1]])
            else:
                if int(sizes.min()) >= self.least:
                    return pieces
        raise InputError(
            f"in {_TURNS} draws with concentration {self.concentration:g} no {count} chunks had {self.least} samples "
            "each; raise the concentration, or lower `chunks` or `least`"
        )
