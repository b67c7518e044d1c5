"""DeYO: entropy is not enough where a color went with the class, and does not any more.

Lee et al., Entropy is not enough for test-time adaptation: From the perspective of disentangled factors, ICLR 2024: on
ColoredMNIST, whose colors agree with the class in training and not in testing, lowering entropy loses accuracy and DeYO
gains.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from homeostat.adapt import BatchNormBlend, DeYO, Tent
from homeostat.core.data import Data, Tensors
from homeostat.core.probe import prequential
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.data import FashionMNIST
from homeostat.evidence import claim
from homeostat.fit import Cosine, Fit, Recipe
from homeostat.nn.optimizers import SGD
from homeostat.nn.resnet import ResNet

DATA = (FashionMNIST("train", stop=20_000), FashionMNIST("test"))
TUNED = (
    "how often the color agrees in training, and that no labels are wrong, on the training images from 50,000 on: such "
    "that the frozen network uses shape and color; DeYO has its defaults"
)
SHRUNK = (
    "Fashion-MNIST at 14x14, its classes in two groups of five, red or green; a ResNet-8 trained on 6,000 of them, of "
    "which 85 % have their group's color; 10,000 of which 10 % have; batches of 64"
)


def colored(data: Data, agree: float, draws: torch.Generator) -> Tensors:
    """Two groups of classes in two colors, that agree with the group as often as asked."""
    batch = data.load()
    y = (batch.labels >= 5).long()
    color = torch.where(torch.rand(len(y), generator=draws) < agree, y, 1 - y)
    x = torch.zeros(len(y), 3, 14, 14)
    x[torch.arange(len(y)), color] = F.avg_pool2d(batch.x, 2)[:, 0]  # type: ignore[arg-type]
    return Tensors(x, y)


def _accuracy(net: nn.Module, stream: Data) -> float:
    seen = prequential(net, stream, batch=64)
    return float((seen.logits.argmax(1) == seen.labels).float().mean())


def _arms(run: Run, train: Data, test: Data) -> dict[str, float]:
    known = colored(train.shuffle(run.rng("train"))[:6000], 0.85, run.rng("colors"))
    stream = colored(test.shuffle(run.rng("test")), 0.1, run.rng("other colors"))
    net = ResNet(depth=8, classes=2, in_channels=3, width=8, seed=run.seed_for("network"))
    recipe = Recipe(epochs=4, batch=64, optimizer=SGD(lr=0.05), schedule=Cosine(50))
    net = Fit(recipe=recipe)(net, World(source=known), run=run)
    arms = {
        "DeYO": DeYO(),
        "entropy alone": DeYO(threshold=-1.0),
        "Tent": Tent(),
        "batch statistics": BatchNormBlend(blend=0.0),
    }
    return {name: _accuracy(arm(net, run=run), stream) for name, arm in arms.items()} | {
        "source": _accuracy(net, stream)
    }


@claim(
    "DeYO",
    says="Where colors no longer agree with the class, DeYO is more accurate than Tent by three points or more.",
    ours="DeYO", baseline="Tent", metric="accuracy", least=0.03, tier="a minute",
    data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def other_colors(run: Run, train: Data, test: Data) -> dict[str, float]:
    return _arms(run, train, test)


@claim(
    "DeYO",
    says="Where colors no longer agree with the class, DeYO is more accurate with its second filter, of what a "
    "destroyed view changes, than without it.",
    ours="DeYO", baseline="entropy alone", metric="accuracy", least=0.0, tier="a minute",
    data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def second_filter(run: Run, train: Data, test: Data) -> dict[str, float]:
    return _arms(run, train, test)
