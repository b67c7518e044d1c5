"""S293 Re-basin: what width does to the barrier, and statistics reset after pruning (Qu and Horvath, 2024).

The paper and those before it find that perceptrons trained apart are connected by a straight line without a barrier
once their neurons are matched, if they are wide; that narrow ones are not; and that a pruned network gets most of what
it lost back when the statistics of its channels are measured again on a few hundred samples.
"""

from __future__ import annotations

import torch
from torch import nn

from homeostat import Data, Run, World, fork, read
from homeostat.core.weights import weights
from homeostat.data import CIFAR10, FashionMNIST
from homeostat.evidence import claim
from homeostat.fit import Fit, Recipe
from homeostat.merge import barrier, weight_match
from homeostat.nn import MLP, Adam, cifar_resnet, permutation_spec, renormalize
from homeostat.probe import Accuracy

FASHION = (FashionMNIST("train", stop=10_000), FashionMNIST("test", stop=2000))
CIFAR = (CIFAR10("test", stop=2000), CIFAR10("test", start=2000))
RECIPE = Recipe(optimizer=Adam(lr=1e-3), epochs=4, batch=128)
SPARSITY = 0.8
SHRUNK = (
    "Fashion-MNIST and perceptrons of three hidden layers, trained for four epochs of 10,000 images, in place of "
    "CIFAR-10 with wide ResNets and VGGs and MNIST with perceptrons trained to the end; 2,000 images judge"
)


def trained(width: int, number: int, run: Run, train: Data) -> nn.Module:
    """One of two networks that share nothing: other starting weights, other order of the images."""
    own = run.replace(seed=run.seed_for("network", width, number))
    net = MLP(784, 10, (width, width, width), seed=own.seed_for("weights") % 2**31)
    return Fit(recipe=RECIPE)(net, World(source=train), run=own)


def barriers(run: Run, train: Data, test: Data, size: int) -> dict[str, float]:
    """The accuracy's barrier between two networks as they are, matched, and matched with statistics repaired."""
    a, b = (trained(size, number, run, train) for number in (1, 2))
    spec = permutation_spec(a, train[:2].load().x)
    matched = spec.permuted(b, weight_match(a, b, spec))
    found = {"": barrier(a, matched, test).accuracy, ", as they are": barrier(a, b, test).accuracy}
    for mode in ("repair", "rescale"):
        found[f", {mode}"] = barrier(a, matched, test, mode=mode, statistics=train).accuracy
    return {f"width {size}{how}": value for how, value in found.items()}


@claim(
    "S293",
    says="Between two perceptrons trained apart whose neurons are matched, the accuracy's barrier is lower by five "
    "points or more at width 512 than at width 64.",
    ours="width 512", baseline="width 64", metric="barrier of the accuracy after weight matching", better="lower",
    least=0.05, tier="three minutes", data=FASHION, tuned="nothing", shrunk=SHRUNK,
)  # fmt: skip
def width(run: Run, train: Data, test: Data) -> dict[str, float]:
    return barriers(run, train, test, 64) | barriers(run, train, test, 512)


@claim(
    "S293",
    says="Between two perceptrons of width 1024 trained apart, whose neurons are matched and statistics repaired, the "
    "accuracy's barrier is five points at most.",
    ours="width 1024, repair", baseline="no barrier", metric="barrier of the accuracy", better="lower", least=-0.05,
    tier="three minutes", data=FASHION, tuned="nothing", shrunk=SHRUNK,
)  # fmt: skip
def wide_and_repaired(run: Run, train: Data, test: Data) -> dict[str, float]:
    return barriers(run, train, test, 1024) | {"no barrier": 0.0}


def pruned(net: nn.Module, sparsity: float) -> nn.Module:
    """Without the smallest weights of all convolutions and linear layers together."""
    names = [n for n, t in weights(net).items() if n.endswith(".weight") and t.ndim > 1]
    sizes = torch.cat([weights(net)[name].abs().flatten() for name in names])
    cut = sizes.kthvalue(round(sparsity * len(sizes))).values
    made = fork(net, own=names)
    with torch.no_grad():
        for name in names:
            parameter = made.get_parameter(name)
            parameter.mul_(parameter.abs() > cut)
    return made


@claim(
    "S293",
    says="A ResNet-20 whose smallest 80 % of weights were removed at once gains ten points or more of accuracy when "
    "BatchNorm's statistics are measured again on 200 unlabelled images.",
    ours="reset", baseline="pruned", metric="accuracy", least=0.10, tier="a minute", data=CIFAR,
    tuned="nothing; the statistics are of images that do not judge",
    shrunk="CIFAR-10 images that went through JPEG and a published ResNet-20; magnitudes in place of WoodFisher",
)  # fmt: skip
def statistics_after_pruning(run: Run, pool: Data, test: Data) -> dict[str, float]:
    dense = cifar_resnet(20)
    sparse = pruned(dense, SPARSITY)
    some = pool.shuffle(run.rng("images"))[:200].unlabelled()
    arms = {
        "dense": dense,
        "pruned": sparse,
        "reset": renormalize(sparse, [], some, "reset_bn"),
        "repair": renormalize(sparse, [dense], some, "repair"),
    }
    judged = test.shuffle(run.rng("judged"))[:2000]
    return {name: read([Accuracy()], net, judged)[0].value for name, net in arms.items()}
