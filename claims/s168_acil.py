"""S168 G-ACIL: new classes without replay and without forgetting (Zhuang et al., 2024).

The paper trains a network on half of the classes, freezes it, and learns the rest as they come by a recursive ridge
regression on expanded features: its weights are those of joint training, whatever the order. It reports more accuracy
than methods that replay stored samples.
"""

from __future__ import annotations

import torch
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from homeostat import Batch, Data, Run, Tensors, World, read
from homeostat.continual import ACIL, AnalyticHead
from homeostat.data import FashionMNIST
from homeostat.evidence import claim
from homeostat.fit import Cosine, Fit, Recipe
from homeostat.nn import SGD, ResNet
from homeostat.probe import Accuracy

BASE, KEPT = 5, 20
DATA = (FashionMNIST("train", stop=20_000), FashionMNIST("test"))
TUNED = (
    "learning rate and epochs of the networks that go on training (0.003 to 0.3; 2 and 5), on images 20,000 to 40,000 "
    "and 45,000 to 55,000 of the training data with seeds 100 and 101; ACIL has the library's defaults"
)
SHRUNK = (
    "Fashion-MNIST (6,000 images to train, 2,000 to judge) in a random order of its classes and a ResNet-8 of width 8 "
    "in place of CIFAR-100 and a ResNet-32; five classes first, then one a phase; an expansion to 1,024 in place of "
    "8,192"
)
LR = 0.1


def phases(run: Run, train: Data, test: Data) -> tuple[list[Batch], Tensors]:
    """The training images of the first classes and of each later one, and the test images; classes in random order."""
    number = torch.randperm(10, generator=run.rng("classes"))
    before = train[torch.randperm(len(train), generator=run.rng("train"))[:6000]].load()
    after = test[torch.randperm(len(test), generator=run.rng("test"))[:2000]].load()
    y = number[before.labels]
    first = before.replace(y=y)[y < BASE]
    return [first, *(before.replace(y=y)[y == k] for k in range(BASE, 10))], Tensors(after.x, number[after.labels])


def network(first: Batch, run: Run) -> nn.Module:
    net = ResNet(depth=8, in_channels=1, width=8, seed=run.seed_for("network"))
    recipe = Recipe(optimizer=SGD(lr=0.1), schedule=Cosine(), epochs=5, batch=64)
    return Fit(recipe=recipe)(net, World(source=Tensors(first.x, first.y)), run=run)


def analytic(net: nn.Module, stream: list[Batch], run: Run) -> AnalyticHead:
    """ACIL after the whole stream."""
    head = ACIL()(net, World(source=Tensors(stream[0].x, stream[0].y)), run=run)
    for phase in stream[1:]:
        for batch in Tensors(phase.x, phase.y).batches(64):
            head.observe(batch)
    return head


def replayed(net: nn.Module, stream: list[Batch], kept: int, run: Run) -> nn.Module:
    """The network trained on, phase after phase, with so many stored samples of each class before."""
    recipe = Recipe(optimizer=SGD(lr=LR), epochs=5, batch=64)
    store = list[tuple[Tensor, Tensor]]()
    for number, phase in enumerate(stream):
        x, y = phase.x, phase.labels
        assert isinstance(x, Tensor)
        if number:
            old = [pair for pair in store if len(pair[0])]
            turns = -(-len(x) // max(1, sum(len(pair[0]) for pair in old)))
            # As many stored samples as new ones, so that half of each batch is replayed.
            images = torch.cat([x, *[pair[0] for pair in old] * turns])
            labels = torch.cat([y, *[pair[1] for pair in old] * turns])
            own = run.replace(seed=run.seed_for("phase", number))
            net = Fit(recipe=recipe)(net, World(source=Tensors(images, labels)), run=own)
        for k in y.unique():
            store.append((x[y == k][:kept], y[y == k][:kept]))
    return net


def accuracy(net: nn.Module, test: Tensors) -> float:
    return read([Accuracy()], net, test)[0].value


@claim(
    "S168",
    says="After classes that came one by one, ACIL is as accurate as a ridge regression on all of them at once.",
    ours="ACIL", baseline="joint ridge", metric="accuracy on all classes", least=-0.002, tier="a minute",
    data=DATA, tuned="nothing", shrunk=SHRUNK,
)  # fmt: skip
def forgets_nothing(run: Run, train: Data, test: Data) -> dict[str, float]:
    stream, judged = phases(run, train, test)
    head = analytic(network(stream[0], run), stream, run)
    expanded = torch.cat([head.expanded(phase.x) for phase in stream])
    target = nn.functional.one_hot(torch.cat([phase.labels for phase in stream]), 10).double()
    joint = Ridge(alpha=head.gamma, fit_intercept=False).fit(expanded.numpy(), target.numpy())
    said = torch.from_numpy(joint.predict(head.expanded(judged.load().x).numpy())).argmax(1)
    return {
        "ACIL": accuracy(head, judged),
        "joint ridge": float((said == judged.load().labels).double().mean()),
    }


@claim(
    "S168",
    says="With no stored sample, ACIL ends more accurate than a network that replays 20 stored samples of each class.",
    ours="ACIL", baseline="replay", metric="accuracy on all classes", least=0.02, tier="three minutes",
    data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def better_than_replay(run: Run, train: Data, test: Data) -> dict[str, float]:
    stream, judged = phases(run, train, test)
    net = network(stream[0], run)
    return {
        "ACIL": accuracy(analytic(net, stream, run), judged),
        "replay": accuracy(replayed(net, stream, KEPT, run), judged),
        "training on": accuracy(replayed(net, stream, 0, run), judged),
    }
