"""RNA: closed-loop adaptation in one forward pass, by a learned controller that sees where the network erred.

Where a little of the truth arrives at test time (a few depth measurements, a few labels of a batch), this corrects the
whole prediction without a gradient step. The main network f stays frozen; a small controller h, trained once on clean
source data, turns the error signal into shifts that are added behind its normalisation layers:

    y0 = f(x)                        first pass, no gradient goes into it
    e  = h([y m, y0 m])              m marks what is known of the truth y; embedding `[batch, 8 width, h/8, w/8]`
    y1 = f(x; e)                     second pass; behind norm layer l, before its ReLU:  a <- a (1 + alpha_l) + beta_l
    beta_l = Conv3x3_l(e resized to a)   (alpha_l only when `scale` is set)

Training lowers the loss of y1 over controller and convolutions, with m of a random density in 0..`density` in each step
and without any corruption: that it copes with unseen shifts comes from the loop. The convolutions start at 0, so that
the controlled network starts equal to the frozen one. A sample without feedback gets exactly the frozen prediction.

The feedback comes in `batch.y`, NaN (targets) or -100 (labels) where it is unknown; `forward(x)` has none. By task:

- `Regress` of images `[batch, channels, height, width]` is the paper's case; L1 loss. `Segment` has one-hot labels and
  probabilities in the place of y and y0.
- `Classify`, and `Regress` of vectors: a sample's own truth says nothing about the rest of it, so known samples speak
  for their batch: h sees the sample's prediction, and the mean error and mean prediction of the known samples.
  `signal="entropy"` works without labels too: the entropy of the prediction is always given to h.

Random samples share nothing that feedback could tell, so a classifier's training batches are drawn again with random
class proportions (Dirichlet(1)), and only samples without feedback count in the loss: the controller learns what a few
labels say about their batch.

Defaults: Adam (amsgrad) 3e-5, weight decay 2e-6, batches of 64, density 0.0025 of the pixels, as in the authors' code;
density 0.5 where a sample has one truth, and 20 epochs, are ours (theirs: up to 5,000). Small networks on small images
want a learning rate of 1e-3 and a density of 0.02. It gains nothing where the feedback says nothing about the rest of
the image or batch, and cannot repair what the frozen features have lost.

>>> import torch
>>> net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 1, 1)).eval()
>>> x = torch.rand(8, 1, 8, 8)
>>> world = World(source=(x, 1 - x), task=Regress())
>>> rna = RNA(recipe=Recipe(optimizer=Adam(lr=1e-3), epochs=2), width=8, density=0.1)(net, world)
>>> sparse = torch.full_like(x, float("nan"))
>>> bool((rna.observe(Batch(x, sparse)) == net(x)).all())  # no feedback, no change
True
>>> sparse[:, :, 2, 3] = 0.5
>>> rna.observe(Batch(x, sparse)).shape
torch.Size([8, 1, 8, 8])

Reference: Yeo, Kar, Sodhi, Malik, Zamir, Rapid network adaptation: Learning to adapt neural networks using test-time
feedback, ICCV 2023 (S249).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, nn

from homeostat.adapt.controller import RNAController
from homeostat.core.data import UNKNOWN, Batch
from homeostat.core.errors import ModelError, SpecError
from homeostat.core.fork import fork, targets
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Online
from homeostat.core.place import device_of, home, there
from homeostat.core.run import Run
from homeostat.core.spec import Count, Fraction
from homeostat.core.task import Classify, Regress, Segment, Task
from homeostat.core.tree import Tree
from homeostat.core.world import World
from homeostat.fit.training import Recipe, train
from homeostat.nn.norms import NORMS, BlendedBatchNorm
from homeostat.nn.optimizers import Adam

Signal = Literal["labels", "entropy"]


def error_signal(
    task: Task, out: Tensor, y: Tensor | None, signal: Signal = "labels"
) -> tuple[Tensor, Bool[Tensor, " batch"]]:
    """What the controller is told, and for which samples there is anything to tell.

    Args:
        task: what outputs and labels mean.
        out: predictions of the main network.
        y: labels or targets, unknown ones marked, or None.
        signal: whether the entropy of predictions alone is something to tell.
    """
    if isinstance(task, Segment):
        known = out.new_zeros(out[:, :1].shape) if y is None else (y != UNKNOWN).to(out.dtype)[:, None]
        truth = torch.zeros_like(out) if y is None else _one_hot(y, out.shape[1], out)
        return torch.cat([truth * known, out.softmax(1) * known], 1), known.flatten(1).any(1)
    if isinstance(task, Regress) and out.ndim == 4:
        known = torch.zeros_like(out) if y is None else (~y.isnan()).to(out.dtype)
        truth = torch.zeros_like(out) if y is None else y.nan_to_num()
        return torch.cat([truth * known, out * known], 1), known.flatten(1).any(1)
    told, own = out, [out]
    known = out.new_zeros(len(out), 1)
    truth = torch.zeros_like(out)
    if isinstance(task, Classify):
        told = out.softmax(1)
        entropy = -(told * out.log_softmax(1)).sum(1, keepdim=True) / math.log(out.shape[1])
        own = [told, entropy]
        if y is not None:
            known, truth = (y != UNKNOWN).to(out.dtype)[:, None], _one_hot(y, out.shape[1], out)
    elif y is not None:
        known, truth = (~y.isnan()).all(1, keepdim=True).to(out.dtype), y.nan_to_num()
    count = known.sum().clamp(min=1)
    error, mean = (((t * known).sum(0) / count).expand_as(out) for t in (truth - told, told))
    present = (known.any() | torch.tensor(signal == "entropy", device=out.device)).expand(len(out))
    return torch.cat([*own, error, mean], 1), present


def _one_hot(y: Tensor, classes: int, like: Tensor) -> Tensor:
    return F.one_hot(y.clamp(min=0), classes).movedim(-1, 1).to(like.dtype)


class RNAOnline(Online):
    """A frozen network, steered by a controller where feedback comes in; it keeps no state.

    Args:
        model: the main network.
        controller: trained by `RNA.prepare`.
        task: what outputs and labels mean.
        signal: see `RNA`.
        rounds: how often the prediction is corrected.
    """

    def __init__(
        self,
        model: nn.Module,
        controller: RNAController,
        task: Task = Classify(),
        signal: Signal = "labels",
        rounds: int = 1,
    ):
        super().__init__(model)
        self.controller, self.task, self.rounds = controller, task, rounds
        self.signal: Signal = signal

    def forward(self, x: Tree) -> Tensor:
        """The prediction without labels."""
        return self._predict(x, None)

    def adapt(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return self._predict(batch.x, batch.y)

    def _predict(self, x: Tree, y: Any) -> Tensor:
        out = self.model(x)
        self.task.check(out, y)
        for _ in range(self.rounds):
            signal, present = error_signal(self.task, out.detach(), y, self.signal)
            if not bool(present.any()):
                return out
            with self.controller.steering(self.model, self.controller(signal), present):
                out = self.model(x)
        return out


@dataclass(frozen=True)
class RNA(Remedy):
    """Rapid network adaptation by a learned controller.

    Attributes:
        layers: globs of the norm layers to steer.
        signal: `"labels"`, or `"entropy"` for a classifier that is to be steered without labels too.
        density: in training, known share of pixels (or samples) at most; `None` is 0.0025 (0.5).
        width: channels of the controller's first stage; its embedding has 8 times as many.
        scale: scale as well as shift; the authors' code only shifts.
        rounds: corrections per batch.
        recipe: how the controller is trained.
    """

    layers: tuple[str, ...] = ("*",)
    signal: Signal = "labels"
    density: Fraction | None = None
    width: Count = 16
    scale: bool = False
    rounds: Count = 1
    recipe: Recipe = Recipe(optimizer=Adam(lr=3e-5, weight_decay=2e-6, amsgrad=True), epochs=20, batch=64)

    card: ClassVar[Card] = Card(
        id="S249",
        paper="Yeo et al., Rapid Network Adaptation, ICCV 2023",
        handles=frozenset({"covariate", "label"}),
        needs=frozenset({"model.norm"}),
        prepares=frozenset({"source.x", "source.y"}),
        passes=2.0,
        batch_coupled=True,
    )

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> nn.Module | None:
        if model is None or world.source is None:
            return None
        own, task = fork(model).requires_grad_(False).eval(), world.task
        sample = world.source.fetch(torch.arange(min(2, len(world.source))))
        controller, dense = self._controller(own, task, sample, run)
        density = (0.0025 if dense else 0.5) if self.density is None else self.density
        measure = Regress(power=1.0) if isinstance(task, Regress) else task
        device = device_of(own)

        def losses(batches: Mapping[str, Batch], now: Run) -> dict[str, Tensor]:
            batch = batches["source"].to(device)
            batch = _skewed(batch, now) if isinstance(task, Classify) else batch
            truth: Any = batch.y
            given = _hidden(truth, dense, density, now)
            with torch.no_grad():
                signal, present = error_signal(task, own(batch.x), given, self.signal)
            with controller.steering(own, controller(signal), present):
                out = own(batch.x)
            each = measure.loss(out, truth)
            return {"corrected": each.mean() if dense else (each * ~task.known(given)).mean()}

        train(controller, losses, {"source": world.source}, dict(controller.named_parameters()), self.recipe, run=run)
        return controller

    def _controller(self, own: nn.Module, task: Task, sample: Batch, run: Run) -> tuple[RNAController, bool]:
        if not isinstance(task, (Classify, Regress, Segment)):
            raise ModelError(f"RNA knows Classify, Regress and Segment; the world's task is {type(task).__name__}")
        if self.signal == "entropy" and not isinstance(task, Classify):
            raise SpecError(f'signal="entropy" is for classifiers; the task is {type(task).__name__}')
        with torch.no_grad():
            out: Any = own(there(sample.x, own))
        task.check(home(out), sample.y, "source.y")
        signal, _ = error_signal(task, out, None, self.signal)
        found = targets(own, self.layers, (*NORMS, BlendedBatchNorm))
        channels = tuple(_channels(layer) for layer in found.values())
        dense = signal.ndim == 4
        made = RNAController(
            signal.shape[1], tuple(found), channels, dense, self.width, self.scale, run.seed_for("RNA.controller")
        )
        return made.to(out), dense

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return RNAOnline(model, fork(kit), world.task, self.signal, self.rounds)


def _channels(layer: Any) -> int:
    if isinstance(layer, nn.LayerNorm):
        return layer.normalized_shape[-1]
    names = ("num_channels", "num_features", "features")
    return next(getattr(layer, name) for name in names if hasattr(layer, name))


def _skewed(batch: Batch, run: Run) -> Batch:
    """As many labelled samples, drawn with replacement so that classes have random proportions."""
    draws = run.rng("RNA.classes")
    y: Any = batch.y
    known = torch.nonzero(y != UNKNOWN).flatten()
    if len(known) == 0:
        return batch
    proportions = -torch.rand(int(y.max()) + 1, generator=draws, dtype=torch.float64).clamp(min=1e-12).log()
    share = proportions[y[known].cpu()] / y[known].bincount().cpu()[y[known].cpu()]
    return batch[known[torch.multinomial(share, len(y), replacement=True, generator=draws).to(known.device)]]


def _hidden(y: Tensor, dense: bool, density: float, run: Run) -> Tensor:
    """The truth with all but a random share marked unknown: pixels of an image (all channels together), or samples."""
    draws = run.rng("RNA.mask")
    share = density * float(torch.rand((), generator=draws))
    shape = (len(y), *([1] * (y.ndim - 1))) if not dense else (len(y), 1, *y.shape[2:]) if y.ndim == 4 else y.shape
    known = (torch.rand(shape, generator=draws) < share).to(y.device)
    return torch.where(known, y, float("nan") if y.is_floating_point() else UNKNOWN)
