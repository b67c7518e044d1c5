"""The small convolutional network of the dataset-condensation papers: blocks of convolution, norm, ReLU, mean pooling.

For images of side `size`, each of `depth` blocks is a 3x3 convolution to `width` channels, a norm layer, ReLU and 2x2
mean pooling; a linear layer reads what is left, `width * (size // 2**depth)**2` numbers. Depth 3, width 128 and
instance norm are the papers' defaults (0.3 million weights on 32x32). `norm="batch"` makes it the small BatchNorm
network of many adaptation claims.

>>> import torch
>>> SmallCNN(in_channels=1, size=28, width=16)(torch.rand(2, 1, 28, 28)).shape
torch.Size([2, 10])

Reference: Gidaris, Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting", CVPR 2018 (the network); Zhao,
Mopuri, Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021 (its use).
"""

from __future__ import annotations

from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor, nn

from homeostat.core.errors import SpecError
from homeostat.core.part import Part
from homeostat.nn.blocks import NORMS, at_least_one, check_images, norm_layer, start


class SmallCNN(Part):
    """A small convolutional network for square images; see the module's docstring.

    Args:
        classes: number of outputs.
        in_channels: 3 for colour, 1 for grey.
        size: side of the images.
        width: channels of every block.
        depth: number of blocks; each halves the image.
        norm: `"instance"`, `"batch"`, `"group"`, `"layer"` or `"none"`.
        seed: of the starting weights.
    """

    def __init__(
        self, classes: int = 10, in_channels: int = 3, size: int = 32, width: int = 128, depth: int = 3,
        norm: str = "instance", seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.classes, self.in_channels, self.size = classes, in_channels, size
        self.width, self.depth, self.norm, self.seed = width, depth, norm, seed
        at_least_one(classes=classes, in_channels=in_channels, size=size, width=width, depth=depth)
        side = size // 2**depth
        if side < 1:
            raise SpecError(f"depth = {depth}, but an image of side {size} can be halved {size.bit_length() - 1} times")
        self.blocks = nn.Sequential()
        for i in range(depth):
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            layers["conv"] = nn.Conv2d(in_channels if i == 0 else width, width, 3, padding=1)
            layers["norm"] = norm_layer(norm, width, NORMS)
            layers["relu"], layers["pool"] = nn.ReLU(), nn.AvgPool2d(2)
            self.blocks.append(nn.Sequential(layers))
        self.linear = nn.Linear(width * side * side, classes)
        start(self, seed)

    def forward(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """Logits."""
        check_images(x, self.in_channels, self.size)
        return self.linear(self.blocks(x).flatten(1))
