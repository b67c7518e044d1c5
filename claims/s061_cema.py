"""CEMA: a small network kept fit by a strong one that is sent the few useful samples.

Chen, Niu, Tan et al., Towards robust and efficient cloud-edge elastic model adaptation via selective entropy
distillation, ICLR 2024 (S061): fewer samples uploaded at a higher accuracy on ImageNet-C; the authors' code names 9,889
uploads out of 50,000.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from homeostat.adapt import CEMA, CEMAEdge, Tent
from homeostat.core.data import Data
from homeostat.core.method import Remedy
from homeostat.core.online import Online
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.data import FashionMNIST
from homeostat.evidence import claim
from homeostat.fit import Cosine, Recipe
from homeostat.loop.network import Network
from homeostat.nn.optimizers import SGD
from homeostat.shift import Corrupt

TRAINING = Recipe(epochs=3, batch=64, optimizer=SGD(lr=0.05, weight_decay=5e-4, nesterov=True), schedule=Cosine(50))
SMALL = Network(
    layout={"SmallCNN": {"in_channels": 1, "size": 28, "width": 8, "depth": 2, "norm": "batch"}},
    mean=(0.286,), std=(0.353,), data=FashionMNIST("train", stop=4_000), recipe=TRAINING,
)  # fmt: skip
STRONG = SMALL.replace(
    layout={"SmallCNN": {"in_channels": 1, "size": 28, "width": 24, "depth": 3, "norm": "batch"}},
    data=FashionMNIST("train", start=4_000, stop=9_000),
)
NAMES = ("gaussian_noise", "fog", "contrast", "jpeg_compression")
EACH, BATCH = 1500, 50
OURS = CEMA(div_margin=0.4, replay_from=64)
POOL = (FashionMNIST("test"),)
TUNED = (
    "that the edge starts anew for each corruption, on CIFAR-10 test images 0 to 2,000 with ResNet-20 and ResNet-44, "
    "given up as the larger was no better under corruptions and CEMA below no uploads; learning rates, replay and "
    "div_margin were tried there (a lower rate of the edge gained 1.8 points) and on Fashion-MNIST training images "
    "50,000 to 54,000 with ResNets (no gain, CEMA again below no uploads); kept: div_margin 0.4 as EATA's for ten "
    "classes, replay from 64 samples on as streams are short, else the paper's defaults; a rehearsal on seed 100, "
    "which draws from the same images, with a larger network trained on 10,000 was half a point below Tent and below "
    "no uploads; after it only that number was cut, for time"
)
SHRUNK = (
    "Fashion-MNIST, a convolutional network of 8 channels trained on 4,000 images and one of 24 trained on 5,000, in "
    "place of ImageNet, a ResNet-18 and a ResNet-101; four corruptions of severity 4 with 1,500 images each; "
    "batches of 50"
)


def _served(run: Run, test: Data, arms: Mapping[str, Remedy]) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracy, and the share of samples uploaded, over streams of one corruption each."""
    small, world = SMALL.build(run), World(models={"cloud": STRONG.build(run)})
    right, sent = dict.fromkeys(arms, 0), dict.fromkeys(arms, 0)
    for corruption in NAMES:
        images = test.shuffle(run.rng("pool", corruption))[:EACH]
        stream = Corrupt(corruption, 4, "imagenet")(images, run=run)
        for name, remedy in arms.items():
            net = remedy(small, world, run=run)
            for batch in stream.batches(BATCH):
                logits: Any = net.observe(batch.replace(y=None)) if isinstance(net, Online) else net(batch.x)
                right[name] += int((logits.argmax(1) == batch.labels).sum())
            sent[name] += net.counts()["uploaded"] if isinstance(net, CEMAEdge) else 0
    whole = EACH * len(NAMES)
    return {n: v / whole for n, v in right.items()}, {n: v / whole for n, v in sent.items()}


@claim(
    "S061",
    says="On four corruptions, a small network that CEMA keeps fit is more accurate than with Tent on the device.",
    ours="CEMA", baseline="Tent", metric="accuracy", least=0.0, tier="long", data=POOL, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def above_tent(run: Run, test: Data) -> dict[str, float]:
    found, _ = _served(run, test, {"CEMA": OURS, "Tent": Tent(), "no uploads": CEMA(high=1e-9, idle=False)})
    return found


@claim(
    "S061",
    says="CEMA uploads at most half of the samples.",
    ours="CEMA", baseline="half", metric="share of samples uploaded", better="lower", least=0.0, tier="long",
    data=POOL, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def few_uploads(run: Run, test: Data) -> dict[str, float]:
    return _served(run, test, {"CEMA": OURS})[1] | {"half": 0.5}


@claim(
    "S061",
    says="CEMA is at least as accurate as when all samples of low entropy are uploaded, redundant ones too.",
    ours="CEMA", baseline="entropy alone", metric="accuracy", least=0.0, tier="long", data=POOL, tuned=TUNED,
    shrunk=SHRUNK,
)  # fmt: skip
def redundant_samples_can_stay(run: Run, test: Data) -> dict[str, float]:
    return _served(run, test, {"CEMA": OURS, "entropy alone": OURS.replace(div_margin=1.1)})[0]


@claim(
    "S061",
    says="With the same uploads, CEMA is less accurate when the cloud does not replay earlier samples.",
    ours="CEMA", baseline="without replay", metric="accuracy", least=0.0, tier="long", data=POOL, tuned=TUNED,
    shrunk=SHRUNK,
)  # fmt: skip
def replay_helps(run: Run, test: Data) -> dict[str, float]:
    return _served(run, test, {"CEMA": OURS, "without replay": OURS.replace(replay=0)})[0]
