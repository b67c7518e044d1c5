"""The last layers of MiniLM, for experiments in which the first ones stay as they are.

A text's states after the first layers are computed once (`states`); what is trained, merged and judged is a network of
the layers that remain, and the mean over tokens, scaled to length 1, that makes MiniLM's embedding:

    e = (sum_t m_t h_t) / max(sum_t m_t, 1),    f(x) = e / ||e||

Two of six layers are 3.5 of the 22 million weights, and a step costs a fifth.

    x = EncoderTail.states(Glosses("noun", length=12).read(), depth=2)
    EncoderTail(depth=2)(x.load().x)                        # [texts, 384], the embeddings of MiniLM

Reference: Wang et al., "MiniLM: Deep Self-Attention Distillation", NeurIPS 2020.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.core.data import Data, Tensors
from homeostat.core.errors import InputError
from homeostat.core.part import Part
from homeostat.nn.blocks import at_least_one, start
from homeostat.nn.minilm import MiniLM


class EncoderTail(Part):
    """MiniLM's last layers, on states of its first ones; see the module's docstring.

    Args:
        depth: how many layers, of 6.
        classes: outputs of a linear head; default none, the output is the embedding.
        seed: of the head's starting weights.

    Raises:
        MissingExtra: the text extra is not installed.
    """

    def __init__(self, depth: int = 2, classes: int | None = None, seed: int = 0):
        super().__init__()
        self.depth, self.classes, self.seed = depth, classes, seed
        encoder: Any = MiniLM().encoder
        self.layer = nn.ModuleList(_divided(encoder, depth)[1])
        self.head: nn.Linear | None = None
        if classes is not None:
            self.head = nn.Linear(int(encoder.config.hidden_size), classes)
            start(self.head, seed, gain=1.0)

    def forward(self, x: Any) -> Float[Tensor, "batch out"]:
        """Embeddings or logits for `states` `[batch, tokens, 384]` and their `mask` `[batch, tokens]`."""
        states, mask = x["states"], x["mask"].to(x["states"].dtype)
        states = _through(self.layer, states, mask)
        embedding = F.normalize((states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1), dim=1)
        return embedding if self.head is None else self.head(embedding)

    @staticmethod
    @torch.no_grad()
    def states(data: Data, depth: int = 2, size: int = 128) -> Tensors:
        """The states that a tail of this depth starts from, `{"states", "mask"}`, for tokenized texts."""
        encoder: Any = MiniLM().eval().encoder
        first, made = _divided(encoder, depth)[0], []
        for batch in data.batches(size):
            x: Any = batch.x
            tokens, mask = x["input_ids"], x["attention_mask"]
            made.append(_through(first, encoder.embeddings(input_ids=tokens), mask.float()))
        whole = data.load()
        return Tensors({"states": torch.cat(made), "mask": whole.x["attention_mask"]}, whole.y, whole.id)  # type: ignore[index,call-overload]


def _divided(encoder: Any, depth: int) -> tuple[list[nn.Module], list[nn.Module]]:
    """The first layers, and the last `depth`."""
    at_least_one(depth=depth)
    layers = list(encoder.encoder.layer)
    if depth > len(layers):
        raise InputError(f"MiniLM has {len(layers)} layers; got depth {depth}")
    return layers[: len(layers) - depth], layers[len(layers) - depth :]


def _through(layers: Any, states: Tensor, mask: Tensor) -> Tensor:
    hidden = (1 - mask[:, None, None, :]) * torch.finfo(states.dtype).min
    for layer in layers:
        out = layer(states, hidden.to(states.dtype))
        states = out[0] if isinstance(out, tuple) else out
    return states
