"""PGD: the strongest simple attack, as a shift of data.

Moves every input uphill on the model's loss and back into a ball around it, several times:

    x' <- Proj_{|x' - x|_p <= eps} (x' + step * direction(grad_{x'} loss)),     clipped to 0..1

with direction the sign for p = inf and the unit gradient for p = 2, from a random point of the ball. It measures
robustness from above: a model that falls to it is not robust, one that stands may fall to a better attack.

Defaults: eps 8/255, 10 steps of eps / 4, the setting most papers report on CIFAR-10. Random starts are seeded by
sample id, and BatchNorm stays in evaluation mode, so that an attacked sample is the same in any batch.

>>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
>>> data = PGD(eps=0.1)(Tensors(torch.full((3, 1, 2, 2), 0.5), torch.tensor([0, 1, 0])), model=net)
>>> bool((data.load().x - 0.5).abs().max() <= 0.1 + 1e-6)
True

Reference: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.core.data import Data, Tensors, floating, join
from homeostat.core.errors import MissingPart
from homeostat.core.fork import fork, unwrap
from homeostat.core.method import Card, Shift
from homeostat.core.place import there
from homeostat.core.random import Draw
from homeostat.core.run import Run
from homeostat.core.spec import Count, NonNegative

Norm = Literal["inf", "2"]


def project(x: Tensor, center: Tensor, eps: float, norm: Norm) -> Tensor:
    """The nearest point to `x` in the ball of radius `eps` around `center` and in 0..1, per sample."""
    offset = x - center
    shrink = 1.0 if norm == "inf" else eps / _length(offset).clamp(min=eps)
    offset = offset.clamp(-eps, eps) if norm == "inf" else offset * shrink
    return (center + offset).clamp(0, 1)


def ascend(
    loss: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, eps: float, step: float, steps: int, norm: Norm
) -> Tensor:
    """Projected gradient ascent from `start`, around `x`.

    Args:
        loss: of a batch of inputs; the sum over samples is climbed, so that samples do not touch each other.
        x, start: `[batch, ...]` in 0..1.
        eps, step, steps, norm: radius, size and number of steps, shape of the ball.
    """
    now = project(start, x, eps, norm).detach()
    for _ in range(steps):
        now.requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(now).sum(), now)
        direction = gradient.sign() if norm == "inf" else gradient / _length(gradient).clamp(min=1e-12)
        now = project((now + step * direction).detach(), x, eps, norm)
    return now


def random_start(x: Tensor, draw: Draw, eps: float, norm: Norm) -> Tensor:
    """A point of the ball around each sample: uniform in the cube, uniform in the Euclidean ball."""
    if norm == "inf":
        return x + eps * (2 * draw.uniform(*x.shape[1:]).to(x) - 1)
    direction = draw.normal(*x.shape[1:]).to(x)
    radius = draw.uniform().to(x).view(-1, *[1] * (x.ndim - 1)) ** (1 / x[0].numel())
    return x + eps * radius * direction / _length(direction)


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1).view(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class PGD(Shift):
    """Replaces inputs by adversarial ones for the model that is given; labels stay.

    Attributes:
        eps: radius of the ball, in the unit of inputs (0..1).
        norm: `"inf"` or `"2"`.
        steps: of ascent.
        step: size of a step as a share of eps.
        start: begin at a random point of the ball rather than at the input.
        batch: samples attacked together; the result does not depend on it.
    """

    eps: NonNegative = 8 / 255
    norm: Norm = "inf"
    steps: Count = 10
    step: NonNegative = 0.25
    start: bool = True
    batch: Count = 256

    card: ClassVar[Card] = Card(
        paper="Madry et al., ICLR 2018", handles=frozenset({"adversarial"}), needs=frozenset({"target.x", "target.y"})
    )

    def apply(self, data: Data, model: nn.Module | None, run: Run) -> Data:
        if model is None:
            raise MissingPart("PGD attacks a model: PGD()(data, model=net)")
        if not data.has_labels():
            raise MissingPart("PGD climbs the loss of the true labels, and these data have none")
        if self.eps == 0:
            return data
        net, attacked = fork(unwrap(model)).eval().requires_grad_(False), []
        for piece in data.batches(self.batch):
            came = floating(piece.x, "PGD")
            x, truth = there((came, piece.labels), net)

            def loss(x: Tensor, y: Tensor = truth) -> Tensor:
                return F.cross_entropy(net(x), y, reduction="none")

            start = random_start(x, run.draw(piece.id, "pgd"), self.eps, self.norm) if self.start else x
            found = ascend(loss, x, start, self.eps, self.step * self.eps, self.steps, self.norm)
            attacked.append(piece.replace(x=found.to(came.device)))
        whole = join(attacked)
        return Tensors(whole.x, whole.y, whole.id, whole.meta)
