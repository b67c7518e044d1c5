"""Undersampled Fourier data of images, with noise: what a scanner measures when it is in a hurry.

An image becomes its frequencies at random columns (Cartesian sampling), centred and orthonormal, plus complex noise:

    x = {kspace: M (F image + n)  [batch, 2, height, width],  mask: M  [batch, width]},   n ~ noise N(0, 1) in each part

The mask is drawn per sample: the middle columns, and random others, `width / acceleration` in all. Images have one
channel, or two (real and imaginary part). Where the data have labels, the target becomes the image itself, as
`[batch, 2, height, width]`; data without labels stay without, so give `(images, images)` if there are no others. It
comes after shifts of images: `Compose((Corrupt("contrast"), Undersample()))`.

>>> import torch
>>> images = torch.rand(2, 1, 8, 8)
>>> batch = Undersample(acceleration=2.0)((images, images)).load()
>>> batch.x["kspace"].shape, batch.x["mask"].sum(1).tolist(), batch.y.shape
(torch.Size([2, 2, 8, 8]), [4, 4], torch.Size([2, 2, 8, 8]))

Reference: Zbontar et al., fastMRI: An open dataset and benchmarks for accelerated MRI, 2018 (the masks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import annotated_types as at

from homeostat.core.data import Batch
from homeostat.core.method import Card
from homeostat.core.random import Draw
from homeostat.core.spec import Fraction, NonNegative
from homeostat.nn.fourier import as_pairs, column_masks, to_frequencies
from homeostat.shift.pointwise import Pointwise, images_of


@dataclass(frozen=True)
class Undersample(Pointwise):
    """Frequencies of an image at random columns.

    Attributes:
        acceleration: one of so many columns is measured.
        center: share of the columns, around frequency 0, that always is.
        noise: deviation in the real and in the imaginary part.
    """

    acceleration: Annotated[float, at.Ge(1)] = 4.0
    center: Fraction = 0.08
    noise: NonNegative = 0.0

    card: ClassVar[Card] = Card(handles=frozenset({"covariate"}))

    def change(self, batch: Batch, draw: Draw) -> Batch:
        image = as_pairs(images_of(batch, "Undersample"))
        mask = column_masks(draw.uniform(image.shape[3]), self.acceleration, self.center).to(image.device)
        kspace = to_frequencies(image)
        if self.noise:
            kspace = kspace + self.noise * draw.normal(*image.shape[1:]).to(kspace)
        kspace = kspace * mask[:, None, None]
        return batch.replace(x={"kspace": kspace, "mask": mask}, y=None if batch.y is None else image)
