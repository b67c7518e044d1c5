"""S167 SWS: networks of several depths, started from one learngene (Xia et al., IJCAI 2024).

The paper starts DeiTs of 3 to 12 and more blocks from five trained ones: 6.6 times less training for the family, and 20
times fewer stored parameters than with pre-trained networks of each size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from homeostat import Data, Run, Tensors, World, read
from homeostat.data import FashionMNIST
from homeostat.evidence import claim
from homeostat.fit import Fit, Recipe
from homeostat.merge import SWS
from homeostat.nn import Adam, SmallCNN, SmallViT, resized
from homeostat.probe import Accuracy

DATA = (FashionMNIST("train", stop=20_000), FashionMNIST("test", stop=2_000))
DEPTHS = (4, 6, 8)
IMAGES, BATCH = 3_200, 50
TUNED = "nothing; the shares of the stages, alpha and weight decay are the authors', learning rates usual ones"
SHRUNK = (
    "3,200 images of Fashion-MNIST at 16x16, transformers of width 32 with 16 patches of 4x4, four stages of two "
    "blocks, 8 epochs of distillation from a small convolutional network, in place of ImageNet, DeiT and LeViT"
)


def small_images(data: Data) -> Tensors:
    batch = data.load()
    assert isinstance(batch.x, torch.Tensor)
    return Tensors(F.adaptive_avg_pool2d(batch.x, 16), batch.y)


def fitted(net: nn.Module, data: Data, rate: float, epochs: int, name: str, run: Run) -> nn.Module:
    recipe = Recipe(optimizer=Adam(lr=rate, weight_decay=0.05, decoupled=True), epochs=epochs, batch=BATCH)
    return Fit(recipe=recipe)(net, World(source=data), run=run.replace(seed=run.seed_for(name)))


def accuracy(net: nn.Module, data: Data) -> float:
    return read([Accuracy()], net, data)[0].value


def family(run: Run, train: Data, test: Data, longer: int) -> dict[str, float]:
    """Mean accuracy over depths: descendants after one epoch, and from scratch after one and after more."""
    chosen = torch.randperm(len(train), generator=run.rng("images"))[:IMAGES]
    images, judged = small_images(train[chosen]), small_images(test)
    teacher = fitted(
        SmallCNN(in_channels=1, size=16, width=32, depth=2, seed=run.seed_for("teacher")),
        images,
        2e-3,
        8,
        "teacher",
        run,
    )
    net = SmallViT(in_channels=1, size=16, patch=4, width=32, depth=DEPTHS[0], seed=run.seed_for("network"))
    recipe = Recipe(optimizer=Adam(lr=1e-3, weight_decay=0.05, decoupled=True), epochs=8, batch=BATCH)
    method = SWS(stages=(2, 2, 2, 2), recipe=recipe)
    kit = method.kit(net, World(source=images, models={"teacher": teacher}), run=run)
    made: dict[str, list[float]] = {"learngene": [], "learngene, untrained": [], "one epoch": [], "longer": []}
    for depth in DEPTHS:
        fresh = resized(net, depth=depth, seed=run.seed_for("fresh", depth))
        started = method(fresh, World(), kit=kit)
        made["learngene, untrained"].append(accuracy(started, judged))
        made["learngene"].append(accuracy(fitted(started, images, 2e-4, 1, f"tune{depth}", run), judged))
        made["one epoch"].append(accuracy(fitted(fresh, images, 1e-3, 1, f"scratch{depth}", run), judged))
        if longer:
            made["longer"].append(accuracy(fitted(fresh, images, 1e-3, longer, f"longer{depth}", run), judged))
    found = {name: sum(values) / len(values) for name, values in made.items() if values}
    return {**found, "teacher": accuracy(teacher, judged)}


@claim(
    "S167",
    says="Networks of 4, 6 and 8 blocks that start from one learngene are after one epoch more accurate, by five "
    "points or more, than those trained from scratch for one.",
    ours="learngene", baseline="one epoch", metric="accuracy, mean over depths", least=0.05, tier="three minutes",
    data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def after_one_epoch(run: Run, train: Data, test: Data) -> dict[str, float]:
    return family(run, train, test, longer=0)


@claim(
    "S167",
    says="Networks that start from the learngene are after one epoch no less accurate than those trained from scratch "
    "for three.",
    ours="learngene", baseline="longer", metric="accuracy, mean over depths", least=0.0, tier="long", data=DATA,
    tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def one_epoch_for_three(run: Run, train: Data, test: Data) -> dict[str, float]:
    return family(run, train, test, longer=3)
