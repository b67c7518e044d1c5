"""The four networks of the harm table, what they are given, and what their loops may try and rehearse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from homeostat.adapt import EATA, LAME, ROID, SAR, T3A, BatchNormBlend, PriorCorrection, RoTTA, Source
from homeostat.bench import Continual, Looped, Refitted, Setting, Stream, Suite
from homeostat.bench.refitted import REFIT
from homeostat.core.data import Data, Tensors
from homeostat.core.method import Remedy, Shift
from homeostat.core.run import Run
from homeostat.core.save import save
from homeostat.core.spec import from_config
from homeostat.core.taps import tapped
from homeostat.core.world import World
from homeostat.data import CIFAR10, FashionMNIST, Glosses, Reader
from homeostat.fit import Cosine, Fit, Recipe
from homeostat.loop import Network
from homeostat.nn.minilm import MiniLM
from homeostat.nn.optimizers import SGD, Adam
from homeostat.robust import BatchPoisoning
from homeostat.shift import CharacterNoise, Compose, CorrelatedOrder, Corrupt, LabelShift, WordNoise

LABELS = 16
"""A window, where the loop is shown any."""

BATCHNORM = (EATA(), BatchNormBlend(), ROID(), RoTTA(), LAME(), T3A(), PriorCorrection())
OTHER_NORM = (EATA(), SAR(), LAME(), T3A(), PriorCorrection())
"""What costs a window eight forward passes or less and needs no training before; one of each idea, so that SAR, which
is EATA made steady, stands where it was made for, and DeYO is left out."""

PICTURES = (
    *(Corrupt(name, severity) for name in ("speckle_noise", "gaussian_blur", "brightness") for severity in (2, 5)),
    *(Corrupt(name, 5) for name in ("spatter", "pixelate")),
    Compose((Corrupt("brightness", 5), Corrupt("speckle_noise", 5))),
    Compose((Corrupt("gaussian_blur", 5), Corrupt("spatter", 5))),
    Compose((Corrupt("brightness", 5), Corrupt("gaussian_blur", 5))),
    LabelShift(concentration=0.15), CorrelatedOrder(0.1),
    Compose((LabelShift(concentration=0.5), Corrupt("speckle_noise", 4))),
    Compose((CorrelatedOrder(0.1), Corrupt("gaussian_blur", 4))),
)  # fmt: skip
TEXTS = (
    CharacterNoise(0.1, "insert"), CharacterNoise(0.25, "replace"), WordNoise(0.2, "swap"),
    CharacterNoise(0.5, "insert"), LabelShift(concentration=0.15), CorrelatedOrder(0.1),
)  # fmt: skip
"""What a loop rehearses; no corruption of it is in a stream."""


def suites(network: str, folder: Path, seeds: int) -> tuple[Suite, Suite]:
    """Without labels: the network as it is, each remedy always on, the loop. With some: a refit, and the loop."""
    return NETWORKS[network](network, folder, seeds)


def fashion(name: str, folder: Path, seeds: int) -> tuple[Suite, Suite]:
    """Fashion-MNIST and a ResNet-8 trained on 20,000 of its images."""
    norm = {"fashion-bn": "batch", "fashion-gn": "group"}[name]
    recipe = Recipe(epochs=3, batch=64, optimizer=SGD(lr=0.1, weight_decay=5e-4, nesterov=True), schedule=Cosine(50))
    layout = {"ResNet": {"depth": 8, "in_channels": 1, "width": 8, "norm": norm}}
    net = Network(layout, mean=(0.286,), std=(0.353,), data=FashionMNIST("train", stop=20000), recipe=recipe)
    remedies = BATCHNORM if norm == "batch" else OTHER_NORM
    data = (FashionMNIST(stop=2000), FashionMNIST(start=2000))
    return _suites(name, net, data, "pictures", PICTURES, remedies, REFIT, 100, 8, seeds, norm == "batch")


def cifar(name: str, folder: Path, seeds: int) -> tuple[Suite, Suite]:
    """CIFAR-10 after JPEG and the published ResNet-20."""
    weights = "$HOMEOSTAT_DATA/weights/resnet20-cifar10.safetensors"
    net = Network({"ResNet": {"depth": 20}}, weights, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    data = (CIFAR10(stop=2000), CIFAR10(start=2000))
    return _suites(name, net, data, "pictures", PICTURES, BATCHNORM, REFIT, 100, 5, seeds, True)


def gloss(name: str, folder: Path, seeds: int) -> tuple[Suite, Suite]:
    """Which of WordNet's 26 kinds a noun is of, by its gloss: MiniLM with a head trained on 6,000 of them."""

    def cut(start: int, stop: int) -> Glosses:
        return Glosses("noun", tokenizer="minilm", length=12, shuffle=0, start=start, stop=stop)

    # The encoder stays as it is, so that its embeddings are computed once and the head alone is trained.
    net, head = MiniLM(classes=26).eval(), nn.Linear(384, 26)
    for start in head.parameters():  # zeros, so that every run makes the same network
        nn.init.zeros_(start)
    made = Fit(recipe=Recipe(epochs=40, batch=64, optimizer=Adam(lr=0.03)))(
        head, World(source=_embedded(net, cut(0, 6000).read(), folder)), run=Run(scratch=folder)
    )
    assert isinstance(net.head, nn.Linear)
    net.head.load_state_dict(made.state_dict())
    save(net, folder / "gloss-minilm")
    refit = REFIT.replace(own="head.*", recipe=REFIT.recipe.replace(optimizer=Adam(lr=0.003)))
    data = (cut(6000, 7000), cut(7000, 10000))
    return _suites(name, str(folder / "gloss-minilm"), data, "texts", TEXTS, OTHER_NORM, refit, 40, 5, seeds, False)


def _suites(
    name: str, net: Network | str, data: tuple[Reader, Reader], kind: str, simulate: tuple[Shift, ...],
    remedies: tuple[Remedy, ...], refit: Remedy, window: int, each: int, seeds: int, batchnorm: bool,
) -> tuple[Suite, Suite]:  # fmt: skip
    setting = Setting(name, net, *data)
    streams = tuple(
        Stream(stream, tuple(from_config(phase, Shift) for phase in phases), each=window * each)
        for stream, phases in yaml.safe_load(Path(__file__).with_name("streams.yaml").read_text())[kind].items()
        if batchnorm or not any(phase == BatchPoisoning.__name__ for phase in phases)
    )
    loop = Looped((*remedies, refit), simulate)

    def suite(entrants: tuple[Any, ...], labels: int) -> Suite:
        protocol = Continual(batch=window, labels=labels)
        return Suite(
            "harm", settings=(setting,), streams=streams, entrants=entrants, protocols=(protocol,), seeds=seeds
        )

    return suite((Source(), *remedies, loop), 0), suite((Refitted(refit), loop), LABELS)


def _embedded(net: MiniLM, data: Data, folder: Path) -> Tensors:
    path = folder / f"gloss-{data.fingerprint()[:16]}.safetensors"
    if not path.exists():
        with torch.no_grad():
            kept = torch.cat([tapped(net, b.x, net)[1] for b in data.batches(200)])
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"x": kept, "y": data.all_labels()}, path)
    found = load_file(path)
    return Tensors(found["x"], found["y"])


NETWORKS = {"fashion-bn": fashion, "fashion-gn": fashion, "cifar-resnet20": cifar, "gloss-minilm": gloss}
