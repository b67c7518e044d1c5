"""DCC: shrink a labelled image set to a few synthetic images per class that train almost as well.

A network trained on the result for seconds stands in for one trained on all the data: to try architectures, to keep a
memory of past tasks, to send instead of the data. The synthetic images X `[classes * ipc, channels, side, side]` are
moved so that their gradients point where those of the real images point. For a network with weights theta and the mean
cross-entropy L_c of class c (of 256 real images, or of the ipc synthetic ones),

    D(g, g') = sum over layers and output rows of 1 - cos(row of g, row of g'),     one-dimensional weights left out

    dataset condensation (DC)      loss = sum_c D(grad L_c(real), grad L_c(X))
    contrastive signals (DCC)      loss = D(grad mean_c L_c(real), grad mean_c L_c(X))

The mean over classes keeps what tells classes apart and cancels what they share, so that X does not spend its few
pixels on the common background. Its real side is one backward pass over a batch of all classes, weighted by class,
where class-wise matching needs one a class.

For each of `outer` fresh networks, `steps` times: move X against the gradient of the loss (SGD), then train the
network on X for `epochs` (not after the last step). DCC begins with DC, for the first `warm_outer` networks and there
in the first `warm_inner` steps. With `augment`, real and synthetic images of a class get the same random view.

Defaults are those of the official code for ipc = 1: 1000 networks, 250 of them warm-up, 10 steps, 5 epochs, learning
rates 0.1 (momentum 0.5) and 0.01, 256 images a class; its (steps, epochs) for more are ipc 10: (10, 50), 20: (20, 25),
30: (30, 20), 40: (40, 15), 50: (50, 10). The network is `SmallCNN` (He's normal start where the official code takes
PyTorch's own) with a norm that does not couple the images of a batch.

X starts at random real images and is not clipped to their range. It suits networks like the one it was matched with.
The whole data set is held in memory.

>>> from homeostat.data import digits
>>> small = DCC(outer=2, warm_outer=1, steps=2, epochs=1, width=8, depth=2, batch=16)(digits())
>>> small.load().x.shape, small.load().y.tolist()
(torch.Size([10, 1, 8, 8]), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])

References: Lee et al., Dataset Condensation with Contrastive Signals, ICML 2022; Zhao, Mopuri, Bilen, Dataset
Condensation with Gradient Matching, ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.core.data import UNKNOWN, Batch, Data, Tensors
from homeostat.core.errors import InputError, MissingPart, SpecError
from homeostat.core.method import Card, Shift
from homeostat.core.online import Bag
from homeostat.core.run import Run
from homeostat.core.spec import Count, Fraction, Index, Positive
from homeostat.curate.siamese import DSA
from homeostat.fit.training import Recipe, train
from homeostat.nn.optimizers import SGD
from homeostat.nn.small_cnn import SmallCNN


def gradient_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Float[Tensor, ""]:
    """D: one minus the cosine, summed over layers and output rows; one-dimensional tensors are left out.

    A convolution's row is its kernel for one output channel, flattened. 1e-6 is added to the product of lengths, so
    a row without gradient on either side counts 1.

    Args:
        real, synthetic: gradients of the same parameters, in the same order.
    """
    total = torch.zeros((), dtype=real[0].dtype, device=real[0].device)
    for one, two in zip(real, synthetic, strict=True):
        if one.ndim > 1:
            a, b = one.flatten(1), two.flatten(1)
            lengths = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
            total = total + (1 - (a * b).sum(1) / (lengths + 1e-6)).sum()
    return total


def class_mean_loss(net: nn.Module, groups: Sequence[Float[Tensor, "_ c h w"]]) -> Float[Tensor, ""]:
    """Mean over classes of the mean cross-entropy in each, in one pass; group k holds the images of class k."""
    sizes = torch.tensor([len(group) for group in groups], device=groups[0].device)
    labels = torch.arange(len(groups), device=sizes.device).repeat_interleave(sizes)
    each = F.cross_entropy(net(torch.cat(list(groups))), labels, reduction="none")
    return (each / sizes[labels]).sum() / len(groups)


def matching(
    net: nn.Module,
    real: Sequence[Float[Tensor, "_ c h w"]],
    synthetic: Sequence[Float[Tensor, "_ c h w"]],
    contrast: bool = True,
) -> Float[Tensor, ""]:
    """The loss of the synthetic images: DCC's, or DC's without `contrast`; group k holds the images of class k."""
    weights = [p for p in net.parameters() if p.ndim > 1]
    if contrast:
        target = torch.autograd.grad(class_mean_loss(net, real), weights)
        own = torch.autograd.grad(class_mean_loss(net, synthetic), weights, create_graph=True)
        return gradient_distance(target, own)
    total = torch.zeros((), dtype=real[0].dtype, device=real[0].device)
    for k, (one, two) in enumerate(zip(real, synthetic, strict=True)):
        losses = [F.cross_entropy(net(x), torch.full((len(x),), k, device=x.device)) for x in (one, two)]
        target = torch.autograd.grad(losses[0], weights)
        total = total + gradient_distance(target, torch.autograd.grad(losses[1], weights, create_graph=True))
    return total


@dataclass(frozen=True)
class DCC(Shift):
    """Replaces labelled images by `ipc` synthetic ones per class, in the order of the classes, with negative ids.

    Attributes:
        ipc: synthetic images per class.
        outer: networks to match with.
        warm_outer: networks of the class-wise warm-up.
        warm_inner: steps of the warm-up in each of those.
        steps: image updates per network.
        epochs: of training the network on the synthetic images between two updates.
        lr, momentum: of the images.
        lr_net: of the network.
        batch: real images per class and step.
        batch_net: synthetic images per step of the network.
        contrast: match all classes together; False is DC, without warm-up.
        augment: random views for both sides; None for none.
        width, depth, norm: of the network (`SmallCNN`).
    """

    ipc: Count = 1
    outer: Count = 1000
    warm_outer: Index = 250
    warm_inner: Index = 10
    steps: Count = 10
    epochs: Index = 5
    lr: Positive = 0.1
    momentum: Fraction = 0.5
    lr_net: Positive = 0.01
    batch: Count = 256
    batch_net: Count = 256
    contrast: bool = True
    augment: DSA | None = None
    width: Count = 128
    depth: Count = 3
    norm: Literal["instance", "group", "layer", "none"] = "instance"

    card: ClassVar[Card] = Card(
        id="S174",
        paper="Lee et al., Dataset Condensation with Contrastive Signals, ICML 2022",
        handles=frozenset({"none"}),
        needs=frozenset({"target.x", "target.y"}),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.contrast and self.warm_outer > self.outer:
            raise SpecError(
                f"DCC.warm_outer = {self.warm_outer} of outer = {self.outer} networks: the warm-up would never end. "
                "Lower warm_outer, or choose contrast=False"
            )

    def apply(self, data: Data, model: nn.Module | None, run: Run) -> Data:
        images, names = _by_class(data, self.ipc)
        chosen = [x[_pick(len(x), self.ipc, run.rng("dcc", "start", k))] for k, x in enumerate(images)]
        synthetic = torch.cat(chosen).clone().requires_grad_(True)
        optimizer, state, moved = SGD(lr=self.lr, momentum=self.momentum), Bag(), {"x": synthetic}
        optimizer.begin(moved, state)
        with torch.inference_mode(False), torch.enable_grad():
            for outer in range(self.outer):
                own = run.replace(seed=run.seed_for("dcc", outer), budget=None)
                net = SmallCNN(
                    len(images), synthetic.shape[1], synthetic.shape[2], self.width, self.depth, self.norm,
                    seed=own.seed_for("network"),
                ).to(synthetic)  # fmt: skip
                found = 0.0
                for step in range(self.steps):
                    now = own.replace(seed=own.seed_for("step", step))
                    together = self.contrast and (outer >= self.warm_outer or step >= self.warm_inner)
                    loss = self._loss(net, images, synthetic, together, now)
                    optimizer.minimize(loss, moved, state)
                    found += float(loss.detach())
                    if self.epochs and step + 1 < self.steps:
                        self._learn(net, synthetic.detach(), len(images), now)
                run.emit("condense", outer, self.outer, loss=found / self.steps)
        return Tensors(synthetic.detach(), names.repeat_interleave(self.ipc), -1 - torch.arange(len(synthetic)))

    def _loss(self, net: nn.Module, images: Sequence[Tensor], synthetic: Tensor, together: bool, now: Run) -> Tensor:
        real = [x[_pick(len(x), self.batch, now.rng("real", k))] for k, x in enumerate(images)]
        made = list(synthetic.split(self.ipc))
        if self.augment is not None:
            real = [self.augment(x, now.rng("view", k)) for k, x in enumerate(real)]
            made = [self.augment(x, now.rng("view", k)) for k, x in enumerate(made)]
        return matching(net, real, made, together)

    def _learn(self, net: nn.Module, synthetic: Tensor, classes: int, now: Run) -> None:
        def losses(batches: Mapping[str, Batch], run: Run) -> dict[str, Tensor]:
            batch = batches["synthetic"]
            x = batch.x if self.augment is None else self.augment(batch.x, run.rng("view"), together=False)  # type: ignore[arg-type]
            return {"loss": F.cross_entropy(net(x), batch.labels)}

        labels = torch.arange(classes, device=synthetic.device).repeat_interleave(self.ipc)
        recipe = Recipe(optimizer=SGD(lr=self.lr_net, momentum=0.0), epochs=self.epochs, batch=self.batch_net)
        quiet = Run(seed=now.seed)
        train(net, losses, {"synthetic": Tensors(synthetic, labels)}, dict(net.named_parameters()), recipe, run=quiet)


def _pick(count: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Positions of `wanted` samples without repetition, or of all there are."""
    return torch.randperm(count, generator=generator)[:wanted]


def _by_class(data: Data, least: int) -> tuple[list[Tensor], Tensor]:
    """Images by class, and the classes' labels in rising order."""
    batch = data.load()
    x, y = batch.x, batch.y
    if not isinstance(y, Tensor):
        raise MissingPart("DCC condenses class by class, and these data have no labels; give (x, y)")
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim != 4 or x.shape[2] != x.shape[3]:
        what = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"DCC wants square float images [samples, channels, side, side]; these are {what}")
    if y.is_floating_point() or y.ndim != 1:
        raise InputError(f"DCC wants one class per image, int64 [samples]; these labels are {y.dtype} {tuple(y.shape)}")
    names = y[y != UNKNOWN].unique()
    images = [x[y == name].detach() for name in names]
    small = [f"{int(n)} has {len(x)}" for n, x in zip(names, images, strict=True) if len(x) < least]
    if len(images) < 2 or small:
        said = f"class {', '.join(small[:5])}" if small else f"there are {len(images)} classes"
        raise InputError(f"DCC starts from {least} real images in each of at least 2 classes; {said}")
    return images, names
