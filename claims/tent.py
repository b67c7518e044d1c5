"""Tent: what lowering entropy wins under corruption, and where it loses.

Wang et al., Tent: fully test-time adaptation by entropy minimization, ICLR 2021. That batches of few samples or of few
classes undo it is shown by Boudiaf et al., CVPR 2022, Gong et al., NeurIPS 2022, and Niu et al., ICLR 2023.
"""

from __future__ import annotations

from torch import nn

from homeostat.adapt import BatchNormBlend, Tent
from homeostat.core.data import Data
from homeostat.core.probe import prequential
from homeostat.core.run import Run
from homeostat.data import CIFAR10, FashionMNIST
from homeostat.evidence import claim
from homeostat.fit import Cosine, Recipe
from homeostat.loop.network import Network
from homeostat.nn.optimizers import SGD
from homeostat.nn.resnet import cifar_resnet
from homeostat.shift import CorrelatedOrder, Corrupt

POOL = (CIFAR10("test", start=2000),)
TUNED = "nothing; the paper's defaults"
SHRUNK = "CIFAR-10 images that went through JPEG and a published ResNet-20"
NETWORK = Network(
    layout={"ResNet": {"depth": 8, "in_channels": 1, "width": 8}},
    mean=(0.286,), std=(0.353,), data=FashionMNIST("train", stop=10_000),
    recipe=Recipe(epochs=3, batch=64, optimizer=SGD(lr=0.1, weight_decay=5e-4, nesterov=True), schedule=Cosine(50)),
)  # fmt: skip


def _accuracy(net: nn.Module, data: Data, batch: int = 100) -> float:
    seen = prequential(net, data, batch=batch)
    return float((seen.logits.argmax(1) == seen.labels).float().mean())


def _arms(net: nn.Module, stream: Data, batch: int = 100) -> dict[str, float]:
    made = {"Tent": Tent()(net), "batch statistics": BatchNormBlend(blend=0.0)(net), "source": net}
    return {name: _accuracy(arm, stream, batch) for name, arm in made.items()}


def _corrupted(run: Run, pool: Data) -> dict[str, float]:
    """Mean over three corruptions, each met with a fresh network."""
    images, names = pool.shuffle(run.rng("pool"))[:1000], ("gaussian_noise", "defocus_blur", "contrast")
    found = [_arms(cifar_resnet(20), Corrupt(name, 5)(images, run=run)) for name in names]
    return {arm: sum(one[arm] for one in found) / len(found) for arm in found[0]}


CORRUPTED = f"{SHRUNK}; three corruptions of severity 5 with 1,000 images each, batches of 100"


@claim(
    "Tent",
    says="On corrupted images Tent is more accurate than the frozen network by ten points or more.",
    ours="Tent", baseline="source", metric="accuracy", least=0.10, tier="three minutes",
    data=POOL, tuned=TUNED, shrunk=CORRUPTED,
)  # fmt: skip
def corrupted(run: Run, pool: Data) -> dict[str, float]:
    return _corrupted(run, pool)


@claim(
    "Tent",
    says="On corrupted images Tent is more accurate than batch statistics alone by half a point or more.",
    ours="Tent", baseline="batch statistics", metric="accuracy", least=0.005, tier="three minutes",
    data=POOL, tuned=TUNED, shrunk=CORRUPTED,
)  # fmt: skip
def above_batch_statistics(run: Run, pool: Data) -> dict[str, float]:
    return _corrupted(run, pool)


@claim(
    "Tent",
    says="Where classes come in bursts (Dirichlet, 0.1), Tent costs the frozen network ten points or more.",
    ours="source", baseline="Tent", metric="accuracy", least=0.10, tier="a minute",
    data=POOL, tuned=TUNED, shrunk=f"{SHRUNK}; 2,000 clean images in ten slots, batches of 100",
)  # fmt: skip
def bursts(run: Run, pool: Data) -> dict[str, float]:
    images = pool.shuffle(run.rng("pool"))[:2000]
    return _arms(cifar_resnet(20), CorrelatedOrder(0.1)(images, run=run))


@claim(
    "Tent",
    says="Where classes come in bursts on a long stream, learning makes it worse than batch statistics do by "
    "themselves, by two points or more.",
    ours="batch statistics", baseline="Tent", metric="accuracy", least=0.02, tier="three minutes",
    data=(FashionMNIST("test"),), tuned=TUNED,
    shrunk="Fashion-MNIST and a ResNet-8 trained on 10,000 of its images; 10,000 clean images in ten slots, "
    "batches of 50",
)  # fmt: skip
def learning_in_bursts(run: Run, test: Data) -> dict[str, float]:
    return _arms(NETWORK.build(run), CorrelatedOrder(0.1)(test, run=run), batch=50)


@claim(
    "Tent",
    says="In batches of four, Tent costs the frozen network ten points or more on clean images.",
    ours="source", baseline="Tent", metric="accuracy", least=0.10, tier="a minute",
    data=POOL, tuned=TUNED, shrunk=f"{SHRUNK}; 600 clean images",
)  # fmt: skip
def small_batches(run: Run, pool: Data) -> dict[str, float]:
    return _arms(cifar_resnet(20), pool.shuffle(run.rng("pool"))[:600], batch=4)
