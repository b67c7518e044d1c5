"""Data of whatever users have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, TensorDataset

from homeostat.core.data import Batch, Data, Tensors, join
from homeostat.core.errors import DtypeError, InputError

LABELS = ("y", "label", "labels")
"""What the labels are called in mappings that come from a loader or a data set."""


def as_data(value: Any, name: str = "data") -> Data:
    """Make `Data` of what users have.

    Takes `Data`, a tensor or array (inputs alone), a pair `(x, y)`, a mapping of input tensors, a `Batch`, a PyTorch
    dataset or `DataLoader`, a Hugging Face dataset of numbers, a list of samples or batches, or any iterable of
    batches. A batch is `x`, `(x, y)`, a `Batch`, or a mapping that may hold its labels as `y`, `label` or `labels`; a
    sample likewise. Iterables are read into memory once.

    A list of pairs is one of batches where each y has one dimension, as long as its x, and x has more dimensions; else
    it is one of samples.

    Raises:
        InputError: it is empty, or its parts do not fit together.
        DtypeError: it is none of these.
    """
    if isinstance(value, Data):
        made = value
    elif isinstance(value, Batch):
        made = Tensors(value.x, value.y, value.id, value.meta)
    elif isinstance(value, (Tensor, np.ndarray)):
        made = Tensors(value)
    elif isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[0], (Tensor, np.ndarray, Mapping)):
        made = Tensors(*value)
    elif isinstance(value, Mapping):
        made = Tensors(value)
    elif isinstance(value, TensorDataset):
        made = Tensors(*_pair(value.tensors, name))
    elif hasattr(value, "iloc"):
        raise DtypeError(f"{name} is a {type(value).__name__}; give homeostat.data.frame(table, label=...)")
    elif isinstance(value, (list, tuple)) and value and all(map(_is_batch, value)):
        made = _from_batches(value, name)
    elif isinstance(value, IterableDataset):
        made = _from_samples(list(value), name)
    elif hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, str):
        made = _from_samples([value[i] for i in range(len(value))], name)
    elif isinstance(value, Iterable) and not isinstance(value, str):
        made = _from_batches(value, name)
    else:
        raise DtypeError(f"{name} is a {type(value).__name__}; give tensors, a pair (x, y), a dataset or an iterable")
    if len(made) == 0:
        raise InputError(f"{name} is empty; at least one sample is needed")
    return made


def _is_batch(item: Any) -> bool:
    """Whether an item of a list can only be a batch."""
    if isinstance(item, Batch):
        return True
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        return False
    x, y = item
    return all(isinstance(part, (Tensor, np.ndarray)) for part in item) and y.ndim == 1 < x.ndim and len(x) == len(y)


def _from_batches(value: Iterable[Any], name: str) -> Data:
    batches = []
    for number, item in enumerate(value):
        made = item if isinstance(item, Batch) else Tensors(*_pair(item, f"{name}: batch {number}")).batch
        batches.append(made)
    if not batches:
        raise InputError(f"{name} is empty; at least one sample is needed")
    if len({made.y is None for made in batches}) > 1:
        raise InputError(f"{name}: some batches have labels and some have none; mark unknown ones as -100")
    try:
        joined = join(batches)
    except (RuntimeError, KeyError) as error:
        raise InputError(f"{name}: its batches do not fit together: {_first_line(error)}") from None
    return Tensors(joined.x, joined.y, None, joined.meta)


def _pair(item: Any, name: str) -> tuple[Any, Any]:
    """Inputs and labels of a batch or a sample, or None for the labels."""
    if isinstance(item, Mapping):
        columns = dict(item)
        y = next((columns.pop(key) for key in LABELS if key in columns), None)
        return (columns["x"] if set(columns) == {"x"} else columns), y
    if not isinstance(item, (tuple, list)):
        return item, None
    if not 1 <= len(item) <= 2:
        raise InputError(f"{name} has {len(item)} parts; x or (x, y) is wanted, and several inputs as a mapping")
    return item[0], item[1] if len(item) == 2 else None


def _from_samples(samples: Sequence[Any], name: str) -> Data:
    if not samples:
        raise InputError(f"{name} is empty; at least one sample is needed")
    pairs = [_pair(sample, f"{name}[{number}]") for number, sample in enumerate(samples)]
    y = None if pairs[0][1] is None else _stacked([pair[1] for pair in pairs], f"the labels of {name}")
    xs = [pair[0] for pair in pairs]
    if isinstance(xs[0], Mapping):
        return Tensors({key: _stacked([x[key] for x in xs], f"{name}.{key}") for key in xs[0]}, y)
    return Tensors(_stacked(xs, name), y)


def _stacked(values: Sequence[Any], name: str) -> Tensor:
    """One tensor of a sample's part from each."""
    kind = type(values[0]).__name__
    if isinstance(values[0], str) or hasattr(values[0], "convert"):
        what = "text" if isinstance(values[0], str) else "a picture"
        raise DtypeError(
            f"{name} holds {what} ({kind}); give homeostat.data.huggingface(dataset), or turn it into tensors first"
        )
    try:
        return torch.stack([torch.as_tensor(np.asarray(v) if not isinstance(v, Tensor) else v) for v in values])
    except TypeError:
        raise DtypeError(f"{name} holds values of type {kind}, which are no tensors; turn them into tensors") from None
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{name}: its samples do not fit together: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
