"""S036 aTLAS: a few labels of a new task weigh what was learnt for others (Zhang et al., NeurIPS 2024).

The paper adapts CLIP to a data set with one to sixteen labels a class by coefficients of task vectors of 21 others, one
each and parameter tensor, and finds them ahead of adapters and low-rank tuning where labels are fewest, and of one
coefficient a task vector. Full fine-tuning is ahead when labels are many.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from homeostat import Data, Run, World, read
from homeostat.data import FashionMNIST
from homeostat.evidence import claim
from homeostat.fit import Cosine, Fit, Recipe
from homeostat.merge import ATLAS, Zoo, views_zoo
from homeostat.nn import Adam
from homeostat.probe import Accuracy
from homeostat.tune import LoRA

DATA = (FashionMNIST("train", start=20_000, stop=40_000), FashionMNIST("train", start=40_000))
TUNED = (
    "the donors' learning rate (5e-5, 5e-4), that of LoRA (1e-4 to 1e-2) and of full fine-tuning (3e-5 to 5e-4), on "
    "other images with seed 100; nothing of aTLAS"
)
SHRUNK = (
    "eight views of Fashion-MNIST at 14x14 (turned and mirrored), each held out in turn, and a perceptron of three "
    "layers of 256 whose head is frozen, in place of 22 data sets and CLIP's ViT-B/32"
)
Arm = Callable[[nn.Module, World, Run], nn.Module]


def atlas(**changes: object) -> Arm:
    remedy = ATLAS(skip=("linear.*",)).replace(**changes)
    return lambda base, world, run: remedy(base, world, run=run)


def low_rank(base: nn.Module, world: World, run: Run) -> nn.Module:
    """LoRA of rank 4, for as many steps as aTLAS makes."""
    start = LoRA(rank=4, layers=("layers.*",))(base, run=run)
    recipe = Recipe(optimizer=Adam(lr=1e-4), epochs=110, batch=128, schedule=Cosine())
    return Fit(recipe=recipe)(start, World(source=world.target), run=run)


def full(base: nn.Module, world: World, run: Run) -> nn.Module:
    recipe = Recipe(optimizer=Adam(lr=5e-4), epochs=6, batch=64)
    return Fit(own="layers.*", recipe=recipe)(base, World(source=world.target), run=run)


def held_out(run: Run, train: Data, test: Data, shots: int, arms: dict[str, Arm]) -> dict[str, float]:
    """Mean accuracy over views, each learnt from so many labels a class and the other views' donors."""
    zoo = views_zoo(train, test, run=run, rate=5e-4)
    run = run.replace(scratch=None)
    found = {"base": zoo.accuracy(zoo.base)} | dict.fromkeys(arms, 0.0)
    for task in zoo.donors:
        donors = {name: donor for name, donor in zoo.donors.items() if name != task}
        world = World(models=donors, target=few(zoo, task, shots))
        for name, arm in arms.items():
            found[name] += read([Accuracy()], arm(zoo.base, world, run), zoo.test[task])[0].value / len(zoo.donors)
    return found


def few(zoo: Zoo, task: str, shots: int) -> Data:
    y = zoo.train[task].all_labels()
    return zoo.train[task][torch.cat([torch.nonzero(y == k).flatten()[:shots] for k in range(10)])]


@claim(
    "S036",
    says="With one label a class, aTLAS is more accurate on a new task than LoRA of rank 4.",
    ours="aTLAS", baseline="LoRA", metric="accuracy, mean over tasks", least=0.02, tier="three minutes",
    data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def with_a_label_a_class(run: Run, train: Data, test: Data) -> dict[str, float]:
    return held_out(run, train, test, 1, {"aTLAS": atlas(), "LoRA": low_rank})


@claim(
    "S036",
    says="With sixteen labels a class, one coefficient a donor and tensor is more accurate than one a donor.",
    ours="a tensor", baseline="a donor", metric="accuracy, mean over tasks", least=0.0, tier="a minute",
    data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def tensors_over_donors(run: Run, train: Data, test: Data) -> dict[str, float]:
    return held_out(run, train, test, 16, {"a tensor": atlas(), "a donor": atlas(granularity="task")})


@claim(
    "S036",
    says="With a hundred labels a class, full fine-tuning is more accurate than aTLAS.",
    ours="full fine-tuning", baseline="aTLAS", metric="accuracy, mean over tasks", least=0.0, tier="a minute",
    data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def full_tuning_with_many_labels(run: Run, train: Data, test: Data) -> dict[str, float]:
    return held_out(run, train, test, 100, {"full fine-tuning": full, "aTLAS": atlas()})
