"""Visual domain prompts: adapt the input, and forget everything by leaving the prompts out.

Gan et al., Decorate the newcomers: Visual domain prompt for continual test time adaptation, AAAI 2023 (S116). There is
no public code, and we know no number of the paper that could be compared.
"""

from __future__ import annotations

import torch

from homeostat.adapt import BatchNormBlend, VisualDomainPrompt
from homeostat.core.data import Data
from homeostat.core.probe import prequential
from homeostat.core.run import Run
from homeostat.data import FashionMNIST
from homeostat.evidence import claim
from homeostat.fit import Cosine, Recipe
from homeostat.loop.network import Network
from homeostat.nn.optimizers import SGD
from homeostat.shift import Corrupt, Phases

NETWORK = Network(
    layout={"ResNet": {"depth": 8, "in_channels": 1, "width": 8}},
    mean=(0.286,), std=(0.353,), data=FashionMNIST("train", stop=10_000),
    recipe=Recipe(epochs=3, batch=64, optimizer=SGD(lr=0.1, weight_decay=5e-4, nesterov=True), schedule=Cosine(50)),
)  # fmt: skip
TEST = (FashionMNIST("test"),)
BRIGHT = tuple(Corrupt(name, 3, "imagenet") for name in ("brightness", "contrast", "fog"))
TUNED = "nothing; our defaults, as the paper's are not known to us"
SHRUNK = (
    "Fashion-MNIST and a ResNet-8 trained on 10,000 of its images; brightness, contrast and fog of severity 3 with "
    "1,000 images each; batches of 50"
)


def _right(logits, labels) -> float:
    return float((logits.argmax(1) == labels).double().mean())


@claim(
    "S116",
    says="Under changes of brightness, contrast and fog, prompts on batch statistics are more accurate than batch "
    "statistics alone.",
    ours="prompts", baseline="batch statistics", metric="accuracy", least=0.0, tier="a minute",
    data=TEST, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def above_batch_statistics(run: Run, test: Data) -> dict[str, float]:
    net = NETWORK.build(run)
    stream = Phases(BRIGHT)(test.shuffle(run.rng("pool"))[:3000], run=run)
    arms = {
        "prompts": VisualDomainPrompt(statistics="batch")(net, run=run),
        "batch statistics": BatchNormBlend(blend=0.0)(net),
        "prompts on stored statistics": VisualDomainPrompt()(net, run=run),
        "source": net,
    }
    return {
        name: _right((seen := prequential(arm, stream, batch=50)).logits, seen.labels) for name, arm in arms.items()
    }


@claim(
    "S116",
    says="After brightness, contrast and fog, the network without its prompts is on clean images as accurate as "
    "before, exactly.",
    ours="without prompts", baseline="source", metric="accuracy", least=0.0, tier="a minute",
    data=TEST, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def nothing_is_forgotten(run: Run, test: Data) -> dict[str, float]:
    net, images = NETWORK.build(run), test.shuffle(run.rng("pool"))
    prompted = VisualDomainPrompt()(net, run=run)
    prequential(prompted, Phases(BRIGHT)(images[:3000], run=run), batch=50)
    clean = images[3000:5000].load()
    with torch.no_grad():
        found = {"without prompts": prompted.bare(clean.x), "source": net(clean.x), "with prompts": prompted(clean.x)}
    return {name: _right(logits, clean.labels) for name, logits in found.items()}
