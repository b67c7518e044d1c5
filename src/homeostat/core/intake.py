"""Data of whatever users have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homeostat.core.data import Batch, Data, Tensors, join
from homeostat.core.errors import DtypeError, InputError


def as_data(value: Any, name: str = "data") -> Data:
    """Make `Data` of what users have.

    Takes `Data`, a tensor or array (inputs alone), a pair `(x, y)`, a mapping of input tensors, a `Batch`, a PyTorch
    map-style dataset or `DataLoader`, a Hugging Face dataset with columns `x`/`y`, or any iterable of batches
    `x`, `(x, y)` or `Batch`. Iterables are read into memory once.

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
    elif hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, str):
        made = _from_samples(value, name)
    elif isinstance(value, Iterable) and not isinstance(value, str):
        batches = [b if isinstance(b, Batch) else as_data(b, name).load() for b in value]
        joined = join(batches)
        made = Tensors(joined.x, joined.y, None, joined.meta)
    else:
        raise DtypeError(f"{name} is a {type(value).__name__}; give tensors, a pair (x, y), a dataset or an iterable")
    if len(made) == 0:
        raise InputError(f"{name} is empty; at least one sample is needed")
    return made


def _from_samples(value: Any, name: str) -> Data:
    samples = [value[i] for i in range(len(value))]
    if not samples:
        raise InputError(f"{name} is empty; at least one sample is needed")
    if isinstance(samples[0], Mapping):
        columns = {key: torch.as_tensor(np.stack([np.asarray(s[key]) for s in samples])) for key in samples[0]}
        y = next((columns.pop(key) for key in ("y", "label", "labels") if key in columns), None)
        return Tensors(columns["x"] if set(columns) == {"x"} else columns, y)
    pairs = isinstance(samples[0], (tuple, list))
    x = torch.stack([torch.as_tensor(s[0] if pairs else s) for s in samples])
    return Tensors(x, torch.stack([torch.as_tensor(s[1]) for s in samples]) if pairs else None)
