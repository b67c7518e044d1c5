"""Trees of tensors: a tensor, a mapping of trees or a tuple of trees.

Whatever goes into a network and comes out of it is such a tree, so that images, token dictionaries and graphs pass
through the same code.

>>> import torch
>>> map_tree(lambda t: t * 2, {"a": torch.tensor([1]), "b": (torch.tensor([2]),)})
{'a': tensor([2]), 'b': (tensor([4]),)}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Union

import torch
from torch import Tensor

Tree = Union[Tensor, Mapping[str, "Tree"], tuple["Tree", ...]]  # noqa: UP007  (a recursive alias needs Union)


def map_tree(function: Callable[..., Tensor], tree: Tree, *others: Tree) -> Tree:
    """Apply `function` to each leaf (and the matching leaves of `others`); the structure stays."""
    if isinstance(tree, Tensor):
        return function(tree, *others)
    if isinstance(tree, Mapping):
        return {key: map_tree(function, value, *(other[key] for other in others)) for key, value in tree.items()}  # type: ignore[index,call-overload]
    return tuple(map_tree(function, *parts) for parts in zip(tree, *others, strict=True))  # type: ignore[arg-type]


def leaves(tree: Tree) -> Iterator[Tensor]:
    """The tensors of a tree, in order."""
    if isinstance(tree, Tensor):
        yield tree
    else:
        for value in tree.values() if isinstance(tree, Mapping) else tree:
            yield from leaves(value)


def named_leaves(tree: Tree, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """`(dotted name, tensor)` for every leaf; the name of a bare tensor is the given one."""
    if isinstance(tree, Tensor):
        yield name, tree
        return
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    for key, value in items:
        yield from named_leaves(value, f"{name}.{key}" if name else str(key))


def length(tree: Tree) -> int:
    """The common first dimension of a tree's leaves."""
    first = next(leaves(tree), None)
    return 0 if first is None else len(first)


def cat(trees: Sequence[Tree]) -> Tree:
    """Concatenate trees of one structure along the first dimension."""
    if len(trees) == 1:
        return trees[0]
    return map_tree(lambda *parts: torch.cat(parts), *trees)
