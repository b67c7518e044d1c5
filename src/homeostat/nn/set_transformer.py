"""A set transformer: many vectors in no order become one, and any two of them may have to do with each other.

With MAB(Q, K) = LN(H + FF(H)), H = LN(Q + attention(Q, K, K)), and X `[set, width]`:

    SAB(X) = MAB(X, X)                                   every element looks at every other
    ISAB(X) = MAB(X, MAB(I, X))                          through m learned points I, at cost m * set
    PMA(X) = MAB(S, FF(X))                               one learned seed S looks at all

`SetTransformer` is a linear layer, `depth` SABs (or ISABs, when `points` is not 0), PMA and a linear layer. Its output
does not depend on the order of the elements, nor on how often the whole set is repeated. `DatasetEncoder` makes one
vector of a labelled data set: one set transformer reads the samples of each class, and another what the first gives for
the classes, each marked by a learned vector of its number.

>>> net = SetTransformer(inputs=3, outputs=4, width=8)
>>> x = torch.rand(2, 5, 3)
>>> net(x).shape, bool(torch.allclose(net(x), net(x.flip(1)), atol=1e-6))
(torch.Size([2, 4]), True)

Reference: Lee et al., Set Transformer: A Framework for Attention-based Permutation-Invariant Networks, ICML 2019.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.core.errors import InputError, SpecError
from homeostat.core.part import Part
from homeostat.core.random import generator
from homeostat.nn.blocks import at_least_one, start


class SetBlock(nn.Module):
    """MAB: queries look at keys, then a perceptron, with the norms behind."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise SpecError(f"width = {width}, but it must be a multiple of heads = {heads}")
        self.heads = heads
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(
        self, queries: Float[Tensor, "batch queries width"], keys: Float[Tensor, "batch keys width"]
    ) -> Float[Tensor, "batch queries width"]:
        width = queries.shape[2] // self.heads
        query, key, value = (
            layer(x).unflatten(2, (self.heads, width)).transpose(1, 2)
            for layer, x in ((self.query, queries), (self.key, keys), (self.value, keys))
        )
        mixed = (query @ key.transpose(2, 3) * width**-0.5).softmax(-1) @ value
        h = self.norm1(queries + self.out(mixed.transpose(1, 2).flatten(2)))
        return self.norm2(h + self.down(nn.functional.relu(self.up(h))))


class SetTransformer(Part):
    """A set transformer; see the module's docstring.

    Args:
        inputs: numbers an element.
        outputs: numbers for the set.
        width: numbers an element inside, a multiple of `heads`.
        depth: blocks before pooling.
        heads: of each attention layer.
        points: learned points of an ISAB; 0 lets elements look at each other directly.
        seed: of the starting weights.
    """

    def __init__(
        self, inputs: int, outputs: int, width: int = 64, depth: int = 2, heads: int = 4, points: int = 0, seed: int = 0
    ):
        super().__init__()
        self.inputs, self.outputs, self.width, self.depth = inputs, outputs, width, depth
        self.heads, self.points, self.seed = heads, points, seed
        at_least_one(inputs=inputs, outputs=outputs, width=width, depth=depth, heads=heads)
        self.first, self.last = nn.Linear(inputs, width), nn.Linear(width, outputs)
        self.blocks = nn.ModuleList(SetBlock(width, heads) for _ in range(depth))
        self.inner = nn.ModuleList(SetBlock(width, heads) for _ in range(depth if points else 0))
        self.before, self.pool = nn.Linear(width, width), SetBlock(width, heads)
        start(self, seed, gain=1.0)
        draw = generator(seed, "points")
        self.induced = nn.Parameter(torch.randn(len(self.inner), points, width, generator=draw) * width**-0.5)
        self.look = nn.Parameter(torch.randn(1, width, generator=draw) * width**-0.5)

    def forward(self, x: Tensor) -> Float[Tensor, "batch outputs"]:
        """One vector for each set of `x`, `[batch, set, inputs]`."""
        if x.ndim != 3 or x.shape[1] == 0 or x.shape[2] != self.inputs:
            raise InputError(f"sets have shape {tuple(x.shape)}; [batch, set, {self.inputs}] with elements is wanted")
        h = self.first(x)
        for number, block in enumerate(self.blocks):
            keys = h
            if self.points:
                keys = self.inner[number](self.induced[number].expand(len(x), -1, -1), h)
            h = block(h, keys)
        h = nn.functional.relu(self.before(h))
        return self.last(self.pool(self.look.expand(len(x), 1, -1), h)[:, 0])


class DatasetEncoder(Part):
    """One vector for a labelled data set; the order of samples does not matter, that of classes does.

    Args:
        features: numbers a sample.
        classes: how many there are.
        outputs: numbers for the data set.
        width: of the set transformers.
        seed: of the starting weights.
    """

    def __init__(self, features: int, classes: int, outputs: int, width: int = 64, seed: int = 0):
        super().__init__()
        self.features, self.classes, self.outputs, self.width, self.seed = features, classes, outputs, width, seed
        self.within = SetTransformer(features, width, width, depth=1, seed=seed)
        self.among = SetTransformer(width, outputs, width, depth=1, seed=seed + 1)
        self.number = nn.Parameter(torch.randn(classes, width, generator=generator(seed, "classes")))

    def forward(self, x: Float[Tensor, "batch classes shots features"]) -> Float[Tensor, "batch outputs"]:
        """One vector for each data set."""
        each = self.within(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.among(each + self.number)
