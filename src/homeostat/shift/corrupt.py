"""The common corruptions as a shift of data; see `homeostat.shift.corruption` for what each does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import annotated_types as at

from homeostat.core.data import Batch
from homeostat.core.errors import UnknownName, nearest
from homeostat.core.method import Card
from homeostat.core.random import Draw
from homeostat.shift.corruption import COMMON, EXTRA, Preset, corrupt
from homeostat.shift.pointwise import Pointwise, images_of


@dataclass(frozen=True)
class Corrupt(Pointwise):
    """One of 19 corruptions of images at severity 1 to 5; 0 changes nothing.

    Attributes:
        name: such as `"fog"`; see `COMMON` and `EXTRA`.
        severity: 0 to 5.
        preset: constants of ImageNet-C or CIFAR-C; `"auto"` takes the latter for images under 64 pixels.

    >>> import torch
    >>> data = Corrupt("contrast", 5)(torch.rand(3, 1, 28, 28))
    >>> data.load().x.shape
    torch.Size([3, 1, 28, 28])

    Reference: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions, ICLR 2019.
    """

    name: str = "gaussian_noise"
    severity: Annotated[int, at.Ge(0), at.Le(5)] = 3
    preset: Preset = "auto"

    words: ClassVar[dict[str, tuple[str, ...]]] = {"name": (*COMMON, *EXTRA)}
    """What a field of text may be; editors and shells complete it."""
    card: ClassVar[Card] = Card(paper="Hendrycks and Dietterich, ICLR 2019", handles=frozenset({"covariate"}))

    def __post_init__(self) -> None:
        super().__post_init__()
        known = self.words["name"]
        if self.name not in known:
            hint = nearest(self.name, known)
            raise UnknownName(f"no corruption is called {self.name!r}.{hint} There are {', '.join(known)}")

    def identity(self) -> bool:
        return self.severity == 0

    def change(self, batch: Batch, draw: Draw) -> Batch:
        return batch.replace(x=corrupt(images_of(batch, "Corrupt"), self.name, self.severity, draw, self.preset))
