"""Class prototypes: the mean feature of each class.

>>> class_means(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([0, 0, 1]), classes=2)
tensor([[1.],
        [5.]])
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from homeostat.core.data import UNKNOWN, Data
from homeostat.core.errors import InputError
from homeostat.core.place import there
from homeostat.core.taps import tapped


def class_means(
    features: Float[Tensor, "n width"], labels: Int[Tensor, " n"], classes: int
) -> Float[Tensor, "classes width"]:
    """Mean feature of each class; samples without a label (`UNKNOWN`) count for none.

    Raises:
        InputError: a class has no sample.
    """
    known = labels != UNKNOWN
    counts = torch.bincount(labels[known], minlength=classes)
    if len(counts) > classes or not bool((counts > 0).all()):
        empty = torch.nonzero(counts[:classes] == 0).flatten().tolist()
        what = f"no sample of class {', '.join(map(str, empty[:8]))}" if empty else f"a label of {len(counts) - 1}"
        raise InputError(f"prototypes of {classes} classes were asked for, and there is {what}")
    sums = features.new_zeros(classes, features.shape[1]).index_add_(0, labels[known], features[known])
    return sums / counts[:, None].to(sums)


@torch.no_grad()
def class_prototypes(
    model: nn.Module, data: Data, layer: str | None = None, batch: int = 200
) -> Float[Tensor, "classes width"]:
    """Mean feature of each class of labelled data, where the model lies.

    Args:
        model: a classifier, called as it is; as many prototypes as it has classes.
        data: labelled.
        layer: dotted name of the layer whose input the features are; default the last linear layer.
        batch: samples a pass.
    """
    features, labels, classes = [], [], 0
    for part in data.batches(batch):
        out, found = tapped(model, there(part.x, model), model, layer)
        assert isinstance(out, Tensor)
        classes = out.shape[1]
        features.append(found)
        labels.append(part.labels.to(found.device))
    if not features:
        raise InputError("prototypes need labelled data; there were none")
    return class_means(torch.cat(features), torch.cat(labels), classes)
