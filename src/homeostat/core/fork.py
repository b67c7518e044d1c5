"""Copy nothing that is not changed: new modules over the caller's tensors.

`fork(model, own=...)` makes new module objects, without the caller's hooks, that share the caller's tensors except for
those a method is going to change. Nobody's model changes under them, not even its `train()` flag. Shared tensors keep
one version counter, so that a write that slips through can be seen (`versions`).

>>> import torch
>>> from torch import nn
>>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
>>> own = fork(net, own="1.*")
>>> own[0].weight.data_ptr() == net[0].weight.data_ptr(), own[1].weight.data_ptr() == net[1].weight.data_ptr()
(True, False)
"""

from __future__ import annotations

import types
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from homeostat.core.errors import DtypeError, ModelError, nearest

M = TypeVar("M", bound=nn.Module)
Pattern = str | Iterable[str] | Callable[[str], bool]

_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
    "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called",
)  # fmt: skip


def matches(pattern: Pattern) -> Callable[[str], bool]:
    """A test of dotted names: a glob (`"layer1.*"`), several of them, or the caller's own function."""
    if callable(pattern) and not isinstance(pattern, str):
        return pattern
    globs = (pattern,) if isinstance(pattern, str) else tuple(pattern)
    exact = {g for g in globs if not any(c in g for c in "*?[")}
    wild = [g for g in globs if g not in exact]
    return lambda name: name in exact or any(fnmatchcase(name, g) for g in wild)


def targets(model: nn.Module, pattern: Pattern, kind: type | tuple[type, ...] = nn.Module) -> dict[str, nn.Module]:
    """The submodules of a kind whose dotted name matches.

    Raises:
        ModelError: nothing matches; names that would are listed.
    """
    wanted = matches(pattern)
    of_kind = {name: module for name, module in model.named_modules() if isinstance(module, kind) and name}
    found = {name: module for name, module in of_kind.items() if wanted(name)}
    if not found:
        kinds = kind if isinstance(kind, tuple) else (kind,)
        shown = ", ".join(list(of_kind)[:8]) or "none"
        raise ModelError(
            f"no {' or '.join(k.__name__ for k in kinds)} layer matches {pattern!r}.{nearest(str(pattern), of_kind)} "
            f"Layers of that kind: {shown}"
        )
    return found


def unwrap(model: Any) -> nn.Module:
    """The plain module inside `torch.compile` and data-parallel wrappers.

    Raises:
        DtypeError: it is not a module, or one that cannot be forked (TorchScript).
    """
    if not isinstance(model, nn.Module):
        raise DtypeError(f"the model is a {type(model).__name__}; an nn.Module is wanted")
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            break
    if isinstance(model, torch.jit.ScriptModule):
        raise DtypeError("a TorchScript module cannot be forked or changed; give the module it was made from")
    return model  # type: ignore[return-value]


def fork(model: M, own: Pattern = ()) -> M:
    """New modules over the same tensors, with copies of those whose name matches `own`.

    Args:
        model: any module; it is not changed.
        own: dotted names of parameters and buffers to copy, as glob, several globs or a function.

    Returns:
        A module of the same classes. Hooks that users registered are left behind; those of `torch.nn.utils` (weight and
        spectral norm), which compute weights, are kept.
    """
    wanted = matches(own)
    copies: dict[int, Any] = {}
    alive: list[Any] = []
    for name, tensor in _named_tensors(model):
        if id(tensor) not in copies:
            copies[id(tensor)] = _alias(tensor, clone=False)
            alive.append(tensor)
        if wanted(name) and copies[id(tensor)].data_ptr() == tensor.data_ptr():
            copies[id(tensor)] = _alias(tensor, clone=True)
    for module in model.modules():
        new = module.__class__.__new__(module.__class__)
        copies[id(module)] = new
    for module in model.modules():
        state = copies[id(module)].__dict__
        for key, value in module.__dict__.items():
            state[key] = _kept_hooks(value) if key in _HOOKS else _translate(value, copies)
        state["training"] = module.training
    return copies[id(model)]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, one's own model is in evaluation mode; every module's flag is as before afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def versions(model: nn.Module) -> dict[str, tuple[int, int]]:
    """For each tensor its object's memory address and write counter; equal before and after means no write."""
    return {name: (tensor.data_ptr(), tensor._version) for name, tensor in _named_tensors(model)}


def _named_tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    for prefix, module in model.named_modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    yield f"{prefix}.{name}" if prefix else name, tensor


def _alias(tensor: Tensor, clone: bool) -> Tensor:
    data = tensor.detach().clone() if clone else tensor.detach()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(data, requires_grad=tensor.requires_grad)
    return data.requires_grad_(tensor.requires_grad) if tensor.requires_grad else data


def _kept_hooks(hooks: Any) -> Any:
    if not isinstance(hooks, dict):
        return hooks
    return OrderedDict((k, h) for k, h in hooks.items() if type(h).__module__.startswith("torch.nn.utils"))


def _translate(value: Any, copies: dict[int, Any]) -> Any:
    """The value with modules, tensors and bound methods of the old model replaced by the new model's."""
    if id(value) in copies:
        return copies[id(value)]
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _translate(item, copies)) for key, item in value.items())
    if type(value) in (list, tuple, set):
        return type(value)(_translate(item, copies) for item in value)
    if isinstance(value, types.MethodType) and id(value.__self__) in copies:
        return types.MethodType(value.__func__, copies[id(value.__self__)])
    if isinstance(value, partial):
        return partial(_translate(value.func, copies), *(_translate(a, copies) for a in value.args), **value.keywords)
    return value
