"""What a network's outputs and the labels mean."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from homeostat.core.data import UNKNOWN
from homeostat.core.errors import DtypeError, InputError, ModelError
from homeostat.core.spec import Spec
from homeostat.core.tree import Tree


class Task(Spec, abstract=True):
    """Meaning of outputs and labels: per-sample loss, prediction, scores, which labels are known, what is refused."""

    @abstractmethod
    def loss(self, out: Tree, y: Tree) -> Tensor:
        """Loss per sample, `[batch]`; 0 where the label is unknown."""

    @abstractmethod
    def predict(self, out: Tree) -> Tensor:
        """The prediction per sample."""

    @abstractmethod
    def scores(self, out: Tree) -> Tensor:
        """Log-probabilities (classification) or the outputs themselves."""

    @abstractmethod
    def known(self, y: Tree) -> Tensor:
        """Boolean `[batch]`: which samples have a label."""

    @abstractmethod
    def check(self, out: Tree, y: Tree | None, name: str = "y") -> None:
        """Raise our error when outputs or labels do not fit the task."""


@dataclass(frozen=True)
class Classify(Task):
    """One class of K per sample: outputs are logits or log-probabilities `[batch, K]`, labels int64 `[batch]`."""

    def loss(self, out: Tree, y: Tree) -> Tensor:
        return F.cross_entropy(_tensor(out), _tensor(y), ignore_index=UNKNOWN, reduction="none")

    def predict(self, out: Tree) -> Tensor:
        return _tensor(out).argmax(-1)

    def scores(self, out: Tree) -> Tensor:
        return _tensor(out).log_softmax(-1)

    def known(self, y: Tree) -> Tensor:
        return _tensor(y) != UNKNOWN

    def check(self, out: Tree, y: Tree | None, name: str = "y") -> None:
        logits = _logits(out, 2, "[batch, classes]")
        if y is not None:
            check_labels(_tensor(y), logits.shape[-1], name, (len(logits),))


@dataclass(frozen=True)
class Tokens(Task):
    """One class of K per position: logits `[batch, time, K]`, labels int64 `[batch, time]`, unknown ones are -100."""

    def loss(self, out: Tree, y: Tree) -> Tensor:
        logits, labels = _tensor(out), _tensor(y)
        each = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=UNKNOWN, reduction="none")
        known = labels.flatten(1) != UNKNOWN
        return each.view_as(labels).flatten(1).sum(1) / known.sum(1).clamp(min=1)

    def predict(self, out: Tree) -> Tensor:
        return _tensor(out).argmax(-1)

    def scores(self, out: Tree) -> Tensor:
        return _tensor(out).log_softmax(-1)

    def known(self, y: Tree) -> Tensor:
        return (_tensor(y) != UNKNOWN).flatten(1).any(1)

    def check(self, out: Tree, y: Tree | None, name: str = "y") -> None:
        logits = _logits(out, 3, "[batch, time, classes]")
        if y is not None:
            check_labels(_tensor(y), logits.shape[-1], name, tuple(logits.shape[:-1]))


@dataclass(frozen=True)
class Segment(Task):
    """One class of K per pixel: logits `[batch, K, height, width]`, labels int64 `[batch, height, width]`."""

    def loss(self, out: Tree, y: Tree) -> Tensor:
        each = F.cross_entropy(_tensor(out), _tensor(y), ignore_index=UNKNOWN, reduction="none").flatten(1)
        return each.sum(1) / (_tensor(y) != UNKNOWN).flatten(1).sum(1).clamp(min=1)

    def predict(self, out: Tree) -> Tensor:
        return _tensor(out).argmax(1)

    def scores(self, out: Tree) -> Tensor:
        return _tensor(out).log_softmax(1)

    def known(self, y: Tree) -> Tensor:
        return (_tensor(y) != UNKNOWN).flatten(1).any(1)

    def check(self, out: Tree, y: Tree | None, name: str = "y") -> None:
        logits = _logits(out, 4, "[batch, classes, height, width]")
        if y is not None:
            check_labels(_tensor(y), logits.shape[1], name, (logits.shape[0], *logits.shape[2:]))


@dataclass(frozen=True)
class MultiLabel(Task):
    """K yes-or-no labels per sample: logits `[batch, K]`, targets float `[batch, K]` in 0..1, NaN where unknown."""

    def loss(self, out: Tree, y: Tree) -> Tensor:
        known = ~_tensor(y).isnan()
        each = F.binary_cross_entropy_with_logits(_tensor(out), _tensor(y).nan_to_num(), reduction="none")
        return (each * known).sum(1) / known.sum(1).clamp(min=1)

    def predict(self, out: Tree) -> Tensor:
        return _tensor(out) > 0

    def scores(self, out: Tree) -> Tensor:
        return F.logsigmoid(_tensor(out))

    def known(self, y: Tree) -> Tensor:
        return (~_tensor(y).isnan()).any(1)

    def check(self, out: Tree, y: Tree | None, name: str = "y") -> None:
        logits = _logits(out, 2, "[batch, labels]")
        if y is not None:
            target = _tensor(y)
            _same_shape(logits, target, name)
            if bool(((target < 0) | (target > 1)).any()):
                raise InputError(f"{name} has values outside 0..1; multi-label targets are probabilities or 0 and 1")


@dataclass(frozen=True)
class Regress(Task):
    """Numbers: outputs and float targets of one shape `[batch, ...]`, NaN where the target is unknown.

    Attributes:
        power: 2 for squared error, 1 for absolute error.
    """

    power: float = 2.0

    def loss(self, out: Tree, y: Tree) -> Tensor:
        known = ~_tensor(y).isnan()
        each = (_tensor(out) - _tensor(y).nan_to_num()).abs().pow(self.power) * known
        return each.flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1) if each.ndim > 1 else each

    def predict(self, out: Tree) -> Tensor:
        return _tensor(out)

    def scores(self, out: Tree) -> Tensor:
        return _tensor(out)

    def known(self, y: Tree) -> Tensor:
        known = ~_tensor(y).isnan()
        return known.flatten(1).any(1) if known.ndim > 1 else known

    def check(self, out: Tree, y: Tree | None, name: str = "y") -> None:
        if y is not None:
            _same_shape(_tensor(out), _tensor(y), name)
            if bool(_tensor(y).isinf().any()):
                raise InputError(f"{name} holds infinite targets; mark unknown ones as NaN")


def check_labels(labels: Tensor, classes: int, name: str = "y", shape: tuple[int, ...] | None = None) -> None:
    """Raise our error unless labels are integers in `[0, classes)` or `UNKNOWN`, of the wanted shape."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DtypeError(f"{name} has dtype {labels.dtype}; class labels are integers")
    if shape is not None and tuple(labels.shape) != shape:
        raise InputError(f"{name} has shape {tuple(labels.shape)}; {shape} was wanted, one label per prediction")
    wrong = (labels != UNKNOWN) & ((labels < 0) | (labels >= classes))
    if bool(wrong.any()):
        seen = sorted(set(labels[wrong].flatten().tolist()))[:5]
        raise InputError(
            f"{name} has labels outside 0..{classes - 1}: {seen}; the model has {classes} outputs. "
            f"Number classes from 0 and mark unknown ones as {UNKNOWN}"
        )


def _tensor(tree: Tree) -> Tensor:
    if isinstance(tree, Tensor):
        return tree
    raise ModelError(f"this task wants one tensor of outputs and of labels; got a {type(tree).__name__}")


def _logits(out: Tree, ndim: int, wanted: str) -> Tensor:
    logits = _tensor(out)
    if logits.ndim != ndim or not logits.is_floating_point():
        raise ModelError(f"the model gave {logits.dtype} {tuple(logits.shape)}; the task wants float logits {wanted}")
    return logits


def _same_shape(out: Tensor, target: Tensor, name: str) -> None:
    if not target.is_floating_point():
        raise DtypeError(f"{name} has dtype {target.dtype}; the task's targets are floats")
    if out.shape != target.shape:
        raise InputError(f"{name} has shape {tuple(target.shape)}; the model's outputs are {tuple(out.shape)}")
