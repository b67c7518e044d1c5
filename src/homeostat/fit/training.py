"""The only place that runs epochs: order, resume, several processes, stops on a loss that is not finite."""

from __future__ import annotations

import math
import shutil
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from homeostat.core.data import Batch, Data
from homeostat.core.errors import InputError, NonFiniteError
from homeostat.core.online import Bag
from homeostat.core.part import Part
from homeostat.core.place import HOME
from homeostat.core.run import Run
from homeostat.core.save import load, save
from homeostat.core.spec import Count, Fraction, Index, NonNegative, Positive, Spec
from homeostat.fit.step import Combine, Plain, Step, Sum
from homeostat.nn.optimizers import SGD, Optimizer

StepLosses = Callable[[Mapping[str, Batch], Run], Mapping[str, Tensor]]


class Schedule(Spec, abstract=True):
    """The learning rate over a run, as a factor of its base value."""

    @abstractmethod
    def factor(self, step: int, steps: int) -> float: ...


@dataclass(frozen=True)
class Constant(Schedule):
    """The base learning rate throughout."""

    def factor(self, step: int, steps: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Cosine(Schedule):
    """Linear warm-up over the first `warmup` steps, then half a cosine down to `floor`."""

    warmup: Index = 0
    floor: Fraction = 0.0

    def factor(self, step: int, steps: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, steps - self.warmup)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Steps(Schedule):
    """Times `gamma` at each fraction of the run in `at`."""

    at: tuple[Fraction, ...] = (0.5, 0.75)
    gamma: Positive = 0.1

    def factor(self, step: int, steps: int) -> float:
        return self.gamma ** sum(step >= fraction * steps for fraction in self.at)


@dataclass(frozen=True)
class Ramp(Schedule):
    """From `start` times the base learning rate in a straight line up (or down) to it at the fraction `until`."""

    start: NonNegative = 0.0
    until: Fraction = 1.0

    def factor(self, step: int, steps: int) -> float:
        done = min(1.0, step / max(1.0, self.until * steps))
        return self.start + (1 - self.start) * done


@dataclass(frozen=True)
class Recipe(Spec):
    """How to train: everything but the model, the objective and the data.

    Attributes:
        optimizer, schedule: of the parameters.
        combine: named losses to gradients.
        step: gradients to an update.
        epochs: passes over the first input.
        batch: samples a step; a last batch of one sample is left out when there are others, as BatchNorm cannot use it.
        precision: `"bfloat16"` runs forward passes under autocast.
        clip: largest gradient norm; 0 does not clip.
    """

    optimizer: Optimizer = SGD()
    schedule: Schedule = Constant()
    combine: Combine = Sum()
    step: Step = Plain()
    epochs: Count = 1
    batch: Count = 128
    precision: str = "float32"
    clip: float = 0.0


class Training(Part):
    """A model in training with its optimiser's state and how many epochs are done."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.carry = model, Bag()


def train(
    model: nn.Module,
    losses: StepLosses,
    data: Mapping[str, Data],
    parameters: Mapping[str, Tensor],
    recipe: Recipe,
    *,
    run: Run = Run(),
    checkpoint: Path | None = None,
    after: Callable[[int, int], None] | None = None,
    carry: Bag | None = None,
) -> nn.Module:
    """Train a model in place and return it.

    Args:
        model: one's own (see `fork`), in training mode.
        losses: named scalar losses from named batches; called once a step, or as often as the step needs.
        data: by name; an epoch is one pass over the first in random order, the others start again when they end.
        parameters: what the optimiser changes.
        recipe: how.
        run: seed, watcher and budget (`budget.seconds` stops after the epoch in which it is exceeded).
        checkpoint: a folder to resume from and to save to after every epoch; a stopped and resumed run equals an
            uninterrupted one. It is removed when training ends.
        after: called after each step with its number, from 0, and how many steps an epoch has; such as to average
            weights. What it keeps is in no checkpoint.
        carry: where the optimiser's state goes, for who trains on later; default a bag of its own.

    Within a `torch.distributed` group each process takes its share of every batch and gradients are averaged, so
    that the result equals one process's up to rounding (BatchNorm's statistics, which are per process, aside).

    Raises:
        NonFiniteError: a loss is NaN or infinite; names the loss and the step. The caller's model is untouched.
        InputError: the data are empty.
    """
    names = list(data)
    first = data[names[0]]
    for name in names:
        if len(data[name]) == 0:
            raise InputError(f"{name} is empty; training needs at least one sample")
    params = dict(parameters)
    if checkpoint is not None and after is not None:
        raise InputError("what `after` keeps is in no checkpoint, so training could not be resumed; leave one out")
    state = Training(model)
    state.carry = state.carry if carry is None else carry
    recipe.optimizer.begin(params, state.carry)
    per_epoch = len(list(_starts(len(first), recipe.batch)))
    steps, epoch = recipe.epochs * per_epoch, 0
    if checkpoint is not None and checkpoint.exists():
        epoch = _resume(state, load(checkpoint, base=state))
    began = time.monotonic()
    rank, world = _group()
    while epoch < recipe.epochs:
        feeds = {name: _batches(data[name], recipe.batch, run, name, epoch, per_epoch) for name in names}
        for inner in range(per_epoch):
            step = epoch * per_epoch + inner
            batches = {name: _share(next(feed), rank, world) for name, feed in feeds.items()}
            now = run.replace(seed=run.seed_for("step", step, rank))
            found, gradients = _gradients(lambda b=batches, r=now: losses(b, r), list(params.values()), recipe, now)
            _check(found, step)
            gradients = _average(gradients, world)
            if recipe.clip:
                norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
                torch._foreach_mul_(gradients, float((recipe.clip / (norm + 1e-6)).clamp(max=1.0)))
            scale = recipe.schedule.factor(step, steps)
            recipe.optimizer.update(params, dict(zip(params, gradients, strict=True)), state.carry, scale=scale)
            if after is not None:
                after(step, per_epoch)
            run.emit("train", step, steps, epoch=epoch, **{k: float(v.detach()) for k, v in found.items()})
        epoch += 1
        if checkpoint is not None and epoch < recipe.epochs and rank == 0:
            state.carry["epoch"] = torch.tensor(epoch)
            save(state, checkpoint)
        if run.budget and run.budget.seconds is not None and time.monotonic() - began > run.budget.seconds:
            return model
    if checkpoint is not None and rank == 0:
        shutil.rmtree(checkpoint, ignore_errors=True)
    return model


def _gradients(losses, params: list[Tensor], recipe: Recipe, now: Run) -> tuple[Mapping[str, Tensor], list[Tensor]]:
    device = params[0].device if params else HOME
    # The device's generator too is restored, where it can be: `manual_seed` seeds all of them.
    others = [] if device.type in ("cpu", "mps") else [device]
    with torch.random.fork_rng(others, device_type=device.type):
        # Dropout draws from the global generator; seeding it by step makes a resumed run draw the same.
        torch.manual_seed(now.seed_for("dropout"))
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            return recipe.step.gradients(losses, params, recipe.combine, now.rng("step"))


def _starts(count: int, batch: int) -> Iterator[int]:
    return (low for low in range(0, count, batch) if count - low > 1 or low == 0)


def _batches(data: Data, size: int, run: Run, name: str, epoch: int, count: int) -> Iterator[Batch]:
    made, turn = 0, 0
    while made < count:
        order = torch.randperm(len(data), generator=run.rng("epoch", name, epoch, turn))
        for low in _starts(len(data), size):
            yield data.fetch(order[low : low + size])
            made += 1
        turn += 1


def _check(losses: Mapping[str, Tensor], step: int) -> None:
    for name, loss in losses.items():
        if not bool(torch.isfinite(loss)):
            raise NonFiniteError(
                f"{name} is {float(loss.detach())} at step {step}; training stopped. "
                "Lower the learning rate or check the data"
            )


def _group() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _share(batch: Batch, rank: int, world: int) -> Batch:
    return batch if world == 1 or len(batch) < world else batch[rank::world]


def _average(gradients: list[Tensor], world: int) -> list[Tensor]:
    if world == 1:
        return gradients
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world
    return [piece.view_as(g) for piece, g in zip(flat.split([g.numel() for g in gradients]), gradients, strict=True)]


def _resume(state: Training, saved: nn.Module) -> int:
    with torch.no_grad():
        for name, tensor in state.model.state_dict(keep_vars=True).items():
            tensor.copy_(saved.model.state_dict()[name])  # type: ignore[union-attr,operator]
    bag: Bag = saved.carry  # type: ignore[assignment]
    for name in bag:
        state.carry[name] = bag[name].clone()
    return int(bag["epoch"])
