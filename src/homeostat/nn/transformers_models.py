"""Any model of the `transformers` library that gives logits, as a homeostat model.

The library's models take keyword arguments and return objects; a homeostat model takes one tree and returns one. For a
mapping x, `f(x) = model(**x).logits`; a bare tensor goes to the model's main input (`pixel_values`, `input_ids`). The
model may be the user's own object or be read by name or path. Only safetensors weights are read, and no code that comes
with a model is run. A checkpoint holds the configuration and the weights, so that it loads without the original.

Reading a name that is not a folder goes through the hub's client, which downloads unless `HF_HUB_OFFLINE=1`.

>>> from transformers import BertConfig, BertForSequenceClassification
>>> config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
>>> net = Transformers(BertForSequenceClassification(config))
>>> net({"input_ids": torch.tensor([[1, 2, 3]])}).shape
torch.Size([1, 2])
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.core.errors import CheckpointError, DtypeError, InputError, MissingExtra, ModelError
from homeostat.core.part import Part
from homeostat.core.random import generator
from homeostat.core.tree import Tree, length


class Transformers(Part):
    """A `transformers` model whose output has logits; see the module's docstring.

    Args:
        model: a `PreTrainedModel` with a head (classification, language model).
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @classmethod
    def from_pretrained(cls, name: str | Path, classes: int | None = None, seed: int = 0) -> Transformers:
        """Read a model by folder or name, in evaluation mode.

        Args:
            name: a folder with `config.json` and safetensors, or a name on the hub.
            classes: give the model a new classification head with this many outputs; default, the head it has.
            seed: of weights that the checkpoint lacks (a new head).

        Raises:
            MissingExtra: transformers is not installed.
            CheckpointError: nothing is there, it is truncated, or it is not safetensors.
            ModelError: it has no head that gives logits, or lacks weights that are not of a new head.
        """
        library = transformers_library("homeostat[transformers]")
        try:
            config = library.AutoConfig.from_pretrained(name, trust_remote_code=False)
            kind = _with_head(library, config, classes)
            options = {} if classes is None else {"num_labels": classes, "ignore_mismatched_sizes": True}
            model, report = read_quietly(kind, name, trust_remote_code=False, output_loading_info=True, **options)
        except ModelError:
            raise
        except Exception as error:  # the library raises whatever its readers raise
            raise CheckpointError(f"no transformers model could be read from {name}: {error}") from error
        keys = (*report["missing_keys"], *report["mismatched_keys"])
        new = {key[0] if isinstance(key, tuple) else key for key in keys}
        if new and classes is None:
            raise ModelError(f"{name} lacks weights of {', '.join(sorted(new)[:4])}; give classes= for a new head")
        _restart(model, new, seed)
        return cls(model).eval()

    def forward(self, x: Any) -> Tensor:
        """Logits for a mapping of inputs, or for the main input alone."""
        if isinstance(x, Tensor):
            x = {getattr(self.model, "main_input_name", "input_ids"): x}
        check_inputs(self.model, x)
        out = self.model(**x)
        logits = out.get("logits") if isinstance(out, Mapping) else getattr(out, "logits", None)
        if logits is None:
            raise ModelError(
                f"{type(self.model).__name__} returns no logits; use a class with a head, such as "
                "AutoModelForSequenceClassification, or Transformers.from_pretrained(name, classes=...)"
            )
        return logits


def check_inputs(model: nn.Module, x: Tree) -> None:
    """Raise our error unless `x` is a mapping of non-empty inputs that the model's `forward` knows."""
    if not isinstance(x, Mapping):
        raise DtypeError(f"inputs came as a {type(x).__name__}; a mapping such as {{'input_ids': tokens}} is wanted")
    known = inspect.signature(model.forward).parameters
    strange = [name for name in x if name not in known]
    # Wrappers pass everything on and name nothing; a model that names its main input would drop what it does not name.
    if strange and getattr(model, "main_input_name", None) in known:
        raise InputError(f"{type(model).__name__} takes no input {', '.join(strange)}; it takes {', '.join(known)}")
    if length(x) == 0:
        raise InputError("the batch is empty; at least one sample is needed")


def read_quietly(kind: Any, name: str | Path, **options: Any) -> Any:
    """`kind.from_pretrained` from safetensors, without the library's bars and tables, into memory of our own.

    The tensors of a mapped file may start anywhere, and sums over them round differently from those of a copy; a model
    that was saved and loaded again would differ in its last bits.
    """
    logging = transformers_library("homeostat[transformers]").utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        made = kind.from_pretrained(name, use_safetensors=True, **options)
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    for tensor in (*(model := made[0] if isinstance(made, tuple) else made).parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return made


def transformers_library(extra: str) -> ModuleType:
    """The `transformers` package, or our error that names the extra to install."""
    try:
        import transformers
    except ImportError:
        raise MissingExtra(f"this needs the transformers library: pip install '{extra}'") from None
    return transformers


def _with_head(library: ModuleType, config: Any, classes: int | None) -> Any:
    """The model class to read: the one the checkpoint was made with, or a classifier for a new head."""
    if classes is not None:
        for data in ("SEQUENCE", "IMAGE"):
            classifiers = getattr(library, f"MODEL_FOR_{data}_CLASSIFICATION_MAPPING")
            if type(config) in classifiers:
                return classifiers[type(config)]
        raise ModelError(f"transformers has no classifier for {type(config).__name__}")
    names = config.architectures or []
    if not names or not isinstance(getattr(library, names[0], None), type):
        raise ModelError(f"the configuration names no model class of transformers (architectures = {names})")
    kind = getattr(library, names[0])
    if type(config) in library.MODEL_MAPPING and library.MODEL_MAPPING[type(config)] is kind:
        raise ModelError(f"{names[0]} has no head that gives logits; give classes= for a new one")
    return kind


def _restart(model: nn.Module, names: set[str], seed: int) -> None:
    """Draw the weights a checkpoint lacks from our own generator: std 0.02 and zero biases, as these libraries do."""
    draw = generator(seed, "weights")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in names:
                if parameter.ndim > 1:
                    parameter.normal_(0.0, 0.02, generator=draw)
                else:
                    parameter.zero_()
