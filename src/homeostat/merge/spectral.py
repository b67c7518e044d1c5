"""Merges of matrices by their singular values and directions.

Adding task vectors lets the directions that several tasks share grow long, and drowns those of one task alone. With
task matrices Delta_t `[m, n]` and their sum D = U S V^T of rank r:

    Iso-C     Delta = mean(S) U V^T: every direction gets the same length
    Iso-CTS   keeps the c = r - k longest directions of D, k = round((1 - common) r / T) T, and gives each task k / T
              of the directions of what is left of its Delta_t beside them; all are made orthogonal, and of one length
    TSV-M     takes the r / T longest directions of each task with their own lengths, and makes them orthogonal

    theta = theta_0 + scale Delta

Making columns orthogonal is taking their polar factor: P Q^T of U* = P S Q^T. Parameters that are no matrices are
averaged. Only what is above the noise of the sum is flattened: the r directions of a sum of low-rank changes, and none
of the many others, to which the official code gives the same length in directions of no meaning. Noise is that of
float32. Networks stored in half precision differ in all directions by rounding alone, and Iso flattens that, too: give
low-rank changes in float32.

Iso wants its scale chosen on held-out data: between 1 and 2 in the paper for Iso-C. With one task nothing is shared,
and flattening only does harm.

>>> base, donor = {"w": torch.zeros(2, 2)}, {"w": torch.tensor([[3.0, 0.0], [0.0, 1.0]])}
>>> merge_weights(IsoC(scale=1.0), base, [donor])["w"]
tensor([[2., 0.],
        [0., 2.]])

Reference: Marczak et al., No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces, ICML
2025 (S317); Gargiulo et al., Task Singular Vectors: Reducing Task Interference in Model Merging, CVPR 2025.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from homeostat.core.method import Card, Kind
from homeostat.core.spec import Fraction
from homeostat.merge.engine import merge_weights as merge_weights  # for the doctest
from homeostat.merge.merging import Block, Grain, Merge

HANDLES: frozenset[Kind] = frozenset({"tasks"})
NEEDS = frozenset({"models.*", "model.parameters"})


class MatrixMerge(Merge, abstract=True):
    """Base of methods for matrices; other parameters are averaged.

    Attributes:
        scale: of what is added to the base.
    """

    scale: float = 1.0

    def grain_of(self, shape: tuple[int, ...]) -> Grain:
        return "tensor" if len(shape) == 2 and min(shape) > 0 else "element"

    @abstractmethod
    def merged(self, changes: list[Tensor]) -> Tensor:
        """One change from the donors' `[m, n]`; float64."""

    def combine(self, block: Block, constants: Any) -> Tensor:
        changes = list(block.deltas())
        if block.base.dim() == 2:
            wide = [change.double() for change in changes]
            if not all(bool(torch.isfinite(change).all()) for change in wide):
                return torch.full_like(block.base, torch.nan)  # no decomposition takes them; the engine finds which
            change = self.merged(wide).to(block.base.dtype)
        else:
            change = torch.stack(changes).mean(0)
        return torch.add(block.base, change, alpha=self.scale)


@dataclass(frozen=True)
class IsoC(MatrixMerge):
    """Isotropic merging in the common subspace.

    Attributes:
        scale: of the flattened change, the paper's alpha.
        skip: globs of tensors that stay the base's.
    """

    scale: float = 1.0
    skip: tuple[str, ...] = ()

    card: ClassVar[Card] = Card(
        id="S317", paper="Marczak et al., No Task Left Behind, ICML 2025", handles=HANDLES, needs=NEEDS, passes=0.0
    )

    def merged(self, changes: list[Tensor]) -> Tensor:
        factor, values = polar(torch.stack(changes).sum(0))
        return factor * (values.mean() if len(values) else 0.0)


@dataclass(frozen=True)
class IsoCTS(MatrixMerge):
    """Isotropic merging in common and task-specific subspaces.

    Attributes:
        scale: of the flattened change, the paper's alpha.
        common: share of the directions that are those of the sum; the paper's 0.8.
        skip: globs of tensors that stay the base's.
    """

    scale: float = 1.0
    common: Fraction = 0.8
    skip: tuple[str, ...] = ()

    card: ClassVar[Card] = Card(
        id="S317", paper="Marczak et al., No Task Left Behind, ICML 2025", handles=HANDLES, needs=NEEDS, passes=0.0
    )

    def merged(self, changes: list[Tensor]) -> Tensor:
        u, s, v = directions(torch.stack(changes).sum(0))
        rank, tasks = min(changes[0].shape), len(changes)
        own = min(round((rank - int(self.common * rank)) / tasks), rank // tasks)
        shared = rank - own * tasks
        u, s, v = u[:, :shared], s[:shared], v[:, :shared]
        parts = [
            tuple(part[..., :own] for part in directions(change - u @ (u.T @ change), change.norm()))
            for change in changes
        ]
        left, lengths, right = (torch.cat([*(p[i] for p in parts), (u, s, v)[i]], -1) for i in range(3))
        if not len(lengths):
            return torch.zeros_like(changes[0])
        return polar(left)[0] @ polar(right)[0].T * lengths.mean()


@dataclass(frozen=True)
class TSVM(MatrixMerge):
    """Task singular vectors: each task's longest directions, made orthogonal to those of the others.

    Attributes:
        scale: of the merged change.
        skip: globs of tensors that stay the base's.
    """

    scale: float = 1.0
    skip: tuple[str, ...] = ()

    card: ClassVar[Card] = Card(
        paper="Gargiulo et al., Task Singular Vectors, CVPR 2025", handles=HANDLES, needs=NEEDS, passes=0.0
    )

    def merged(self, changes: list[Tensor]) -> Tensor:
        each = max(1, min(changes[0].shape) // len(changes))
        parts = [tuple(part[..., :each] for part in directions(change)) for change in changes]
        left, lengths, right = (torch.cat([p[i] for p in parts], -1) for i in range(3))
        return polar(left)[0] * lengths @ polar(right)[0].T


def directions(matrix: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Left directions `[m, r]`, lengths `[r]` and right directions `[n, r]` of a matrix of rank r, longest first.

    `size` is a length that the matrix was computed from, by which rounding is judged; its own longest by default.
    """
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((s > _noise(matrix, s if size is None else size[None])).sum())
    return u[:, :rank], s[:rank], vh[:rank].T


def polar(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """U V^T `[m, n]` of a matrix U S V^T, over its r singular values above the noise, and these `[r]`.

    By the eigenvalues of the smaller product of the matrix with itself, which is faster than its singular values; in
    float64, so that squaring costs no digit that float32 has.
    """
    wide = matrix.shape[0] < matrix.shape[1]
    tall = matrix.T if wide else matrix
    squares, v = torch.linalg.eigh(tall.T @ tall)
    s = squares.clamp(min=0).sqrt()
    kept = s > _noise(matrix, s)
    v, s = v[:, kept], s[kept]
    factor = (tall @ v / s) @ v.T
    return (factor.T if wide else factor), s.flip(0)


def _noise(matrix: Tensor, lengths: Tensor) -> Tensor:
    """Below what length a direction is rounding: the matrix was computed in float32."""
    longest = lengths.max() if len(lengths) else lengths.sum()
    return longest * max(matrix.shape) * torch.finfo(torch.float32).eps
