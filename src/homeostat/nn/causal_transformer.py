"""A tiny language model: tokens in, logits of the next token out.

Token and position embeddings, `depth` blocks (LayerNorm first) in which a position sees itself and earlier ones, a last
LayerNorm and a linear layer: tokens `[batch, time]` give logits `[batch, time, vocabulary]`, of which position t is
about token t + 1 and depends on tokens 0..t alone. So padding on the right changes nothing before it, and an attention
mask is accepted and not needed. Labels for `core.task.Tokens` come from `data.Strings.next_tokens`.

>>> import torch
>>> net = CausalTransformer(vocabulary=50, length=8, width=16, depth=1)
>>> net(torch.randint(50, (2, 8), generator=torch.Generator().manual_seed(0))).shape
torch.Size([2, 8, 50])

Reference: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019 (the arrangement).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.core.part import Part
from homeostat.nn.blocks import Block, at_least_one, check_tokens, start


class CausalTransformer(Part):
    """A tiny causal transformer; see the module's docstring.

    Args:
        vocabulary: number of tokens.
        length: the longest input.
        width: numbers a token, a multiple of `heads`.
        depth: number of blocks.
        heads: of each attention layer.
        seed: of the starting weights.
    """

    def __init__(
        self, vocabulary: int, length: int = 128, width: int = 64, depth: int = 2, heads: int = 4, seed: int = 0
    ):
        super().__init__()
        self.vocabulary, self.length, self.width = vocabulary, length, width
        self.depth, self.heads, self.seed = depth, heads, seed
        at_least_one(vocabulary=vocabulary, length=length, width=width, depth=depth, heads=heads)
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, vocabulary)
        start(self, seed, gain=1.0)

    def forward(self, x: Any) -> Float[Tensor, "batch time vocabulary"]:
        """Logits of the next token at every position; `x` is the tokens or a mapping with `input_ids`."""
        tokens = check_tokens(x.get("input_ids") if isinstance(x, Mapping) else x, self.vocabulary, self.length)
        h = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        return self.linear(self.norm(self.blocks(h)))
