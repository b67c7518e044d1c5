"""CoTTA: better than batch statistics over many corruptions, and still there when they come again.

Wang et al., Continual test-time domain adaptation, CVPR 2022 (S094): on continual CIFAR-10-C an error of 16.2 % against
43.5 % of the frozen network, 20.4 % of batch statistics and 20.7 % of Tent.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from homeostat.adapt import BatchNormBlend, CoTTA, Tent
from homeostat.core.data import Data
from homeostat.core.method import Remedy
from homeostat.core.probe import prequential
from homeostat.core.run import Run
from homeostat.data import CIFAR10, FashionMNIST
from homeostat.evidence import claim
from homeostat.fit import Cosine, Recipe
from homeostat.loop.network import Network
from homeostat.nn.optimizers import SGD
from homeostat.nn.resnet import cifar_resnet
from homeostat.shift import Corrupt, Phases

NAMES = ("gaussian_noise", "defocus_blur", "frost", "fog", "contrast", "jpeg_compression")
POOL = (CIFAR10("test", start=2000),)
TUNED = "nothing; the paper's defaults for CIFAR-10 but for 8 views in place of 32"
SHRUNK = (
    "CIFAR-10 images that went through JPEG, a published ResNet-20, six corruptions of severity 5 with 1,000 images "
    "each in place of fifteen with 10,000; batches of 100 in place of 200"
)
NETWORK = Network(
    layout={"ResNet": {"depth": 8, "in_channels": 1, "width": 8}},
    mean=(0.286,), std=(0.353,), data=FashionMNIST("train", stop=10_000),
    recipe=Recipe(epochs=3, batch=64, optimizer=SGD(lr=0.1, weight_decay=5e-4, nesterov=True), schedule=Cosine(50)),
)  # fmt: skip
ROUND = tuple(
    Corrupt(name, 3, "imagenet")
    for name in ("gaussian_noise", "defocus_blur", "brightness", "fog", "contrast", "jpeg_compression")
)


def _right(net: nn.Module, stream: Data, batch: int) -> torch.Tensor:
    seen = prequential(net, stream, batch=batch)
    return (seen.logits.argmax(1) == seen.labels).double()


def _continual(run: Run, pool: Data) -> dict[str, float]:
    net = cifar_resnet(20)
    order = torch.cat([torch.randperm(len(pool), generator=run.rng("order", turn)) for turn in range(2)])
    stream = Phases(tuple(Corrupt(name, 5) for name in NAMES), each=1000)(pool[order], run=run)
    arms = {
        "CoTTA": CoTTA(views=8)(net, run=run),
        "batch statistics": BatchNormBlend(blend=0.0)(net),
        "Tent": Tent()(net),
        "source": net,
    }
    return {name: float(_right(arm, stream, 100).mean()) for name, arm in arms.items()}


@claim(
    "S094",
    says="Over six corruptions without a reset, CoTTA is more accurate than batch statistics alone by a point or more.",
    ours="CoTTA", baseline="batch statistics", metric="accuracy", least=0.01, tier="long",
    data=POOL, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def above_batch_statistics(run: Run, pool: Data) -> dict[str, float]:
    return _continual(run, pool)


@claim(
    "S094",
    says="Over six corruptions without a reset, CoTTA is at least as accurate as Tent.",
    ours="CoTTA", baseline="Tent", metric="accuracy", least=0.0, tier="long",
    data=POOL, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def as_accurate_as_tent(run: Run, pool: Data) -> dict[str, float]:
    return _continual(run, pool)


def _revisited(run: Run, test: Data, arms: Mapping[str, Remedy]) -> dict[str, float]:
    """Accuracy that is lost from the first of three rounds to the third."""
    net, images = NETWORK.build(run), test.shuffle(run.rng("pool"))[:9000]
    stream = Phases(ROUND, cycles=3)(images, run=run)
    found = {}
    for name, remedy in arms.items():
        first, _, third = _right(remedy(net, run=run), stream, 50).chunk(3)
        found[name] = float(first.mean() - third.mean())
    return found


REVISITED = (
    "Fashion-MNIST and a ResNet-8 trained on 10,000 of its images, three rounds of six corruptions of severity 3 with "
    "500 images each in place of ten rounds of fifteen; batches of 50"
)


@claim(
    "S094",
    says="When six corruptions come three times, Tent loses two points more from the first round to the third than "
    "CoTTA, or more.",
    ours="CoTTA", baseline="Tent", metric="accuracy lost from the first round to the third", better="lower",
    least=0.02, tier="three minutes", data=(FashionMNIST("test"),), tuned=TUNED, shrunk=REVISITED,
)  # fmt: skip
def revisited(run: Run, test: Data) -> dict[str, float]:
    arms = {"CoTTA": CoTTA(views=8), "Tent": Tent(), "batch statistics": BatchNormBlend(blend=0.0)}
    return _revisited(run, test, arms)


@claim(
    "S094",
    says="When six corruptions come three times, CoTTA loses more from the first round to the third where it does not "
    "restore weights.",
    ours="CoTTA", baseline="CoTTA without restoring", metric="accuracy lost from the first round to the third",
    better="lower", least=0.0, tier="long", data=(FashionMNIST("test"),), tuned=TUNED, shrunk=REVISITED,
)  # fmt: skip
def restoring(run: Run, test: Data) -> dict[str, float]:
    arms = {"CoTTA": CoTTA(views=8), "CoTTA without restoring": CoTTA(views=8, restore=0.0)}
    return _revisited(run, test, arms)
