"""Checkpoints as they are found: folders of the hub's shape, plain files, and what `hs.save` wrote; by their headers.

What cannot be merged as it is (an adapter, a pickle, a quantised network) is refused with what to do. Nothing is
unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from homeostat.core.errors import CheckpointError
from homeostat.core.mapped import Mapped
from homeostat.core.save import _put_back, read_note

EMBEDDINGS = (
    "embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight", "embed_in.weight",
    "shared.weight",
)  # fmt: skip
"""How names of token embeddings end."""

HEADS = ("lm_head.weight", "embed_out.weight", "output.weight", "decoder.weight")
"""How names of what turns features into tokens end."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
PIECE = 1 << 22


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a checkpoint before its tensors are read.

    Attributes:
        path: its folder or file.
        tensors: of it.
        config: `config.json` of a folder of the hub's shape; else empty.
        note: `model.json` of a folder that `hs.save` wrote; else empty.
        tied: names that stand for another tensor of it.
    """

    path: Path
    tensors: Mapped
    config: Mapping[str, Any] = field(default_factory=dict)
    note: Mapping[str, Any] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path | None:
        """Where its small files are; None for a single file."""
        return self.path if self.path.is_dir() else None

    def names(self) -> Iterator[str]:
        """Tensors, each once, in the order of the files."""
        return (name for name in self.tensors if name not in self.tied)

    def find(self, name: str) -> str | None:
        """The stored tensor that a name stands for."""
        name = self.tied.get(name, name)
        return name if name in self.tensors else None

    def embeddings(self) -> str | None:
        """The name of the token embeddings."""
        return next((n for n in self.tensors if is_embeddings(n)), None)

    def head(self) -> str | None:
        """The name of the layer that turns features into tokens."""
        return next((n for n in self.tensors if is_head(n)), None)

    def ties_head(self) -> bool | None:
        """Whether its configuration ties the head to the embeddings; None where it does not say."""
        inner = self.config.get("text_config")
        said = self.config.get(
            "tie_word_embeddings", inner.get("tie_word_embeddings") if isinstance(inner, dict) else None
        )
        return None if said is None else bool(said)

    def state(self) -> list[list[Any]]:
        """Path, size and time of each of its files: what must not change while a merge is resumed."""
        files = sorted({place.file for place in self.tensors.places.values()})
        return [[str(f.resolve()), (stat := f.stat()).st_size, stat.st_mtime_ns] for f in files]


def is_embeddings(name: str) -> bool:
    """Whether token embeddings are called so."""
    return _ends(name, EMBEDDINGS)


def is_head(name: str) -> bool:
    """Whether the layer that turns features into tokens is called so."""
    return _ends(name, HEADS)


def _ends(name: str, ends: tuple[str, ...]) -> bool:
    # Layers have outputs and decoders of their own; what they are called has a number in it.
    return f".{name}".endswith(tuple(f".{end}" for end in ends)) and not any(p.isdigit() for p in name.split("."))


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint by its headers.

    Args:
        path: a folder of the hub's shape or of the hub's cache, a model's name there, a `.safetensors` file, or a
            folder that `hs.save` wrote.

    Raises:
        CheckpointError: it is not there, damaged, or something that cannot be merged as it is.
    """
    found = find_checkpoint(path)
    _put_back(found)
    note = read_note(found) if (found / "model.json").is_file() else {}
    config = _json(found / "config.json") if found.is_dir() else {}
    _refuse_adapter(found, note, ())
    _refuse_pickle(found)
    tensors = Mapped(found / "weights.safetensors" if note else found)
    _refuse_adapter(found, note, tensors)
    if "quantization_config" in config:
        raise CheckpointError(
            f"{path} is quantised, and numbers of other scales cannot be merged; give the network as it was before, or "
            "save it dequantised (in transformers: model.dequantize().save_pretrained(FOLDER))"
        )
    return _with_ties(Checkpoint(found, tensors, config, note, dict(note.get("tied", {}))))


def find_checkpoint(path: str | Path) -> Path:
    """The folder or file that a path or a model's name on the hub means here.

    Raises:
        CheckpointError: there is none.
    """
    found = Path(path).expanduser()
    if not found.exists() and str(path).count("/") == 1 and not str(path).startswith((".", "/", "~")):
        cached = _cache() / f"models--{str(path).replace('/', '--')}"
        if not (cached / "snapshots").is_dir():
            raise CheckpointError(
                f"{path} is no folder here, nor in the hub's cache; if it is a model of the hub, get it first: "
                f"hf download {path}"
            )
        found = cached
    if not found.exists():
        raise CheckpointError(f"{path} is not there; give a folder or a .safetensors file")
    snapshots = found / "snapshots"
    if snapshots.is_dir():
        revision = found / "refs" / "main"
        held = sorted(snapshots.iterdir(), key=lambda p: p.stat().st_mtime)
        if not held:
            raise CheckpointError(
                f"{found} is a folder of the hub's cache without a snapshot; download the model again"
            )
        named = snapshots / revision.read_text().strip() if revision.is_file() else held[-1]
        found = named if named.is_dir() else held[-1]
    return found


def _cache() -> Path:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()


def _refuse_adapter(path: Path, note: Mapping[str, Any], names: Any) -> None:
    if note and '"LoRALayer"' in json.dumps(note["recipe"]):
        raise CheckpointError(
            f"{path} has low-rank corrections beside its weights, whose factors cannot be merged one by one; add them "
            f"to the weights first: hs.save(hs.tune.fold(hs.load({str(path)!r})), FOLDER)"
        )
    config = path / "adapter_config.json"
    alone = config.is_file() and not any(
        (path / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")
    )
    if alone or any(".lora_A." in name or ".lora_B." in name for name in names):
        of = str(_json(config).get("base_model_name_or_path") or "BASE") if config.is_file() else "BASE"
        raise CheckpointError(
            f"{path} is an adapter and not a whole network; add it to its network first, with peft: PeftModel."
            f"from_pretrained(AutoModelForCausalLM.from_pretrained({of!r}), {str(path)!r}).merge_and_unload()"
            ".save_pretrained(FOLDER)"
        )


def _refuse_pickle(path: Path) -> None:
    files = [path] if path.is_file() else sorted(path.iterdir())
    if any(file.suffix == ".safetensors" for file in files):
        return
    if pickled := [file for file in files if file.suffix in PICKLES]:
        more = f" and {len(pickled) - 1} more" if len(pickled) > 1 else ""
        raise CheckpointError(
            f"{path} holds pickles ({pickled[0].name}{more}), which can run code when they are read; make "
            f"safetensors of each first: homeostat convert {pickled[0]} --out FOLDER/{pickled[0].stem}.safetensors"
        )


def _with_ties(found: Checkpoint) -> Checkpoint:
    tied, first = dict(found.tied), dict[tuple[Path, int, int], str]()
    for name, place in found.tensors.places.items():
        if place.count and (other := first.setdefault((place.file, place.start, place.stop), name)) != name:
            tied[name] = other
    embeddings, head = found.embeddings(), found.head()
    if embeddings and head and head not in tied:
        said = found.ties_head()
        # Older configurations leave it out where it is true, the library's default.
        if said or (said is None and found.config and same_values(found, embeddings, found, head)):
            tied[head] = embeddings
    return Checkpoint(found.path, found.tensors, found.config, found.note, tied)


def same_values(a: Checkpoint, name: str, b: Checkpoint, other: str) -> bool:
    """Whether two tensors are equal, dtype and bits."""
    first, second = a.tensors.places[name], b.tensors.places[other]
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    x, y = (t.reshape(-1) for t in (a.tensors[name], b.tensors[other]))
    return all(torch.equal(p, q) for p, q in zip(x.split(PIECE), y.split(PIECE), strict=True))


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    return found if isinstance(found, dict) else {}
