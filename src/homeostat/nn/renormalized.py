"""Test-batch re-normalisation: BatchNorm that normalises by moving statistics and learns as if by the batch's.

Evaluation mode is steady but its gradients know nothing of the normalisation; the batch's own statistics give good
gradients and unsteady outputs. With the batch's mean m and deviation s (unbiased variance), and the moving m0 and s0:

    r = s / s0,    d = (m - m0) / s0    (no gradient through either),    out = weight (((x - m) / s) r + d) + bias

Forward this is normalising by m0 and s0, so that a sample's output does not depend on its batch; backward it is batch
normalisation. What happens to the moving statistics is said by `following_statistics`, and by nothing else:

- outside it they stay;
- `"follow"`: after they were used, m0 <- m0 + momentum (m - m0), and the variance likewise;
- `"start"`: before they are used they become the batch's own, as in the code of the paper, which drops those stored.

A layer that sees one value a channel can neither start nor follow, and uses what it has.

>>> net, x = renormalize_batchnorm(nn.BatchNorm1d(2).eval()), torch.randn(8, 2) + 3
>>> plain = net(x)
>>> bool(torch.allclose(plain, x / (1 + 1e-5) ** 0.5))
True
>>> with torch.no_grad(), following_statistics(net, "start"):
...     started = net(x)
>>> bool(started.mean().abs() < 1e-6), bool(torch.allclose(net.running_mean, x.mean(0)))
(True, True)

Reference: Ioffe, Batch renormalization, NeurIPS 2017; Chen, Niu, Tan et al., Towards robust and efficient cloud-edge
elastic model adaptation via selective entropy distillation, ICLR 2024 (its use here).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.core.errors import ModelError
from homeostat.core.fork import fork
from homeostat.core.part import replace
from homeostat.nn.norms import BATCHNORMS, BlendedBatchNorm, moments, norm_affine

Moving = Literal["stay", "follow", "start"]


class RenormalizedBatchNorm(BlendedBatchNorm):
    """BatchNorm by moving statistics, with the gradients of batch normalisation; see the module's docstring.

    Args:
        features: channels.
        eps: added to the variance.
        momentum: how far the moving statistics go towards those of a batch that they follow.
        affine: whether there is a scale and a shift.
    """

    def __init__(self, features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True):
        super().__init__(features, eps, blend=1.0, affine=affine)
        self.momentum = momentum
        self._moving: Moving = "stay"

    @classmethod
    def over(cls, norm: Any) -> RenormalizedBatchNorm:
        """The same layer over the same tensors.

        Raises:
            ModelError: it stores no statistics.
        """
        if norm.running_mean is None:
            raise ModelError("a BatchNorm layer without stored statistics has none that could move; keep them")
        features = norm.features if isinstance(norm, BlendedBatchNorm) else norm.num_features
        momentum = getattr(norm, "momentum", None)
        made = cls(features, norm.eps, 0.1 if momentum is None else momentum, norm.weight is not None)
        made._parameters, made._buffers = dict(norm._parameters), dict(norm._buffers)
        return made

    def _whole(self, x: Tensor) -> Tensor:
        if self._replayed is not None:
            return self._normalized(x, *next(self._replayed))
        mean, var = self.running_mean, self.running_var
        assert mean is not None and var is not None
        count = x.numel() // x.shape[1]
        learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, self.weight, self.bias))
        now = None
        if count > 1 and (learns or self._moving != "stay"):
            now = moments(x.detach())
            if self._moving == "start":
                mean.copy_(now[0])
                var.copy_(now[1] * (count / (count - 1)))
        if self._recorded is not None:
            self._recorded.append((mean.clone(), var.clone()))
        out = self._normalized(x, mean, var) if now is None or not learns else self._renormalized(x, *now)
        if now is not None and self._moving == "follow":
            mean.lerp_(now[0], self.momentum)
            var.lerp_(now[1] * (count / (count - 1)), self.momentum)
        return out

    def _renormalized(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        # PyTorch normalises by the biased variance; with this epsilon the two deviations differ by a factor alone.
        eps = self.eps * (1 - x.shape[1] / x.numel())
        inverse = (self.running_var + self.eps).rsqrt()  # type: ignore[operator]
        scale, shift = (var + eps).sqrt() * inverse, (mean - self.running_mean) * inverse  # type: ignore[operator]
        if self.weight is not None:
            scale, shift = scale * self.weight, torch.addcmul(self.bias, shift, self.weight)  # type: ignore[arg-type]
        return F.batch_norm(x, None, None, scale, shift, True, 0.0, eps)


def renormalize_batchnorm(model: nn.Module) -> nn.Module:
    """A fork whose BatchNorm layers, if it has any, are `RenormalizedBatchNorm`.

    Raises:
        ModelError: one of them stores no statistics.
    """
    made = fork(model)
    if isinstance(made, BATCHNORMS):
        return RenormalizedBatchNorm.over(made)
    for name, layer in [(n, m) for n, m in made.named_modules() if isinstance(m, BATCHNORMS)]:
        replace(made, name, RenormalizedBatchNorm.over(layer))
    return made


@contextmanager
def following_statistics(model: nn.Module, moving: Moving) -> Iterator[None]:
    """Inside, the moving statistics of one's own model follow its batches, or start from them."""
    layers = [m for m in model.modules() if isinstance(m, RenormalizedBatchNorm)]
    for layer in layers:
        layer._moving = moving
    try:
        yield
    finally:
        for layer in layers:
            layer._moving = "stay"


def norm_state(model: nn.Module) -> tuple[str, ...]:
    """Names of all scales and shifts, and then of all moving statistics: what a normalised network can be moved by.

    Raises:
        ModelError: there is no normalisation layer.
    """
    layers = [n for n, m in model.named_modules() if isinstance(m, RenormalizedBatchNorm)]
    moving = [f"{n}.{leaf}" if n else leaf for n in layers for leaf in ("running_mean", "running_var")]
    return (*norm_affine(model), *moving)
