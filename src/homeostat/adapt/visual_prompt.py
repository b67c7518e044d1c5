"""Visual domain prompts: change what goes in, and leave the network alone.

Two images are added to every input x `[N, channels, height, width]` in 0..1: p_s, for the domain at hand, and p_a, for
what domains share. The network f is frozen, so what was learnt is forgotten by leaving the prompts out: `bare(x)` is
the given network, bit for bit.

    x' = clip(x + p_s + p_a, 0, 1);    z = f(x'), which is served
    z' = f(view(clip(x + q_s + q_a, 0, 1))),   q the teacher's prompts, no gradient
    loss = mean CE(softmax(z') -> softmax(z)) + homeostasis sum_j Omega_j (p_a,j - p_a,previous,j)^2
    a step on p_a with `optimizer`, on p_s with `specific_optimizer`;    q <- average q + (1 - average) p

A batch opens a new domain where the mean or the deviation of a channel has left its running mean (0.9 old, 0.1 new) by
more than `jump`. Then, before the batch is used, Omega_j grows by the mean over the old domain's batches of
|d CE / d p_a,j|, p_a,previous becomes p_a, and p_s (student's, teacher's, its moments) starts at 0 again: pixels that
domains pull at are held, those that are free may move.

There is no public code, and what is public of the paper leaves much open. The rule for a new domain, the view of the
teacher, the learning rates and Omega from the loss (not from the output's norm) are ours; no number here is the
paper's. `statistics="batch"` gives BatchNorm the batch's statistics; then `bare` is that network, and outputs depend
on their batch.

It fails where the network is wrong and sure: the teacher is the same frozen network, so prompts confirm what it says.
One image for all cannot undo what differs from image to image (blur, rotation, each image's own brightness), nor what
the network's stored statistics do not fit; `statistics="batch"` helps more there than prompts. A new domain that leaves
means and deviations as they were is not seen.

>>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
>>> prompted, x = VisualDomainPrompt()(net), torch.rand(16, 1, 8, 8)
>>> bool((prompted.observe(x) == net(x)).all()), bool((prompted(x) == net(x)).all())
(True, False)
>>> bool((prompted.bare(x) == net(x)).all())
True

Reference: Gan et al., Decorate the newcomers: Visual domain prompt for continual test time adaptation, AAAI 2023
(S116).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from homeostat.adapt.learner import logits_of
from homeostat.core.data import Batch
from homeostat.core.errors import InputError
from homeostat.core.fork import fork
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Online
from homeostat.core.random import generator
from homeostat.core.run import Run
from homeostat.core.spec import Fraction, NonNegative, Positive
from homeostat.core.tree import Tree
from homeostat.core.world import World
from homeostat.nn.augment import RandomViews, check_pixels
from homeostat.nn.losses import soft_cross_entropy
from homeostat.nn.norms import batch_statistics
from homeostat.nn.optimizers import Adam, Optimizer, gradients_of
from homeostat.nn.teacher import average_into

Statistics = Literal["stored", "batch"]
_KEEP = 0.9  # of the running means that a new domain is seen by


class Prompted(Online):
    """A frozen network with two prompts before it; all that is learnt lies in `carry`.

    Args:
        model: the network; nothing of it changes.
        optimizer, specific_optimizer, average, homeostasis, jump, augment: see `VisualDomainPrompt`.
        seed: of views.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer = Adam(),
        specific_optimizer: Optimizer = Adam(),
        average: float = 0.999,
        homeostasis: float = 1.0,
        jump: float = 0.05,
        augment: RandomViews = RandomViews(),
        seed: int = 0,
    ):
        super().__init__(model)
        self.optimizer, self.specific_optimizer, self.average = optimizer, specific_optimizer, average
        self.homeostasis, self.jump, self.augment, self.seed = homeostasis, jump, augment, seed
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        self.begin()

    def begin(self) -> None:
        self.carry["step"], self.carry["domains"] = torch.tensor(0), torch.tensor(0)

    def forward(self, x: Tree) -> Tensor:
        """The network on prompted inputs; before the first batch there are no prompts."""
        return logits_of(self.model(self.prompted(x) if "student.agnostic" in self.carry else x))

    def bare(self, x: Tree) -> Tree:
        """The network without prompts."""
        return self.model(x)

    def prompted(self, x: Tree, whose: str = "student") -> Tensor:
        """Inputs with the student's or the teacher's prompts.

        Raises:
            InputError: the images have another shape than the prompts.
        """
        images, prompts = self._checked(x), self.carry.under(whose)
        return (images + prompts["specific"] + prompts["agnostic"]).clamp(0, 1)

    def adapt(self, batch: Batch) -> Tensor:
        x = self._checked(batch.x)
        self._look(x)
        step = int(self.carry["step"])
        with torch.no_grad():
            target = logits_of(self.model(self.view_of(self.prompted(x, "teacher"), step)))
        student = {name: tensor.requires_grad_(True) for name, tensor in self.carry.under("student").items()}
        logits = logits_of(self.model(self.prompted(x)))
        gradients = gradients_of(soft_cross_entropy(target, logits).mean(), student)
        self.carry["gathered"] += gradients["agnostic"].abs()
        self.carry["batches"] += 1
        away = student["agnostic"].detach() - self.carry["previous"]
        gradients["agnostic"] = gradients["agnostic"] + 2 * self.homeostasis * self.carry["importance"] * away
        for tensor in student.values():
            tensor.requires_grad_(False)
        for name, optimizer in (("agnostic", self.optimizer), ("specific", self.specific_optimizer)):
            optimizer.update({name: student[name]}, gradients, self.carry, f"optimizer.{name}")
        average_into(list(self.carry.under("teacher").values()), list(student.values()), self.average)
        self.carry["step"] += 1
        return logits

    def view_of(self, x: Tensor, step: int) -> Tensor:
        """The teacher's view of prompted images at a step."""
        return self.augment(x, generator(self.seed, "VisualDomainPrompt.view", step))

    def _checked(self, x: Tree) -> Tensor:
        check_pixels(x)  # type: ignore[arg-type]
        images: Tensor = x  # type: ignore[assignment]
        wanted = self.carry["previous"].shape if "previous" in self.carry else images.shape[1:]
        if images.shape[1:] != wanted:
            raise InputError(
                f"images are {tuple(images.shape[1:])} and the prompts {tuple(wanted)}; all images of a stream need "
                "one shape, or call reset()"
            )
        return images

    def _look(self, x: Tensor) -> None:
        """Open a domain where this batch begins one."""
        sign = torch.cat([x.mean((0, 2, 3)), x.std((0, 2, 3), correction=0)])
        if "sign" not in self.carry:
            with torch.no_grad():
                logits_of(self.model(x))  # what the network cannot take must not give the prompts their shape
            self._open(x[0])
            self.carry["sign"] = sign
            return
        if bool(((sign - self.carry["sign"]).abs() > self.jump).any()):
            self.carry["importance"] += self.carry["gathered"] / max(1, int(self.carry["batches"]))
            self._open(x[0])
            self.carry["sign"] = sign
        else:
            self.carry["sign"] = torch.lerp(sign, self.carry["sign"], _KEEP)

    def _open(self, like: Tensor) -> None:
        fresh = {name: torch.zeros_like(like) for name in ("agnostic", "specific")}
        if int(self.carry["domains"]) == 0:
            for whose in ("student", "teacher"):
                self.carry.put(whose, {name: t.clone() for name, t in fresh.items()})
            self.carry["importance"] = torch.zeros_like(like)
            self.optimizer.begin({"agnostic": like}, self.carry, "optimizer.agnostic")
        for whose in ("student", "teacher"):
            self.carry[f"{whose}.specific"] = fresh["specific"].clone()
        self.specific_optimizer.begin({"specific": like}, self.carry, "optimizer.specific")
        self.carry["previous"] = self.carry["student.agnostic"].clone()
        self.carry["gathered"], self.carry["batches"] = torch.zeros_like(like), torch.tensor(0)
        self.carry["domains"] += 1


@dataclass(frozen=True)
class VisualDomainPrompt(Remedy):
    """Learns two images that are added to all inputs of a frozen network.

    Attributes:
        optimizer: of the prompt that domains share.
        specific_optimizer: of the prompt of the domain at hand; faster.
        average: how much of the teacher's prompts stays at each step.
        homeostasis: weight of the pull of the shared prompt to where it was before this domain.
        jump: how far a channel's mean or deviation moves, in 0..1, where a new domain begins.
        augment: how the teacher's view is made; images in 0..1.
        statistics: `"stored"`, so that without prompts this is the given network; `"batch"` for BatchNorm.
    """

    optimizer: Optimizer = Adam(lr=1e-3)
    specific_optimizer: Optimizer = Adam(lr=5e-3)
    average: Fraction = 0.999
    homeostasis: NonNegative = 1.0
    jump: Positive = 0.05
    augment: RandomViews = RandomViews()
    statistics: Statistics = "stored"

    card: ClassVar[Card] = Card(
        id="S116",
        paper="Gan et al., Decorate the Newcomers: Visual Domain Prompt, AAAI 2023",
        handles=frozenset({"covariate"}),
        passes=4.0,
    )

    def batch_coupled(self) -> bool:
        return self.statistics == "batch"

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return Prompted(
            batch_statistics(model) if self.statistics == "batch" else fork(model), self.optimizer,
            self.specific_optimizer, self.average, self.homeostasis, self.jump, self.augment, run.seed,
        )  # fmt: skip
