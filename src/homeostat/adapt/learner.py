"""What networks that learn while they serve have in common: which weights learn, and who teaches.

- `Learner`: the network changes some of its own weights by gradient steps.
- `MeanTeacher`: the network that serves is a slow average of a student that learns from it.

Methods derive their `Online` part from one of these, and add how a batch becomes a loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from homeostat.core.errors import ModelError
from homeostat.core.fork import Pattern, matches
from homeostat.core.online import Online
from homeostat.core.task import Classify
from homeostat.core.tree import Tree
from homeostat.nn.norms import norm_affine
from homeostat.nn.optimizers import Adam, Optimizer, gradients_of
from homeostat.nn.teacher import average_into

Learn = Literal["all", "norm"]
"""`"norm"`: scales and shifts of the normalisation layers. `"all"`: every parameter named `weight` or `bias`, which
leaves class tokens and position embeddings out, as the usual code does."""


def learnable(model: nn.Module, which: Learn, own: Pattern = "*") -> tuple[str, ...]:
    """Names of the parameters that learn, among those whose name matches `own`.

    Raises:
        ModelError: there is none.
    """
    if which == "norm":
        return norm_affine(model, own)
    names = tuple(n for n, _ in model.named_parameters() if n.rpartition(".")[2] in ("weight", "bias"))
    if not names:
        raise ModelError(f"{type(model).__name__} has no parameter named weight or bias that could learn")
    return names


TOP_LAYERS = ("*layer4*", "*blocks.9.*", "*blocks.10.*", "*blocks.11.*", "norm.*")
"""Names of the last stage of a ResNet-50 and of the last blocks and norm of a ViT-B, whose scales and shifts SAR and
DeYO leave alone. Networks without such names learn in all of their norm layers."""


def norms_but(model: nn.Module, left: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the scales and shifts of the norm layers, those aside whose name matches one of `left`.

    Raises:
        ModelError: there is none, or none remains.
    """
    aside = matches(left)
    remaining = tuple(name for name in norm_affine(model) if not aside(name))
    if not remaining:
        raise ModelError(
            f"leave_out = {left!r} names every scale and shift of this {type(model).__name__}, and nothing is "
            "left that could learn; name fewer, or none: leave_out=()"
        )
    return remaining


def logits_of(out: Tree) -> Tensor:
    """A classifier's output, checked to be one."""
    Classify().check(out, None)
    assert isinstance(out, Tensor)
    return out


class Learner(Online, abstract=True):
    """A network that changes some of its own weights by gradient steps while it serves.

    Args:
        model: a classifier; one's own BatchNorm statistics are already chosen.
        optimizer: of what learns.
        own: names of the parameters that learn; default scales and shifts of the normalisation layers.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer = Adam(), own: tuple[str, ...] | None = None):
        names = norm_affine(model) if own is None else own
        super().__init__(model, own=names)
        self.optimizer = optimizer
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in names)
        self.begin()

    def begin(self) -> None:
        self.optimizer.begin(self.owned(), self.carry)

    def logits(self, x: Tree) -> Tensor:
        """Checked outputs of the network as it is."""
        return logits_of(self.model(x))

    def descend(self, loss: Tensor) -> None:
        """One step of the optimiser on everything that learns."""
        self.optimizer.minimize(loss, self.owned(), self.carry)


class MeanTeacher(Online, abstract=True):
    """A slowly averaged teacher that serves, with the student that it averages in `carry`, below `student`.

    The model *is* the teacher: `weights(model)`, saving and merging see what serves. Nothing in it asks for gradients.

    Args:
        model: the starting network; it becomes the teacher, and its learnable weights the anchor and the student.
        optimizer: of the student.
        average: how much of the teacher stays at each step.
        learn: what the student learns, see `Learn`.
        own: names in place of those that `learn` stands for.
        moving: names of tensors that student and teacher each have, and that no gradient changes: statistics.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer = Adam(),
        average: float = 0.999,
        learn: Learn = "all",
        own: tuple[str, ...] | None = None,
        moving: tuple[str, ...] = (),
    ):
        super().__init__(model, own=(*(learnable(model, learn) if own is None else own), *moving))
        self.optimizer, self.average, self.learn, self.moving = optimizer, average, learn, moving
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        self.begin()

    def begin(self) -> None:
        owned = self.owned()
        self.carry.put("student", {name: tensor.detach().clone() for name, tensor in owned.items()})
        self.begin_optimizer(self._learning(owned))
        self.carry["step"] = torch.tensor(0)

    @property
    def step(self) -> int:
        """How many batches were learnt from."""
        return int(self.carry["step"])

    def student(self) -> dict[str, Tensor]:
        """The student's weights that learn, live and ready for a backward pass."""
        live = self._learning(self.carry.under("student"))
        return {name: tensor.requires_grad_(True) for name, tensor in live.items()}

    def teacher_says(self, x: Tree) -> Tensor:
        """The teacher's logits."""
        with torch.no_grad():
            return logits_of(self.model(x))

    def anchor_says(self, x: Tree) -> Tensor:
        """Logits of the network as it was given."""
        with torch.no_grad():
            return logits_of(functional_call(self.model, self.anchor(), (x,)))

    def student_says(self, student: Mapping[str, Tensor], x: Tree) -> Tensor:
        """The student's logits, with gradients."""
        return logits_of(functional_call(self.model, self.carry.under("student") | dict(student), (x,)))

    def begin_optimizer(self, student: Mapping[str, Tensor]) -> None:
        """Put the optimiser's starting state into `carry`."""
        self.optimizer.begin(student, self.carry)

    def update(self, student: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """The optimiser's step."""
        self.optimizer.update(student, gradients, self.carry)

    def rates(self, student: Mapping[str, Tensor]) -> list[tuple[float, list[str]]]:
        """How much of the teacher stays, with the names for which that holds."""
        return [(self.average, list(student))]

    def learn_from(self, loss: Tensor, student: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One step of the student, and then of the teacher towards it; returns the gradients."""
        gradients = gradients_of(loss, student)
        self.update(student, gradients)
        self.follow(student)
        return gradients

    def follow(self, student: Mapping[str, Tensor]) -> None:
        """The teacher's step towards the student; counts it."""
        teacher = self.owned()
        for keep, names in self.rates(student):
            average_into([teacher[name] for name in names], [student[name] for name in names], keep)
        for tensor in student.values():
            tensor.requires_grad_(False)
        self.carry["step"] += 1

    def _learning(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in tensors.items() if name not in self.moving}
