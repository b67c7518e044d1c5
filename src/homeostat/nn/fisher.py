"""Diagonal Fisher information: how much each weight matters for what a network predicts now.

For weights theta_j and batches b = 1..M of unlabelled inputs, with the network's own predictions as labels,

    F_j = (1/M) sum_b (d CE_b / d theta_j)^2,     CE_b = mean over the batch of cross-entropy(z, argmax z).

Squares are of the gradient of the batch's mean, as in EWC-style code for test-time adaptation, not of each sample's
gradient: F shrinks about as 1 / batch size, so a penalty tuned for one batch size must be tuned again for another.

>>> net = nn.Linear(1, 2, bias=False)
>>> with torch.no_grad():
...     _ = net.weight.copy_(torch.tensor([[1.0], [0.0]]))
>>> information = fisher_diagonal(net, [torch.tensor([[0.0]]), torch.tensor([[2.0]])], ["weight"])
>>> information["weight"].flatten()  # half of (2 * 0.1192)^2, as softmax([2, 0])[1] = 0.1192
tensor([0.0284, 0.0284])

Reference: Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017; Niu et al., ICML 2022.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.core.errors import InputError
from homeostat.core.task import Classify
from homeostat.core.tree import Tree


def fisher_diagonal(model: nn.Module, batches: Iterable[Tree], names: Sequence[str]) -> dict[str, Tensor]:
    """Mean over batches of the squared gradient of the batch's mean cross-entropy to the model's own predictions.

    Args:
        model: a classifier, one's own fork; it is called as it is (its mode, its statistics) and not changed.
        batches: inputs.
        names: of the parameters wanted.

    Returns:
        By name, tensors of the parameters' shapes, not negative.
    """
    parameters = dict(model.named_parameters())
    wanted = [parameters[name].requires_grad_(True) for name in names]
    sums = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in wanted]
    count = 0
    for x in batches:
        logits = model(x)
        Classify().check(logits, None)
        loss = F.cross_entropy(logits, logits.detach().argmax(1))
        gradients = torch.autograd.grad(loss, wanted, materialize_grads=True)
        for total, gradient in zip(sums, gradients, strict=True):
            total.add_(gradient.to(total.dtype).square_())
        count += 1
    if count == 0:
        raise InputError("the Fisher information needs at least one batch of inputs; there was none")
    return {name: (s / count).to(p.dtype) for name, s, p in zip(names, sums, wanted, strict=True)}


def weighted_distance(
    now: Mapping[str, Tensor], center: Mapping[str, Tensor], weight: Mapping[str, Tensor]
) -> Float[Tensor, ""]:
    """`sum_j weight_j (now_j - center_j)^2` over the elements of all tensors of `now`.

    >>> one, two = {"w": torch.ones(2)}, {"w": torch.tensor([3.0, 0.0])}
    >>> float(weighted_distance(one, two, {"w": torch.tensor([0.5, 10.0])}))
    12.0
    """
    flat = [torch.cat([tensors[name].flatten() for name in now]) for tensors in (now, center, weight)]
    return (flat[2] * (flat[0] - flat[1]) ** 2).sum()
