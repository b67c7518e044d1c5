"""BBSE: the class balance of an unlabelled window, from predictions (Lipton, Wang, Smola, ICML 2018).

The paper shifts the labels of MNIST and CIFAR-10 by Dirichlet-drawn balances and recovers them with a classifier
trained on the old balance.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from homeostat import Data, Run, Tensors, World, outputs
from homeostat.data import FashionMNIST
from homeostat.evidence import claim
from homeostat.fit import Cosine, Fit, Recipe
from homeostat.nn import SGD, ResNet
from homeostat.probe import BBSE
from homeostat.shift import LabelShift

WINDOWS = 20


def drawn(data: Data, count: int, generator: torch.Generator) -> Data:
    """So many samples, others for each seed."""
    return data[torch.randperm(len(data), generator=generator)[:count]]


def halved(data: Data) -> Tensors:
    """Images at half their size, which is four times as fast."""
    batch = data.load()
    return Tensors(F.avg_pool2d(batch.x, 2), batch.y)


@claim(
    "BBSE",
    says="Under label shift BBSE estimates the new class balance better than the shares of predicted classes do.",
    ours="BBSE", baseline="predicted shares", metric="total variation from the true balance, mean over windows",
    better="lower", least=0.02, tier="a minute",
    data=(FashionMNIST("train", stop=20_000), FashionMNIST("test")),
    tuned="nothing",
    shrunk="Fashion-MNIST at 14x14 and a ResNet-8 of width 8 in place of CIFAR-10 and a ResNet; 20 windows of 1,000 "
    "whose balance is drawn from a Dirichlet distribution of concentration 1",
)  # fmt: skip
def recovers_the_balance(run: Run, train: Data, test: Data) -> dict[str, float]:
    net = ResNet(depth=8, in_channels=1, width=8, seed=run.seed_for("network"))
    recipe = Recipe(optimizer=SGD(lr=0.1), schedule=Cosine(), epochs=6, batch=64)
    net = Fit(recipe=recipe)(net, World(source=halved(drawn(train, 6000, run.rng("train")))), run=run)
    known, pool = halved(test).split(0.5, generator=run.rng("split"))
    kit = BBSE().kit(net, World(source=known), run=run)
    errors = {"BBSE": 0.0, "BBSE, soft": 0.0, "predicted shares": 0.0, "the old balance": 0.0}
    soft = BBSE(soft=True).kit(net, World(source=known), run=run)
    for window in range(WINDOWS):
        shifted = LabelShift(size=1000)(pool, run=run.replace(seed=run.seed_for("window", window)))
        truth = torch.bincount(shifted.all_labels(), minlength=10).double() / len(shifted)
        seen, world = outputs(net, shifted), World(source=known)
        found = {
            "BBSE": BBSE().measure(seen, world, kit, run).arrays["prior"],
            "BBSE, soft": BBSE(soft=True).measure(seen, world, soft, run).arrays["prior"],
            "predicted shares": torch.bincount(seen.logits.argmax(1), minlength=10).double() / len(shifted),
            "the old balance": torch.full((10,), 0.1, dtype=torch.float64),
        }
        for name, prior in found.items():
            errors[name] += float((prior - truth).abs().sum()) / 2 / WINDOWS
    return errors
