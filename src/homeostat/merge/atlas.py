"""aTLAS: adapts a network to a task by learning how much of each donor's change each of its tensors takes.

The donors were fine-tuned from the network for other tasks. With a few labels, or none, too little is known to train
weights; a few dozen coefficients can be learnt, and what they combine are changes that were useful before:

    theta_b = theta_0,b + sum_t c[t, b] tau_t,b,     tau_t = theta_t - theta_0,     c `[T, B]`, 0 at the start

Blocks b are parameter tensors (`granularity="layer"`: the paper's anisotropic scaling), or the whole network ("task").
With `groups` = K, aTLAS x K, each tensor of two dimensions or more is divided into K random groups of entries that have
a coefficient each; that is parameter-efficient fine-tuning for when labels are many. The official code then leaves
tensors of other dimensions at the base's values; here they keep one coefficient.

`objective` says what c lowers:

    "labels"      cross-entropy on the known labels of `world.target`
    "entropy"     mean entropy of predictions on `world.target`
    "pseudo"      cross-entropy to one's own labels on `world.target` (FixMatch): those of the base for the `trusted`
                  samples of each class that it is surest of, a quarter of each batch; for the others the present ones,
                  where their probability is above `threshold`. With `views`, of a random view of the sample
    "negation"    cross-entropy on `world.source` less that on `world.target`: unlearns the task of the target, for
                  which a donor of that very task is given, and keeps what the source stands for

Where `world.calibration` has labels, c of the best epoch on them is taken, and 0 if none is better than the base (the
paper's use of a validation split); else that of the last epoch. For "negation" it is the epoch of the lowest accuracy
on the target among those that keep `control` of the base's accuracy on the source; it ends with the first that does
not.

Defaults are the official code's: AdamW with rate 0.1 (not 1e-3) and decay 0.1, half a cosine, batches of 128, gradients
clipped at norm 1, 10 epochs of at least 10 batches, threshold 0.99, control 0.95. The paper's pruning of blocks by a
budget, and its combination with LP++ and Tip adapters, are left out. The head and buffers stay the base's: it fails
where the base's head does not fit the task, and where no donor's task is akin to it. Entropy alone can collapse, see
`AdaMerging`; here nothing guards it but labels in `world.calibration`.

>>> base = nn.Linear(2, 2)
>>> donors = {f"task{i}": nn.Linear(2, 2) for i in range(3)}
>>> x = torch.randn(16, 2)
>>> learned = ATLAS(epochs=2).learn(base, World(models=donors, target=(x, (x[:, 0] > 0).long())))
>>> learned.coefficients.shape, learned.steps
(torch.Size([3, 2]), 22)

Reference: Zhang et al., Knowledge Composition using Task Vectors with Learned Anisotropic Scaling, NeurIPS 2024 (S036).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.core.data import Batch, Data, check_finite
from homeostat.core.errors import InputError, MissingPart, NonFiniteError
from homeostat.core.fork import unwrap
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Bag
from homeostat.core.place import device_of
from homeostat.core.run import Run
from homeostat.core.spec import Count, Fraction, Positive
from homeostat.core.task import Classify, check_labels
from homeostat.core.world import World
from homeostat.fit.training import Cosine, Schedule
from homeostat.merge.coefficients import Combination, Learned, task_vectors
from homeostat.nn.augment import RandomViews
from homeostat.nn.losses import softmax_entropy
from homeostat.nn.optimizers import Adam, Optimizer

LEAST_BATCHES = 10
"""An epoch has at least so many batches: few samples come several times."""


@dataclass(frozen=True)
class ATLAS(Remedy):
    """Learned anisotropic scaling of task vectors.

    Attributes:
        objective: what the coefficients lower, see the module's docstring.
        granularity: a coefficient for each donor and `"layer"` (parameter tensor), or each donor's whole `"task"`.
        groups: random groups of entries in each tensor that have a coefficient each.
        optimizer, schedule: of the coefficients.
        epochs, batch: how long.
        clip: largest norm of the coefficients' gradient.
        trusted: share of a class of average size whose labels the base is trusted for (`"pseudo"`), at most 100.
        threshold: least probability of one's own label (`"pseudo"`).
        views: of a sample, which are to get the label that the sample gets (`"pseudo"`); images in 0..1 only.
        control: share of the base's accuracy on the source that is to stay (`"negation"`).
        skip: globs of parameters that stay the base's, such as heads.
    """

    objective: Literal["labels", "entropy", "pseudo", "negation"] = "labels"
    granularity: Literal["layer", "task"] = "layer"
    groups: Count = 1
    optimizer: Optimizer = Adam(lr=0.1, weight_decay=0.1, decoupled=True)
    schedule: Schedule = Cosine()
    epochs: Count = 10
    batch: Count = 128
    clip: Positive = 1.0
    trusted: Fraction = 0.1
    threshold: Fraction = 0.99
    views: RandomViews | None = None
    control: Fraction = 0.95
    skip: tuple[str, ...] = ()

    card: ClassVar[Card] = Card(
        id="S036", paper="Zhang et al., Task Vectors with Learned Anisotropic Scaling (aTLAS), NeurIPS 2024",
        handles=frozenset({"tasks", "covariate", "forget"}),
        needs=frozenset({"models.*", "target.x", "target.y", "calibration.x?", "calibration.y?", "model.parameters"}),
        passes=3.0,
    )  # fmt: skip

    def needs(self) -> frozenset[str]:
        if self.objective == "negation":
            return self.card.needs - {"calibration.x?", "calibration.y?"} | {"source.x", "source.y"}
        return self.card.needs if self.objective == "labels" else self.card.needs - {"target.y"}

    def learn(self, model: nn.Module, world: World, *, run: Run = Run()) -> Learned:
        """The adapted network with its coefficients; see `Learned`."""
        model = unwrap(model)
        with torch.inference_mode(False), torch.enable_grad():
            return self._learn(model, self.door(model, world, self.needs()), run)

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return self._learn(model, world, run).model

    def _learn(self, model: nn.Module, world: World, run: Run) -> Learned:
        per, groups = "tensor" if self.granularity == "layer" else "model", run.rng("ATLAS.groups")
        combination = Combination(model, task_vectors(model, world.models, self.skip), per, self.groups, groups)
        assert world.target is not None
        target = _known(world.target, world, "target") if "target.y" in self.needs() else world.target
        source = _known(world.source, world, "source") if world.source is not None else None
        if len(target) == 0:
            raise InputError("the target is empty; at least one sample is needed")
        combination.write(combination.constant(0.0))
        judge = _Judge(combination.network, world, target, source, self.control)
        size = self.batch if source is None else max(1, self.batch // 2)
        trust = self._trusted(combination.network, target) if self.objective == "pseudo" else None

        raw, state = {"c": combination.constant(0.0)}, Bag()
        best, step, stopped = raw["c"].clone(), 0, ""
        self.optimizer.begin(raw, state)
        per_epoch = len(list(_rows(len(target), size, torch.Generator())))
        for epoch in range(self.epochs):
            others = _rows_forever(0 if source is None else len(source), size, run, epoch)
            for rows in _rows(len(target), size, run.rng("ATLAS", epoch)):
                with combination.gradient() as gradient:
                    loss = self._loss(combination.network, target, rows, trust, run.rng("ATLAS.views", step))
                    if source is not None:
                        loss = F.cross_entropy(*_seen(combination.network, source.fetch(next(others)))) - loss
                    if not bool(torch.isfinite(loss)):
                        raise NonFiniteError(f"the loss is {loss.item()} at step {step}; lower the learning rate")
                    loss.backward()
                gradient *= (self.clip / (gradient.norm() + 1e-6)).clamp(max=1.0)
                scale = self.schedule.factor(step, self.epochs * per_epoch)
                self.optimizer.update(raw, {"c": gradient}, state, scale=scale)
                combination.write(raw["c"])
                step += 1
            better, broken = judge(combination.network)
            best = raw["c"].clone() if better else best
            run.emit("ATLAS", epoch + 1, self.epochs, **judge.said)
            if broken:
                stopped = f"accuracy on the source fell below {self.control:g} of the base's in epoch {epoch + 1}"
                run.emit("ATLAS stopped", epoch + 1, self.epochs, why=stopped)
                break
        return Learned(combination.result(best), best, tuple(world.models), combination.blocks, step, stopped)

    def _loss(self, network: nn.Module, data: Data, rows: Tensor, trust: Any, generator: torch.Generator) -> Tensor:
        """What is lowered on the target; with a source, what is raised."""
        if trust is not None:
            few, labels = trust
            chosen = few[torch.randint(len(few), (max(1, len(rows) // 4),), generator=generator)]
            sure = torch.arange(len(rows)) < len(chosen)
            rows = torch.cat([chosen, rows[len(chosen) :]])
            batch = data.fetch(rows)
            with torch.no_grad():
                p, own = _logits(network, batch).softmax(1).max(1)
            used = sure.to(p.device) | (p > self.threshold)
            own = torch.where(sure.to(p.device), labels[rows].to(p.device), own)
            seen = batch if self.views is None else batch.replace(x=self.views(batch.x, generator))  # type: ignore[arg-type]
            each = F.cross_entropy(_logits(network, seen), own, reduction="none")
            return (each * used).mean()
        if self.objective == "entropy":
            return softmax_entropy(_logits(network, data.fetch(rows))).mean()
        return F.cross_entropy(*_seen(network, data.fetch(rows)))

    @torch.no_grad()
    def _trusted(self, network: nn.Module, data: Data) -> tuple[Tensor, Tensor]:
        """Positions of the samples of which the base is surest, so many a class, and its labels of all."""
        p = torch.cat([_logits(network, batch).softmax(1).cpu() for batch in data.batches(256)])
        count = max(1, min(int(self.trusted * len(p) / p.shape[1]), 100))
        return p.topk(min(count, len(p)), dim=0).indices.flatten().unique(), p.argmax(1)


class _Judge:
    """Whether an epoch's coefficients are the best so far, and whether they break what must stay."""

    def __init__(self, base: nn.Module, world: World, target: Data, source: Data | None, control: float):
        self.negates, self.target, self.source = source is not None, target, source
        self.data, self.said = world.calibration, dict[str, float]()
        if self.data is not None and not self.negates:
            labelled = self.data.has_labels() and bool(world.task.known(self.data.all_labels()).any())
            self.data = _known(self.data, world, "calibration") if labelled else None
        if self.negates:
            assert source is not None
            self.least, self.best = control * _accuracy(base, source), -_accuracy(base, target)
        elif self.data is not None:
            self.best = _accuracy(base, self.data)

    def __call__(self, network: nn.Module) -> tuple[bool, bool]:
        if self.negates:
            assert self.source is not None
            kept, found = _accuracy(network, self.source), -_accuracy(network, self.target)
            self.said = {"source": kept, "target": -found}
            if kept < self.least:
                return False, True
        elif self.data is None:
            return True, False
        else:
            found = _accuracy(network, self.data)
            self.said = {"calibration": found}
        better = found > self.best
        self.best = max(found, self.best)
        return better, False


def _known(data: Data, world: World, name: str) -> Data:
    labels = data.all_labels()
    known = world.task.known(labels)
    if len(data) and not bool(known.any()):
        raise MissingPart(f"no label of {name} is known; aTLAS needs some")
    return data if bool(known.all()) else data[known]


def _rows(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """An epoch's rows in batches; few samples come so often that there are ten batches or more."""
    share = count / size
    copies = 1 if share >= LEAST_BATCHES else int(LEAST_BATCHES / share) + 1
    yield from (torch.randperm(count * copies, generator=generator) % count).split(size)


def _rows_forever(count: int, size: int, run: Run, epoch: int) -> Iterator[Tensor]:
    turn = 0
    while count:
        yield from _rows(count, size, run.rng("ATLAS.source", epoch, turn))
        turn += 1


def _logits(network: nn.Module, batch: Batch) -> Tensor:
    check_finite(batch.x, "x")
    logits = network(batch.to(device_of(network)).x)
    Classify().check(logits, None)
    return logits


def _seen(network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    logits = _logits(network, batch)
    check_labels(batch.labels, logits.shape[1])
    return logits, batch.labels.to(logits.device)


@torch.no_grad()
def _accuracy(network: nn.Module, data: Data) -> float:
    right = 0
    for batch in data.batches(256):
        logits, labels = _seen(network, batch)
        right += int((logits.argmax(1) == labels).sum())
    return right / len(data)
