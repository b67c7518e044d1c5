"""AdaMerging: learns how much of each donor goes into each layer of a merge, from unlabelled inputs of the tasks.

Task arithmetic adds all donors' changes with one scale that has to be found with labels. AdaMerging finds a scale for
every donor, or for every donor and parameter tensor, by making the merged network's predictions on the tasks' inputs
sure. With base theta_0, task vectors tau_t = theta_t - theta_0, t = 1..T, and coefficients lambda `[T, L]`:

    theta_l = theta_0,l + sum_t clamp(lambda[t, l], 0, 1) tau_t,l
    loss    = sum_t mean over a batch of task t of H(softmax(f_theta(x)))

All lambda start at `prior`; Adam changes them and nothing else. `granularity="layer"` learns one for every donor and
parameter tensor, "task" one for every donor (L = 1). With `density` the task vectors are first trimmed to their largest
entries and rid of those that are outvoted, as TIES does: AdaMerging++, for which the paper keeps 0.2.

Where tasks share their head, inputs of any task may come as `world.target`. With `streams="parts"` every donor's inputs
come as the part of its own name, and `heads` names the parameters that each task keeps as its own:

    world = World(models={"cars": a, "signs": b}, parts={"cars": x_cars, "signs": x_signs})
    merged = AdaMerging(streams="parts", heads=("head.*",))(base, world)

The result then has the base's head; `with_head(merged, donor, heads)` is the network of one task.

A guard watches for collapse. Entropy is also low where a network gives one answer to everything, and where the base is
weak and tasks conflict that is where it goes: accuracy falls while the loss does. So every `guard_every` steps, on
`guard_samples` fixed inputs of each stream, the entropy of the mean prediction H(mean p), averaged over streams, is
compared with what it was at the start. When it falls below `guard` times that, learning stops, and the coefficients go
back to those, among the ones looked at before, of the largest 10 H(mean p) - mean H(p): sure of each input, but above
all not of few answers. A merge that collapses mostly goes wrong from the first step on, and it is back at the start.
`run.watch` is told ("AdaMerging stopped"), and `learn(...).stopped` says why.

Defaults are the official code's: prior 0.3, which fits about eight donors (1 / T is the average), Adam 1e-3, 500 steps,
32 inputs a task and step. The guard is ours, and `guard=0` leaves it out; 0.99 was chosen so that it stops merges of
the views zoo, which lose 20 to 40 points without it, and lets those of the gloss zoo learn on (0.997). It takes classes
for about as even in the inputs as predictions are at the start: where they are not, a merge that rightly becomes sure
is stopped, and `guard` is to be lower. What keeps classes in proportion is not seen. Buffers (BatchNorm statistics)
stay the base's.

>>> base = nn.Linear(2, 2)
>>> donors = {f"task{i}": nn.Linear(2, 2) for i in range(2)}
>>> learned = AdaMerging(steps=5).learn(base, World(models=donors, target=torch.randn(64, 2)))
>>> learned.coefficients.shape, learned.blocks
(torch.Size([2, 2]), ('weight', 'bias'))

Reference: Yang et al., AdaMerging: Adaptive Model Merging for Multi-Task Learning, ICLR 2024 (S312).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import annotated_types as at
import torch
from torch import Tensor, nn

from homeostat.core.data import Data, check_finite
from homeostat.core.errors import InputError, NonFiniteError, SpecError
from homeostat.core.fork import unwrap
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Bag
from homeostat.core.place import there
from homeostat.core.run import Run
from homeostat.core.spec import Count, Fraction
from homeostat.core.task import Classify
from homeostat.core.world import World
from homeostat.merge.coefficients import Combination, Learned, agreeing, task_vectors
from homeostat.merge.heads import with_head
from homeostat.merge.merging import parts_by_donor
from homeostat.nn.losses import softmax_entropy
from homeostat.nn.optimizers import Adam, Optimizer

BALANCE = 10
"""How much more an even use of classes counts than sure predictions, where the guard chooses what to go back to."""


@dataclass(frozen=True)
class AdaMerging(Remedy):
    """Adaptive merging by entropy on unlabelled inputs, with a guard against collapse.

    Attributes:
        granularity: a coefficient for each donor and `"layer"` (parameter tensor), or each donor's whole `"task"`.
        prior: where coefficients start.
        density: share of each task vector's entries kept, and signs made to agree (AdaMerging++); None keeps all.
        streams: unlabelled inputs of all tasks together as the world's `"target"`, or one part a donor, `"parts"`.
        heads: globs of parameters that each task keeps as its own; they are not merged.
        optimizer: of the coefficients.
        steps: how many.
        batch: inputs of each stream a step.
        guard: least entropy of the mean prediction, as a share of that at the start; 0 does not guard.
        guard_every: steps between two looks.
        guard_samples: inputs of each stream that are looked at.
    """

    granularity: Literal["layer", "task"] = "layer"
    prior: Fraction = 0.3
    density: Annotated[float, at.Gt(0), at.Le(1)] | None = None
    streams: Literal["target", "parts"] = "target"
    heads: tuple[str, ...] = ()
    optimizer: Optimizer = Adam(lr=1e-3)
    steps: Count = 500
    batch: Count = 32
    guard: Fraction = 0.99
    guard_every: Count = 10
    guard_samples: Count = 128

    card: ClassVar[Card] = Card(
        id="S312", paper="Yang et al., AdaMerging, ICLR 2024", handles=frozenset({"tasks", "covariate"}),
        needs=frozenset({"models.*", "target.x", "model.parameters"}), passes=3.0,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads and self.streams == "target":
            raise SpecError(
                "with heads of their own it must be known whose inputs are whose: streams='parts', a part a donor"
            )

    def needs(self) -> frozenset[str]:
        return self.card.needs if self.streams == "target" else self.card.needs - {"target.x"} | {"parts.*.x"}

    def learn(self, model: nn.Module, world: World, *, run: Run = Run()) -> Learned:
        """The merge with its coefficients, and whether the guard stopped it; see `Learned`."""
        model = unwrap(model)
        with torch.inference_mode(False), torch.enable_grad():
            return self._learn(model, self.door(model, world, self.needs()), run)

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return self._learn(model, world, run).model

    def _learn(self, model: nn.Module, world: World, run: Run) -> Learned:
        vectors = task_vectors(model, world.models, self.heads)
        if self.density is not None and vectors:
            vectors = agreeing(vectors, self.density)
        combination = Combination(model, vectors, "tensor" if self.granularity == "layer" else "model")
        streams = self._streams(combination, world)
        looked: list[tuple[float, int, Tensor]] = []
        raw, state = {"lambda": combination.constant(self.prior)}, Bag()
        start, stopped, step = 0.0, "", 0
        self.optimizer.begin(raw, state)
        for step in range(self.steps + 1):
            now = raw["lambda"].clamp(0, 1)
            combination.write(now)
            if self.guard and (step % self.guard_every == 0 or step == self.steps):
                spread, entropy = self._look(streams, run)
                start = spread if step == 0 else start
                if not spread >= self.guard * start:
                    stopped = f"the entropy of the mean prediction fell from {start:.4g} to {spread:.4g}"
                    break
                # Of equal ones the earliest, which has moved least.
                looked.append((BALANCE * spread - entropy, -step, now.clone()))
            if step == self.steps:
                break
            with combination.gradient() as gradient:
                losses = {
                    name: softmax_entropy(call(_drawn(data, self.batch, run.rng("AdaMerging", name, step)))).mean()
                    for name, (call, data) in streams.items()
                }
                total = torch.stack(list(losses.values())).sum()
                if not bool(torch.isfinite(total)):
                    raise NonFiniteError(f"the entropy is {total.item()} at step {step}; look at the inputs and donors")
                total.backward()
            inside = (raw["lambda"] >= 0) & (raw["lambda"] <= 1)
            self.optimizer.update(raw, {"lambda": gradient * inside}, state)
            run.emit("AdaMerging", step, self.steps, **{name: float(loss.detach()) for name, loss in losses.items()})
        final = raw["lambda"].clamp(0, 1)
        if stopped:
            _, back, final = max(looked, key=lambda seen: seen[:2])
            stopped = f"{stopped} nats by step {step}; the coefficients of step {-back} were taken"
            run.emit("AdaMerging stopped", step, self.steps, why=stopped)
        return Learned(combination.result(final), final, tuple(world.models), combination.blocks, step, stopped)

    def _streams(self, combination: Combination, world: World) -> dict[str, tuple[Callable[[Any], Any], Data]]:
        if self.streams == "target":
            assert world.target is not None
            data: Mapping[str, Data] = {"target": world.target}
            calls = {"target": combination.network}
        else:
            data = parts_by_donor(world)
            calls = {n: with_head(combination.network, donor, self.heads) for n, donor in world.models.items()}
        for name, one in data.items():
            if len(one) == 0:
                raise InputError(f"the inputs of {name} are empty; at least one is needed")
        return {name: (_classifier(calls[name]), data[name]) for name in data}

    @torch.no_grad()
    def _look(self, streams: Mapping[str, Any], run: Run) -> tuple[float, float]:
        """Entropy of the mean prediction, and mean entropy of predictions; each a mean over streams."""
        spread = entropy = 0.0
        for name, (call, data) in streams.items():
            logits = call(_drawn(data, self.guard_samples, run.rng("AdaMerging.guard", name))).double()
            if not bool(torch.isfinite(logits).all()):
                raise NonFiniteError(f"the merge's outputs for {name} hold NaN or infinity; look at the donors")
            mean = logits.softmax(1).mean(0)
            # Rounding can make the entropy of one sure answer a little less than 0.
            spread += max(0.0, -float(torch.xlogy(mean, mean).sum())) / len(streams)
            entropy += float(softmax_entropy(logits).mean()) / len(streams)
        return spread, entropy


def _classifier(network: nn.Module) -> Callable[[Any], Tensor]:
    def call(x: Any) -> Tensor:
        logits = network(there(x, network))
        Classify().check(logits, None)
        return logits

    return call


def _drawn(data: Data, count: int, generator: torch.Generator) -> Any:
    x = data.fetch(torch.randperm(len(data), generator=generator)[:count]).x
    check_finite(x, "x")
    return x
