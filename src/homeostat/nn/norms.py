"""Normalisation layers as adaptation sees them: which scales and shifts there are, and whose statistics are used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from homeostat.core.errors import InputError, ModelError
from homeostat.core.fork import Pattern, fork, matches
from homeostat.core.part import Part, replace

NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


class BlendedBatchNorm(Part):
    """BatchNorm whose statistics are a blend of the stored ones and those of the batch at hand; it never stores any.

    With source mean and variance m, v, batch statistics m', v' over n values a channel, and blend a:
    `mean = a m + (1 - a) m'`, and the same for the variance (biased, as BatchNorm normalises). `a = 0` trusts the batch
    alone, `a = 1` is ordinary evaluation. With `prior > 0` the blend follows the batch's size instead:
    `a = prior / (prior + batch)`. Tensor names are BatchNorm's own, so weights stay interchangeable.

    Args:
        features: channels.
        eps: added to the variance.
        blend: weight a of the stored statistics, in 0..1.
        prior: if positive, weight of the stored statistics in samples.
        affine: whether there is a scale and a shift.
        stored: whether there are stored statistics; needed unless the blend is 0 and the prior 0.
    """

    def __init__(
        self,
        features: int,
        eps: float = 1e-5,
        blend: float = 0.0,
        prior: float = 0.0,
        affine: bool = True,
        stored: bool = True,
    ):
        super().__init__()
        self.features, self.eps, self.blend, self.prior = features, eps, blend, prior
        self.affine, self.stored = affine, stored
        self.weight = nn.Parameter(torch.ones(features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(features)) if affine else None
        self.running_mean: Tensor | None
        self.running_var: Tensor | None
        self.num_batches_tracked: Tensor | None
        self.register_buffer("running_mean", torch.zeros(features) if stored else None)
        self.register_buffer("running_var", torch.ones(features) if stored else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if stored else None)
        self._recorded: list[tuple[Tensor, Tensor]] | None = None
        self._replayed: Iterator[tuple[Tensor, Tensor]] | None = None
        self._groups = 1
        self._momentum: float | None = None

    @classmethod
    def like(cls, norm: _BatchNorm, blend: float = 0.0, prior: float = 0.0) -> BlendedBatchNorm:
        """The same layer over the same tensors."""
        stored = norm.running_mean is not None
        if not stored and (blend or prior):
            raise ModelError("a BatchNorm layer without stored statistics cannot blend them; use blend=0, prior=0")
        made = cls(norm.num_features, norm.eps, blend, prior, norm.affine, stored)
        made._parameters, made._buffers = dict(norm._parameters), dict(norm._buffers)
        return made

    def forward(self, x: Tensor) -> Tensor:
        if self._groups == 1:
            return self._whole(x)
        if len(x) % self._groups:
            raise InputError(f"{len(x)} samples cannot be {self._groups} groups of one size")
        return torch.cat([self._whole(part) for part in x.chunk(self._groups)])

    def _whole(self, x: Tensor) -> Tensor:
        if self._replayed is not None:
            return self._normalized(x, *next(self._replayed))
        blend = self.prior / (self.prior + len(x)) if self.prior > 0 else self.blend
        moving = self._momentum is not None
        if moving:
            blend = 1 - self._momentum  # type: ignore[operator]
        if (blend == 0 or moving) and x.numel() == x.shape[1]:
            # One value a channel has no variance: the batch says nothing, the stored statistics must do.
            if not self.stored:
                raise InputError("one value a channel has no batch statistics, and this layer stores none")
            blend, moving = 1.0, False
        if blend == 0 and self._recorded is None:
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        if blend == 1:
            mean, var = self.running_mean, self.running_var
        else:
            mean, var = moments(x)
            if blend > 0:
                mean = torch.lerp(mean, self.running_mean, blend)  # type: ignore[arg-type]
                var = torch.lerp(var, self.running_var, blend)  # type: ignore[arg-type]
        if self._recorded is not None:
            self._recorded.append((mean.detach(), var.detach()))  # type: ignore[union-attr]
        if moving:
            self.running_mean.copy_(mean.detach())  # type: ignore[union-attr]
            self.running_var.copy_(var.detach())  # type: ignore[union-attr]
        if mean.requires_grad or var.requires_grad:  # type: ignore[union-attr]
            return self._differentiable(x, mean, var)  # type: ignore[arg-type]
        return self._normalized(x, mean, var)  # type: ignore[arg-type]

    def _normalized(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)

    def _differentiable(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """The same, with gradients through the statistics, which PyTorch's evaluation mode leaves out."""
        scale = (var + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        shape = (1, -1, *([1] * (x.ndim - 2)))
        return x * scale.view(shape) + shift.view(shape)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel."""
    count = x.numel() // x.shape[1]
    if (x.requires_grad and torch.is_grad_enabled()) or count == 1:
        var, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
        return mean, var
    # PyTorch's fused kernel with a momentum of 1 leaves them in its buffers, in a quarter of the time.
    mean, var = x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])
    F.batch_norm(x, mean, var, None, None, True, 1.0)
    return mean, var.mul_((count - 1) / count)


BATCHNORMS = (_BatchNorm, BlendedBatchNorm)


def blend_batchnorm(model: nn.Module, blend: float = 0.0, prior: float = 0.0) -> nn.Module:
    """A fork in which every BatchNorm layer takes its statistics from the batch, blended with the stored ones.

    Raises:
        ModelError: the model has no BatchNorm layer.
    """
    made = fork(model)
    layers = [(name, m) for name, m in made.named_modules() if isinstance(m, BATCHNORMS)]
    if not layers:
        raise ModelError(f"{type(model).__name__} has no BatchNorm layer whose statistics could adapt")
    if isinstance(made, BATCHNORMS):
        return _blended(made, blend, prior)
    for name, layer in layers:
        replace(made, name, _blended(layer, blend, prior))
    return made


def batch_statistics(model: nn.Module) -> nn.Module:
    """A fork whose BatchNorm layers, if it has any, take their statistics from the batch alone."""
    return blend_batchnorm(model) if any(isinstance(m, BATCHNORMS) for m in model.modules()) else fork(model)


@contextmanager
def recorded_statistics(model: nn.Module) -> Iterator[Replay]:
    """Note the statistics that each `BlendedBatchNorm` uses inside, so that a later pass can use them again.

    >>> net, x = blend_batchnorm(nn.BatchNorm1d(2)), torch.randn(8, 2)
    >>> with torch.no_grad(), recorded_statistics(net) as replay:
    ...     whole = net(x)
    >>> with replay():
    ...     part = net(x[:3])
    >>> bool(torch.allclose(part, whole[:3], atol=1e-6))
    True
    """
    layers = [m for m in model.modules() if isinstance(m, BlendedBatchNorm)]
    for layer in layers:
        layer._recorded = []
    try:
        yield Replay([(layer, layer._recorded) for layer in layers])  # type: ignore[misc]
    finally:
        for layer in layers:
            layer._recorded = None


@contextmanager
def grouped_statistics(model: nn.Module, groups: int) -> Iterator[None]:
    """Inside, a batch is `groups` batches of one size laid one after another, each with statistics of its own.

    Raises:
        InputError: a batch inside cannot be divided so.
    """
    layers = [m for m in model.modules() if isinstance(m, BlendedBatchNorm)]
    before = [layer._groups for layer in layers]
    for layer in layers:
        layer._groups = groups
    try:
        yield
    finally:
        for layer, kept in zip(layers, before, strict=True):
            layer._groups = kept


@contextmanager
def moving_statistics(model: nn.Module, momentum: float) -> Iterator[None]:
    """Inside, the stored statistics of each `BlendedBatchNorm` move, and are what it normalises with.

    With stored mean m and batch mean m': `m <- (1 - momentum) m + momentum m'`, in place, and the same for the variance
    (biased); gradients go through the batch's share. The model must own its statistics (`batchnorm_statistics`). One
    value a channel moves nothing.

    >>> net = blend_batchnorm(nn.BatchNorm1d(1), blend=1.0)
    >>> with moving_statistics(net, 0.25):
    ...     _ = net(torch.tensor([[3.0], [5.0]]))
    >>> net.running_mean, net.running_var
    (tensor([1.]), tensor([1.]))
    """
    layers = [m for m in model.modules() if isinstance(m, BlendedBatchNorm)]
    for layer in layers:
        layer._momentum = momentum
    try:
        yield
    finally:
        for layer in layers:
            layer._momentum = None


def batchnorm_statistics(model: nn.Module) -> tuple[str, ...]:
    """Names of the stored means and variances of all BatchNorm layers, in order; there may be none."""
    return tuple(
        f"{path}.{leaf}" if path else leaf
        for path, module in model.named_modules()
        if isinstance(module, BATCHNORMS) and module.running_mean is not None
        for leaf in ("running_mean", "running_var")
    )


class Replay:
    """Statistics of one pass; inside `with replay():` the layers use them, in the order in which they were noted."""

    def __init__(self, noted: list[tuple[BlendedBatchNorm, list[tuple[Tensor, Tensor]]]]):
        self.noted = noted

    @contextmanager
    def __call__(self) -> Iterator[None]:
        for layer, statistics in self.noted:
            layer._replayed = iter(statistics)
        try:
            yield
        finally:
            for layer, _ in self.noted:
                layer._replayed = None


def _blended(layer: Any, blend: float, prior: float) -> BlendedBatchNorm:
    if isinstance(layer, BlendedBatchNorm):
        made = BlendedBatchNorm(layer.features, layer.eps, blend, prior, layer.affine, layer.stored)
        made._parameters, made._buffers = dict(layer._parameters), dict(layer._buffers)
        return made
    return BlendedBatchNorm.like(layer, blend, prior)


def norm_affine(model: nn.Module, own: Pattern = "*") -> tuple[str, ...]:
    """Names of the scales and shifts of all normalisation layers, in order.

    Raises:
        ModelError: there is none.
    """
    wanted, names = matches(own), []
    for path, module in model.named_modules():
        if isinstance(module, (*NORMS, BlendedBatchNorm)):
            for leaf in ("weight", "bias"):
                if getattr(module, leaf, None) is not None:
                    name = f"{path}.{leaf}" if path else leaf
                    names += [name] if wanted(name) else []
    if not names:
        raise ModelError(f"{type(model).__name__} has no normalisation layer with a scale and a shift to adapt")
    return tuple(names)
