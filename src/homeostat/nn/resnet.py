"""Residual networks for small images, in the layout of the published CIFAR ResNets.

A 3x3 convolution, three stages of n blocks with `width`, `2 width` and `4 width` channels (the later two halve the
image), a mean over pixels and a linear layer: depth = 6n + 2. A block of input h is

    relu(norm(conv(relu(norm(conv(h))))) + shortcut(h))

with the parameter-free shortcut "A": where the size changes, every second pixel, and zeros for the new channels. Depth
20, 32, 44 and 56 at width 16 are the published networks (0.27 to 0.85 million weights). Tensors have their published
names, `conv1, bn1, layerL.B.conv{1,2}, layerL.B.bn{1,2}, linear`, also with GroupNorm, so that one file fits both.

`norm="group"` has 8 groups (fewer where the width is odd) and no statistics of a batch: choose it where batches are
small or of one class. Starting weights are He-normal.

>>> import torch
>>> net = ResNet(depth=8, in_channels=1, width=8)
>>> net(torch.rand(2, 1, 28, 28)).shape
torch.Size([2, 10])

Reference: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.core.errors import MissingPart, SpecError
from homeostat.core.part import Part
from homeostat.core.save import fill
from homeostat.core.weights import Weights
from homeostat.nn.blocks import at_least_one, check_images, norm_layer, start
from homeostat.nn.normalized import Normalized
from homeostat.nn.places import locate

CIFAR_MEAN, CIFAR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What the published CIFAR ResNets' inputs are normalised by (ImageNet's statistics)."""


class ResNet(Part):
    """A residual network for small images `[batch, in_channels, height, width]`; see the module's docstring.

    Args:
        depth: layers with weights, 6n + 2: 8, 14, 20, 26, 32, 38, 44, 50, 56.
        classes: number of outputs.
        in_channels: 3 for colour, 1 for grey.
        width: channels of the first stage.
        norm: `"batch"` or `"group"`.
        seed: of the starting weights.
    """

    def __init__(
        self, depth: int = 20, classes: int = 10, in_channels: int = 3, width: int = 16, norm: str = "batch",
        seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.depth, self.classes, self.in_channels = depth, classes, in_channels
        self.width, self.norm, self.seed = width, norm, seed
        if depth < 8 or depth % 6 != 2:
            raise SpecError(f"depth = {depth}, but it must be 6n + 2: 8, 14, 20, 32, 44, 56")
        at_least_one(classes=classes, in_channels=in_channels, width=width)
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = norm_layer(norm, width, ("batch", "group"))
        blocks = (depth - 2) // 6
        self.layer1 = _stage(width, width, 1, blocks, norm)
        self.layer2 = _stage(width, 2 * width, 2, blocks, norm)
        self.layer3 = _stage(2 * width, 4 * width, 2, blocks, norm)
        self.linear = nn.Linear(4 * width, classes)
        start(self, seed)

    def forward(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """Logits."""
        check_images(x, self.in_channels)
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.layer3(self.layer2(self.layer1(h)))
        return self.linear(h.mean((2, 3)))


class _Residual(nn.Module):
    """Two convolutions and a shortcut without parameters."""

    def __init__(self, channels: int, out: int, stride: int, norm: str):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = norm_layer(norm, out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = norm_layer(norm, out)
        self.stride, self.added = stride, out - channels

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height2 width2"]:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.added:
            x = F.pad(x, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        return F.relu(h + x)


def _stage(channels: int, out: int, stride: int, blocks: int, norm: str) -> nn.Sequential:
    first = _Residual(channels, out, stride, norm)
    return nn.Sequential(first, *(_Residual(out, out, 1, norm) for _ in range(blocks - 1)))


def cifar_resnet(depth: int = 20, pretrained: bool = True, seed: int = 0) -> Normalized:
    """A CIFAR-10 ResNet that takes images in 0..1, in evaluation mode when pretrained.

    Args:
        depth: 20, 32, 44 or 56.
        pretrained: read the published weights from `HOMEOSTAT_DATA/weights/resnet{depth}-cifar10.safetensors`.
        seed: of the starting weights when not pretrained.

    Raises:
        MissingPart: the weights are not there. CheckpointError: they do not fit or are truncated.
    """
    net = ResNet(depth, seed=seed)
    if not pretrained:
        return Normalized(net, CIFAR_MEAN, CIFAR_STD)
    try:
        path = locate(f"weights/resnet{depth}-cifar10.safetensors")
    except MissingPart as error:
        raise MissingPart(f"{error}. For an untrained network: cifar_resnet({depth}, pretrained=False)") from None
    # Clones: tensors of a mapped file would change with it.
    fill(net, {name: tensor.clone() for name, tensor in Weights(path).items()}, str(path))
    return Normalized(net, CIFAR_MEAN, CIFAR_STD).eval()
