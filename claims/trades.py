"""TRADES: robust accuracy over plain training, and what it costs on clean images (Zhang et al., ICML 2019).

The paper trains on MNIST at radius 0.3 and on CIFAR-10 at 8/255 and reports accuracy under PGD with 20 steps and more:
near 0 for plain training, 0.56 on CIFAR-10 and 0.96 on MNIST for TRADES, at a cost of some 10 points clean on CIFAR-10.
"""

from __future__ import annotations

import torch
from torch import nn

from homeostat import Data, Run, World, read
from homeostat.data import FashionMNIST
from homeostat.evidence import claim
from homeostat.fit import Fit, Objective, Recipe, Supervised
from homeostat.nn import Adam, SmallCNN
from homeostat.probe import Accuracy
from homeostat.robust import PGD, TRADES

EPS = 0.1
DATA = (FashionMNIST("train", stop=20_000), FashionMNIST("test"))
TUNED = "nothing; beta is the paper's, epochs and learning rate are the same for both"
SHRUNK = (
    "Fashion-MNIST (3,000 images to train and 600 to judge, 2,000 where they are clean, drawn for each seed), a CNN of "
    "two blocks of 16 channels, 6 epochs, radius 0.1, an ascent of 5 steps in training and 20 in judging, in place of "
    "CIFAR-10, a Wide ResNet and 76 epochs"
)


def drawn(data: Data, count: int, generator: torch.Generator) -> Data:
    """So many samples, others for each seed."""
    return data[torch.randperm(len(data), generator=generator)[:count]]


def trained(objective: Objective, train: Data, run: Run) -> nn.Module:
    recipe = Recipe(optimizer=Adam(lr=3e-3), epochs=6, batch=64)
    net = SmallCNN(in_channels=1, size=28, width=16, depth=2, norm="batch", seed=run.seed_for("network"))
    return Fit(objective=objective, recipe=recipe)(net, World(source=train), run=run)


def networks(train: Data, run: Run) -> dict[str, nn.Module]:
    train = drawn(train, 3000, run.rng("train"))
    trades = TRADES(beta=6.0, eps=EPS, step=EPS / 4, steps=5)
    return {"TRADES": trained(trades, train, run), "plain training": trained(Supervised(), train, run)}


@claim(
    "TRADES",
    says="A network trained with TRADES is right on more images under a PGD attack than one trained plainly.",
    ours="TRADES", baseline="plain training", metric="accuracy under PGD", least=0.2, tier="three minutes",
    data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def robust_accuracy(run: Run, train: Data, test: Data) -> dict[str, float]:
    test = drawn(test, 600, run.rng("test"))
    attack = PGD(eps=EPS, steps=20, step=0.125)
    return {
        name: read([Accuracy()], net, attack(test, model=net, run=run))[0].value
        for name, net in networks(train, run).items()
    }


@claim(
    "TRADES",
    says="The robustness of TRADES costs at most 10 points of accuracy on clean images.",
    ours="TRADES", baseline="plain training", metric="accuracy on clean images", least=-0.1, tier="three minutes",
    data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def clean_price(run: Run, train: Data, test: Data) -> dict[str, float]:
    test = drawn(test, 2000, run.rng("test"))
    return {name: read([Accuracy()], net, test)[0].value for name, net in networks(train, run).items()}
