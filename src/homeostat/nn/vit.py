"""A vision transformer small enough to train on a processor.

An image of side `size` is cut into `(size / patch)**2` patches; each becomes a token of `width` numbers, a class token
is put in front, learned positions are added, and `depth` blocks (LayerNorm first) mix them. The class token, after a
last LayerNorm, gives the logits. The defaults (patch 4, width 96, depth 4) have 0.46 million weights on 28x28. There is
no BatchNorm: methods that adapt statistics have nothing to hold on to, those that adapt affine parameters find
LayerNorm's.

>>> import torch
>>> SmallViT(in_channels=1, size=28, width=32, depth=1)(torch.rand(2, 1, 28, 28)).shape
torch.Size([2, 10])

Reference: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.core.errors import SpecError
from homeostat.core.part import Part
from homeostat.core.random import generator
from homeostat.nn.blocks import Block, at_least_one, check_images, start


class SmallViT(Part):
    """A small vision transformer for square images; see the module's docstring.

    Args:
        classes: number of outputs.
        in_channels: 3 for colour, 1 for grey.
        size: side of the images, a multiple of `patch`.
        patch: side of a patch.
        width: numbers a token, a multiple of `heads`.
        depth: number of blocks.
        heads: of each attention layer.
        seed: of the starting weights.
    """

    def __init__(
        self, classes: int = 10, in_channels: int = 3, size: int = 28, patch: int = 4, width: int = 96, depth: int = 4,
        heads: int = 4, seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.classes, self.in_channels, self.size, self.patch = classes, in_channels, size, patch
        self.width, self.depth, self.heads, self.seed = width, depth, heads, seed
        at_least_one(classes=classes, in_channels=in_channels, size=size, patch=patch)
        at_least_one(width=width, depth=depth, heads=heads)
        if size % patch:
            raise SpecError(f"size = {size}, but it must be a multiple of patch = {patch}")
        self.patches = nn.Conv2d(in_channels, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.empty(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, classes)
        start(self, seed, gain=1.0)
        with torch.no_grad():
            self.position.normal_(0.0, 0.02, generator=generator(seed, "positions"))

    def forward(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """Logits."""
        check_images(x, self.in_channels, self.size)
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.position
        return self.linear(self.norm(self.blocks(tokens)[:, 0]))
