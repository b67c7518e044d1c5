"""S317 Isotropic merging: a merged change all of whose directions are equally long (Marczak et al., ICML 2025).

The paper merges 8, 14 and 20 fine-tuned CLIP models, each method with its scale tuned. For eight tasks and ViT-B/16,
Iso-C keeps about 96 % of the fine-tuned networks' accuracy and task arithmetic 81 %; the lead grows with the tasks. It
is explained by alignment: how much of each task's change lies in the directions of the merged one.
"""

from __future__ import annotations

from torch import nn

from homeostat import Data, Run
from homeostat.data import Digits, FashionMNIST
from homeostat.evidence import claim
from homeostat.merge import (
    TIES,
    IsoC,
    IsoCTS,
    Merge,
    TaskArithmetic,
    Zoo,
    digits_zoo,
    subspace_alignment,
    task_vectors,
    views_zoo,
)  # fmt: skip

DATA = (FashionMNIST("train", stop=20_000), FashionMNIST("test"))
DIGITS = (Digits(shuffle=0, stop=1300), Digits(shuffle=0, start=1300))
TUNED = (
    "the scale of each method, for each seed, on images that do not judge; the strength of fine-tuning as for S022; "
    "else nothing"
)
SHRUNK = (
    "eight views of Fashion-MNIST at 14x14 (turned and mirrored) and a perceptron of three layers of 256 whose "
    "head is frozen, in place of eight data sets and CLIP's ViT-B/16"
)
SHRUNK_DIGITS = (
    "eight views of scikit-learn's digits (turned and mirrored), donors trained to their limit, and a perceptron of "
    "three layers of 256 whose head is frozen, in place of eight data sets and CLIP's ViT-B/16"
)
HEAD = ("linear.*",)
SCALES = {
    "Iso-C": [0.4 * i for i in range(1, 9)], "Iso-CTS": [0.4 * i for i in range(1, 9)],
    "TIES": [0.8 + 0.2 * i for i in range(9)], "task arithmetic": [0.1 * i for i in range(1, 11)],
}  # fmt: skip
NEAR_THEIR_LIMIT = {
    "Iso-C": [0.2 * i for i in range(1, 11)], "Iso-CTS": [0.2 * i for i in range(1, 11)],
    "TIES": [0.2 * i for i in range(1, 11)], "task arithmetic": [0.05 * i for i in range(1, 11)],
}  # fmt: skip
METHODS: dict[str, type[Merge]] = {"Iso-C": IsoC, "Iso-CTS": IsoCTS, "TIES": TIES, "task arithmetic": TaskArithmetic}


def tuned(zoo: Zoo, name: str, scales: dict[str, list[float]] = SCALES) -> nn.Module:
    method = METHODS[name]
    return zoo.best(lambda scale: method(scale=scale, skip=HEAD)(zoo.base, zoo.world()), scales[name])[1]


@claim(
    "S317",
    says="With scales tuned, Iso-C merges eight networks into a more accurate one than task arithmetic by two points.",
    ours="Iso-C", baseline="task arithmetic", metric="accuracy, mean over tasks", least=0.02, tier="three minutes",
    data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def over_task_arithmetic(run: Run, train: Data, test: Data) -> dict[str, float]:
    return compared(views_zoo(train, test, run=run), SCALES)


@claim(
    "S317",
    says="Of eight donors near their limit, which conflict in all weights, Iso-C makes a more accurate network than "
    "task arithmetic by four points, both with scales tuned.",
    ours="Iso-C", baseline="task arithmetic", metric="accuracy, mean over tasks", least=0.04, tier="a minute",
    data=DIGITS, tuned=TUNED, shrunk=SHRUNK_DIGITS,
)  # fmt: skip
def near_their_limit(run: Run, train: Data, test: Data) -> dict[str, float]:
    return compared(digits_zoo(train, test, run=run), NEAR_THEIR_LIMIT)


def compared(zoo: Zoo, scales: dict[str, list[float]]) -> dict[str, float]:
    found = {name: zoo.accuracy(tuned(zoo, name, scales)) for name in METHODS}
    return {**found, "base": zoo.accuracy(zoo.base), "each alone": sum(zoo.alone().values()) / len(zoo.donors)}


@claim(
    "S317",
    says="What Iso-C is better than TIES by, both with scales tuned, is larger for eight tasks than for two.",
    ours="eight tasks", baseline="two tasks", metric="accuracy, mean over tasks, Iso-C less TIES", least=0.0,
    tier="three minutes", data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def as_tasks_grow(run: Run, train: Data, test: Data) -> dict[str, float]:
    zoo, found = views_zoo(train, test, run=run), {}
    for count, called in ((2, "two tasks"), (4, "four tasks"), (8, "eight tasks")):
        part = zoo.some(count)
        found[called] = part.accuracy(tuned(part, "Iso-C")) - part.accuracy(tuned(part, "TIES"))
    return found


@claim(
    "S317",
    says="More of each task's change lies in the directions of what Iso-C adds than of what task arithmetic adds: at "
    "least a twentieth more, for the task where that is least.",
    ours="least gain of a task", baseline="no gain", metric="share of a task's change", least=0.05, tier="a minute",
    data=DATA, tuned="nothing beyond the zoo", shrunk=SHRUNK,
)  # fmt: skip
def alignment(run: Run, train: Data, test: Data) -> dict[str, float]:
    zoo = views_zoo(train, test, run=run)
    vectors, found = task_vectors(zoo.base, zoo.donors, HEAD), {}
    for name in ("Iso-C", "task arithmetic"):
        merged = METHODS[name](skip=HEAD)(zoo.base, zoo.world())
        change = {name: stack[0] for name, stack in task_vectors(zoo.base, {"merged": merged}, HEAD).items()}
        found[name] = subspace_alignment(vectors, merged=change).arrays["donor"].tolist()
    gains = [a - b for a, b in zip(found["Iso-C"], found["task arithmetic"], strict=True)]
    return {
        "least gain of a task": min(gains), "no gain": 0.0,
        **{name: sum(values) / len(values) for name, values in found.items()},
    }  # fmt: skip
