"""Models on disk: a recipe in JSON and tensors in safetensors, never pickle.

A checkpoint is a folder: `model.json` (recipe, tied names, content hash), `weights.safetensors`, and
`carry.safetensors` when the model has state. It is written to a temporary folder and renamed, so that a kill leaves
either the old checkpoint or the new one; an old one that a kill left renamed is put back when it is next asked for.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from homeostat.core.errors import CheckpointError, StoreError
from homeostat.core.fork import fork, unwrap
from homeostat.core.part import build, recipe
from homeostat.core.place import HOME, device_of, placed
from homeostat.core.spec import digest
from homeostat.core.weights import Weights, carried, fingerprint, hash_tensors, weights

FORMAT = 1


def content_hash(model: nn.Module) -> str:
    """A hash of structure, weights and state: what names a checkpoint."""
    return digest(recipe(model), fingerprint(model), hash_tensors(carried(model)))


def save(model: nn.Module, path: str | Path, *, name: str | None = None) -> str:
    """Write a model as a checkpoint folder, atomically, and return its content hash.

    Args:
        model: any module. Foreign classes can be saved; loading them needs `load(path, base=net)`.
        path: the folder; an existing checkpoint there is replaced.
        name: the content hash, where the caller has just taken it.

    Raises:
        CheckpointError: something that is not a checkpoint is in the way. StoreError: the disk is full or read-only.
    """
    path, model = Path(path), unwrap(model)
    _put_back(path)
    if _in_the_way(path):
        raise CheckpointError(f"{path} exists and is no checkpoint; choose another path")
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        make_synced(path.parent)
        staging.mkdir()
        tied: dict[str, str] = {}
        _write(staging / "weights.safetensors", _untied(weights(model), tied))
        state = _untied(carried(model), tied)
        if state:
            _write(staging / "carry.safetensors", state)
        name = content_hash(model) if name is None else name
        frozen = [n for n, parameter in model.named_parameters() if not parameter.requires_grad]
        note = {"format": FORMAT, "hash": name, "recipe": recipe(model), "tied": tied, "frozen": frozen}
        write_synced(staging / "model.json", json.dumps(note, indent=1).encode())
        sync_folder(staging)
        _swap(staging, path)
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"the checkpoint {path} cannot be written: {error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return name


def _swap(staging: Path, path: Path, tries: int = 5) -> None:
    """Bring a folder under a name. Another process may be doing the same; the last one's stays."""
    try:
        if path.exists():
            old = path.with_name(f".{path.name}.old.{uuid.uuid4().hex[:8]}")
            path.rename(old)
            staging.rename(path)
            # The old files go when the new ones are found under the name, also after a power loss.
            sync_folder(path.parent)
            shutil.rmtree(old, ignore_errors=True)
        else:
            staging.rename(path)
    except OSError as error:
        if tries == 1 or error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) or not staging.exists():
            raise
        _swap(staging, path, tries - 1)


def _in_the_way(path: Path, looks: int = 3) -> bool:
    """Whether something else than a checkpoint has the name; between two looks another process may swap its own in."""
    return all(path.exists() and not (path / "model.json").is_file() for _ in range(looks))


def _put_back(path: Path) -> None:
    """Undo a replacement that was killed between its two renames."""
    if not path.exists():
        for old in sorted(path.parent.glob(f".{path.name}.old.*"))[:1]:
            with suppress(OSError):  # whoever was replacing it, or another that looked, was first
                old.rename(path)


def load(
    path: str | Path, base: nn.Module | None = None, *, device: str | torch.device | None = None, verify: bool = False
) -> nn.Module:
    """Read a model from a checkpoint folder, or plain safetensors weights into a copy of `base`; in evaluation mode.

    Args:
        path: a folder written by `save`, or a `.safetensors` file or folder of shards (then `base` is needed).
        base: the foreign model that the checkpoint was made over, or the architecture of a plain weights file.
        device: where the model goes; default, where `base` lies, else the CPU.
        verify: also compare the content hash.

    Raises:
        CheckpointError: truncated, foreign, or tensors that do not fit; every misfit is listed.
    """
    path = Path(path)
    _put_back(path)
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint at {path}")
    device = (None if base is None else device_of(unwrap(base))) or HOME if device is None else device
    if not (path / "model.json").is_file():
        if base is None:
            raise CheckpointError(f"{path} holds weights without a recipe; give the network: load(path, base=net)")
        model = fork(unwrap(base), own="*")
        fill(model, Weights(path), str(path))
        return placed(model.eval(), device)
    note = read_note(path)
    model = build(note["recipe"], None if base is None else unwrap(base))
    tensors: dict[str, Tensor] = {}
    for file in ("weights.safetensors", "carry.safetensors"):
        if (path / file).is_file():
            tensors.update(_read(path / file))
    for name, source in note["tied"].items():
        if source not in tensors:
            raise CheckpointError(f"{path}: tensor {source} is missing; the checkpoint is not whole")
        tensors[name] = tensors[source]
    fill(model, tensors, str(path))
    frozen = set(note["frozen"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if verify and content_hash(model) != note["hash"]:
        raise CheckpointError(
            f"{path}: the content does not match its hash {note['hash'][:12]}; the files were changed"
        )
    return placed(model.eval(), device)


def read_note(path: Path) -> dict[str, Any]:
    """`model.json` of a checkpoint, checked."""
    try:
        note = json.loads((path / "model.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / 'model.json'} cannot be read: {error}") from None
    if not isinstance(note, dict) or not {"format", "hash", "recipe", "tied", "frozen"} <= set(note):
        raise CheckpointError(f"{path / 'model.json'} is not a homeostat checkpoint")
    if note["format"] > FORMAT:
        raise CheckpointError(
            f"{path} has format {note['format']}; this version reads up to {FORMAT}; upgrade homeostat"
        )
    return note


def holds(path: Path, model: nn.Module) -> bool:
    """Whether the checkpoint at `path` is whole and of this very model."""
    try:
        note = read_note(path)
        files = [file for file in ("weights.safetensors", "carry.safetensors") if (path / file).exists()]
        kept = {name: tensor for file in files for name, tensor in _read(path / file).items()}
    except CheckpointError:
        return False
    wanted = _untied(weights(model), {}) | _untied(carried(model), {})
    return digest(note["recipe"]) == digest(recipe(model)) and hash_tensors(kept) == hash_tensors(wanted)


def fill(model: nn.Module, tensors: Mapping[str, Tensor], source: str = "the weights") -> None:
    """Assign tensors to a model by name, in place; names, shapes and kinds must match, all misfits listed at once."""
    for path, module in model.named_modules():
        if getattr(module, "takes_any_tensor", False):
            prefix = f"{path}." if path else ""
            names = [n for n in tensors if n.startswith(prefix) and "." not in n[len(prefix) :]]
            module._buffers = {n[len(prefix) :]: tensors[n] for n in names}
    wanted = model.state_dict(keep_vars=True)
    missing = [n for n in wanted if n not in tensors and not n.endswith("num_batches_tracked")]
    extra = [n for n in tensors if n not in wanted]
    misfit = []
    for name in wanted:
        if name in tensors and tensors[name].shape != wanted[name].shape:
            misfit.append(f"{name} is {tuple(tensors[name].shape)}, {tuple(wanted[name].shape)} wanted")
    if missing or extra or misfit:
        said = [f"{len(missing)} missing ({_few(missing)})"] if missing else []
        said += [f"{len(extra)} unknown ({_few(extra)})"] if extra else []
        said += [f"{len(misfit)} of another shape ({_few(misfit)})"] if misfit else []
        raise CheckpointError(f"{source} do not fit the {type(model).__name__}: {'; '.join(said)}")
    assigned: dict[int, Any] = {}
    for name, old in wanted.items():
        if name not in tensors:
            continue
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if id(old) not in assigned:
            new = tensors[name].contiguous()
            assigned[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
        store = module._parameters if leaf in module._parameters else module._buffers
        store[leaf] = assigned[id(old)]


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until a folder's entries are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_synced(path: Path) -> None:
    """Make a folder, and the ones above it that are missing, and wait until all are on the disk."""
    chain = [path, *path.parents]
    there = next((i for i, folder in enumerate(chain) if folder.exists()), len(chain) - 1)
    # Whoever made the lowest one that is there may have been killed before it was synced.
    with suppress(PermissionError):
        sync_folder(chain[there].parent)
    for folder in reversed(chain[:there]):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)
    path.mkdir(exist_ok=True)


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_synced(path, to_bytes({name: t.detach().cpu().contiguous() for name, t in tensors.items()}))


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            # Memory of the file would alias what is on the disk; a model owns its tensors.
            return {name: file.get_tensor(name).clone(memory_format=torch.contiguous_format) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error}); it may be truncated") from None


def _untied(tensors: Mapping[str, Tensor], tied: dict[str, str]) -> dict[str, Tensor]:
    """Each storage once; the other names go into `tied`."""
    kept: dict[str, Tensor] = {}
    first: dict[tuple[torch.device, int, torch.Size, tuple[int, ...]], str] = {}
    for name, tensor in tensors.items():
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and key in first:
            tied[name] = first[key]
        else:
            first[key] = name
            kept[name] = tensor
    return kept


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
