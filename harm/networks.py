"""The four networks of the harm table, what they are given, and what their loops may try and rehearse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from homeostat.adapt import EATA, LAME, BatchNormBlend, PriorCorrection
from homeostat.core.data import Data, Tensors, join
from homeostat.core.method import Remedy, Shift
from homeostat.core.run import Run
from homeostat.core.taps import tapped
from homeostat.core.world import World
from homeostat.data import cifar10, fashion_mnist, glosses
from homeostat.fit import Cosine, Fit, Recipe, Supervised
from homeostat.nn.minilm import MiniLM
from homeostat.nn.normalized import Normalized
from homeostat.nn.optimizers import SGD, Adam
from homeostat.nn.resnet import ResNet, cifar_resnet
from homeostat.shift import CharacterNoise, Compose, CorrelatedOrder, Corrupt, LabelShift, WordNoise

REFIT = Fit(
    objective=Supervised(on="target"), recipe=Recipe(epochs=5, batch=32, optimizer=SGD(lr=0.01)),
)  # fmt: skip
"""The plain rival where labels come: a few epochs on those of the recent windows."""

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


@dataclass(frozen=True)
class Problem:
    """A network and its days.

    Attributes:
        net: as deployed.
        before: labelled data from before, which the network was not trained on.
        pool: where streams are drawn from.
        kind: which streams of `streams.yaml` are for it.
        simulate: what its loop rehearses; no corruption of it is in a stream.
        remedies: what may be always on, and what the loop may try; the refit needs labels.
        window, each: samples a window, windows a phase.
    """

    net: nn.Module
    before: Data
    pool: Data
    kind: str
    simulate: tuple[Shift, ...]
    remedies: tuple[Remedy, ...]
    window: int = 100
    each: int = 8

    def stream(self, shifts: Sequence[Shift], seed: int) -> Tensors:
        """A stream of one phase a shift, `meta["phase"]` its number; its samples are drawn anew for the seed."""
        run, size, parts = Run(seed=seed), self.window * self.each, []
        pool = self.pool.shuffle(run.rng("pool"))
        for phase, shift in enumerate(shifts):
            # Where the pool is smaller than the stream its samples come again. A label shift draws from all of it.
            mine = pool[torch.arange(phase * size, phase * size + size) % len(pool)]
            if isinstance(shift, LabelShift):
                mine, shift = pool, shift.replace(size=size)
            batch = shift(mine, model=self.net, run=run.replace(seed=run.seed_for("phase", phase))).load()
            parts.append(batch.replace(meta={"phase": torch.full((len(batch),), phase)}))
        whole = join(parts)
        return Tensors(whole.x, whole.y, torch.arange(len(whole)), whole.meta)


def fashion(norm: str, folder: Path) -> Problem:
    """Fashion-MNIST and a ResNet-8 trained on 20,000 of its images."""
    train, test = fashion_mnist("train")[:20000], fashion_mnist("test")
    recipe = Recipe(epochs=3, batch=64, optimizer=SGD(lr=0.1, weight_decay=5e-4, nesterov=True), schedule=Cosine(50))
    net = Normalized(ResNet(depth=8, in_channels=1, width=8, norm=norm), (0.286,), (0.353,))
    net = Fit(recipe=recipe)(net, World(source=train), run=Run(scratch=folder))
    remedies = (EATA(), *((BatchNormBlend(),) if norm == "batch" else ()), LAME(), PriorCorrection(), REFIT)
    return Problem(net, test[:2000], test[2000:], "pictures", PICTURES, remedies)


def cifar(folder: Path) -> Problem:
    """CIFAR-10 after JPEG and the published ResNet-20."""
    test = cifar10("test")
    remedies = (EATA(), BatchNormBlend(), LAME(), PriorCorrection(), REFIT)
    return Problem(cifar_resnet(20), test[:2000], test[2000:], "pictures", PICTURES, remedies, each=5)


def gloss(folder: Path) -> Problem:
    """Which of WordNet's 26 kinds a noun is of, by its gloss: MiniLM with a head trained on 6,000 of them."""
    texts = glosses("noun").shuffle(torch.Generator().manual_seed(0))[:10000]
    data = texts.tokenized(MiniLM.tokenizer(), 12)
    # The encoder stays as it is, so that its embeddings are computed once and the head alone is trained.
    net, head = MiniLM(classes=26).eval(), nn.Linear(384, 26)
    made = Fit(recipe=Recipe(epochs=40, batch=64, optimizer=Adam(lr=0.03)))(
        head, World(source=_embedded(net, data[:6000], folder)), run=Run(scratch=folder)
    )
    assert isinstance(net.head, nn.Linear)
    net.head.load_state_dict(made.state_dict())
    refit = REFIT.replace(own="head.*", recipe=REFIT.recipe.replace(optimizer=Adam(lr=0.003)))
    remedies = (EATA(), LAME(), PriorCorrection(), refit)
    return Problem(net, data[6000:7000], data[7000:], "texts", TEXTS, remedies, window=40, each=5)


def _embedded(net: MiniLM, data: Data, folder: Path) -> Tensors:
    path = folder / f"gloss-{data.fingerprint()[:16]}.safetensors"
    if not path.exists():
        with torch.no_grad():
            kept = torch.cat([tapped(net, b.x, net)[1] for b in data.batches(200)])
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"x": kept, "y": data.all_labels()}, path)
    found = load_file(path)
    return Tensors(found["x"], found["y"])


PROBLEMS: dict[str, Callable[[Path], Problem]] = {
    "fashion-bn": lambda folder: fashion("batch", folder),
    "fashion-gn": lambda folder: fashion("group", folder),
    "cifar-resnet20": cifar,
    "gloss-minilm": gloss,
}
