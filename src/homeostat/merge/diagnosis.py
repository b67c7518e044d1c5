"""What stands against merging some donors, read before any method is chosen.

With task vectors tau_t = theta_t - theta_0, t = 1..T, over all merged parameters together or matrix by matrix:

    cosine             mean over pairs of cos(tau_s, tau_t). About 0 where tasks change different things, above where
                       they share, below where one undoes the other.
    sign conflict      of the entries that two or more donors keep when each keeps its `density` largest, the share
                       whose signs differ. 0.5 for two independent donors, more for more.
    subspace alignment ||U_k U_k^T Delta_t||_F / ||Delta_t||_F for a matrix's Delta_t, where U_k are the first k left
                       singular vectors of sum_s Delta_s and k is the smallest rank that leaves a relative error of
                       `error`: how much of a donor the merge's main directions can hold. Mean over matrices, weighted
                       with ||Delta_t||^2, and donors.
    variance ratio     variance of each layer's outputs in the merged network, summed over units, divided by its mean
                       over donors on the same inputs; geometric mean over layers. Well below 1 is variance collapse:
                       layers of the merge say little, and renormalising helps.

    recovered          share of each task's unlabelled inputs on which the merged network answers as the donor does, as
                       part of the way from the base's share to 1; mean over tasks. 0 or below: merging does not pay.

The first three need no data and no merge, and say how donors relate, not whether merging pays: on three zoos where
tuned task arithmetic made 0.03, 0.12 and 0.85 of the way from the base's accuracy to the donors', cosines were 0.13,
0.06, 0.01, sign conflicts 0.46, 0.52, 0.55 and alignments 0.95, 0.95, 0.94. Variance ratios of the average were 0.64,
0.88, 0.95. What answers the question without labels is `recovered`, of any merge at hand: for six merges that made
-0.44, 0.03, 0.09, 0.12, 0.41 and 0.85 of the way it read -0.09, 0.14, 0.22, 0.27, 0.29 and 0.64. Every reading has one
number a donor, pair, tensor, layer or task in `arrays`.

>>> base = nn.Linear(2, 1, bias=False)
>>> _ = nn.init.zeros_(base.weight)
>>> donors = {name: nn.Linear(2, 1, bias=False) for name in "ab"}
>>> with torch.no_grad():
...     _ = donors["a"].weight.copy_(torch.tensor([[1.0, 1.0]]))
...     _ = donors["b"].weight.copy_(torch.tensor([[1.0, -1.0]]))
>>> [f"{reading.name} {reading.value:.1f}" for reading in diagnose(base, donors, density=1.0)]
['task vector cosine 0.0', 'sign conflict 0.5', 'subspace alignment 1.0']

References: Yadav et al., TIES-Merging, NeurIPS 2023 (sign conflict); Marczak et al., No Task Left Behind, ICML 2025
(subspace alignment); Jordan et al., REPAIR, ICLR 2023 (variance collapse).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.core.data import Data
from homeostat.core.errors import InputError
from homeostat.core.fork import Pattern, fork
from homeostat.core.intake import as_data
from homeostat.core.place import there
from homeostat.core.probe import outputs
from homeostat.core.reading import Finding, Reading, Readings
from homeostat.merge.coefficients import smallest_kept, task_vectors
from homeostat.merge.heads import with_head
from homeostat.nn.repair import LAYERS

COLLAPSED = 0.5
"""A variance ratio below this is called collapse."""
Vectors = Mapping[str, Tensor]


def diagnose(
    model: nn.Module,
    donors: Mapping[str, Any],
    merged: nn.Module | None = None,
    data: Any = None,
    skip: Pattern = (),
    density: float = 0.2,
    error: float = 0.05,
) -> Readings:
    """All readings of a set of donors; see the module's docstring.

    Args:
        model: the base.
        donors: networks by name; without `merged` mappings of tensors and paths will do.
        merged: the merge to measure the variance ratio of, which is left out without one.
        data: inputs for it; labels are not read.
        skip: names of parameters that are not merged.
        density: share of its entries that each donor keeps when signs are compared.
        error: relative error that the merge's main directions leave.

    Raises:
        InputError: fewer than two donors, or a merged network without data.
    """
    vectors = task_vectors(model, donors, skip)
    if len(donors) < 2 or not vectors:
        raise InputError(f"{len(donors)} donors, {len(vectors)} changed tensors; two donors that differ are wanted")
    readings = Readings([cosine(vectors), sign_conflict(vectors, density)])
    if any(stack.ndim > 2 for stack in vectors.values()):
        readings.append(subspace_alignment(vectors, error))
    if merged is not None:
        if data is None:
            raise InputError("the variance ratio is measured on inputs: give data")
        readings.append(variance_ratio(merged, donors, data))
    return readings


def cosine(vectors: Vectors) -> Reading:
    """Mean cosine of two task vectors; `arrays["cosine"]` has all, `[donors, donors]`.

    Args:
        vectors: `[donors, *shape]` by name, see `task_vectors`.
    """
    gram = sum(s.flatten(1).double() @ s.flatten(1).double().T for s in vectors.values())
    assert isinstance(gram, Tensor)
    length = gram.diag().sqrt()
    cosines = gram / (length[:, None] * length).clamp(min=1e-300)
    off = ~torch.eye(len(gram), dtype=torch.bool, device=gram.device)
    return Reading("task vector cosine", float(cosines[off].mean()), arrays={"cosine": cosines.cpu()})


def sign_conflict(vectors: Vectors, density: float = 0.2) -> Reading:
    """Share of the entries kept by two donors or more in which signs differ; `arrays["tensor"]` has each tensor's.

    Args:
        vectors: `[donors, *shape]` by name, see `task_vectors`.
        density: share of its entries, over all tensors, that each donor keeps: the largest in size.
    """
    cut = smallest_kept(vectors, density)
    shared, differ = [], []
    for stack in vectors.values():
        flat = stack.flatten(1)
        kept = (flat.abs() >= cut[:, None]) & (flat != 0)
        both = kept.sum(0) >= 2
        signs = (flat.sign() * kept).sum(0).abs()
        shared.append(int(both.sum()))
        differ.append(int((both & (signs < kept.sum(0))).sum()))
    counts = torch.tensor([differ, shared], dtype=torch.float64)
    value = float(counts[0].sum() / counts[1].sum().clamp(min=1))
    return Reading(
        "sign conflict", value, unit="fraction", better="lower", arrays={"tensor": counts[0] / counts[1].clamp(min=1)}
    )


def subspace_alignment(vectors: Vectors, error: float = 0.05, merged: Mapping[str, Tensor] | None = None) -> Reading:
    """How much of the donors' changes lies in the main directions of their merge; `arrays["donor"]` has each one's.

    Args:
        vectors: `[donors, *shape]` by name, see `task_vectors`; those of two dimensions or more count, the first
            dimension against all others.
        error: relative error, in the Frobenius norm, that the main directions leave of the merged change.
        merged: by name what a merge changed of the base; default the donors' sum.
    """
    within = total = torch.zeros(len(next(iter(vectors.values()))), dtype=torch.float64)
    for name, stack in vectors.items():
        if stack.ndim < 3:
            continue
        changes = stack.flatten(2).double().cpu()
        whole = changes.sum(0) if merged is None else merged[name].flatten(1).double().cpu()
        left, values, _ = torch.linalg.svd(whole, full_matrices=False)
        energy = values.square()
        # What is left after the first k directions, for k = 0, 1, ..., relative to all.
        rest = (energy.sum() - energy.cumsum(0)).clamp(min=0).sqrt() / energy.sum().sqrt().clamp(min=1e-300)
        rank = int((rest > error).sum()) + 1
        within = within + (left[:, :rank].T @ changes).square().sum((1, 2))
        total = total + changes.square().sum((1, 2))
    if not bool(total.any()):
        raise InputError("no donor changed a tensor of two dimensions or more; there is no subspace to align with")
    each = (within / total.clamp(min=1e-300)).sqrt()
    return Reading("subspace alignment", float(each.mean()), unit="fraction", better="higher", arrays={"donor": each})


@torch.no_grad()
def recovered(
    model: nn.Module, merged: nn.Module, donors: Mapping[str, nn.Module], data: Mapping[str, Any], heads: Pattern = ()
) -> Reading:
    """How far the merge has come from the base to answering as its donors do; `arrays["task"]` has each task's.

    Args:
        model: the base.
        merged: the merge.
        donors: classifiers by name.
        data: inputs of each donor's task, by its name.
        heads: names of parameters that each task keeps as its own, see `with_head`.
    """
    if missing := [name for name in donors if name not in data]:
        raise InputError(f"inputs of each donor's task are wanted, and there are none of {', '.join(missing)}")
    found = []
    for name, donor in donors.items():
        answers = [
            outputs(net, data[name]).logits.argmax(1)
            for net in (donor, with_head(model, donor, heads), with_head(merged, donor, heads))
        ]
        start, now = (float((answer == answers[0]).double().mean()) for answer in answers[1:])
        found.append((now - start) / (1 - start) if start < 1 else min(0.0, now - start))
    each = torch.tensor(found, dtype=torch.float64)
    value, least = float(each.mean()), list(donors)[int(each.argmin())]
    text = (
        f"The merge makes {value:.2f} of the way from the base's answers to its donors', for {least} {min(found):.2f}."
    )
    finding = Finding("merging pays", value > 0, (least,), effect=value, text=text)
    return Reading("recovered", value, unit="fraction", better="higher", finding=finding, arrays={"task": each})


@torch.no_grad()
def variance_ratio(
    merged: nn.Module, donors: Mapping[str, nn.Module], data: Any, collapsed: float = COLLAPSED
) -> Reading:
    """Variance of the merge's layers relative to that of its donors'; `arrays["layer"]` has each layer's, in order.

    Args:
        merged: the merged network.
        donors: networks by name.
        data: inputs, the same for all.
        collapsed: the finding is detected below this.
    """
    inputs = as_data(data)
    own, others = _variances(merged, inputs), [_variances(donor, inputs) for donor in donors.values()]
    common = [name for name in own if all(name in other for other in others)]
    if not common:
        raise InputError("the merged network and its donors have no linear or convolution layer in common")
    ratios = torch.stack([own[n] / torch.stack([o[n] for o in others]).mean().clamp(min=1e-300) for n in common])
    value = float(ratios.clamp(min=1e-30).log().mean().exp())
    worst = common[int(ratios.argmin())]
    text = f"Layers of the merge have {value:.2f} of their donors' variance, {worst} least ({float(ratios.min()):.2f})."
    found = Finding("variance collapse", value < collapsed, (worst,), effect=value, text=text)
    return Reading("variance ratio", value, better="none", finding=found, arrays={"layer": ratios})


def _variances(network: nn.Module, data: Data) -> dict[str, Tensor]:
    """For each layer the variance of its outputs over samples and places, summed over units."""
    own = fork(network).eval()
    seen: dict[str, list[Tensor]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            units = out.movedim(1, -1) if out.ndim > 2 and not isinstance(module, nn.Linear) else out
            flat = units.flatten(0, -2).double()
            seen.setdefault(name, []).append(
                torch.stack([torch.ones_like(flat).sum(0), flat.sum(0), flat.square().sum(0)])
            )

        return hook

    for name, module in own.named_modules():
        if isinstance(module, LAYERS):
            module.register_forward_hook(note(name))
    for batch in data.batches(256):
        own(there(batch.x, own))
    sums = {name: torch.stack(parts).sum(0) for name, parts in seen.items()}
    return {name: (s[2] / s[0] - (s[1] / s[0]).square()).clamp(min=0).sum().cpu() for name, s in sums.items()}
