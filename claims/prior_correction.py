"""Prior correction: what it wins where few classes fill a batch, and that it costs little where they are balanced.

Marsden et al., Universal test-time adaptation through weight ensembling, diversity weighting, and prior correction
(ROID), WACV 2024, apply it where classes are correlated in time.
"""

from __future__ import annotations

from torch import nn

from homeostat.adapt import PriorCorrection
from homeostat.core.data import Data
from homeostat.core.probe import prequential
from homeostat.core.run import Run
from homeostat.data import CIFAR10
from homeostat.evidence import claim
from homeostat.nn.resnet import cifar_resnet
from homeostat.shift import CorrelatedOrder, Corrupt, LabelShift

POOL = (CIFAR10("test", start=2000),)
TUNED = "nothing; the paper's rule, which multiplies logits by the prior"
SHRUNK = "CIFAR-10 images that went through JPEG and a published ResNet-20; 2,000 images in batches of 100"


def _accuracy(net: nn.Module, data: Data) -> float:
    seen = prequential(net, data, batch=100)
    return float((seen.logits.argmax(1) == seen.labels).float().mean())


def _arms(stream: Data) -> dict[str, float]:
    net = cifar_resnet(20)
    made = {"correction": PriorCorrection()(net), "added": PriorCorrection(rule="add")(net), "source": net}
    return {name: _accuracy(arm, stream) for name, arm in made.items()}


@claim(
    "PriorCorrection",
    says="Under strong label shift (Dirichlet, 0.1), prior correction is more accurate than the frozen network by "
    "three points or more.",
    ours="correction", baseline="source", metric="accuracy", least=0.03, tier="a minute",
    data=POOL, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def label_shift(run: Run, pool: Data) -> dict[str, float]:
    return _arms(LabelShift(concentration=0.1, size=2000)(pool, run=run))


@claim(
    "PriorCorrection",
    says="Where classes come in bursts (Dirichlet, 0.1), prior correction is more accurate than the frozen network by "
    "three points or more.",
    ours="correction", baseline="source", metric="accuracy", least=0.03, tier="a minute",
    data=POOL, tuned=TUNED, shrunk=f"{SHRUNK}; ten slots",
)  # fmt: skip
def bursts(run: Run, pool: Data) -> dict[str, float]:
    return _arms(CorrelatedOrder(0.1)(pool.shuffle(run.rng("pool"))[:2000], run=run))


@claim(
    "PriorCorrection",
    says="On a shuffled stream of balanced classes, prior correction costs the frozen network a point at most.",
    ours="correction", baseline="source", metric="accuracy", least=-0.01, tier="a minute",
    data=POOL, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def balanced(run: Run, pool: Data) -> dict[str, float]:
    return _arms(pool.shuffle(run.rng("pool"))[:2000])


@claim(
    "PriorCorrection",
    says="On balanced but corrupted images, where the network errs in one direction, prior correction costs the frozen "
    "network two points or more.",
    ours="source", baseline="correction", metric="accuracy", least=0.02, tier="a minute",
    data=POOL, tuned=TUNED, shrunk=f"{SHRUNK}; contrast of severity 5",
)  # fmt: skip
def biased_errors(run: Run, pool: Data) -> dict[str, float]:
    return _arms(Corrupt("contrast", 5)(pool.shuffle(run.rng("pool"))[:2000], run=run))
