"""Judging networks before they are trained: scores from one mini-batch, and a choice by them.

- `activation_diversity` (NASWOT): each input switches the ReLUs of a network on and off in a pattern; with K_ij the
  number of ReLUs at which the inputs i and j agree, the score is log det K. Inputs that fall into different patterns
  can be told apart.
- `gradient_flow` (SynFlow): sum over weights of |w . dR/dw|, R the sum of the outputs for inputs of ones and weights
  |w|: how much can flow through.

Both grow with size, so they are only compared among networks of similar numbers of parameters: `candidates` gives those
perceptrons of one to three layers whose parameters lie in a band. Networks are lists of `(weight, bias)`, ReLU between.

>>> candidates(inputs=16, classes=3, most=400, band=0.5)
[(16, 16, 3), (16, 8, 8, 3)]

References: Mellor et al., Neural architecture search without training, ICML 2021; Tanaka et al., Pruning neural
networks without any data by iteratively conserving synaptic flow, NeurIPS 2020.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Layers = Sequence[tuple[Tensor, Tensor]]
WIDTHS = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def candidates(inputs: int, classes: int, most: int, band: float = 0.5) -> list[tuple[int, ...]]:
    """Widths of all layers, inputs and outputs included, of perceptrons with `band * most` to `most` parameters.

    When none lies in the band it is the largest that has at most `most` parameters, and when there is none of those
    the linear layer, which is always allowed.
    """
    linear = (inputs, classes)
    hidden = [(inputs, *(width,) * layers, classes) for layers in (1, 2) for width in WIDTHS]
    fitting = [widths for widths in (linear, *hidden) if size(widths) <= most]
    inside = [widths for widths in fitting if size(widths) >= band * most]
    return inside or [max(fitting, key=size, default=linear)]


def size(widths: Sequence[int]) -> int:
    """Parameters of a perceptron."""
    return sum((a + 1) * b for a, b in itertools.pairwise(widths))


def activation_diversity(layers: Layers, x: Float[Tensor, "batch inputs"]) -> float:
    """log det of the agreement of ReLU patterns; a network without ReLUs has minus infinity."""
    codes = []
    for weight, bias in layers[:-1]:
        x = x @ weight.T + bias
        codes.append((x > 0).double())
        x = x.relu()
    if not codes:
        return -torch.inf
    code = torch.cat(codes, 1)
    agree = code @ code.T + (1 - code) @ (1 - code).T
    # Two inputs of one pattern make the determinant 0; a little of the identity keeps scores comparable.
    return float(torch.linalg.slogdet(agree + 1e-3 * torch.eye(len(x), dtype=torch.float64, device=x.device)).logabsdet)


def gradient_flow(layers: Layers) -> float:
    """log of the sum of |w . dR/dw|, for weights without their signs and without biases."""
    with torch.enable_grad():
        positive = [weight.detach().double().abs().requires_grad_() for weight, _ in layers]
        flow = torch.ones(1, positive[0].shape[1], dtype=torch.float64, device=positive[0].device)
        for weight in positive:
            flow = flow @ weight.T
        gradients = torch.autograd.grad(flow.sum(), positive)
    return float(sum((w.detach() * g).sum() for w, g in zip(positive, gradients, strict=True)).log())  # type: ignore[union-attr]


def best_by_rank(scores: Sequence[Sequence[float]]) -> int:
    """Which candidate has the best mean rank over several scores (a row a candidate), the first of equals."""
    table = torch.tensor(scores, dtype=torch.float64)
    ranks = (table[:, None] < table[None]).sum(1)  # how many are better
    return int(ranks.sum(1).argmin())


def layers_of(net: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of a perceptron, from the first layer to the last."""
    return [(layer.weight, layer.bias) for layer in net.modules() if isinstance(layer, nn.Linear)]


def perceptron(layers: Layers, x: Float[Tensor, "batch inputs"]) -> Tensor:
    """Outputs of linear layers with ReLU between them."""
    for i, (weight, bias) in enumerate(layers):
        x = F.linear(x.relu() if i else x, weight, bias)
    return x
