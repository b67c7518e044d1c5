"""MEMO: adapt to one sample at a time, by making the network agree with itself over views of it.

There is no batch to take statistics of, and no stream to learn from: each sample is served by a copy of the network of
its own, which forgets it afterwards. For an image x, views x_1 .. x_V and all weights theta, that start at theta_0:

    p = mean over v of softmax(f(x_v; theta)),      loss = H(p),      `steps` steps of the optimiser from theta_0
    answer: f(x; theta)

The loss is small where the views agree *and* are sure. Nothing is carried on: a sample's answer depends on the sample
and the seed alone, not on its batch, what came before, or whether `forward` or `observe` was called. Views are drawn by
what the image is; a batch is adapted to image by image.

BatchNorm layers use a (stored statistics) + (1 - a) (those of the V views, or of x alone), a = prior / (prior + 1),
however many views there are. Gradients go through these statistics, which the code of the paper leaves out, and the
variance is the biased one, where that code has the unbiased.

Defaults are the paper's for CIFAR-10: plain SGD(lr=0.005), 32 AugMix views, one step, prior 16. For ImageNet
SGD(lr=2.5e-4) and 64 views, or AdamW(1e-5, weight decay 0.01) for transformers. It costs V passes forward and V
backward for each sample, and a copy of all weights. Images in 0..1; the network normalises them itself.

It fails where a view changes the class. Where left and right matter, half of the views are of the other class, and the
loss pulls towards whichever came up more often: set the view's `flip` to 0, and leave out what else tells classes
apart. And a network that is surely wrong over all views stays so.

>>> import torch
>>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
>>> memo, x = MEMO(views=4)(net), torch.rand(2, 1, 8, 8)
>>> torch.equal(memo.observe(x)[1:], memo.observe(x[1:]))
True

Reference: Zhang, Levine, Finn, MEMO: Test time robustness via adaptation and augmentation, NeurIPS 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from homeostat.adapt.learner import logits_of
from homeostat.core.data import Batch
from homeostat.core.fork import fork
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Bag, Online
from homeostat.core.random import generator
from homeostat.core.run import Run
from homeostat.core.spec import Count, NonNegative
from homeostat.core.weights import hash_tensors
from homeostat.core.world import World
from homeostat.nn.augment import check_pixels
from homeostat.nn.augmix import AugMix
from homeostat.nn.losses import marginal_entropy
from homeostat.nn.norms import BATCHNORMS, blend_batchnorm
from homeostat.nn.optimizers import SGD, Optimizer


class MEMOOnline(Online):
    """A network that adapts to each sample by itself and forgets it; its own weights never change.

    Args:
        model: a classifier, BatchNorm already blended.
        optimizer, views, steps, augment: see `MEMO`.
        seed: of views.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer = SGD(lr=0.005, momentum=0.0),
        views: int = 32,
        steps: int = 1,
        augment: AugMix = AugMix(),
        seed: int = 0,
    ):
        super().__init__(model)
        self.optimizer, self.views, self.steps, self.augment, self.seed = optimizer, views, steps, augment, seed

    def forward(self, x: Any) -> Tensor:
        """Logits of each image by the network that was adapted to it."""
        check_pixels(x)
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone() if x.is_inference() else x.detach()
            return torch.cat([self._served(image) for image in x.split(1)])

    def adapt(self, batch: Batch) -> Tensor:
        return self(batch.x)

    def views_of(self, image: Tensor, step: int = 0) -> Tensor:
        """The views of an image `[1, channels, height, width]` at one of its steps, `[views, ...]`."""
        draws = generator(self.seed, "MEMO.views", step, hash_tensors({"image": image}))
        return self.augment(image.expand(self.views, *image.shape[1:]), draws)

    def _served(self, image: Tensor) -> Tensor:
        own = {name: p.detach().clone().requires_grad_() for name, p in self.model.named_parameters()}
        state = Bag()
        self.optimizer.begin(own, state)
        for step in range(self.steps):
            logits = logits_of(functional_call(self.model, own, (self.views_of(image, step),)))
            self.optimizer.minimize(marginal_entropy(logits[:, None]).sum(), own, state)
        with torch.no_grad():
            return logits_of(functional_call(self.model, own, (image,)))


@dataclass(frozen=True)
class MEMO(Remedy):
    """Marginal entropy minimisation with one test point.

    Attributes:
        optimizer: of all weights, anew for each sample.
        views: of a sample, at each step.
        steps: for each sample.
        augment: how views are made; images in 0..1.
        prior: what BatchNorm's stored statistics weigh against those of now, which weigh 1; 0 trusts these alone.
    """

    optimizer: Optimizer = SGD(lr=0.005, momentum=0.0)
    views: Count = 32
    steps: Count = 1
    augment: AugMix = AugMix()
    prior: NonNegative = 16.0

    card: ClassVar[Card] = Card(
        paper="Zhang et al., MEMO: Test Time Robustness via Adaptation and Augmentation, NeurIPS 2022",
        handles=frozenset({"covariate", "label", "correlated"}),
        needs=frozenset({"model.parameters"}),
        passes=97.0,
    )

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        norms = any(isinstance(m, BATCHNORMS) for m in model.modules())
        served = blend_batchnorm(model, blend=self.prior / (self.prior + 1)) if norms else fork(model)
        return MEMOOnline(served, self.optimizer, self.views, self.steps, self.augment, run.seed)
