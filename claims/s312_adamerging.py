"""S312 AdaMerging: coefficients of a merge from unlabelled inputs alone (Yang et al., ICLR 2024).

The paper merges eight fine-tuned ViT-B/32. Task arithmetic with its scale tuned on labels reaches 69.1 %, AdaMerging
71.1 % with a coefficient a task and 80.2 % with one a task and layer, 81.1 % with trimmed task vectors; and it keeps
its lead where inputs are corrupted. Its own risk is collapse: entropy is also low where all inputs get one answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

from homeostat import Data, Run, Tensors
from homeostat.data import FashionMNIST, Glosses
from homeostat.evidence import claim
from homeostat.merge import AdaMerging, TaskArithmetic, Zoo, gloss_zoo, views_zoo
from homeostat.nn import Adam

GLOSSES = (Glosses(length=12, shuffle=0, stop=57_000),)
VIEWS = (FashionMNIST("train", start=20_000, stop=40_000), FashionMNIST("train", start=40_000))
TUNED = (
    "the learning rate, among 1e-3 and 1e-2, and the strength of fine-tuning, so that donors gain 15 points, on other "
    "texts with seed 100; the scale of task arithmetic, for each seed, on labelled texts that judge nothing"
)
TUNED_VIEWS = "the guard's threshold and choice, on other images with seeds 0 and 100 to 109; else nothing"
SHRUNK = (
    "five partitions of WordNet's definitions and the last layer of MiniLM, whose heads are frozen and the tasks' own, "
    "in place of eight data sets and CLIP's ViT-B/32; 80 steps at 1e-2 on 16 texts a task, from 1 / 5, in place of 500 "
    "at 1e-3 on 32, from 0.3"
)
SHRUNK_VIEWS = (
    "eight views of Fashion-MNIST at 14x14 and a perceptron of three layers of 256, in place of eight data sets and "
    "CLIP's ViT-B/32; 100 steps at 1e-2 from 1 / 8, in place of 500 at 1e-3 from 0.3"
)
SCALES = [0.1 * i for i in range(1, 11)]


def learned(zoo: Zoo, run: Run, inputs: Mapping[str, Data] | None = None, **changes: object) -> nn.Module:
    """AdaMerging on the inputs that judge, as in the paper, or on others; without their labels."""
    remedy = AdaMerging(
        streams="parts", prior=1 / len(zoo.donors), optimizer=Adam(lr=1e-2), steps=80, batch=16, guard_every=20
    )
    return remedy.replace(**changes)(zoo.base, zoo.world(inputs), run=run)


def added(zoo: Zoo, scale: float) -> nn.Module:
    return TaskArithmetic(scale=scale)(zoo.base, zoo.world())


def tuned_arithmetic(zoo: Zoo) -> nn.Module:
    return zoo.best(lambda scale: added(zoo, scale), SCALES)[1]


@claim(
    "S312",
    says="Without labels, AdaMerging with a coefficient a task and layer is at least as accurate as task arithmetic "
    "whose scale is tuned with labels.",
    ours="AdaMerging", baseline="task arithmetic", metric="accuracy, mean over tasks", least=0.0, tier="three minutes",
    data=GLOSSES, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def against_tuned_arithmetic(run: Run, texts: Data) -> dict[str, float]:
    zoo = gloss_zoo(texts, run=run)
    return {
        "base": zoo.accuracy(zoo.base),
        "each alone": sum(zoo.alone().values()) / len(zoo.donors),
        "averaging": zoo.accuracy(added(zoo, 1 / len(zoo.donors))),
        "task arithmetic": zoo.accuracy(tuned_arithmetic(zoo)),
        "AdaMerging": zoo.accuracy(learned(zoo, run)),
    }


@claim(
    "S312",
    says="A coefficient a task and layer makes a more accurate merge than a coefficient a task.",
    ours="layer-wise", baseline="task-wise", metric="accuracy, mean over tasks", least=0.01, tier="three minutes",
    data=GLOSSES, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def layers_over_tasks(run: Run, texts: Data) -> dict[str, float]:
    zoo = gloss_zoo(texts, run=run)
    return {
        "layer-wise": zoo.accuracy(learned(zoo, run)),
        "task-wise": zoo.accuracy(learned(zoo, run, granularity="task")),
    }


@claim(
    "S312",
    says="On inputs of which a third is missing, AdaMerging that learnt on such inputs without labels is at least as "
    "accurate as task arithmetic whose scale was tuned with labels on whole ones.",
    ours="AdaMerging", baseline="task arithmetic", metric="accuracy, mean over tasks", least=0.0, tier="three minutes",
    data=GLOSSES, tuned=TUNED, shrunk=SHRUNK + "; a third of the tokens hidden from the last layer, in place of seven "
    "corruptions of images",
)  # fmt: skip
def on_corrupted_inputs(run: Run, texts: Data) -> dict[str, float]:
    zoo = gloss_zoo(texts, run=run)
    hidden = dataclasses.replace(zoo, test={task: gapped(data, run, task) for task, data in zoo.test.items()})
    return {
        "averaging": hidden.accuracy(added(zoo, 1 / len(zoo.donors))),
        "task arithmetic": hidden.accuracy(tuned_arithmetic(zoo)),
        "AdaMerging": hidden.accuracy(learned(hidden, run)),
    }


def gapped(data: Data, run: Run, task: str) -> Data:
    """The texts with a third of their tokens hidden, but for the first."""
    batch = data.load()
    mask = batch.x["mask"].clone()
    gone = torch.rand(mask.shape, generator=run.rng("gaps", task)) < 1 / 3
    gone[:, 0] = False
    mask[gone] = 0
    return Tensors({"states": batch.x["states"], "mask": mask}, batch.y)


@claim(
    "S312",
    says="Where entropy leads to collapse, the guard keeps AdaMerging five points above what it is without.",
    ours="guarded", baseline="unguarded", metric="accuracy, mean over tasks", least=0.05, tier="a minute",
    data=VIEWS, tuned=TUNED_VIEWS, shrunk=SHRUNK_VIEWS,
)  # fmt: skip
def the_guard(run: Run, train: Data, test: Data) -> dict[str, float]:
    zoo = views_zoo(train, test, run=run)
    return {
        "base": zoo.accuracy(zoo.base),
        "averaging": zoo.accuracy(added(zoo, 1 / len(zoo.donors))),
        "guarded": zoo.accuracy(learned(zoo, run, steps=100, guard_every=10)),
        "unguarded": zoo.accuracy(learned(zoo, run, steps=100, guard=0.0)),
    }
