"""PeriodicReset: a method that decays on a long stream is kept alive by starting it afresh.

Press et al., RDumb: a simple approach that questions our progress in continual test-time adaptation, NeurIPS 2023: on
long streams most methods fall below the frozen network, and plain resets do not.
"""

from __future__ import annotations

from torch import nn

from homeostat.adapt import BatchNormBlend, PeriodicReset, Tent
from homeostat.core.data import Data
from homeostat.core.probe import prequential
from homeostat.core.run import Run
from homeostat.data import FashionMNIST
from homeostat.evidence import claim
from homeostat.fit import Cosine, Recipe
from homeostat.loop.network import Network
from homeostat.nn.optimizers import SGD
from homeostat.shift import Corrupt, Phases

NETWORK = Network(
    layout={"ResNet": {"depth": 8, "in_channels": 1, "width": 8}},
    mean=(0.286,), std=(0.353,), data=FashionMNIST("train", stop=10_000),
    recipe=Recipe(epochs=3, batch=64, optimizer=SGD(lr=0.1, weight_decay=5e-4, nesterov=True), schedule=Cosine(50)),
)  # fmt: skip
STREAM = Phases(
    tuple(
        Corrupt(name, 3, "imagenet")
        for name in ("gaussian_noise", "defocus_blur", "brightness", "fog", "contrast", "jpeg_compression")
    ),
    cycles=3,
)
TUNED = "50 batches between resets and batches of 20, on the training images from 50,000 on; Tent has its defaults"
SHRUNK = (
    "Fashion-MNIST and a ResNet-8 trained on 10,000 of its images, three rounds of six corruptions of severity 3, 500 "
    "batches in all, in place of 100,000 and more"
)


def _last(net: nn.Module, stream: Data) -> float:
    """Accuracy over the last third."""
    seen = prequential(net, stream, batch=20)
    return float((seen.logits.argmax(1) == seen.labels).float().chunk(3)[2].mean())


def _arms(run: Run, test: Data) -> dict[str, float]:
    net = NETWORK.build(run)
    stream = STREAM(test.shuffle(run.rng("pool")), run=run)
    made = {
        "Tent, reset": PeriodicReset(Tent(), every=50)(net),
        "Tent": Tent()(net),
        "batch statistics": BatchNormBlend(blend=0.0)(net),
        "source": net,
    }
    return {name: _last(arm, stream) for name, arm in made.items()}


@claim(
    "PeriodicReset",
    says="In the last third of a long stream, Tent with resets is more accurate than Tent without by five points or "
    "more.",
    ours="Tent, reset", baseline="Tent", metric="accuracy over the last third", least=0.05, tier="three minutes",
    data=(FashionMNIST("test"),), tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def long_stream(run: Run, test: Data) -> dict[str, float]:
    return _arms(run, test)


@claim(
    "PeriodicReset",
    says="In the last third of a long stream, Tent with resets is as accurate as batch statistics alone, or less so by "
    "half a point at most.",
    ours="Tent, reset", baseline="batch statistics", metric="accuracy over the last third", least=-0.005,
    tier="three minutes", data=(FashionMNIST("test"),), tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def no_worse_than_not_learning(run: Run, test: Data) -> dict[str, float]:
    return _arms(run, test)
