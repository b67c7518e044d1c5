"""What probes ask of the outputs they read, and the errors that say so.

>>> import torch
>>> from homeostat.core.probe import Outputs
>>> logits(Outputs(torch.zeros(4, 3), None, torch.arange(4)), "Entropy").shape
torch.Size([4, 3])
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from homeostat.core.errors import InputError, MissingPart, ModelError, NonFiniteError
from homeostat.core.probe import Outputs
from homeostat.core.task import Classify, check_labels
from homeostat.core.tree import Tree

Source = Literal["features", "outputs", "x"]
"""Where a drift probe looks: the network's features, its predicted probabilities, or the inputs themselves."""


def enough(count: int, least: int, who: str, what: str = "samples") -> None:
    """Raise `InputError` unless there are at least `least`."""
    if count < least:
        raise InputError(f"{who} needs at least {least} {what}; got {count}. Give more")


def logits(outputs: Outputs, who: str, least: int = 1) -> Tensor:
    """A classifier's logits `[samples, classes]`, float32 or float64, checked.

    `-inf` is taken as a class the network rules out; other values that are not finite are refused.
    """
    _classified(outputs, who)
    out = outputs.logits
    if out.ndim != 2 or out.shape[1] < 2:
        raise ModelError(f"{who} wants logits [samples, classes] of at least 2 classes; got {tuple(out.shape)}")
    enough(len(out), least, who)
    if not bool(out.isfinite().all()):
        wrong = out.isnan() | (out == float("inf"))
        wrong[:, 0] |= (out == float("-inf")).all(1)
        if bool(wrong.any()):
            raise NonFiniteError(f"{who}: the outputs of {int(wrong.any(1).sum())} samples hold NaN or infinity")
    return out if out.dtype == torch.float64 else out.float()


def labelled(outputs: Outputs, who: str, least: int = 1, what: str = "labelled samples") -> tuple[Tensor, Tensor]:
    """Logits and labels of the samples whose label is known; at least `least` of them."""
    _classified(outputs, who)
    known = outputs.labelled()
    out, y = logits(known, who), known.labels
    check_labels(y, out.shape[1], shape=(len(out),))
    enough(len(out), least, who, what)
    return out, y


def same_width(width: int, prepared: int, who: str, what: str) -> None:
    """Raise `InputError` unless the kit was made for as many classes or features as there are."""
    if width != prepared:
        raise InputError(f"{who}: its kit was prepared for {prepared} {what}; these data have {width}. Prepare it anew")


def matrix(outputs: Outputs, on: Source, who: str, least: int = 1) -> Tensor:
    """What a drift probe compares, as a finite float matrix `[samples, columns]`."""
    if on == "outputs":
        return logits(outputs, who, least).softmax(1)
    found: Tree | None = outputs.features if on == "features" else outputs.x
    if found is None:
        raise MissingPart(f"{who} reads {on}, and there are none; give a model, or choose on='x'")
    if not isinstance(found, Tensor):
        raise InputError(
            f"{who} compares one tensor of inputs; these are a {type(found).__name__}. Choose on='features'"
        )
    if found.is_complex() or found.ndim == 0:
        raise InputError(f"{who} compares real numbers [samples, ...]; got {found.dtype} {tuple(found.shape)}")
    flat = found.flatten(1) if found.ndim > 1 else found[:, None]
    enough(len(flat), least, who)
    if not bool(torch.isfinite(flat).all()):
        raise NonFiniteError(f"{who}: the {on} hold NaN or infinity; clean them or drop the samples")
    return flat if flat.dtype == torch.float64 else flat.float()


def _classified(outputs: Outputs, who: str) -> None:
    if not isinstance(outputs.task, Classify):
        raise InputError(
            f"{who} is for one class per sample (Classify); the world's task is {type(outputs.task).__name__}"
        )
