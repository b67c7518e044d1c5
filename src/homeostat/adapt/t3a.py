"""T3A: put the classes where the samples of now lie, without a gradient.

The last linear layer of a network has a row w_k `[features]` for each class, a template that features are compared
with. When features move, the templates stay behind. T3A keeps for each class a set S_k of features that the network
calls so, begins it with the template, and classifies by the sets' centroids. For N features f `[N, features]`
and logits z = W f + b:

    S = the rows of W, each with the class argmax(W w_k + b) and the entropy of softmax(W w_k + b)
    add every f_n with the class argmax z_n and the entropy of softmax(z_n)
    keep in each class the `keep` entries of the smallest entropy
    c_k = the sum over S_k of f / |f|,    logits = f . c_k / |c_k|

What is returned sees the batch itself: its samples are added first. `forward` takes the sets as they are and adds
nothing. The network never changes, BatchNorm keeps its stored statistics, and a step costs one pass forward. The sets
hold classes x keep features at most: for 1,000 classes of 2,048 features 800 MB. Logits have the size of the features,
so that their softmax is no calibrated confidence. Of entries of one entropy the older stays.

`keep` was chosen among 1, 5, 20, 50, 100 and all on held-out domains; 100 is what a later benchmark fixes. 0 keeps all:
the code of the paper means that by -1, but drops the least certain entry of every class there each time.

It trusts low entropy. Samples that the network is surest of and wrong about push the templates out, and stay: with a
small `keep`, one of them can move a class for good. A class whose own template is called another has an empty set until
a sample is called so, and the logit 0, which wins where all others are negative.

>>> net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
>>> t3a, x = T3A(keep=5)(net), torch.randn(32, 2)
>>> t3a.observe(x).shape, len(t3a.carry["class"]) <= 15
(torch.Size([32, 3]), True)

Reference: Iwasawa, Matsuo, Test-time classifier adjustment module for model-agnostic domain generalization, NeurIPS
2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.adapt.learner import logits_of
from homeostat.core.data import Batch
from homeostat.core.errors import ModelError
from homeostat.core.method import Card, Remedy
from homeostat.core.online import Online
from homeostat.core.run import Run
from homeostat.core.spec import Index
from homeostat.core.taps import head, tapped
from homeostat.core.tree import Tree
from homeostat.core.world import World
from homeostat.nn.losses import softmax_entropy


class T3AOnline(Online):
    """A network whose classes are centroids of features that it is sure of; its weights never change.

    `carry` holds the sets: `feature` `[entries, features]`, and their `class` and `entropy`.

    Args:
        model: a classifier whose logits are the outputs of a linear layer.
        keep: entries of a class, at most; 0 for all.
        layer: dotted name of that linear layer; empty for the last.
    """

    def __init__(self, model: nn.Module, keep: int = 100, layer: str = ""):
        super().__init__(model)
        self.keep, self.layer = keep, layer
        self._linear()
        self.begin()

    @torch.no_grad()
    def begin(self) -> None:
        templates = self._linear()
        self._put(templates.weight.detach().clone(), templates(templates.weight))

    def forward(self, x: Tree) -> Tensor:
        """Logits by the sets as they are."""
        return self._compare(self._features(x)[1])

    @torch.no_grad()
    def adapt(self, batch: Batch) -> Tensor:
        logits, features = self._features(batch.x)
        self._put(features, logits, self.carry)
        return self._compare(features)

    def _linear(self) -> nn.Linear:
        name = self.layer or head(self.model)
        found = dict(self.model.named_modules()).get(name)
        if not isinstance(found, nn.Linear):
            what = "no layer" if found is None else f"a {type(found).__name__}"
            raise ModelError(
                f"layer {name!r} of this {type(self.model).__name__} is {what}; name the last linear layer"
            )
        return found

    def _features(self, x: Tree) -> tuple[Tensor, Tensor]:
        out, features = tapped(self.model, x, self.model, self.layer or None)
        logits, linear = logits_of(out), self._linear()
        if logits.shape[1] != linear.out_features or features.shape[1] != linear.in_features:
            raise ModelError(
                f"layer {self.layer or head(self.model)!r} makes {linear.out_features} outputs of {linear.in_features} "
                f"features, and the network's logits are {logits.shape[1]}, from {features.shape[1]}; name the layer "
                "that makes the logits"
            )
        return logits, features

    def _put(self, features: Tensor, logits: Tensor, old: Any = None) -> None:
        """Add entries to the sets, and keep the surest of each class."""
        new = {"feature": features, "class": logits.argmax(1), "entropy": softmax_entropy(logits)}
        joined = {name: torch.cat([old[name], t]) if old is not None else t for name, t in new.items()}
        order = joined["entropy"].argsort(stable=True)
        order = order[joined["class"][order].argsort(stable=True)]
        label = joined["class"][order]
        if self.keep:
            counts = torch.bincount(label, minlength=logits.shape[1])
            rank = torch.arange(len(label), device=label.device) - (counts.cumsum(0) - counts)[label]
            order = order[rank < self.keep]
        for name, tensor in joined.items():
            self.carry[name] = tensor[order]

    def _compare(self, features: Tensor) -> Tensor:
        unit = F.normalize(self.carry["feature"], dim=1)
        sums = unit.new_zeros(self._linear().out_features, unit.shape[1]).index_add_(0, self.carry["class"], unit)
        return features @ F.normalize(sums, dim=1).T


@dataclass(frozen=True)
class T3A(Remedy):
    """Test-time template adjustment.

    Attributes:
        keep: entries of a class, at most; 0 for all, which grow without end.
        layer: dotted name of the linear layer that makes the logits; empty for the last.
    """

    keep: Index = 100
    layer: str = ""

    card: ClassVar[Card] = Card(
        paper="Iwasawa and Matsuo, Test-Time Classifier Adjustment Module (T3A), NeurIPS 2021",
        handles=frozenset({"covariate"}),
        needs=frozenset({"model.linear"}),
        batch_coupled=True,
    )

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return T3AOnline(model, self.keep, self.layer)
