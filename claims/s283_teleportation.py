"""S283 Teleportation: training that starts from where the gradient is large (Zhao et al., ICLR 2024).

The paper trains perceptrons of 784-16-10-10 on MNIST and Fashion-MNIST with several optimisers; eight teleports in the
first epoch (momentum, RMSprop, Adam) lower the training loss at equal epochs, and each leaves the loss where it was.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from homeostat import Data, Run
from homeostat.core.online import Bag
from homeostat.data import FashionMNIST
from homeostat.evidence import claim
from homeostat.fit import Recipe, train
from homeostat.merge import Teleport, Teleporting
from homeostat.nn import SGD, Adam, Optimizer

DATA = (FashionMNIST("train", stop=30_000),)
TUNED = "nothing; the official code's learning rates and teleports (lr 0.05, ten steps, 200 images, first eight steps)"
SHRUNK = (
    "the first 30,000 images of Fashion-MNIST and five epochs in place of 50,000 and forty; a step that changes the "
    "loss of its batch by more than 1 % is halved"
)
METRIC = "training loss, mean over the ends of five epochs"


def network(run: Run) -> nn.Module:
    sizes, layers, draws = (784, 16, 10, 10), list[nn.Module](), run.rng("network")
    for i, (before, after) in enumerate(itertools.pairwise(sizes)):
        layer = nn.Linear(before, after, bias=False)
        with torch.no_grad():
            layer.weight.uniform_(-(before**-0.5), before**-0.5, generator=draws)
        layers += [layer] if i == 2 else [layer, nn.LeakyReLU(0.1)]
    return nn.Sequential(nn.Flatten(), *layers)


def curve(optimizer: Optimizer, teleports: int, run: Run, data: Data) -> tuple[list[float], float]:
    """The loss on all images at the end of each epoch, and the largest change of a batch's loss in a teleport."""
    net, carry, losses = network(run).train(), Bag(), list[float]()
    hook = Teleporting(net, data, optimizer, carry, Teleport(), range(teleports), run=run)
    every = data.load()

    def after(step: int, per_epoch: int) -> None:
        hook(step, per_epoch)
        if (step + 1) % per_epoch == 0:
            with torch.no_grad():
                losses.append(float(F.cross_entropy(net(every.x), every.labels)))

    recipe = Recipe(optimizer=optimizer, epochs=5, batch=20)
    loss = lambda batches, _: {"loss": F.cross_entropy(net(batches["source"].x), batches["source"].labels)}  # noqa: E731
    train(net, loss, {"source": data}, dict(net.named_parameters()), recipe, run=run, after=after, carry=carry)
    return losses, max((abs(now / before - 1) for before, now in hook.losses), default=0.0)


def arms(optimizer: Optimizer, run: Run, data: Data) -> dict[str, float]:
    teleported, changed = curve(optimizer, 8, run, data)
    plain, _ = curve(optimizer, 0, run, data)
    return {
        "teleported": sum(teleported) / len(teleported),
        "plain": sum(plain) / len(plain),
        "teleported, at the end": teleported[-1],
        "plain, at the end": plain[-1],
        "largest change of the loss in a teleport": changed,
    }


@claim(
    "S283",
    says="With Adam, eight teleports in the first steps lower the training loss over the next five epochs.",
    ours="teleported", baseline="plain", metric=METRIC, unit="nats", better="lower", least=0.02, tier="three minutes",
    data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def with_adam(run: Run, data: Data) -> dict[str, float]:
    return arms(Adam(lr=1e-4), run, data)


@claim(
    "S283",
    says="With momentum, eight teleports in the first steps lower the training loss over the next five epochs.",
    ours="teleported", baseline="plain", metric=METRIC, unit="nats", better="lower", least=0.02, tier="three minutes",
    data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def with_momentum(run: Run, data: Data) -> dict[str, float]:
    return arms(SGD(lr=1e-3, momentum=0.9), run, data)
