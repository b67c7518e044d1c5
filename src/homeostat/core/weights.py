"""A model's weights as a mapping, without its state; lazily from a file; and hashes of both.

Everything below the reserved child `carry` (replay memory, moments, anchors) is state. Merging, hashing and
broadcasting see weights only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from homeostat.core.data import hash_tensor
from homeostat.core.errors import CheckpointError, DtypeError, NonFiniteError, nearest

CARRY = "carry"


def is_carry(name: str) -> bool:
    """Whether a tensor's dotted name lies below `carry`."""
    return CARRY in name.split(".")


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, without `carry`; detached, sharing memory with the model."""
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if not is_carry(name)}


def carried(model: nn.Module) -> dict[str, Tensor]:
    """What lies below `carry`, by name; detached, sharing memory with the model."""
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if is_carry(name)}


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors, by name order."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        hash_tensor(sha, name, tensors[name])
    return sha.hexdigest()


def check_weights(model: nn.Module) -> None:
    """Raise `NonFiniteError` when a weight is NaN or infinite, naming the first few."""
    bad = [n for n, t in weights(model).items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if bad:
        raise NonFiniteError(
            f"the model's weights hold NaN or infinity in {', '.join(bad[:5])}; load a sound checkpoint"
        )


class Weights(Mapping[str, Tensor]):
    """The tensors of a safetensors file or of a folder of shards, read when asked for.

    Args:
        path: a `.safetensors` file, a folder with `model.safetensors.index.json`, or a folder with one such file.

    Raises:
        CheckpointError: the file is missing, truncated or not safetensors.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._files: dict[str, Path] = {}
        for file in _shards(self.path):
            try:
                with safe_open(file, framework="pt") as opened:
                    self._files.update(dict.fromkeys(opened.keys(), file))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{file} cannot be read as safetensors ({error}); it may be truncated") from None

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._files:
            raise CheckpointError(f"{self.path} has no tensor {name!r}.{nearest(name, self._files)}")
        try:
            with safe_open(self._files[name], framework="pt") as opened:
                return opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self._files[name]}: tensor {name} cannot be read ({error})") from None

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def fingerprint(self) -> str:
        """A hash of all tensors."""
        return hash_tensors(self)


def as_weights(value: nn.Module | Mapping[str, Tensor] | str | Path) -> Mapping[str, Tensor]:
    """Weights by name of a module, a mapping, or a file that is read lazily."""
    if isinstance(value, nn.Module):
        return weights(value)
    if isinstance(value, (str, Path)):
        return Weights(value)
    if isinstance(value, Mapping):
        return value
    raise DtypeError(f"a {type(value).__name__} holds no weights; give a module, a mapping of tensors or a path")


def fingerprint(value: nn.Module | Mapping[str, Tensor]) -> str:
    """A hash of a model's weights (not of its `carry`) or of a mapping of tensors."""
    return hash_tensors(weights(value) if isinstance(value, nn.Module) else value)


def _shards(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    index = path / "model.safetensors.index.json"
    if index.is_file():
        return sorted({path / name for name in json.loads(index.read_text())["weight_map"].values()})
    found = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    found = [file for file in found if file.name != "carry.safetensors"]
    if not found:
        raise CheckpointError(f"{path} is no safetensors file and no folder that holds one")
    return found
