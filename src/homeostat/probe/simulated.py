"""Windows under simulated shifts of one's own data, made from outputs that are there already.

Labelled samples from before are cut in two, again and again: one half is the reference, windows are drawn from the
other. What is drawn makes the kind of shift: another class balance, an order in which neighbors are alike, some
clusters within classes and not others, a class that the reference and the network's outputs are deprived of, labels by
another rule. Only changed inputs need passes of the network. A third of the windows begins before the shift does, most
have labels for a part, and a part of those without shift have one so slight that nothing need be found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from homeostat.core.data import UNKNOWN
from homeostat.probe.shift_reference import Reference, Rows, joined, reference
from homeostat.probe.shift_signs import LEAST_LABELS

SMALLEST, LARGEST = 60, 500
"""Sizes of simulated windows, where there are enough samples."""
_SPLITS = 12


@dataclass(frozen=True)
class Simulated:
    """A window with its reference, and the kind of shift it is under."""

    kind: str
    window: Rows
    reference: Reference
    turn: int


def simulate(
    source: Rows, changed: list[tuple[Tensor, Rows]], count: int, generator: torch.Generator
) -> Iterator[Simulated]:
    """Windows of every kind, `count` each and twice as many without shift.

    Args:
        source: labelled samples from before, at least 20.
        changed: for each change of inputs, positions in `source` and the same samples after it; the weakest first.
        count: windows of each kind.
        generator: all randomness.
    """
    classes = int(source.logits.shape[1])
    turns = min(_SPLITS, max(1, count // 5))
    for turn in range(turns):
        share = count * (turn + 1) // turns - count * turn // turns
        order = torch.randperm(len(source), generator=generator)
        half = len(source) // 2
        ref, pool = reference(source[order[:half]]), Pool(source[order[half:]], generator)
        inside = torch.zeros(len(source), dtype=torch.bool)
        inside[order[half:]] = True
        moved = [rows[inside[positions]] for positions, rows in changed]
        moved = [rows for rows in moved if len(rows) >= 10]
        for _ in range(share):
            for _ in range(2):
                yield Simulated("none", pool.known(pool.slight(moved)), ref, turn)
            if moved:
                yield Simulated("covariate", pool.known(pool.late(partial(pool.changed, moved))), ref, turn)
            yield Simulated("label", pool.known(pool.late(pool.rebalanced)), ref, turn)
            yield Simulated("correlated", pool.known(pool.clumped(pool.size())), ref, turn)
            yield Simulated("subgroup", pool.known(pool.late(pool.subgroups)), ref, turn)
            yield Simulated("concept", pool.known(pool.late(pool.ruled, True)), ref, turn)
        present = [k for k in range(classes) if int((source.labels == k).sum()) >= 10]
        if classes >= 3 and len(present) >= 3:
            left = present[int(torch.randint(len(present), (), generator=generator))]
            known, news = without(
                source[order], left, 0.4 + 0.6 * float(torch.rand((), generator=generator)), generator
            )
            half = len(known) // 2
            if len(known) >= 20 and int(known[:half].labels.unique().numel()) >= 2:
                ref, pool = reference(known[:half]), Pool(known[half:], generator)
                for number in range(share):
                    yield Simulated("novel-class", pool.known(pool.late(partial(pool.mixed, news))), ref, turn)
                    if number % 4 == 0:
                        yield Simulated("none", pool.known(pool.plain(pool.size())), ref, turn)


def without(rows: Rows, left: int, alien: float, generator: torch.Generator) -> tuple[Rows, Rows]:
    """Samples of the other classes, and those of class `left` as a network sees them that was not taught it.

    Its output is taken away. Such a network also has no features of its own for the class and finds those that it has
    for others, so that each new sample is moved towards one of the class that it is taken for, by `1 - alien` of the
    way.
    """
    new = rows.labels == left
    kept = [k for k in range(rows.logits.shape[1]) if k != left]
    logits = rows.logits[:, kept].log_softmax(1)
    labels = torch.where(new, UNKNOWN, rows.labels - (rows.labels > left).long())
    made = Rows(logits, rows.features, labels)
    known, news = made[~new], made[new]
    taken, among = news.logits.argmax(1), known.logits.argmax(1)
    alike = (taken[:, None] == among[None]).float() + 1e-4
    like = known[alike.multinomial(1, generator=generator)[:, 0]]

    def mix(a: Tensor, b: Tensor) -> Tensor:
        return alien * a + (1 - alien) * b

    mixed = mix(news.logits, like.logits).log_softmax(1)
    return known, Rows(mixed, mix(news.features, like.features), news.labels)


class Pool:
    """Samples of which windows are drawn."""

    def __init__(self, rows: Rows, generator: torch.Generator):
        self.rows, self.generator = rows, generator
        self.classes = rows.logits.shape[1]
        self.by_class = [torch.nonzero(rows.labels == k).flatten() for k in range(self.classes)]
        self.present = torch.tensor([k for k, found in enumerate(self.by_class) if len(found)])
        self.prior = torch.tensor([float(len(found)) for found in self.by_class])
        self.prior = self.prior / self.prior.sum()
        self.pieces: dict[int, Tensor] = {}

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def whole(self, low: int, high: int) -> int:
        """A whole number in `[low, high)`."""
        return int(torch.randint(low, max(high, low + 1), (), generator=self.generator))

    def size(self) -> int:
        top = min(LARGEST, len(self.rows))
        low = min(SMALLEST, max(10, top // 2))
        return round(math.exp(self.uniform(math.log(low), math.log(top))))

    def shuffled(self, positions: Tensor, count: int) -> Tensor:
        """`count` of these positions in random order, again from the first where there are too few."""
        order = positions[torch.randperm(len(positions), generator=self.generator)]
        return order.repeat(-(-count // max(1, len(order))))[:count]

    def dirichlet(self, concentration: float, count: int) -> Tensor:
        shape = torch.full((count,), concentration + 1.0, dtype=torch.float64)
        gamma = torch._standard_gamma(shape, generator=self.generator)
        power = torch.rand(count, generator=self.generator, dtype=torch.float64).log() / concentration
        return (gamma.log() + power).softmax(0).float()

    def of_classes(self, labels: Tensor) -> Tensor:
        """Positions of samples of these classes, in this order."""
        chosen = torch.zeros_like(labels)
        for k in labels.unique().tolist():
            here = labels == k
            chosen[here] = self.shuffled(self.by_class[k], int(here.sum()))
        return chosen

    def drawn(self, shares: Tensor, count: int) -> Tensor:
        return torch.multinomial(shares + 1e-9 * self.prior, count, replacement=True, generator=self.generator)

    # -------------------------------------------------------------------------------------------------------- kinds

    def plain(self, count: int) -> Rows:
        return self.rows[self.shuffled(torch.arange(len(self.rows)), count)]

    def slight(self, moved: list[Rows]) -> Rows:
        """No shift, or in a third of the cases one too slight to matter."""
        count, case = self.size(), self.uniform()
        if case < 0.7:
            return self.plain(count)
        if case < 0.85 or not moved:
            shares = 0.9 * self.prior + 0.1 * self.dirichlet(1.0, self.classes) * (self.prior > 0)
            return self.rows[self.of_classes(self.drawn(shares, count))]
        few = max(1, count // 20)
        made = joined([self.plain(count - few), self.some(moved[self.whole(0, len(moved))], few)])
        return made[torch.randperm(count, generator=self.generator)]

    def some(self, rows: Rows, count: int) -> Rows:
        return rows[self.shuffled(torch.arange(len(rows)), count)]

    def late(self, make: Callable[[int], Rows], whole: bool = False) -> Rows:
        """A window whose first part, in a third of the cases, is from before the shift."""
        count = self.size()
        before = 0 if self.uniform() < 0.67 or whole else round(count * self.uniform(0.1, 0.5))
        return joined([self.plain(before), make(count - before)]) if before else make(count)

    def changed(self, moved: list[Rows], count: int) -> Rows:
        """Inputs changed in one way, or each in one of two, all or most of them."""
        parts = [self.some(moved[self.whole(0, len(moved))], count)]
        if self.uniform() < 0.25:
            other, few = moved[self.whole(0, len(moved))], count // 2
            parts = [parts[0][: count - few], self.some(other, few)]
        if self.uniform() < 0.25:
            kept = round(count * self.uniform(0.5, 0.9))
            made = joined(parts)[torch.randperm(count, generator=self.generator)]
            parts = [made[:kept], self.plain(count - kept)]
        made = joined(parts)
        return made[torch.randperm(len(made), generator=self.generator)]

    def rebalanced(self, count: int) -> Rows:
        """Another class balance, at a total variation of at least 0.15."""
        present = self.present
        for _ in range(20):
            shares, case = torch.zeros(self.classes), self.uniform()
            if case < 0.5:
                shares[present] = self.dirichlet((0.3, 1.0, 3.0)[self.whole(0, 3)], len(present))
            elif case < 0.75:
                order = present[torch.randperm(len(present), generator=self.generator)]
                gone = self.whole(1, max(2, len(present) * 2 // 3 + 1))
                shares[order[gone:]] = self.prior[order[gone:]]
            else:
                shares += self.prior
                shares[present[self.whole(0, len(present))]] *= math.exp(self.uniform(1.0, 3.5))
            if float(shares.sum()) > 0:
                shares = shares / shares.sum()
                if float((shares - self.prior).abs().sum()) / 2 >= 0.15:
                    break
        return self.rows[self.of_classes(self.drawn(shares, count))]

    def clumped(self, count: int) -> Rows:
        """Neighbors of one class: runs of classes, or slots with Dirichlet shares."""
        longest = max(4, count // 4)
        length = math.exp(self.uniform(math.log(3), math.log(longest)))
        if self.uniform() < 0.5:
            starts = torch.rand(count, generator=self.generator) < 1 / length
            starts[0] = True
            chain = self.drawn(self.prior, int(starts.sum()))
            labels = chain[starts.long().cumsum(0) - 1]
            sway = torch.rand(count, generator=self.generator) < self.uniform(0.0, 0.3)
            labels = torch.where(sway, self.drawn(self.prior, count), labels)
        else:
            length = max(6.0, length)
            concentration = math.exp(self.uniform(math.log(0.02), math.log(0.5)))
            slots = []
            for _ in range(math.ceil(count / length)):
                weighted = self.dirichlet(concentration, self.classes) * self.prior
                slots.append(self.drawn(weighted / weighted.sum().clamp(min=1e-9), math.ceil(length)))
            labels = torch.cat(slots)[:count]
        return self.rows[self.of_classes(labels)]

    def clusters(self, k: int) -> Tensor:
        """A number of 0 to 3 for each sample of a class: the cluster it is in (Lloyd's algorithm)."""
        if k not in self.pieces:
            points = self.rows.features[self.by_class[k]]
            parts = min(self.whole(2, 5), len(points))
            middle = points[torch.randperm(len(points), generator=self.generator)[:parts]]
            nearest = torch.zeros(len(points), dtype=torch.long)
            for _ in range(6):
                nearest = torch.cdist(points, middle).argmin(1)
                member = torch.nn.functional.one_hot(nearest, parts).float()
                middle = member.T @ points / member.sum(0).clamp(min=1)[:, None]
            self.pieces[k] = nearest
        return self.pieces[k]

    def subgroups(self, count: int) -> Rows:
        """The class balance stays; within some classes or all, clusters come in other shares."""
        labels = self.drawn(self.prior, count)
        chosen = self.of_classes(labels)
        part = self.uniform(0.5, 1.0) if self.classes > 3 else 1.0
        for k in labels.unique().tolist():
            here, rows = labels == k, self.by_class[k]
            if len(rows) < 8 or self.uniform() > part:
                continue
            pieces = self.clusters(k)
            present = pieces.unique()
            shares = self.dirichlet(0.3, len(present)) if self.uniform() < 0.5 else torch.zeros(len(present))
            if float(shares.sum()) == 0:
                shares[self.whole(0, len(present))] = 1.0
            wanted = present[torch.multinomial(shares, int(here.sum()), replacement=True, generator=self.generator)]
            picked = torch.zeros(len(wanted), dtype=torch.long)
            for piece in wanted.unique().tolist():
                those = wanted == piece
                picked[those] = self.shuffled(rows[pieces == piece], int(those.sum()))
            chosen[here] = picked
        return self.rows[chosen]

    def mixed(self, news: Rows, count: int) -> Rows:
        """Samples of a new class among the others."""
        few = max(3, round(count * math.exp(self.uniform(math.log(0.08), math.log(0.6)))))
        made = joined([self.plain(count - few), self.some(news, few)])
        return made[torch.randperm(count, generator=self.generator)]

    def ruled(self, count: int) -> Rows:
        """The same inputs, labelled by another rule: classes swapped or merged, or a part of one given to another."""
        made = self.plain(count)
        labels, present = made.labels.clone(), self.present
        order = present[torch.randperm(len(present), generator=self.generator)].tolist()
        pairs = self.whole(1, max(2, len(order) // 2 + 1))
        case = self.uniform()
        for a, b in zip(order[0 : 2 * pairs : 2], order[1 : 2 * pairs : 2], strict=False):
            first, second = made.labels == a, made.labels == b
            if case < 0.4:
                labels[first], labels[second] = b, a
            elif case < 0.6:
                labels[first] = b
            else:
                side = torch.randn(made.features.shape[1], generator=self.generator)
                along = made.features @ side
                labels[first & (along > along[first].median() if bool(first.any()) else False)] = b
        return made.labelled(labels)

    def known(self, rows: Rows) -> Rows:
        """The window with labels for a part, of at least `LEAST_LABELS` samples where there are as many."""
        low = min(1.0, 1.5 * LEAST_LABELS / len(rows))
        shown = torch.rand(len(rows), generator=self.generator) < math.exp(self.uniform(math.log(low), 0.0))
        return rows.labelled(torch.where(shown, rows.labels, UNKNOWN))
