"""Conformal: sets that hold the true class as often as promised (Vovk et al., 2005; Romano et al., NeurIPS 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from homeostat import Data, Run, Tensors, World, outputs
from homeostat.data import FashionMNIST
from homeostat.evidence import claim
from homeostat.fit import Cosine, Fit, Recipe
from homeostat.nn import SGD, ResNet
from homeostat.trust import Conformal, coverage

SPLITS, ALPHA = 40, 0.1
DATA = (FashionMNIST("train", stop=20_000), FashionMNIST("test"))
TUNED = "nothing"
SHRUNK = (
    "Fashion-MNIST at 14x14 and a ResNet-8 of width 8 in place of ImageNet and large networks; 40 random divisions "
    "into 500 images that calibrate and 1,000 that are judged"
)


def drawn(data: Data, count: int, generator: torch.Generator) -> Data:
    """So many samples, others for each seed."""
    return data[torch.randperm(len(data), generator=generator)[:count]]


def halved(data: Data) -> Tensors:
    batch = data.load()
    return Tensors(F.avg_pool2d(batch.x, 2), batch.y)


def up_to(level: float, logits: Tensor) -> Tensor:
    """The likeliest classes, as many as it takes for their probabilities to reach the level."""
    p, order = logits.softmax(1).sort(1, descending=True)
    before = p.cumsum(1) - p
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, before < level)


def coverages(run: Run, train: Data, test: Data) -> dict[str, float]:
    """Mean coverage over divisions of the test images, by kind of set."""
    net = ResNet(depth=8, in_channels=1, width=8, seed=run.seed_for("network"))
    recipe = Recipe(optimizer=SGD(lr=0.1), schedule=Cosine(), epochs=10, batch=64)
    net = Fit(recipe=recipe)(net, World(source=halved(drawn(train, 4000, run.rng("train")))), run=run)
    seen, same = outputs(net, halved(test)), torch.nn.Identity()
    total = {"Conformal": 0.0, "Conformal, aps": 0.0, "softmax sets": 0.0}
    for split in range(SPLITS):
        order = torch.randperm(len(seen.logits), generator=run.rng("split", split))
        known, now = order[:500], order[500:1500]
        world = World(calibration=Tensors(seen.logits[known], seen.labels[known]))
        own = run.replace(seed=run.seed_for("sets", split))
        logits = seen.logits[now]
        found = {
            "Conformal": Conformal(alpha=ALPHA)(same, world, run=own).sets(logits),
            "Conformal, aps": Conformal(alpha=ALPHA, score="aps")(same, world, run=own).sets(logits),
            "softmax sets": up_to(1 - ALPHA, logits),
        }
        for name, sets in found.items():
            total[name] += coverage(sets, seen.labels[now]).value / SPLITS
    return total


@claim(
    "Conformal",
    says="Where calibration and new images are exchangeable, conformal sets hold the true class at least as often as "
    "promised, but for one point in a hundred at most.",
    ours="Conformal", baseline="promised", metric="coverage", least=-0.01, tier="a minute",
    data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def covers(run: Run, train: Data, test: Data) -> dict[str, float]:
    return {**coverages(run, train, test), "promised": 1 - ALPHA}


@claim(
    "Conformal",
    says="Conformal sets are nearer to the promised coverage than sets of classes whose probabilities add up to it.",
    ours="Conformal", baseline="softmax sets", metric="distance of the coverage from the promised one",
    better="lower", least=0.01, tier="a minute",
    data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def nearer_than_softmax_sets(run: Run, train: Data, test: Data) -> dict[str, float]:
    return {name: abs(found - (1 - ALPHA)) for name, found in coverages(run, train, test).items()}
