"""Grey images in colours that go with the label in training and not afterwards.

A network that is trained where color tells the label reads the color; where the relation breaks or turns round, it is
wrong about what it sees best. Labels y of `classes` classes become groups, and each image gets a group's color:

    group = floor(y groups / classes), with probability `noise` another one (drawn evenly), which is the new label
    color = that of the group with probability `strength`, else another one's (drawn evenly)
    x [batch, 1, height, width] -> x color [batch, 3, height, width]

Colors are red, green, blue, yellow, cyan, magenta. With the defaults and `strength` 0.9 these are the training images
of ColoredMNIST, of other grey images if need be, and with `strength` 0.1 those of its test: there color is right for
90 % and 10 % of the samples, shape for 75 % at most. At `strength` 1 / groups color says nothing. Draws depend on the
sample's id; what is drawn for a label does not depend on `strength`, so that one sample keeps its label under both.

>>> import torch
>>> images, labels = torch.ones(4, 1, 2, 2), torch.tensor([0, 9, 4, 5])
>>> batch = SpuriousColor(strength=1.0, noise=0.0)((images, labels)).load()
>>> batch.y.tolist(), batch.x[:, :, 0, 0].argmax(1).tolist(), tuple(batch.x.shape)
([0, 1, 0, 1], [0, 1, 0, 1], (4, 3, 2, 2))

Reference: Arjovsky et al., Invariant Risk Minimization, 2019 (ColoredMNIST); Gulrajani and Lopez-Paz, In Search of Lost
Domain Generalization, ICLR 2021; Zhao et al., On Pitfalls of Test-Time Adaptation, ICML 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import annotated_types as at
import torch
from torch import Tensor

from homeostat.core.data import UNKNOWN, Batch
from homeostat.core.errors import InputError, MissingPart, SpecError
from homeostat.core.method import Card
from homeostat.core.random import Draw
from homeostat.core.spec import Fraction
from homeostat.shift.pointwise import Pointwise, images_of

COLORS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1))
"""Red, green and blue of the groups' colors."""


@dataclass(frozen=True)
class SpuriousColor(Pointwise):
    """Grey images colored by their label, more or less often; labels become groups of classes.

    Attributes:
        strength: share of the samples that have their label's color.
        groups: how many labels and colors there are.
        noise: share of the samples whose label is that of another group; color goes by the label they get.
        classes: of the data; each group takes an equal run of them.
    """

    strength: Fraction = 0.9
    groups: Annotated[int, at.Ge(2), at.Le(len(COLORS))] = 2
    noise: Fraction = 0.25
    classes: Annotated[int, at.Ge(2)] = 10

    card: ClassVar[Card] = Card(
        paper="Arjovsky et al., Invariant Risk Minimization, 2019", handles=frozenset({"subgroup"})
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups > self.classes:
            raise SpecError(f"SpuriousColor makes {self.groups} groups of {self.classes} classes; at most one a class")

    def change(self, batch: Batch, draw: Draw) -> Batch:
        x = images_of(batch, "SpuriousColor")
        if x.shape[1] != 1:
            raise InputError(f"SpuriousColor colors grey images, of one channel; these have {x.shape[1]}")
        if batch.y is None:
            raise MissingPart("SpuriousColor colors images by their label, and these data have none")
        y = batch.labels
        if y.ndim != 1 or y.is_floating_point() or int(y.max()) >= self.classes:
            raise InputError(
                f"SpuriousColor wants one integer label a sample, below classes = {self.classes}; got {y.dtype} "
                f"{tuple(y.shape)} up to {y.max()}"
            )
        known = y != UNKNOWN
        group = self._other(torch.where(known, y * self.groups // self.classes, 0), self.noise, draw)
        color = self._other(group, 1 - self.strength, draw)
        # Where the label is unknown, color says nothing.
        color = torch.where(known, color, draw.integers(0, self.groups).to(color))
        tints = torch.tensor(COLORS, dtype=x.dtype, device=x.device)[color.to(x.device)]
        return batch.replace(x=x * tints[:, :, None, None], y=torch.where(known, group, UNKNOWN))

    def _other(self, group: Tensor, share: float, draw: Draw) -> Tensor:
        """Groups, of which a share is another one."""
        away = draw.uniform().to(group.device) < share
        step = draw.integers(1, self.groups).to(group)
        return torch.where(away, (group + step) % self.groups, group)
