"""S022 TIES: one network of several that were fine-tuned from one base (Yadav et al., NeurIPS 2023).

The paper merges eight fine-tuned ViTs. With a scale found on a validation set TIES reaches 73.6 % against 70.1 % of
task arithmetic (ViT-B/32); without one it compares scale 1 with task arithmetic's recommended 0.4. Averaging is 65.8 %.
"""

from __future__ import annotations

from torch import nn

from homeostat import Data, Run
from homeostat.data import Digits, FashionMNIST, Glosses
from homeostat.evidence import claim
from homeostat.merge import TIES, TaskArithmetic, Zoo, digits_zoo, gloss_zoo, views_zoo

DATA = (FashionMNIST("train", stop=20_000), FashionMNIST("test"))
DIGITS = (Digits(shuffle=0, stop=1300), Digits(shuffle=0, start=1300))
GLOSSES = (Glosses(length=12, shuffle=0, stop=57_000),)
TUNED = (
    "the strength of fine-tuning (learning rates 2e-4, 1e-4, 5e-5), so that task arithmetic gains most over the base, "
    "on other images with seed 100; the scale of either method in the first claim, for each seed, on images that do "
    "not judge; else nothing"
)
TUNED_DIGITS = (
    "how many images the base learns from, so that it comes to 0.6, with seed 100; the scale of either method, for "
    "each seed, on images that do not judge; else nothing"
)
TUNED_GLOSSES = (
    "the strength of fine-tuning, so that donors gain 15 points, on other texts with seed 100; the scale of TIES, for "
    "each seed, on texts that do not judge; else nothing"
)
SHRUNK = (
    "eight views of Fashion-MNIST at 14x14 (turned and mirrored) and a perceptron of three layers of 256 whose "
    "head is frozen, in place of eight data sets and CLIP's ViT-B/32"
)
SHRUNK_GLOSSES = (
    "five partitions of WordNet's definitions and the last layer of MiniLM, whose heads are frozen and the tasks' own, "
    "in place of eight data sets and CLIP's ViT-B/32"
)
SHRUNK_DIGITS = (
    "eight views of scikit-learn's digits (turned and mirrored), donors trained to their limit, and a perceptron of "
    "three layers of 256 whose head is frozen, in place of eight data sets and CLIP's ViT-B/32"
)
SCALES = {"TIES": [0.8 + 0.2 * i for i in range(9)], "task arithmetic": [0.1 * i for i in range(1, 11)]}


def merged(name: str, zoo: Zoo, scale: float) -> nn.Module:
    if name == "task arithmetic":
        return TaskArithmetic(scale=scale)(zoo.base, zoo.world())
    return TIES(scale=scale, skip=() if zoo.own_heads else ("linear.*",))(zoo.base, zoo.world())


def references(zoo: Zoo) -> dict[str, float]:
    return {"base": zoo.accuracy(zoo.base), "each alone": sum(zoo.alone().values()) / len(zoo.donors)}


@claim(
    "S022",
    says="With its scale tuned, TIES merges eight networks into a more accurate one than task arithmetic with its.",
    ours="TIES", baseline="task arithmetic", metric="accuracy, mean over tasks", least=0.01, tier="three minutes",
    data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def with_a_tuned_scale(run: Run, train: Data, test: Data) -> dict[str, float]:
    zoo = views_zoo(train, test, run=run)
    found = references(zoo)
    for name, scales in SCALES.items():
        found[name] = zoo.accuracy(zoo.best(lambda scale, name=name: merged(name, zoo, scale), scales)[1])
    return found


@claim(
    "S022",
    says="Without tuning, TIES at scale 1 is more accurate than task arithmetic at its recommended 0.4.",
    ours="TIES", baseline="task arithmetic", metric="accuracy, mean over tasks", least=0.01, tier="three minutes",
    data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def without_tuning(run: Run, train: Data, test: Data) -> dict[str, float]:
    zoo = views_zoo(train, test, run=run)
    arms = {"TIES": 1.0, "task arithmetic": 0.4, "averaging": 1 / len(zoo.donors)}
    found = {"base": zoo.accuracy(zoo.base)}
    for name, scale in arms.items():
        method = "TIES" if name == "TIES" else "task arithmetic"
        found[name] = zoo.accuracy(merged(method, zoo, scale))
    return found


@claim(
    "S022",
    says="TIES over averaging under interference: merging five networks fine-tuned for partitions of their own, TIES "
    "with its scale tuned is more accurate than their average.",
    ours="TIES", baseline="averaging", metric="accuracy, mean over tasks", least=0.02, tier="three minutes",
    data=GLOSSES, tuned=TUNED_GLOSSES, shrunk=SHRUNK_GLOSSES,
)  # fmt: skip
def over_averaging_under_interference(run: Run, texts: Data) -> dict[str, float]:
    zoo = gloss_zoo(texts, run=run)
    found = references(zoo)
    found["averaging"] = zoo.accuracy(merged("task arithmetic", zoo, 1 / len(zoo.donors)))
    for name in ("TIES", "task arithmetic"):
        found[name] = zoo.accuracy(zoo.best(lambda scale, name=name: merged(name, zoo, scale), SCALES[name][::2])[1])
    return found


@claim(
    "S022",
    says="Of eight donors near their limit, which conflict in all weights, TIES makes a more accurate network than "
    "task arithmetic, both with scales tuned.",
    ours="TIES", baseline="task arithmetic", metric="accuracy, mean over tasks", least=0.01, tier="a minute",
    data=DIGITS, tuned=TUNED_DIGITS, shrunk=SHRUNK_DIGITS,
)  # fmt: skip
def near_their_limit(run: Run, train: Data, test: Data) -> dict[str, float]:
    return near_the_limit(digits_zoo(train, test, run=run))


@claim(
    "S022",
    says="Of eight donors near their limit, which conflict in all weights, the average is less accurate by five points "
    "or more than the network that they came from.",
    ours="base", baseline="averaging", metric="accuracy, mean over tasks", least=0.05, tier="a minute",
    data=DIGITS, tuned=TUNED_DIGITS, shrunk=SHRUNK_DIGITS,
)  # fmt: skip
def below_the_base(run: Run, train: Data, test: Data) -> dict[str, float]:
    return near_the_limit(digits_zoo(train, test, run=run))


def near_the_limit(zoo: Zoo) -> dict[str, float]:
    found = {**references(zoo), "averaging": zoo.accuracy(merged("task arithmetic", zoo, 1 / len(zoo.donors)))}
    scales = {"TIES": [0.2 * i for i in range(1, 13)], "task arithmetic": [0.05 * i for i in range(1, 11)]}
    for name in scales:
        found[name] = zoo.accuracy(zoo.best(lambda scale, name=name: merged(name, zoo, scale), scales[name])[1])
    return found
