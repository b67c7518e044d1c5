"""Give the layers of a merged or pruned network the statistics back that their channels had.

Averaging weights, and setting some to zero, makes activations smaller from layer to layer: what networks do not share
cancels (variance collapse). Most of what is lost comes back when each channel again has the mean and the deviation of
the networks that were merged, or of the one that was pruned. That takes some unlabelled samples and no training.

For a channel of a layer, x its outputs over all samples and positions in the network at hand, with mean mu and variance
sigma^2, and mu_m, sigma_m those in reference m:

    goal       mean = sum_m a_m mu_m,      deviation = sum_m a_m sigma_m       (deviations, not variances)
    repair     y = (x - mu) / sqrt(sigma^2 + eps) * deviation + mean
    rescale    y = x / sqrt(sigma^2 + eps) * deviation
    reshift    y = x - mu + mean

Layers are treated in the order in which they are used, each with what comes out of those before it. The change is
written into the layer's weights and bias, so that the network keeps its structure; where a normalisation layer with a
scale and a shift follows a linear layer or convolution directly, that layer's outputs are meant, and the change is
written there. (Before BatchNorm it would be undone.) The last layer, which makes the outputs, is left alone.

    reset_bn   the means and variances that BatchNorm stores become those of the samples; needs no references

Defaults: 200 samples, as many as pruning needs in the official experiments, taken evenly from all data, and run as one
batch; eps 1e-5 is BatchNorm's; all a_m are equal. A channel that is constant on the samples but not on later data gets
a scale of up to deviation / sqrt(eps). Rescaling does without a bias and without means; behind BatchNorm, whose stored
means no longer fit, that is not enough (the official code resets BatchNorm as well, whatever the mode).

It repairs scale, not knowledge: between networks in different orders (no matching before averaging) or at extreme
sparsity little comes back.

>>> net, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.rand(50, 3)
>>> shrunk = fork(net, own="*")
>>> _ = shrunk[0].weight.data.mul_(0.2), shrunk[0].bias.data.sub_(1.0)
>>> repaired = renormalize(shrunk, [net], x, eps=0.0)
>>> bool(torch.allclose(repaired(x), net(x), atol=1e-5))
True

References: Jordan, Sedghi, Saukh, Entezari, Neyshabur, REPAIR: renormalizing permuted activations for interpolation
repair, ICLR 2023; Qu, Horvath, Rethink model re-basin and the linear mode connectivity, 2024 (rescale, reshift, and
pruned networks).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from homeostat.core.data import Data, check_finite
from homeostat.core.errors import InputError, ModelError, SpecError
from homeostat.core.fork import Pattern, fork, matches
from homeostat.core.intake import as_data
from homeostat.core.place import there
from homeostat.core.tree import Tree, length

Mode = Literal["repair", "rescale", "reshift", "reset_bn"]
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
FOLLOWERS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def renormalize(
    model: nn.Module,
    references: Sequence[nn.Module],
    data: Data | Any,
    mode: Mode | Any = "repair",
    weights: Sequence[float] | None = None,
    samples: int = 200,
    layers: Pattern = "*",
    eps: float = 1e-5,
) -> nn.Module:
    """A fork of a network whose channels have the references' statistics.

    Args:
        model: the merged or pruned network; it is not changed.
        references: networks of the same structure, whose channels are in the same order; none for `"reset_bn"`.
        data: inputs, of which `samples` are used; labels are not read.
        mode: `"repair"`, `"rescale"`, `"reshift"` or `"reset_bn"`.
        weights: of the references, adding up to 1; default equal.
        samples: how many inputs.
        layers: names of the linear layers and convolutions to treat.
        eps: added to variances.

    Raises:
        ModelError: the structures differ, or a layer has no bias for a shift, or there is nothing to renormalise.
        InputError: no samples, or weights that do not fit.
    """
    if mode not in get_args(Mode):
        raise SpecError(f"mode = {mode!r}, but it must be one of {', '.join(map(repr, get_args(Mode)))}")
    x = _taken(as_data(data), samples)
    made = fork(model, own="*").eval()
    x = there(x, made)
    if mode == "reset_bn":
        return _reset(made, x)
    shares = _shares(references, weights)
    units = _units(made, x, layers)
    if mode != "rescale":
        _check_shifts(made, units, mode)
    seen = [_statistics(fork(reference).eval(), x, units) for reference in references]
    goals = {
        name: tuple(sum(share * found[name][k] for share, found in zip(shares, seen, strict=True)) for k in (0, 1))
        for name in units
    }
    folds: dict[str, tuple[Tensor, Tensor]] = {}

    def change(name: str, out: Tensor) -> Tensor:
        mean, deviation = _moments(out, made.get_submodule(name))
        goal_mean, goal_deviation = goals[name]
        one = torch.ones_like(mean)
        scale = one if mode == "reshift" else goal_deviation / (deviation.square() + eps).sqrt()
        shift = torch.zeros_like(mean) if mode == "rescale" else goal_mean - mean * scale
        folds[name] = scale, shift
        return _along(scale, out, made, name) * out + _along(shift, out, made, name)

    with torch.no_grad(), _hooked(made, units, change):
        made(x)
    for name, (scale, shift) in folds.items():
        _fold(made.get_submodule(name), scale, shift)
    return made


def _taken(data: Data, samples: int) -> Tree:
    if samples < 1 or len(data) == 0:
        raise InputError(f"statistics need at least one sample; there are {len(data)}, and {samples} are asked for")
    count = min(samples, len(data))
    x = data.fetch((torch.arange(count) * len(data)) // count).x
    check_finite(x, "x")
    return x


def _shares(references: Sequence[nn.Module], weights: Sequence[float] | None) -> list[float]:
    if not references:
        raise InputError("there are no references whose statistics could be the goal; only 'reset_bn' needs none")
    shares = [1 / len(references)] * len(references) if weights is None else [float(w) for w in weights]
    if len(shares) != len(references) or abs(sum(shares) - 1) > 1e-6:
        raise InputError(f"weights {shares} must be {len(references)} numbers, one a reference, that add up to 1")
    return shares


def _units(model: nn.Module, x: Tree, layers: Pattern) -> list[str]:
    """Where statistics are taken, in order of use: layers, or what normalises them."""
    wanted, order, made_by, kept = matches(layers), list[str](), dict[int, str](), list[Tensor]()
    follower, norms = dict[str, str](), list[str]()

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            if isinstance(module, LAYERS):
                order.append(name)
                made_by[id(out)] = name
                kept.append(out)
                return
            norms.append(name)
            # A scale for each position, as of LayerNorm over an image, is none for each channel.
            scale, shift = module.weight, module.bias
            if id(args[0]) in made_by and scale is not None and scale.ndim == 1 and shift is not None:
                follower[made_by[id(args[0])]] = name

        return hook

    handles = [m.register_forward_hook(note(n)) for n, m in model.named_modules() if isinstance(m, LAYERS + FOLLOWERS)]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    used = order + [name for name in norms if name in follower.values()]
    if repeated := {name for name in used if used.count(name) > 1}:
        raise ModelError(f"layers that are used more than once have no one statistic: {', '.join(sorted(repeated))}")
    units = [follower.get(name, name) for name in order[:-1] if wanted(name)]
    if not units:
        raise ModelError(f"{type(model).__name__} has no hidden layer that matches {layers!r} to renormalise")
    return units


def _check_shifts(model: nn.Module, units: Sequence[str], mode: str) -> None:
    if bare := [name for name in units if getattr(model.get_submodule(name), "bias", None) is None]:
        raise ModelError(f"{', '.join(bare[:5])} have no bias that could hold the shift of {mode!r}; use 'rescale'")


@contextmanager
def _hooked(model: nn.Module, names: Sequence[str], call: Callable[[str, Any], Any]) -> Iterator[None]:
    """Inside, `call(name, output)` sees the outputs of these layers, and may give others in their place."""
    handles = []
    for name in names:
        try:
            layer = model.get_submodule(name)
        except AttributeError:
            raise ModelError(f"a reference has no layer {name!r}; all networks must have one structure") from None
        handles.append(layer.register_forward_hook(lambda _, __, out, n=name: call(n, out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _statistics(model: nn.Module, x: Tree, units: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def look(name: str, out: Tensor) -> None:
        found[name] = _moments(out, model.get_submodule(name))

    with torch.no_grad(), _hooked(model, units, look):
        model(x)
    return found


def _channel(layer: nn.Module, out: Tensor) -> int:
    return out.ndim - 1 if isinstance(layer, (nn.Linear, nn.LayerNorm)) else 1


def _moments(out: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, in single precision or better."""
    wide = out.to(torch.promote_types(out.dtype, torch.float32)).movedim(_channel(layer, out), 0).flatten(1)
    return wide.mean(1), wide.std(1, correction=0)


def _along(values: Tensor, out: Tensor, model: nn.Module, name: str) -> Tensor:
    shape = [1] * out.ndim
    shape[_channel(model.get_submodule(name), out)] = -1
    return values.to(out.dtype).view(shape)


def _fold(layer: nn.Module, scale: Tensor, shift: Tensor) -> None:
    with torch.no_grad():
        weight, bias = layer.weight, layer.bias
        weight.copy_(weight * scale.view(-1, *[1] * (weight.ndim - 1)))  # type: ignore[operator,union-attr]
        if bias is not None:
            bias.copy_(bias * scale + shift)  # type: ignore[operator,union-attr]


def _reset(model: nn.Module, x: Tree) -> nn.Module:
    norms: list[Any] = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        raise ModelError(f"{type(model).__name__} has no BatchNorm layer that stores statistics")
    if length(x) < 2:
        raise InputError("BatchNorm's statistics need two samples or more")
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.training, norm.momentum = True, 1.0
    with torch.no_grad():
        model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.training, norm.momentum = False, momentum
    return model
