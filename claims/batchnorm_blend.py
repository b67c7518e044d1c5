"""BatchNorm by the batch's statistics: what it repairs, and what it breaks.

Schneider et al., Improving robustness against common corruptions by covariate shift adaptation, NeurIPS 2020: a
ResNet-50's mean corruption error on ImageNet-C falls from 76.7 to 62.2; a prior of source statistics helps where
batches are small. Nado et al., Evaluating prediction-time batch normalization, 2020: label shift undoes it.
"""

from __future__ import annotations

from torch import nn

from homeostat.adapt import BatchNormBlend
from homeostat.core.data import Data
from homeostat.core.probe import prequential
from homeostat.core.run import Run
from homeostat.data import CIFAR10
from homeostat.evidence import claim
from homeostat.nn.resnet import cifar_resnet
from homeostat.shift import CorrelatedOrder, Corrupt, LabelShift

POOL = (CIFAR10("test", start=2000),)
TUNED = "nothing; defaults: a prior of 16 samples"
SHRUNK = "CIFAR-10 images that went through JPEG and a published ResNet-20, in place of ImageNet and a ResNet-50"
NAMES = ("gaussian_noise", "defocus_blur", "frost", "fog", "contrast", "jpeg_compression")


def _accuracy(net: nn.Module, data: Data, batch: int) -> float:
    seen = prequential(net, data, batch=batch)
    return float((seen.logits.argmax(1) == seen.labels).float().mean())


def _arms(stream: Data, batch: int = 100) -> dict[str, float]:
    net = cifar_resnet(20)
    made = {"blend": BatchNormBlend()(net), "batch statistics": BatchNormBlend(blend=0.0)(net), "source": net}
    return {name: _accuracy(arm, stream, batch) for name, arm in made.items()}


def _corrupted(run: Run, pool: Data, severity: int, count: int, batch: int) -> dict[str, float]:
    images = pool.shuffle(run.rng("pool"))[:count]
    found = [_arms(Corrupt(name, severity)(images, run=run), batch) for name in NAMES]
    return {arm: sum(one[arm] for one in found) / len(found) for arm in found[0]}


@claim(
    "BatchNormBlend",
    says="On corrupted images, statistics blended with the batch's are more accurate than stored ones by ten points or "
    "more.",
    ours="blend", baseline="source", metric="accuracy", least=0.10, tier="a minute",
    data=POOL, tuned=TUNED, shrunk=f"{SHRUNK}; six corruptions of severity 5 with 400 images each, batches of 100",
)  # fmt: skip
def corrupted(run: Run, pool: Data) -> dict[str, float]:
    return _corrupted(run, pool, severity=5, count=400, batch=100)


@claim(
    "BatchNormBlend",
    says="In batches of eight corrupted images, a prior of source statistics is more accurate than the batch's alone "
    "by two points or more.",
    ours="blend", baseline="batch statistics", metric="accuracy", least=0.02, tier="a minute",
    data=POOL, tuned=TUNED, shrunk=f"{SHRUNK}; six corruptions of severity 5 with 400 images each",
)  # fmt: skip
def prior_in_small_batches(run: Run, pool: Data) -> dict[str, float]:
    return _corrupted(run, pool, severity=5, count=400, batch=8)


@claim(
    "BatchNormBlend",
    says="On a stream sorted by class, the batch's statistics alone cost the frozen network twenty points or more.",
    ours="source", baseline="batch statistics", metric="accuracy", least=0.20, tier="a minute",
    data=POOL, tuned=TUNED, shrunk=f"{SHRUNK}; 2,000 clean images in batches of 100",
)  # fmt: skip
def sorted_by_class(run: Run, pool: Data) -> dict[str, float]:
    return _arms(CorrelatedOrder(0.0)(pool.shuffle(run.rng("pool"))[:2000], run=run))


@claim(
    "BatchNormBlend",
    says="Under label shift (Dirichlet, 0.3), the batch's statistics alone cost the frozen network five points or "
    "more.",
    ours="source", baseline="batch statistics", metric="accuracy", least=0.05, tier="a minute",
    data=POOL, tuned=TUNED, shrunk=f"{SHRUNK}; 2,000 clean images in batches of 100",
)  # fmt: skip
def label_shift(run: Run, pool: Data) -> dict[str, float]:
    return _arms(LabelShift(concentration=0.3, size=2000)(pool, run=run))
