"""Diagonal Fisher information, sample by sample: how sure a network's predictions make it of each of its weights.

For inputs x_1..x_n, classes y and weights theta_j,

    exact       F_j = (1/n) sum_x sum_y p(y | x) (d log p(y | x) / d theta_j)^2
    sampled     y drawn from p(y | x), once an input; the same in expectation
    empirical   y the label, which is no Fisher information but is near it where the network is right; samples of
                unknown label are left out

Squares are of each sample's and each class's gradient. The square of a batch's mean gradient, which is cheaper and
often taken for it, is something else: gradients of samples cancel in it (see `fisher_diagonal`).

Costs a backward pass a class (exact) or one (else), and room for the gradients of `chunk` samples at a time. What a
sample gives must not depend on its batch, so the network is to be in evaluation mode.

>>> net = nn.Linear(1, 2, bias=False)
>>> with torch.no_grad():
...     _ = net.weight.copy_(torch.tensor([[0.0], [0.0]]))
>>> sample_fisher(net, [Batch(torch.tensor([[2.0]]))], ["weight"])["weight"].flatten()  # p q x^2, p = 1/2
tensor([1., 1.])

Reference: Matena and Raffel, Merging Models with Fisher-Weighted Averaging, NeurIPS 2022; Kunstner et al., Limitations
of the empirical Fisher approximation, NeurIPS 2019.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from homeostat.core.data import UNKNOWN, Batch
from homeostat.core.errors import InputError
from homeostat.core.place import there
from homeostat.core.task import Classify, check_labels
from homeostat.core.tree import map_tree

Labels = Literal["exact", "sampled", "empirical"]

ROOM = 1 << 26
"""Numbers that the gradients of a chunk of samples may take: 256 MiB in float32."""


def sample_fisher(
    model: nn.Module,
    batches: Iterable[Batch],
    names: Sequence[str],
    labels: Labels = "exact",
    draws: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Mean over samples of the squared gradient of each one's log-likelihood.

    Args:
        model: a classifier in evaluation mode; not changed.
        batches: inputs, with labels where they are asked for.
        names: of the parameters wanted.
        labels: whose likelihood; see the module.
        draws: draws labels where they are sampled.

    Returns:
        By name, tensors of the parameters' shapes, not negative, float32 or wider.

    Raises:
        InputError: there are no samples, or no labels although they are asked for.
    """
    every = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    every = {name: tensor.detach() for name, tensor in every.items()}
    wanted = {name: every[name] for name in names}
    sums = {n: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for n, p in wanted.items()}
    chunk = max(1, ROOM // max(sum(p.numel() for p in wanted.values()), 1))

    def likelihood(some: dict[str, Tensor], x: Any, y: Tensor) -> Tensor:
        out = functional_call(model, {**every, **some}, (map_tree(lambda leaf: leaf[None], x),))
        return out[0].log_softmax(-1).gather(-1, y[None])[0]

    gradients = vmap(grad(likelihood), in_dims=(None, 0, 0))
    count = 0
    for batch in batches:
        batch = _labelled(batch) if labels == "empirical" else batch
        for start in range(0, len(batch), chunk):
            x = there(map_tree(lambda leaf, s=start: leaf[s : s + chunk], batch.x), model)
            with torch.no_grad():
                logits = model(x)
            Classify().check(logits, None)
            shares = logits.softmax(-1)
            for y, weight in _targets(labels, shares, batch, start, draws):
                for name, gradient in gradients(wanted, x, y).items():
                    sums[name] += torch.tensordot(weight.to(sums[name]), gradient.to(sums[name]).square_(), 1)
            count += len(shares)
    if count == 0:
        what = "sample whose label is known" if labels == "empirical" else "sample"
        raise InputError(f"the Fisher information needs at least one {what}; there was none")
    return {name: total / count for name, total in sums.items()}


def _targets(
    labels: Labels, shares: Tensor, batch: Batch, start: int, draws: torch.Generator | None
) -> Iterable[tuple[Tensor, Tensor]]:
    """Classes `[chunk]` to take the likelihood of, and how much each counts `[chunk]`."""
    ones = torch.ones_like(shares[:, 0])
    if labels == "exact":
        for y in range(shares.shape[1]):
            yield torch.full_like(ones, y, dtype=torch.int64), shares[:, y]
    elif labels == "sampled":
        yield torch.multinomial(shares.cpu(), 1, generator=draws)[:, 0].to(shares.device), ones
    else:
        check_labels(batch.labels, shares.shape[1])
        yield batch.labels[start : start + len(ones)].to(shares.device), ones


def _labelled(batch: Batch) -> Batch:
    if batch.y is None:
        raise InputError("the empirical Fisher information needs labels; give data with labels, or labels='exact'")
    return batch[batch.labels != UNKNOWN]
