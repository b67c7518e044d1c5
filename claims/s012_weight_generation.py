"""S012 D2NWG: weights for an unseen data set, drawn by diffusion (Soro et al., ICLR 2025).

The paper draws classifiers for data sets that its zoo has not seen, which start ahead of random ones and are fine-tuned
in fewer steps, and gains 6 % in few-shot learning.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat import Data, Run, Tensors, World
from homeostat.data import FashionMNIST
from homeostat.evidence import claim
from homeostat.fit import Cosine, Fit, Recipe
from homeostat.merge import D2NWG
from homeostat.nn import SGD, Adam

DATA = (FashionMNIST("train", stop=20_000), FashionMNIST("test", stop=5_000))
ZOO, HELD, EACH, SHOTS, STEPS = 300, 12, 100, 16, 5
TUNED = "nothing"
SHRUNK = (
    "a zoo of 300 linear classifiers of three kinds of clothing each, on 7x7 pixels of Fashion-MNIST; judged on 12 "
    "triples of kinds of which the zoo has no network, with 16 shown images a class; in place of model zoos of "
    "convolutional networks and mini-ImageNet"
)


def features(data: Data) -> tuple[Tensor, Tensor]:
    batch = data.load()
    assert isinstance(batch.x, Tensor)
    return (F.adaptive_avg_pool2d(batch.x, 7).flatten(1) - 0.286) / 0.3, batch.labels


def task(x: Tensor, y: Tensor, triple: tuple[int, ...], each: int, draws: torch.Generator) -> Tensors:
    """So many images of each of three kinds, which are numbered in this order."""
    rows = [torch.nonzero(y == kind)[:, 0] for kind in triple]
    rows = [found[torch.randperm(len(found), generator=draws)[:each]] for found in rows]
    return Tensors(x[torch.cat(rows)], torch.arange(3).repeat_interleave(torch.tensor([len(r) for r in rows])))


def trained_heads(tasks: list[Tensors]) -> list[dict[str, Tensor]]:
    """Linear classifiers of all tasks, all from zeros, trained at once."""
    x, y = (torch.stack([getattr(t.load(), name) for t in tasks]) for name in ("x", "labels"))
    weight = torch.zeros(len(tasks), 3, x.shape[2], requires_grad=True)
    bias = torch.zeros(len(tasks), 1, 3, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.02, weight_decay=1e-3)
    for _ in range(100):
        logits = x @ weight.transpose(1, 2) + bias
        optimizer.zero_grad()
        (F.cross_entropy(logits.flatten(0, 1), y.flatten()) * len(tasks)).backward()
        optimizer.step()
    return [{"weight": w, "bias": b[0]} for w, b in zip(weight.detach(), bias.detach(), strict=True)]


def head(weights: dict[str, Tensor]) -> nn.Module:
    net = nn.Linear(weights["weight"].shape[1], 3)
    net.load_state_dict(weights)
    return net


def accuracy(net: nn.Module, data: Tensors) -> float:
    batch = data.load()
    assert isinstance(batch.x, Tensor)
    with torch.no_grad():
        return float((net(batch.x).argmax(1) == batch.labels).float().mean())


def tuned(net: nn.Module, shown: Tensors) -> nn.Module:
    recipe = Recipe(optimizer=SGD(lr=0.1, momentum=0.0), epochs=STEPS, batch=len(shown))
    return Fit(recipe=recipe)(net, World(source=shown))


def starts(run: Run, train: Data, test: Data) -> dict[str, float]:
    """Mean accuracy over held-out triples of every way to start, and some steps later."""
    draws = run.rng("tasks")
    (x, y), (x_test, y_test) = features(train), features(test)
    sets = list(itertools.combinations(range(10), 3))
    order = torch.randperm(len(sets), generator=draws).tolist()
    held, seen = [sets[i] for i in order[:HELD]], [sets[i] for i in order[HELD:]]

    def turned(triple: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(triple[i] for i in torch.randperm(3, generator=draws).tolist())

    chosen = [turned(seen[int(torch.randint(len(seen), (), generator=draws))]) for _ in range(ZOO)]
    tasks = [task(x, y, triple, EACH, draws) for triple in chosen]
    zoo = trained_heads(tasks)
    method = D2NWG(
        width=64, latent=16, shots=SHOTS, kl=1e-3,
        vae=Recipe(optimizer=Adam(lr=2e-3), schedule=Cosine(), epochs=100, batch=50),
        align=Recipe(optimizer=Adam(lr=1e-3), schedule=Cosine(), epochs=60, batch=50),
        diffuse=Recipe(optimizer=Adam(lr=2e-3), schedule=Cosine(), epochs=200, batch=50),
    )  # fmt: skip
    blank = head({"weight": torch.zeros(3, x.shape[1]), "bias": torch.zeros(3)})
    names = [f"head{i}" for i in range(ZOO)]
    world = World(models=dict(zip(names, zoo, strict=True)), parts=dict(zip(names, tasks, strict=True)))
    kit = method.kit(blank, world, run=run)
    mean = head({name: torch.stack([w[name] for w in zoo]).mean(0) for name in zoo[0]})
    random = head({"weight": 0.1 * torch.randn(3, x.shape[1], generator=draws), "bias": torch.zeros(3)})
    made: dict[str, list[float]] = {}
    for number, triple in enumerate(map(turned, held)):
        shown, judged = task(x, y, triple, SHOTS, draws), task(x_test, y_test, triple, 10_000, draws)
        drawn = method(blank, World(source=shown), kit=kit, run=run.replace(seed=run.seed_for("draw", number)))
        best = max(zoo, key=lambda w, s=shown: accuracy(head(w), s))
        arms = {
            "drawn": drawn, "zoo mean": mean, "random": random, "best of the zoo": head(best),
            "drawn, tuned": tuned(drawn, shown), "zeros, tuned": tuned(blank, shown),
            "zoo mean, tuned": tuned(mean, shown),
        }  # fmt: skip
        for name, net in arms.items():
            made.setdefault(name, []).append(accuracy(net, judged))
    return {name: sum(values) / len(values) for name, values in made.items()}


@claim(
    "S012",
    says="For triples of clothing of which the zoo has no network, drawn classifiers are without any training more "
    "accurate by a point or more than whichever of the zoo's is best on the shown images.",
    ours="drawn", baseline="best of the zoo", metric="accuracy, mean over triples", least=0.01, tier="three minutes",
    data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def without_training(run: Run, train: Data, test: Data) -> dict[str, float]:
    return starts(run, train, test)


@claim(
    "S012",
    says="After five steps on the shown images, drawn classifiers are more accurate than those that start from where "
    "the zoo's networks started.",
    ours="drawn, tuned", baseline="zeros, tuned", metric="accuracy, mean over triples", least=0.02,
    tier="three minutes", data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def after_five_steps(run: Run, train: Data, test: Data) -> dict[str, float]:
    return starts(run, train, test)
