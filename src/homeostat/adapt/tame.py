"""TAME: experts for tasks that nobody announces, and a selector that sends each input to one.

A labelled stream goes from task to task without saying so. TAME watches the loss of the expert that learns. Per expert
it keeps an exponential mean mu of its batch losses l, and their variance above it,

    s^2 <- q s^2 + (1 - q) 2 max(l - mu, 0)^2,    mu <- q mu + (1 - q) l        q = `smooth`
    alarm:  l > mu + z max(s, mu / 10)

Half of a symmetric noise lies above its mean, hence the 2; below it lies what learning brings, which must not count.
While there is an alarm the band (mu, s) is frozen and nothing is learnt, as both would chase the jump; batches wait.
After `patience` alarms in a row the other experts are asked about what waits. The one with the smallest loss among
those that are within their own bands takes over; if there is none, a new expert starts from the network as it was
given. It learns first what waited. An alarm that passes by itself was an outlier, and what waited is dropped. A new
expert raises no alarm during its first `grace` batches, while its loss is still falling.

A reservoir keeps a uniform sample of all labelled inputs with the number of the expert that learnt them, and at every
labelled batch a selector, the given network with a head for experts, learns x -> number from `replay` of them.
`forward` asks the selector and then that expert, sample by sample; it needs no task and no labels for that.

With `prune` > 0 experts and selector are thinned out while they learn: after a learner's t-th batch the share
`prune (1 - (1 - t / ramp)^3)` of its weights (biases and scales aside) with the smallest magnitudes is set to 0 and
stays there, and learning goes on with the others, which recovers what was lost. Tensors stay dense; what is saved is
non-zero numbers.

BatchNorm keeps the statistics it came with, so give networks with GroupNorm or none. The published summary leaves all
constants open: z = 3, q = 0.9, patience 3, grace 20, 500 samples in the reservoir and Adam 1e-3 are ours. It costs two
passes to answer; with labels four more, and those of the selector: three for each of the `replay` samples of a batch.
Memory grows by one network a task, up to `experts`.

It fails on drift that is slow against q: the band follows, no alarm comes, and one expert forgets as it learns. Tasks
whose inputs look alike (permuted labels) have experts that the selector cannot tell apart. Batches that mix tasks teach
one expert all of them.

>>> import torch
>>> net = MLP(inputs=2, classes=2, hidden=(16,))
>>> x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
>>> tame = TAME(optimizer=Adam(lr=0.02), grace=10)(net)
>>> for part in x[:1000].split(20):
...     _ = tame.observe(Batch(part + 4, (part[:, 0] > 0).long()))
>>> for part in x[1000:].split(20):
...     _ = tame.observe(Batch(part - 4, (part[:, 0] < 0).long()))
>>> tame.experts
2

Reference: Zhu, Majzoubi, Jain, Choromanska, TAME: Task agnostic continual learning using multiple experts, CVPR
Workshops 2024 (S179).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from homeostat.core.data import Batch
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Online
from homeostat.core.random import generator
from homeostat.core.run import Run
from homeostat.core.spec import Count, Fraction, Index, NonNegative
from homeostat.core.task import Classify, Task
from homeostat.core.tree import Tree, map_tree
from homeostat.core.world import World
from homeostat.nn.banks import Reservoir, Ring, as_rows, as_tree
from homeostat.nn.mlp import MLP as MLP
from homeostat.nn.new_head import with_new_head
from homeostat.nn.optimizers import Adam, Optimizer
from homeostat.nn.thinning import thin


class TAMEOnline(Online):
    """Experts, a selector and a reservoir, all in `carry`; the model is what an expert starts from.

    Args:
        model: what experts and the selector start from.
        task: what outputs and labels mean.
        optimizer, z, smooth, patience, grace, largest, capacity, replay, prune, ramp: see `TAME`.
        seed: of the reservoir and of what the selector is shown.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task = Classify(),
        optimizer: Optimizer = Adam(),
        z: float = 3.0,
        smooth: float = 0.9,
        patience: int = 3,
        grace: int = 20,
        largest: int = 16,
        capacity: int = 500,
        replay: int = 64,
        prune: float = 0.0,
        ramp: int = 200,
        seed: int = 0,
    ):
        super().__init__(model)
        self.task, self.optimizer, self.z, self.smooth = task, optimizer, z, smooth
        self.patience, self.grace, self.largest = patience, grace, largest
        self.capacity, self.replay, self.prune, self.ramp, self.seed = capacity, replay, prune, ramp, seed
        self.selector = with_new_head(self.model, largest)
        self.begin()

    def begin(self) -> None:
        self.carry.put("selector", _weights(self.selector))
        self.carry["active"], self.carry["alarms"], self.carry["step"] = (torch.tensor(0) for _ in range(3))
        for name in ("mean", "variance", "learnt"):
            self.carry[name] = torch.zeros(0, dtype=torch.float64)
        self.carry["selected"] = torch.tensor(0)
        self.optimizer.begin(_weights(self.selector), self.carry, "selecting")
        self._spawn()

    @property
    def experts(self) -> int:
        """How many experts there are."""
        return len(self.carry["learnt"])

    @property
    def active(self) -> int:
        """Which one learns."""
        return int(self.carry["active"])

    def expert(self, number: int) -> dict[str, Tensor]:
        """An expert's weights by name."""
        return self.carry.under(f"expert.{number}")

    def choose(self, x: Tree) -> Tensor:
        """Which expert the selector sends each sample to, int64 `[batch]`."""
        with torch.no_grad():
            return self._selected(self.carry.under("selector"), x).argmax(1)

    def forward(self, x: Tree) -> Tree:
        """Outputs of each sample's expert."""
        chosen = self.choose(x)
        numbers = chosen.unique().tolist()
        if len(numbers) == 1:
            return functional_call(self.model, self.expert(numbers[0]), (x,))
        parts, order = [], []
        for number in numbers:
            rows = torch.nonzero(chosen == number).flatten()
            mine = map_tree(lambda t, rows=rows: t[rows], x)
            parts.append(functional_call(self.model, self.expert(number), (mine,)))
            order.append(rows)
        back = torch.cat(order).argsort()
        return map_tree(lambda *leaves: torch.cat(leaves)[back], *parts)

    def adapt(self, batch: Batch) -> Tree:
        with torch.no_grad():
            out = self.forward(batch.x)
        self.task.check(out, batch.y)
        if batch.y is not None:
            part = batch[self.task.known(batch.y)]
            if len(part):
                self._meet(part)
        return out

    def _meet(self, part: Batch) -> None:
        """Learn from labelled samples, or wait."""
        active, loss = self.active, self._loss(self.active, part)
        if float(self.carry["learnt"][active]) < self.grace or self._within(active, loss):
            self.carry["alarms"] = torch.tensor(0)
            Ring(1, "waiting").clear(self.carry)
            self._learn(part)
        else:
            self.carry["alarms"] += 1
            waiting = Ring(self.capacity, "waiting")
            waiting.add(self.carry, as_rows(part.x, "x") | as_rows(part.y, "y"))  # type: ignore[arg-type]
            if int(self.carry["alarms"]) >= self.patience:
                rows = {name: tensor.clone() for name, tensor in waiting.rows(self.carry).items()}
                held = Batch(as_tree(part.x, "x", rows), as_tree(part.y, "y", rows))  # type: ignore[arg-type]
                waiting.clear(self.carry)
                self.carry["alarms"] = torch.tensor(0)
                self._switch(held)
                for low in range(0, len(held), len(part)):
                    self._learn(held[low : low + len(part)])
        self.carry["step"] += 1

    def _within(self, number: int, loss: float) -> bool:
        mean, variance = float(self.carry["mean"][number]), float(self.carry["variance"][number])
        return loss <= mean + self.z * max(variance**0.5, 0.1 * mean)

    def _switch(self, held: Batch) -> None:
        """Hand over to the best expert that knows these samples, or else to a new one."""
        losses = {i: self._loss(i, held) for i in range(self.experts) if i != self.active}
        fitting = {i: loss for i, loss in losses.items() if self._within(i, loss)}
        if not fitting and self.experts < self.largest:
            self.carry["active"] = torch.tensor(self.experts)
            self._spawn()
            return
        asked = fitting or losses
        if asked:
            self.carry["active"] = torch.tensor(min(asked, key=asked.__getitem__))
            self.optimizer.begin(self.expert(self.active), self.carry)

    def _spawn(self) -> None:
        weights = _weights(self.model)
        self.carry.put(f"expert.{self.experts}", weights)
        self.optimizer.begin(weights, self.carry)
        for name in ("mean", "variance", "learnt"):
            self.carry[name] = F.pad(self.carry[name], (0, 1))

    def _loss(self, number: int, part: Batch) -> float:
        with torch.no_grad():
            out = functional_call(self.model, self.expert(number), (part.x,))
            return float(self.task.loss(out, part.y).mean())  # type: ignore[arg-type]

    def _learn(self, part: Batch) -> None:
        """A step of the active expert and of its band, and one of the selector."""
        number, step = self.active, int(self.carry["step"])
        weights = {name: tensor.requires_grad_() for name, tensor in self.expert(number).items()}
        loss = self.task.loss(functional_call(self.model, weights, (part.x,)), part.y).mean()  # type: ignore[arg-type]
        self.optimizer.minimize(loss, weights, self.carry)
        learnt, value = int(self.carry["learnt"][number]), float(loss.detach())
        mean, variance = float(self.carry["mean"][number]), float(self.carry["variance"][number])
        keep = self.smooth if learnt else 0.0
        new = keep * mean + (1 - keep) * value
        self.carry["mean"][number] = new
        # Losses below the mean are what learning brings; they must not widen the band above it.
        above = max(value - mean, 0.0) if learnt else 0.0
        self.carry["variance"][number] = keep * variance + (1 - keep) * 2 * above**2
        self.carry["learnt"][number] += 1
        self._thin(f"expert.{number}", learnt + 1)
        bank, ids = Reservoir(self.capacity, "memory"), torch.full((len(part),), number)
        # The bank itself counts what it saw, which tells the draws of two batches in one step apart.
        bank.add(
            self.carry, as_rows(part.x, "x") | {"expert": ids.to(loss.device)},
            generator(self.seed, "TAME.memory", bank.seen(self.carry)),
        )  # fmt: skip
        if self.experts > 1:
            self._teach_selector(part, bank.sample(self.carry, self.replay, generator(self.seed, "TAME.replay", step)))

    def _teach_selector(self, like: Batch, rows: Mapping[str, Tensor]) -> None:
        weights = {name: tensor.requires_grad_() for name, tensor in self.carry.under("selector").items()}
        logits = self._selected(weights, as_tree(like.x, "x", rows))
        self.optimizer.minimize(F.cross_entropy(logits, rows["expert"]), weights, self.carry, "selecting")
        self.carry["selected"] += 1
        self._thin("selector", int(self.carry["selected"]))

    def _selected(self, weights: Mapping[str, Tensor], x: Tree) -> Tensor:
        """Logits of the experts there are."""
        return functional_call(self.selector, dict(weights), (x,))[:, : self.experts]

    def _thin(self, owner: str, learnt: int) -> None:
        if self.prune:
            thin(self.carry, owner, self.prune * (1 - (1 - min(1.0, learnt / self.ramp)) ** 3))


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@dataclass(frozen=True)
class TAME(Remedy):
    """Experts that come and return on a jump of the loss.

    Attributes:
        optimizer: of experts and selector.
        z: deviations above the mean at which a loss is alarming.
        smooth: how much of an expert's mean and variance stays at each batch.
        patience: alarms in a row that call another expert.
        grace: batches before a new expert can raise an alarm.
        experts: at most.
        capacity: samples in the reservoir.
        replay: of them, samples that the selector learns from at each batch.
        prune: share of weights that are set to 0 in the end; 0 prunes nothing.
        ramp: batches of a learner after which it is reached.
    """

    optimizer: Optimizer = Adam(lr=1e-3)
    z: NonNegative = 3.0
    smooth: Fraction = 0.9
    patience: Count = 3
    grace: Index = 20
    experts: Count = 16
    capacity: Count = 500
    replay: Count = 64
    prune: Fraction = 0.0
    ramp: Count = 200

    card: ClassVar[Card] = Card(
        id="S179",
        paper="Zhu et al., TAME: Task Agnostic Continual Learning Using Multiple Experts, CVPR Workshops 2024",
        handles=frozenset({"tasks", "concept"}),
        needs=frozenset({"model.linear"}),
        passes=9.0,
    )

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return TAMEOnline(
            model, world.task, self.optimizer, self.z, self.smooth, self.patience, self.grace, self.experts,
            self.capacity, self.replay, self.prune, self.ramp, run.seed,
        )  # fmt: skip
