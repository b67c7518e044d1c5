"""Weights from elsewhere, read without running anything, and written as safetensors or as a checkpoint.

A safetensors file holds numbers alone. A file that `torch.save` wrote is a pickle, which can run code when it is read;
PyTorch's reader for weights alone is used, which makes tensors and plain containers, and a file that asks for more is
refused. Then names are brought into order: a wrapper such as `{"state_dict": ...}` is opened, and prefixes that
wrappers of networks leave behind (`module.`, `_orig_mod.`) go.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.core.errors import CheckpointError, InputError, MissingPart, SpecError, nearest
from homeostat.core.fork import fork
from homeostat.core.save import _write, fill, save
from homeostat.core.weights import Weights

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "module")
"""Keys under which files keep the weights, the likelier first."""
PREFIXES = ("module.", "_orig_mod.")
"""What wrappers of networks put before each name."""
OUTER = ("model.", "net.", "network.", "backbone.", "encoder.")
"""Names of attributes around a network; they go where the layout fits better without them."""
SHOWN = 12


@dataclass(frozen=True)
class Foreign:
    """Weights from elsewhere.

    Attributes:
        tensors: by name.
        notes: what was done to them, and how they were read.
        left: keys of the file that hold something else.
    """

    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...]
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        path: a checkpoint's folder, or a safetensors file.
        tensors, numbers: how many.
        notes: what was done, and how the file was read.
        unchecked: what cannot be seen from a file and is for the user to check.
    """

    path: Path
    tensors: int
    numbers: int
    notes: tuple[str, ...]
    unchecked: tuple[str, ...]


def read_foreign(path: str | Path, key: str = "") -> Foreign:
    """The tensors of a safetensors file, of a folder of shards, or of a file that `torch.save` wrote.

    Args:
        path: the file or folder.
        key: where in the file the weights are, as in `"ema.state_dict"`; looked for if not given.

    Raises:
        MissingPart: there is no such file. CheckpointError: it is damaged, holds no weights, or running code would be
        needed to read it.
    """
    path = Path(path)
    if not path.exists():
        raise MissingPart(f"there is no file {path}")
    if path.is_dir() or path.suffix == ".safetensors" or _is_safetensors(path):
        if path.is_dir() and (path / "model.json").is_file():
            raise CheckpointError(f"{path} is a homeostat checkpoint already; hs.load(path) reads it")
        # Clones: tensors of a mapped file would change with it.
        found: dict[str, Tensor] = {name: tensor.clone() for name, tensor in Weights(path).items()}
        notes, left = ["read as safetensors: numbers alone, no code"], ()
    else:
        content = _torch_file(path)
        found, where, left, others = _opened(content, key, path)
        notes = ["read with PyTorch's reader for weights alone: tensors and containers, no code was run"]
        notes += [f"the weights are those under {where!r}"] if where else []
        notes += [f"other weights are under {', '.join(others)}; --key chooses"] if others and not key else []
    if not found:
        raise CheckpointError(f"{path} holds no tensor")
    if bad := [n for n, t in found.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]:
        raise CheckpointError(f"{path} holds NaN or infinity in {_some(bad)}; take a sound file")
    found, cut = _stripped(found, PREFIXES)
    notes += [f"the prefix {prefix!r} was taken off every name" for prefix in cut]
    return Foreign(found, tuple(notes), left)


def convert(
    path: str | Path,
    out: str | Path,
    model: nn.Module | None = None,
    *,
    around: Callable[[nn.Module], nn.Module] = lambda net: net,
    key: str = "",
    force: bool = False,
) -> Converted:
    """Write weights from elsewhere as a homeostat checkpoint of a network, or as a plain safetensors file.

    Args:
        path: see `read_foreign`.
        out: the checkpoint's folder; without a model, a file that ends in `.safetensors`.
        model: the network that the weights belong to, of any weights; it does not change.
        around: what the network is wrapped in before it is saved, such as its normalization.
        key: see `read_foreign`.
        force: replace what is there.

    Raises:
        CheckpointError: the weights do not fit; every missing, unknown and misshapen tensor is named.
        InputError: something is in the way of `out`, or its name does not fit. And what `read_foreign` raises.
    """
    out = Path(out)
    if model is None and out.suffix != ".safetensors":
        raise InputError(f"without a layout the weights become a file that ends in .safetensors; got {out}")
    if out.exists() and not force:
        raise InputError(f"{out} is there already; give another name, or --force, which replaces it")
    foreign = read_foreign(path, key)
    notes, tensors = list(foreign.notes), dict(foreign.tensors)
    notes += [f"left aside: {_some(foreign.left)}"] if foreign.left else []
    if model is None:
        out.parent.mkdir(parents=True, exist_ok=True)
        _write(out, {name: tensor.clone() for name, tensor in tensors.items()})
        unchecked = ("whether all tensors of the network are there: give a layout to check names and shapes",)
    else:
        net = fork(model, own="*")
        tensors, said = _fitted(net, tensors, path)
        notes += said
        fill(net, tensors, str(path))
        save(around(net).eval(), out)
        unchecked = (
            "whether the network computes what it did elsewhere: equal names and shapes do not show how inputs are "
            "normalised, which activation is used, or what the classes' order is; read it on labelled data",
        )
    numbers = sum(tensor.numel() for tensor in tensors.values())
    return Converted(out, len(tensors), numbers, tuple(notes), unchecked)


def _fitted(net: nn.Module, tensors: dict[str, Tensor], path: str | Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the network's names and in its types, or an error with every misfit."""
    wanted, notes = net.state_dict(), []
    bare, cut = _stripped(tensors, OUTER, until=set(wanted))
    if cut:
        tensors, notes = bare, [f"the prefix {prefix!r} was taken off every name" for prefix in cut]
    missing = [name for name in wanted if name not in tensors and not name.endswith("num_batches_tracked")]
    unknown = [name for name in tensors if name not in wanted]
    misshapen = [
        f"{name} is {tuple(tensors[name].shape)}, {tuple(wanted[name].shape)} wanted"
        for name in wanted if name in tensors and tensors[name].shape != wanted[name].shape
    ]  # fmt: skip
    if missing or unknown or misshapen:
        told = ((missing, "missing"), (unknown, "unknown"), (misshapen, "of another shape"))
        said = "; ".join(f"{len(names)} {what} ({_some(names)})" for names, what in told if names)
        hint = ""
        if len(misshapen) and not missing and not unknown:
            hint = "; arguments of the layout, such as classes or width, may be others"
        raise CheckpointError(f"{path} does not fit the {type(net).__name__}: {said}{hint}")
    cast = [n for n, t in tensors.items() if t.is_floating_point() and t.dtype != wanted[n].dtype]
    if cast:
        kinds = sorted({str(tensors[name].dtype).removeprefix("torch.") for name in cast})
        notes.append(f"{len(cast)} tensors were {', '.join(kinds)} and are now the layout's float32")
    return {name: tensor.to(wanted[name].dtype) for name, tensor in tensors.items()}, notes


def _torch_file(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever its readers raise, unpickling errors among them
        text = " ".join(str(error).split())
        if asked := re.search(r"GLOBAL (\S+)|Unsupported (?:class|global)[^:]*: (?:GLOBAL )?(\S+)", text):
            name = asked[1] or asked[2]
            raise CheckpointError(
                f"{path} can only be read by running what it names ({name}), which is refused: such a file can do "
                "anything. Where you trust it, save the weights alone: torch.save(model.state_dict(), path)"
            ) from None
        if "TorchScript" in text:
            raise CheckpointError(
                f"{path} is a TorchScript program and would be run to be read; save the weights alone: "
                "torch.save(model.state_dict(), path)"
            ) from None
        if "weights_only" in text.lower() or "Weights only" in text:
            raise CheckpointError(
                f"{path} holds more than tensors and containers, which is refused, as reading it could run code; save "
                "the weights alone: torch.save(model.state_dict(), path)"
            ) from None
        raise CheckpointError(
            f"{path} is neither safetensors nor a file that torch.save wrote, or is damaged"
        ) from None


def _opened(content: Any, key: str, path: Path) -> tuple[dict[str, Tensor], str, tuple[str, ...], list[str]]:
    """The tensors of what a file held, where in it they were, which keys are left, and where other tensors are."""
    places = dict(sorted(_places(content), key=lambda place: place[0].count(".")))
    if key:
        if key not in places:
            known = ", ".join(places) or "none"
            raise SpecError(f"{path} has no weights under {key!r}.{nearest(key, places)} It has them under: {known}")
        where = key
    elif "" in places:
        where = ""
    else:
        last = {place: place.rpartition(".")[2] for place in places}
        where = next((place for word in WRAPPERS for place in places if last[place] == word), next(iter(places), None))
    if where is None:
        what = (
            f"keys {_some([str(k) for k in content])}"
            if isinstance(content, Mapping)
            else f"a {type(content).__name__}"
        )
        raise CheckpointError(f"{path} holds no tensors by name, but {what}")
    left = [str(k) for k in content if str(k) != where.partition(".")[0]] if where else []
    return places[where], where, tuple(left), [place for place in places if place != where]


def _places(content: Any, prefix: str = "", depth: int = 0) -> list[tuple[str, dict[str, Tensor]]]:
    if not isinstance(content, Mapping) or depth > 3:
        return []
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return [(prefix, {str(name): tensor.detach() for name, tensor in content.items()})]
    return [
        place for name, value in content.items()
        for place in _places(value, f"{prefix}.{name}" if prefix else str(name), depth + 1)
    ]  # fmt: skip


def _stripped(
    tensors: Mapping[str, Tensor], prefixes: tuple[str, ...], until: set[str] | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors without prefixes that all names have; with `until`, as long as more names are known without them."""
    found, cut = dict(tensors), []
    while prefix := next((p for p in prefixes if found and all(n.startswith(p) for n in found)), ""):
        bare = {name[len(prefix) :]: tensor for name, tensor in found.items()}
        if until is not None and len(until & set(bare)) <= len(until & set(found)):
            break
        found, cut = bare, [*cut, prefix]
    return found, cut


def _is_safetensors(path: Path) -> bool:
    """By its head: eight bytes of length, then JSON."""
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _some(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
