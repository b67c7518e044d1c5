"""Loads on the links of a small network, with traffic that is rerouted when a link fails.

Between every two of `nodes` routers flows a demand d_ab(t): a base rate, a daily cycle with a phase of its own and
noise that lasts,

    d_ab(t) = r_ab (1 + a sin(2 pi (t / day + p_ab))) exp(e_ab(t)),    e(t) = 0.9 e(t - 1) + 0.436 noise N(0, 1)

and takes the shortest path over the links that are up (a ring with chords; fewest hops, of equals the path over lower
router numbers). The load of a link is the sum of the demands that cross it. At step `fails` the link `down` fails, its
load is 0 from then on, and its demands go another way: a sudden shift of all links that take them over.

Loads are divided by each link's mean over the first day, which knows nothing of the failure. A sample is a window of
loads `[window, links]`; its target is the next step's, `[links]`, NaN for a link that is down. `meta["time"]` is the
step of the target. Which link fails decides how large the shift is; `shift_of` says it for each.

>>> batch = LinkLoads(steps=60, day=24, fails=50, window=8).read().load()
>>> batch.x.shape, bool(batch.y[:40].isnan().any()), int(batch.y[-1].isnan().sum())
(torch.Size([52, 8, 12]), False, 1)
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import annotated_types as at
import torch
from jaxtyping import Float
from torch import Tensor

from homeostat.core.data import Data, Tensors
from homeostat.core.errors import InputError, SpecError
from homeostat.core.random import generator
from homeostat.core.spec import Count, Fraction, Index, NonNegative
from homeostat.data.reader import Reader

Link = tuple[int, int]


def ring_with_chords(nodes: int) -> tuple[Link, ...]:
    """A ring, and a chord from every second router to the one a third of the ring away."""
    ring = [(i, (i + 1) % nodes) for i in range(nodes)]
    chords = [(i, (i + max(2, nodes // 3)) % nodes) for i in range(0, nodes, 2)]
    return tuple(dict.fromkeys(tuple(sorted(link)) for link in ring + chords))  # type: ignore[arg-type]


def routes(nodes: int, links: Sequence[Link], down: int | None = None) -> Float[Tensor, "pairs links"]:
    """Which links the demand of each ordered pair of routers crosses, over shortest paths that avoid a failed link.

    Args:
        nodes: how many routers.
        links: pairs of routers, both ways.
        down: position of a link that failed.

    Returns:
        1 where a pair's demand crosses a link; pairs in the order (0, 1), (0, 2), ..., (1, 0), ...

    Raises:
        InputError: without the link some routers cannot reach each other.
    """
    near: list[list[Link]] = [[] for _ in range(nodes)]
    for number, (a, b) in enumerate(links):
        if number != down:
            near[a].append((b, number))
            near[b].append((a, number))
    found = torch.zeros(nodes * (nodes - 1), len(links), dtype=torch.float64)
    for start in range(nodes):
        before: dict[int, Link | None] = {start: None}
        waiting = deque([start])
        while waiting:
            here = waiting.popleft()
            for other, number in sorted(near[here]):
                if other not in before:
                    before[other] = (here, number)
                    waiting.append(other)
        if len(before) < nodes:
            raise InputError(f"without link {down} the routers {sorted(set(range(nodes)) - set(before))} are cut off")
        for end in range(nodes):
            step = before[end]
            while step is not None:
                found[start * (nodes - 1) + end - (end > start), step[1]] = 1
                step = before[step[0]]
    return found


@dataclass(frozen=True)
class LinkLoads(Reader):
    """Made-up link loads with a failure; see the module's docstring.

    Attributes:
        nodes: routers.
        steps: of the series.
        day: steps of a day.
        cycle: amplitude of the daily cycle.
        noise: deviation of the lasting noise of each demand.
        fails: step of the failure; None for none.
        down: position of the link that fails.
        window: steps a sample shows.
        seed: of rates, phases and noise.
    """

    nodes: Annotated[int, at.Ge(4)] = 8
    steps: Count = 960
    day: Count = 96
    cycle: Fraction = 0.5
    noise: NonNegative = 0.1
    fails: Index | None = None
    down: Index = 0
    window: Count = 24
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps <= self.window:
            raise SpecError(f"LinkLoads.steps = {self.steps}, but a window of {self.window} needs more")
        if self.fails is not None and self.fails < self.day:
            raise SpecError(f"LinkLoads.fails = {self.fails}, but the first day, {self.day} steps, sets the scale")
        if self.down >= len(self.links()):
            raise SpecError(f"LinkLoads.down = {self.down}, but there are the links 0..{len(self.links()) - 1}")

    def links(self) -> tuple[Link, ...]:
        """The network's links, in the order of the loads."""
        return ring_with_chords(self.nodes)

    def open(self) -> Data:
        loads = self.loads().float()
        x = loads.unfold(0, self.window, 1)[:-1].transpose(1, 2).contiguous()
        y, time = loads[self.window :].clone(), torch.arange(self.window, self.steps)
        if self.fails is not None:
            y[time >= self.fails, self.down] = math.nan
        return Tensors(x, y, meta={"time": time})

    def loads(self) -> Float[Tensor, "steps links"]:
        """Load of each link at each step, over its mean on the first day."""
        demands = self._demands()
        before = demands @ routes(self.nodes, self.links())
        scale = before[: self.day].mean(0)
        if self.fails is not None:
            before[self.fails :] = demands[self.fails :] @ routes(self.nodes, self.links(), self.down)
        return before / scale

    def shift_of(self, down: int) -> float:
        """Largest relative change of a surviving link's mean load when a link fails."""
        rates = self._demands().mean(0)
        old, new = (rates @ routes(self.nodes, self.links(), link) for link in (None, down))
        change = (new / old - 1).abs()
        change[down] = 0
        return float(change.max())

    def _demands(self) -> Float[Tensor, "steps pairs"]:
        draws, pairs = generator(self.seed, "LinkLoads"), self.nodes * (self.nodes - 1)
        rate = 0.2 + torch.rand(pairs, generator=draws, dtype=torch.float64)
        phase = 0.2 * torch.rand(pairs, generator=draws, dtype=torch.float64)
        shocks = torch.randn(self.steps, pairs, generator=draws, dtype=torch.float64)
        lasting, kept = torch.zeros(pairs, dtype=torch.float64), []
        for shock in shocks:
            lasting = 0.9 * lasting + math.sqrt(1 - 0.81) * self.noise * shock
            kept.append(lasting)
        time = torch.arange(self.steps, dtype=torch.float64)[:, None] / self.day
        return rate * (1 + self.cycle * torch.sin(2 * math.pi * (time + phase))) * torch.stack(kept).exp()
