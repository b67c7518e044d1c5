"""Samples of any structure as named rows, which memory banks keep.

>>> import torch
>>> rows = as_rows({"a": torch.ones(2), "b": (torch.zeros(2),)}, "x")
>>> list(rows), as_tree({"a": torch.ones(1), "b": (torch.ones(1),)}, "x", rows)
(['x.x.a', 'x.x.b.0'], {'a': tensor([1., 1.]), 'b': (tensor([0., 0.]),)})
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from homeostat.core.tree import Tree, map_tree, named_leaves


def as_rows(tree: Tree, prefix: str) -> dict[str, Tensor]:
    """The leaves of a tree by name, below a prefix."""
    return {f"{prefix}.{name}": leaf for name, leaf in named_leaves(tree, prefix)}


def as_tree(like: Tree, prefix: str, rows: Mapping[str, Tensor]) -> Any:
    """The tree that rows were made of, in the structure of `like`."""
    names = iter([name for name, _ in named_leaves(like, prefix)])
    return map_tree(lambda _: rows[f"{prefix}.{next(names)}"], like)
