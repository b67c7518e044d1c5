"""TIES: merge fine-tuned models into one, with their conflicts settled first.

Several people fine-tuned one network, each for a task; averaging them cancels what they learnt where they disagree.
TIES keeps only each one's largest changes, lets them vote on the direction of every weight, and averages the changes
that agree with the vote.

With base weights theta_0 `[d]` and task vectors tau_t = theta_t - theta_0, t = 1..T:

    trim      tau'_t keeps the `density * d` entries of tau_t largest in size, the rest is 0
    elect     gamma = sign(sum_t tau'_t); entries whose sum is 0 take the sign of sum(gamma)
    merge     tau = mean over {t : sign(tau'_t) = gamma, tau'_t != 0} of tau'_t
    theta     = theta_0 + scale * tau

Defaults are the paper's: density 0.2, scale 1. `scope="model"` trims over all weights together, as the paper does;
`"tensor"` trims each tensor by itself, as mergekit does. Among entries of equal size the first in order of name and
index are kept, so that the share kept is exact and the same everywhere; `ties="all"` keeps all of them, as the
official code does, which in half precision can be many more. Only floating parameters are merged: buffers (BatchNorm
statistics, counters) stay the base's; recalibrate them afterwards.

It helps when tasks conflict in few weights. Where all tasks change all weights in conflict, it does no better than
task arithmetic with a tuned scale.

>>> base = {"w": torch.zeros(4)}
>>> a, b = {"w": torch.tensor([3.0, 1.0, 0.0, 0.0])}, {"w": torch.tensor([-1.0, 2.0, 0.0, 0.5])}
>>> merge_ties(base, [a, b], density=0.5)["w"]
tensor([3.0000, 1.5000, 0.0000, 0.0000])

Reference: Yadav et al., TIES-Merging: Resolving Interference When Merging Models, NeurIPS 2023.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import annotated_types as at
import torch
from torch import Tensor, nn

from homeostat.core.errors import CheckpointError, InputError, NonFiniteError
from homeostat.core.fork import fork, matches
from homeostat.core.method import Card, Remedy
from homeostat.core.run import Run
from homeostat.core.spec import Positive
from homeostat.core.weights import as_weights
from homeostat.core.world import World


def merge_ties(
    base: Mapping[str, Tensor],
    donors: Sequence[Mapping[str, Tensor]],
    density: float = 0.2,
    scale: float = 1.0,
    scope: Literal["model", "tensor"] = "model",
    ties: Literal["index", "all"] = "index",
) -> dict[str, Tensor]:
    """Merge donors into the base.

    Args:
        base: floating tensors by name.
        donors: the same names and shapes; lazily read mappings are read a tensor at a time.
        density: share of each task vector's entries kept, in (0, 1].
        scale: of the merged task vector.
        scope: trim over the whole model or within each tensor.
        ties: among equal sizes keep the first by index, or all.

    Returns:
        Merged tensors by name, in the base's dtype; computed in float32 or wider.
    """
    names = list(base)
    cuts = [_cuts(base, donor, names, density, scope, ties) for donor in donors]
    majority: Tensor | None = None
    merged: dict[str, Tensor] = {}
    for final in (False, True):
        # The sign of all elected signs together is needed for the entries whose vote is even.
        votes = 0.0
        for name in names:
            trimmed = [_trim(_delta(base, d, name), cut[name], ties) for d, cut in zip(donors, cuts, strict=True)]
            sign = torch.stack(trimmed).sum(0).sign()
            if not final:
                votes += float(sign.sum(dtype=torch.float64))
                continue
            sign = torch.where(sign == 0, majority, sign)  # type: ignore[arg-type]
            total, count = torch.zeros_like(sign), torch.zeros_like(sign)
            for vector in trimmed:
                agrees = (vector.sign() == sign) & (vector != 0)
                total += vector * agrees
                count += agrees
            wide = base[name].to(total.dtype) + scale * total / count.clamp(min=1)
            merged[name] = wide.to(base[name].dtype)
        majority = torch.tensor(votes).sign()
    return merged


def _delta(base: Mapping[str, Tensor], donor: Mapping[str, Tensor], name: str) -> Tensor:
    wide = torch.promote_types(base[name].dtype, torch.float32)
    return donor[name].to(base[name].device, wide) - base[name].to(wide)


@dataclass
class _Cut:
    """Entries larger than `size` are kept, and the first `equal` of those that equal it."""

    size: float
    equal: int


def _cuts(
    base: Mapping[str, Tensor], donor: Mapping[str, Tensor], names: list[str], density: float, scope: str, ties: str
) -> dict[str, _Cut]:
    groups = [names] if scope == "model" else [[name] for name in names]
    cuts: dict[str, _Cut] = {}
    for group in groups:
        sizes = torch.cat([_delta(base, donor, name).abs().flatten() for name in group])
        keep = max(1, round(density * len(sizes)))
        size = sizes.kthvalue(len(sizes) - keep + 1).values
        left = keep - int((sizes > size).sum())
        for name in group:
            if ties == "all":
                cuts[name] = _Cut(float(size), -1)
                continue
            equal = int((_delta(base, donor, name).abs() == size).sum())
            cuts[name] = _Cut(float(size), min(left, equal))
            left -= min(left, equal)
    return cuts


def _trim(vector: Tensor, cut: _Cut, ties: str) -> Tensor:
    sizes = vector.abs()
    if ties == "all":
        return vector * (sizes >= cut.size)
    equal = (sizes == cut.size).flatten()
    kept = (sizes > cut.size).flatten() | (equal & (equal.cumsum(0) <= cut.equal))
    return vector * kept.view_as(vector)


@dataclass(frozen=True)
class TIES(Remedy):
    """Merges `world.models` (donors fine-tuned from the given model) into the given model.

    Attributes:
        density: share of each donor's changes kept, K / 100 of the paper.
        scale: of the merged task vector, the paper's lambda.
        scope: trim over the `"model"` (the paper) or each `"tensor"` (mergekit).
        ties: among changes of equal size keep the first by `"index"`, or `"all"` (the official code).
        skip: globs of parameters that stay the base's, such as heads of other tasks.
    """

    density: Annotated[float, at.Gt(0), at.Le(1)] = 0.2
    scale: Positive = 1.0
    scope: Literal["model", "tensor"] = "model"
    ties: Literal["index", "all"] = "index"
    skip: tuple[str, ...] = ()

    card: ClassVar[Card] = Card(
        id="S022", paper="Yadav et al., TIES-Merging, NeurIPS 2023", handles=frozenset({"tasks", "covariate"}),
        needs=frozenset({"models.*", "model.parameters"}), passes=0.0,
    )  # fmt: skip

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        skipped = matches(self.skip)
        base = {n: p.detach() for n, p in model.named_parameters() if p.is_floating_point() and not skipped(n)}
        donors = {name: as_weights(donor) for name, donor in world.models.items()}
        check_donors(base, donors)
        merged = merge_ties(base, list(donors.values()), self.density, self.scale, self.scope, self.ties)
        made = fork(model, own=set(merged))
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if name in merged:
                    parameter.copy_(merged[name])
        return made


def check_donors(base: Mapping[str, Tensor], donors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise one error that lists every donor tensor that is missing, of another shape or not finite."""
    if not donors:
        raise InputError("there are no donors to merge: World(models={'name': net or path})")
    wrong, infinite = [], []
    for donor, tensors in donors.items():
        for name, tensor in base.items():
            if name not in tensors:
                wrong.append(f"{donor} lacks {name}")
            elif (other := tensors[name]).shape != tensor.shape:
                wrong.append(f"{donor}.{name} is {tuple(other.shape)}, {tuple(tensor.shape)} wanted")
            elif not bool(torch.isfinite(other).all()):
                infinite.append(f"{donor}.{name}")
    if wrong:
        raise CheckpointError(f"{len(wrong)} donor tensors do not fit the base: {'; '.join(wrong[:6])}")
    if infinite:
        raise NonFiniteError(f"donor tensors hold NaN or infinity: {', '.join(infinite[:6])}")
