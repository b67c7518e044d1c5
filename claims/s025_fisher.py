"""S025 Fisher merging: each weight averaged by how sure each donor is of it (Matena and Raffel, NeurIPS 2022).

The paper merges fine-tuned language models and image classifiers; its Fisher-weighted average is better than the plain
one by about a point for networks of one task, and by several where a donor is to lend what it learnt elsewhere.
"""

from __future__ import annotations

import torch

from homeostat import Data, Run, Tensors, World, fork, read
from homeostat.core.holding import holding
from homeostat.data import FashionMNIST
from homeostat.evidence import claim
from homeostat.fit import Fit, Recipe
from homeostat.merge import Average, FisherMerge, fisher_merge, views_zoo
from homeostat.nn import MLP, Adam
from homeostat.nn.fisher import fisher_diagonal
from homeostat.probe import Accuracy

DATA = (FashionMNIST("train", stop=20_000), FashionMNIST("test"))
TUNED = "the zoo as for S022; else nothing"
SHRUNK = (
    "eight views of Fashion-MNIST at 14x14 (turned and mirrored) and a perceptron of three layers of 256 whose "
    "head is frozen, in place of fine-tuned language models"
)
SHRUNK_HALVES = (
    "a perceptron of two layers of 128 on Fashion-MNIST at 14x14, fine-tuned on the images of five classes and of the "
    "five others, in place of fine-tuned language models"
)
HEAD = ("linear.*",)


def small(data: Data, count: int, run: Run, name: str) -> Tensors:
    batch = data[torch.randperm(len(data), generator=run.rng(name))[:count]].load()
    return Tensors(torch.nn.functional.avg_pool2d(batch.x, 2), batch.y)


@claim(
    "S025",
    says="Of eight networks fine-tuned for eight views, the average by Fisher information is more accurate than the "
    "plain one by half a point.",
    ours="Fisher", baseline="average", metric="accuracy, mean over tasks", least=0.005, tier="three minutes",
    data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def eight_views(run: Run, train: Data, test: Data) -> dict[str, float]:
    zoo = views_zoo(train, test, run=run)
    world = zoo.world(zoo.train)
    fisher = FisherMerge(streams="parts", samples=256, skip=HEAD)(zoo.base, world, run=run)
    average = Average(skip=HEAD)(zoo.base, world)
    return {"Fisher": zoo.accuracy(fisher), "average": zoo.accuracy(average), "base": zoo.accuracy(zoo.base)}


@claim(
    "S025",
    says="Of two networks fine-tuned on five classes each, the average by Fisher information is at least as accurate "
    "on all ten as the plain one.",
    ours="Fisher", baseline="average", metric="accuracy", least=0.0, tier="a minute", data=DATA, tuned="nothing",
    shrunk=SHRUNK_HALVES,
)  # fmt: skip
def two_halves(run: Run, train: Data, test: Data) -> dict[str, float]:
    base, halves, judge = halved(run, train, test)
    world = World(models={k: net for k, (net, _) in halves.items()}, parts={k: d for k, (_, d) in halves.items()})
    arms = {
        "Fisher": FisherMerge(streams="parts", samples=512)(base, world, run=run),
        "average": Average()(base, world),
        "base": base,
        **{name: net for name, (net, _) in halves.items()},
    }
    return {name: read([Accuracy()], net, judge)[0].value for name, net in arms.items()}


@claim(
    "S025",
    says="Information per sample and class merges two networks into a more accurate one, by half a point or more, than "
    "the square of batches' gradients, which is often taken for it.",
    ours="per sample", baseline="per batch", metric="accuracy", least=0.005, tier="a minute", data=DATA,
    tuned="nothing", shrunk=SHRUNK_HALVES,
)  # fmt: skip
def samples_against_batches(run: Run, train: Data, test: Data) -> dict[str, float]:
    base, halves, judge = halved(run, train, test)
    names = [name for name, _ in base.named_parameters()]
    world = World(models={k: net for k, (net, _) in halves.items()}, parts={k: d for k, (_, d) in halves.items()})
    squares = [
        fisher_diagonal(fork(net, own="*"), [b.x for b in data[:512].batches(64)], names)
        for net, data in halves.values()
    ]
    rough = fisher_merge([dict(net.named_parameters()) for net, _ in halves.values()], squares)
    arms = {
        "per sample": FisherMerge(streams="parts", samples=512)(base, world, run=run),
        "per batch": holding(base, rough),
    }
    return {name: read([Accuracy()], net, judge)[0].value for name, net in arms.items()}


def halved(run: Run, train: Data, test: Data) -> tuple[torch.nn.Module, dict, Tensors]:
    """A base that saw a little of all, and two networks that saw much of one half each."""
    few, many = small(train, 300, run, "few"), small(train, 6000, run, "many")
    start = Fit(recipe=Recipe(epochs=10, batch=32, optimizer=Adam(lr=1e-3)))
    base = start(MLP(196, 10, (128, 128), seed=run.seed_for("net")), World(source=few), run=run)
    tune, halves = Fit(recipe=Recipe(epochs=3, batch=64, optimizer=Adam(lr=3e-4))), {}
    for name, low in (("clothes", 0), ("the rest", 5)):
        batch = many.load()
        kept = (batch.labels >= low) & (batch.labels < low + 5)
        data = Tensors(batch.x[kept], batch.labels[kept])
        halves[name] = tune(base, World(source=data), run=run.replace(seed=run.seed_for(name))), data
    return base, halves, small(test, 5000, run, "judge")
