"""S174 DCC: a handful of synthetic images that train almost as well as all (Lee et al., ICML 2022).

The paper matches the gradients of all classes together (DCC), where dataset condensation (DC) matches class by class,
and gains most where classes share more than tells them apart: fine-grained data, or a common pattern.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from homeostat import Data, Run, Tensors, World, read
from homeostat.curate import DCC
from homeostat.data import FashionMNIST
from homeostat.evidence import claim
from homeostat.fit import Fit, Recipe
from homeostat.nn import SGD, SmallCNN
from homeostat.probe import Accuracy

DATA = (FashionMNIST("train", stop=20_000), FashionMNIST("test"))
TUNED = "nothing; learning rates, momentum, warm-up share and the judges' learning rate are the official code's"
SHRUNK = (
    "Fashion-MNIST at 14x14 with a strong random texture behind each object, one image a class, 30 networks of 2 "
    "blocks of 16 channels, 6 steps each on 32 images a class, in place of SVHN and CIFAR, 1,000 networks of 3 blocks "
    "of 128 and 256 images a class; 2 networks judge in place of 20"
)


def textured(data: Data, count: int, generator: torch.Generator) -> Tensors:
    """Images whose background is a random texture that has nothing to do with the class."""
    batch = data[torch.randperm(len(data), generator=generator)[:count]].load()
    coarse = torch.rand(count, 1, 4, 4, generator=generator)
    texture = F.interpolate(coarse, size=(28, 28), mode="bilinear", align_corners=False)
    return Tensors(F.avg_pool2d(torch.where(batch.x > 0.1, batch.x, texture), 2), batch.y)  # type: ignore[operator]


def taught(x: Tensor, y: Tensor, test: Tensors, run: Run) -> float:
    """Mean accuracy of two networks that saw only these images."""
    total, recipe = 0.0, Recipe(optimizer=SGD(lr=0.01), epochs=200, batch=256)
    for number in range(2):
        net = SmallCNN(in_channels=1, size=14, width=16, depth=2, seed=run.seed_for("judge", number))
        total += read([Accuracy()], Fit(recipe=recipe)(net, World(source=(x, y)), run=run), test)[0].value / 2
    return total


def accuracies(run: Run, train: Data, test: Data, *names: str) -> dict[str, float]:
    known, judged = textured(train, 4000, run.rng("train")), textured(test, 2000, run.rng("test"))
    method = DCC(outer=30, warm_outer=7, steps=6, epochs=5, batch=32, width=16, depth=2)
    batch, found = known.load(), dict[str, float]()
    for name, contrast in (("DCC", True), ("DC", False)):
        if name in names:
            made = method.replace(contrast=contrast)(known, run=run).load()
            found[name] = taught(made.x, made.labels, judged, run)  # type: ignore[arg-type]
    rows = torch.stack([torch.nonzero(batch.labels == k)[:, 0][:3] for k in range(10)], 1)
    each = [taught(batch.x[row], torch.arange(10), judged, run) for row in rows]  # type: ignore[index]
    return {**found, "real images": sum(each) / len(each)}


@claim(
    "S174",
    says="Where classes share a strong pattern, one image a class condensed by DCC teaches more than one by DC.",
    ours="DCC", baseline="DC", metric="accuracy of networks trained on 10 images", least=0.01, tier="three minutes",
    data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def better_than_class_by_class(run: Run, train: Data, test: Data) -> dict[str, float]:
    return accuracies(run, train, test, "DCC", "DC")


@claim(
    "S174",
    says="One image a class condensed by DCC teaches more than one random real image a class.",
    ours="DCC", baseline="real images", metric="accuracy of networks trained on 10 images", least=0.03,
    tier="three minutes", data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def better_than_real_images(run: Run, train: Data, test: Data) -> dict[str, float]:
    return accuracies(run, train, test, "DCC")
