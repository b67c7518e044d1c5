"""SAR: alive where lowering entropy alone collapses, one sample at a time and sorted by class.

Niu et al., Towards stable test-time adaptation in dynamic wild world, ICLR 2023: on ImageNet-C at severity 5 a
ResNet-50 with GroupNorm reaches 37.2 % where labels are imbalanced in time, against 22.0 % with Tent and 30.6 % frozen.
"""

from __future__ import annotations

from torch import nn

from homeostat.adapt import SAR, Tent
from homeostat.core.data import Data
from homeostat.core.probe import prequential
from homeostat.core.run import Run
from homeostat.data import FashionMNIST
from homeostat.evidence import claim
from homeostat.fit import Cosine, Recipe
from homeostat.loop.network import Network
from homeostat.nn.optimizers import SGD
from homeostat.shift import CorrelatedOrder, Corrupt

NETWORK = Network(
    layout={"ResNet": {"depth": 8, "in_channels": 1, "width": 8, "norm": "group"}},
    mean=(0.286,), std=(0.353,), data=FashionMNIST("train", stop=10_000),
    recipe=Recipe(epochs=3, batch=64, optimizer=SGD(lr=0.1, weight_decay=5e-4, nesterov=True), schedule=Cosine(50)),
)  # fmt: skip
NOISE = Corrupt("gaussian_noise", 3, "imagenet")
TUNED = "the length of the stream and the batches, on the training images from 50,000 on; both methods have defaults"
SHRUNK = "Fashion-MNIST with Gaussian noise of severity 3 and a ResNet-8 with GroupNorm, trained on 10,000 images"


def _accuracy(net: nn.Module, stream: Data, batch: int) -> float:
    seen = prequential(net, stream, batch=batch)
    return float((seen.logits.argmax(1) == seen.labels).float().mean())


def _arms(run: Run, stream: Data, batch: int) -> dict[str, float]:
    net = NETWORK.build(run)
    found = {name: _accuracy(remedy(net), stream, batch) for name, remedy in {"SAR": SAR(), "Tent": Tent()}.items()}
    return found | {"source": _accuracy(net, stream, 100)}


@claim(
    "SAR",
    says="On noisy images that come one at a time, SAR is more accurate than Tent by ten points or more.",
    ours="SAR", baseline="Tent", metric="accuracy", least=0.10, tier="three minutes",
    data=(FashionMNIST("test"),), tuned=TUNED, shrunk=f"{SHRUNK}; 4,000 images",
)  # fmt: skip
def one_at_a_time(run: Run, test: Data) -> dict[str, float]:
    return _arms(run, NOISE(test.shuffle(run.rng("pool"))[:4000], run=run), 1)


@claim(
    "SAR",
    says="On noisy images sorted by class, SAR is more accurate than Tent by ten points or more.",
    ours="SAR", baseline="Tent", metric="accuracy", least=0.10, tier="three minutes",
    data=(FashionMNIST("test"),), tuned=TUNED, shrunk=f"{SHRUNK}; 10,000 images in batches of 16",
)  # fmt: skip
def sorted_by_class(run: Run, test: Data) -> dict[str, float]:
    return _arms(run, CorrelatedOrder(0.0)(NOISE(test, run=run), run=run), 16)
