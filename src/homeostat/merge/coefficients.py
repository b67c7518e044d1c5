"""Networks whose weights are a base and a weighted sum of task vectors, and the gradient of those weights.

Merging methods that learn how much of each donor goes where need two things: to write

    theta_b = theta_0,b + sum_t c[t, b] tau_t,b                                  for every block b,

with donors t = 1..T and task vectors tau_t = theta_t - theta_0, and to know how a loss changes with c:

    d loss / d c[t, b] = < d loss / d theta_b , tau_t,b >

`Combination` does both without a graph through the merge. Weights are written in place; an ordinary backward pass gives
each parameter's gradient, which is multiplied with that parameter's T task vectors and freed at once, before the next
parameter's is there. Memory is that of one network, the task vectors and one gradient. Task vectors may have less
precision than the network, or lie in a file (`core.weights.Weights`), and are then read a tensor at a time.

A block is a parameter tensor (`per="tensor"`), the whole network (`"model"`), or, with `groups` = K, one of K random
groups of the entries of each tensor of two dimensions or more; tensors of one dimension stay whole, and tensors of one
shape share their groups.

>>> base = nn.Linear(2, 1, bias=False)
>>> _ = nn.init.zeros_(base.weight)
>>> combination = Combination(base, {"weight": torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])})
>>> combination.write(torch.tensor([[0.5], [0.25]]))
>>> combination.network.weight.detach()
tensor([[0.5000, 0.5000]])
>>> with combination.gradient() as gradient:
...     combination.network(torch.tensor([[1.0, 3.0]])).sum().backward()
>>> gradient
tensor([[1.],
        [6.]])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from homeostat.core.errors import InputError, ModelError, NonFiniteError, SpecError
from homeostat.core.fork import Pattern, fork, matches
from homeostat.core.place import device_of
from homeostat.core.weights import as_weights
from homeostat.merge.merging import check_donors
from homeostat.merge.trimming import rank_of

Per = Literal["tensor", "model"]


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which sums of weights of this dtype are made: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)


def mergeable(model: nn.Module, skip: Pattern = ()) -> dict[str, Tensor]:
    """The floating parameters of a model by name, detached, those aside whose name matches `skip`."""
    skipped = matches(skip)
    return {n: p.detach() for n, p in model.named_parameters() if p.is_floating_point() and not skipped(n)}


def task_vectors(
    base: nn.Module, donors: Mapping[str, Any], skip: Pattern = (), dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """What fine-tuning changed: for each parameter `[donors, *shape]`, the donor's value less the base's.

    Args:
        base: the network that the donors were fine-tuned from.
        donors: networks, mappings of tensors or paths by name; tensors that the base lacks are not looked at.
        skip: names of parameters to leave out, such as heads.
        dtype: of the result, for less memory; default the base's, but float32 at least. Differences are taken wide.

    Returns:
        By name, on the base's device; parameters that no donor changed are left out.

    Raises: InputError, CheckpointError or NonFiniteError: there are no donors, they do not fit, they are not finite.
    """
    start = mergeable(base, skip)
    read = {name: as_weights(donor) for name, donor in donors.items()}
    check_donors(start, read)
    found = {}
    for name, tensor in start.items():
        wide = wide_dtype(tensor.dtype)
        rows = [read[donor][name].to(tensor.device, wide) - tensor.to(wide) for donor in read]
        stack = torch.stack([row.to(dtype or wide) for row in rows])
        if not bool(torch.isfinite(stack).all()):
            bad = [d for d, row in zip(read, stack, strict=True) if not bool(torch.isfinite(row).all())]
            raise NonFiniteError(f"donor tensors hold NaN or infinity: {', '.join(f'{d}.{name}' for d in bad)}")
        if bool(stack.any()):
            found[name] = stack
    return found


def smallest_kept(vectors: Mapping[str, Tensor], density: float) -> Tensor:
    """For each donor the size of the smallest entry that is kept, if it keeps its largest over all tensors.

    Args:
        vectors: `[donors, *shape]` by name.
        density: share of its entries that each keeps, in (0, 1].

    Returns:
        `[donors]`.
    """
    count = sum(stack[0].numel() for stack in vectors.values())
    place = count - rank_of(density, count) + 1
    donors = range(len(next(iter(vectors.values()))))
    sizes = (torch.cat([stack[donor].abs().flatten() for stack in vectors.values()]) for donor in donors)
    return torch.stack([size.kthvalue(place).values for size in sizes])


def agreeing(vectors: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """Task vectors with their small and their outvoted entries set to 0, as AdaMerging++ has them.

    Of each donor the share `density` of its entries is kept, over all tensors together: the largest in size, and those
    as large as the smallest of them (the official code keeps one more). The sign of the kept entries' sum over donors
    is elected, an even vote taking the majority's, and entries of the other sign go.

    Args:
        vectors: `[donors, *shape]` by name.
        density: in (0, 1].
    """
    cuts = smallest_kept(vectors, density)
    kept = {name: stack * (stack.abs() >= cuts.view(-1, *[1] * (stack.ndim - 1))) for name, stack in vectors.items()}
    signs = {name: stack.sum(0).sign() for name, stack in kept.items()}
    majority = sum(float(sign.sum(dtype=torch.float64)) for sign in signs.values())
    for sign in signs.values():
        sign[sign == 0] = (majority > 0) - (majority < 0)
    return {name: stack * (stack.sign() == signs[name]) for name, stack in kept.items()}


@dataclass(frozen=True, eq=False)
class Learned:
    """A merge whose coefficients were learnt.

    Attributes:
        model: the merged network.
        coefficients: `[donors, blocks]`.
        tasks: names of the donors, in the order of the rows.
        blocks: names of the columns.
        steps: how many steps were made.
        stopped: why learning ended early, or empty.
    """

    model: nn.Module
    coefficients: Tensor
    tasks: tuple[str, ...]
    blocks: tuple[str, ...]
    steps: int
    stopped: str = ""


class Combination:
    """A network over its base and weighted task vectors; see the module's docstring.

    Args:
        model: the base; it is not changed.
        vectors: `[donors, *shape]` by the name of the parameter, see `task_vectors`.
        per: one coefficient a donor and `"tensor"`, or a donor and the whole `"model"`.
        groups: more than 1 divides every tensor of two dimensions or more into so many random groups of entries.
        generator: of the groups.

    Attributes:
        network: a fork that owns the merged weights; everything else in it is the base's.
        blocks: names of the columns of the coefficients.
    """

    def __init__(
        self,
        model: nn.Module,
        vectors: Mapping[str, Tensor],
        per: Per = "tensor",
        groups: int = 1,
        generator: torch.Generator | None = None,
    ):
        if not vectors:
            raise ModelError("the donors equal the base in every parameter that is merged; there is nothing to weigh")
        if groups > 1 and (per == "model" or generator is None):
            raise SpecError('groups are of the entries of tensors, and random: per="tensor", and a generator is wanted')
        self.vectors, self._flags = vectors, {n: p.requires_grad for n, p in model.named_parameters()}
        self._base = {name: model.get_parameter(name).detach() for name in vectors}
        self.network = fork(model, own=set(vectors)).eval()
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name in self._base)
        self._masks: dict[torch.Size, Tensor] = {}
        self._columns: dict[str, slice] = {}
        names: list[str] = [] if per == "tensor" else ["model"]
        for name, base in self._base.items():
            if per == "model":
                self._columns[name] = slice(0, 1)
                continue
            many = groups if base.ndim > 1 else 1
            self._columns[name] = slice(len(names), len(names) + many)
            names += [name] if many == 1 else [f"{name}[{k}]" for k in range(many)]
            if many > 1 and base.shape not in self._masks:
                drawn = torch.randint(many, (base.numel(),), generator=generator, dtype=torch.int32)
                self._masks[base.shape] = drawn.to(base.device)
        self.blocks = tuple(names)
        widest = max((wide_dtype(b.dtype) for b in self._base.values()), key=lambda d: torch.finfo(d).bits)
        self.tasks, self.dtype, self.device = len(vectors[next(iter(vectors))]), widest, device_of(self.network)

    def constant(self, value: float) -> Tensor:
        """Coefficients that are all the same."""
        return torch.full((self.tasks, len(self.blocks)), value, dtype=self.dtype, device=self.device)

    @torch.no_grad()
    def write(self, coefficients: Tensor) -> None:
        """Set the network's weights in place, to coefficients `[donors, blocks]`."""
        if coefficients.shape != (self.tasks, len(self.blocks)):
            wanted = (self.tasks, len(self.blocks))
            raise InputError(f"coefficients are {tuple(coefficients.shape)}; {wanted} (donors, blocks) is wanted")
        for name, base in self._base.items():
            wide, stack = wide_dtype(base.dtype), self.vectors[name].to(self.device)
            weight, mask = coefficients[:, self._columns[name]].to(wide), self._mask(name)
            start = base.to(wide).flatten()
            if mask is None and stack.dtype == wide:
                made = torch.addmv(start, stack.flatten(1).T, weight[:, 0])
            else:
                made = start.clone()
                for row, c in zip(stack.flatten(1), weight, strict=True):
                    made += row.to(wide) * (c if mask is None else c[mask])
            self.network.get_parameter(name).copy_(made.view_as(base))

    @contextmanager
    def gradient(self) -> Iterator[Tensor]:
        """Inside, every backward pass adds the coefficients' gradient to what is yielded, `[donors, blocks]`.

        Each pass reads all task vectors: one backward pass of summed losses is cheaper than several.
        """
        total = self.constant(0.0)
        parameters = {name: self.network.get_parameter(name) for name in self._base}
        hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._take, name, total))
            for name, parameter in parameters.items()
        ]
        try:
            yield total
        finally:
            for hook in hooks:
                hook.remove()
            for parameter in parameters.values():
                parameter.grad = None

    @torch.no_grad()
    def _take(self, name: str, total: Tensor, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        wide, stack, mask = wide_dtype(parameter.dtype), self.vectors[name].to(self.device), self._mask(name)
        flat, into = gradient.to(wide).flatten(), total[:, self._columns[name]]
        if mask is None and stack.dtype == wide:
            into[:, 0] += (stack.flatten(1) @ flat).to(self.dtype)
            return
        for row, place in zip(stack.flatten(1), into, strict=True):
            product = row.to(wide) * flat
            if mask is None:
                place += product.sum().to(self.dtype)
            else:
                place.index_add_(0, mask, product.to(self.dtype))

    def _mask(self, name: str) -> Tensor | None:
        columns = self._columns[name]
        return self._masks[self._base[name].shape] if columns.stop - columns.start > 1 else None

    def result(self, coefficients: Tensor) -> nn.Module:
        """The network at these coefficients, with the base's `requires_grad` flags; in evaluation mode."""
        self.write(coefficients)
        for name, parameter in self.network.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(self._flags[name])
        return self.network.eval()
