"""Modules that can be rebuilt from a file: parts, and the recipe of a model made of them.

Any module that wraps or replaces another is a `Part`. Its constructor's arguments are configuration (JSON scalars,
tuples, Specs) or modules, and each is kept as an attribute of the same name; so what a constructor was given can be
read off the object as it is now, also after it grew. A recipe is JSON:

- a part: `{"part": name, "args": {...}, "inside": {path: recipe}}`, where `inside` lists parts that were put into it
  later (a LoRA layer in a ResNet);
- a transformers model: `{"transformers": class, "config": {...}}`;
- a common torch layer: `{"torch": "Linear", "args": {...}}`;
- anything else: `{"foreign": class}`, which can only be rebuilt over a model that the caller gives.

Nothing named in a recipe is ever imported: parts come from the register, layers from a closed list.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from homeostat.core import spec
from homeostat.core.errors import CheckpointError, MissingExtra, SpecError
from homeostat.core.fork import fork

_building = threading.local()

_LAYERS: dict[str, tuple[str, ...]] = {
    "Identity": (), "ReLU": (), "GELU": ("approximate",), "SiLU": (), "Tanh": (), "Sigmoid": (), "Dropout": ("p",),
    "Flatten": ("start_dim", "end_dim"), "LeakyReLU": ("negative_slope",),
    "Linear": ("in_features", "out_features"), "Embedding": ("num_embeddings", "embedding_dim", "padding_idx"),
    "Conv1d": ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    "Conv2d": ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    "BatchNorm1d": ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    "BatchNorm2d": ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    "GroupNorm": ("num_groups", "num_channels", "eps", "affine"),
    "LayerNorm": ("normalized_shape", "eps", "elementwise_affine"),
    "MaxPool2d": ("kernel_size", "stride", "padding"), "AvgPool2d": ("kernel_size", "stride", "padding"),
    "AdaptiveAvgPool2d": ("output_size",), "AdaptiveMaxPool2d": ("output_size",),
}  # fmt: skip
_BIASED = ("Linear", "Conv1d", "Conv2d")


class _PartMeta(type):
    """Notes whether a part was made inside another part's constructor, which will make it again."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        depth = getattr(_building, "depth", 0)
        _building.depth = depth + 1
        try:
            made = super().__call__(*args, **kwargs)
        finally:
            _building.depth = depth
        made._native = depth > 0
        return made


class Part(nn.Module, metaclass=_PartMeta):
    """Base of modules that wrap, replace or are built by the library; see the module's docstring.

    A subclass registers itself by its class name, as Specs do. Declare bases with `abstract=True`.
    """

    _native: bool = False

    def __init_subclass__(cls, *, abstract: bool = False, register: bool = True, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if register and not abstract:
            spec.add(cls)

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments as they are now."""
        found = {}
        for name, parameter in inspect.signature(type(self).__init__).parameters.items():
            if name == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if not hasattr(self, name):
                raise SpecError(f"{type(self).__name__} does not keep its argument {name!r} as an attribute")
            found[name] = getattr(self, name)
        return found


def recipe(model: nn.Module) -> dict[str, Any]:
    """What it takes to build a model again, its tensors aside, as JSON-ready mappings."""
    if isinstance(model, Part):
        described: dict[str, Any] = {"part": type(model).__name__, "args": {}}
        given = set()
        for name, value in model.arguments().items():
            if isinstance(value, nn.Module):
                given.add(name)
                described["args"][name] = {"module": recipe(value)}
            else:
                described["args"][name] = _plain(value)
    elif (layer := _layer(model)) is not None:
        return layer
    elif type(model) is nn.Sequential:
        return {"sequence": {name: recipe(child) for name, child in model.named_children()}}
    elif _is_transformers(model):
        config = model.config.to_dict()  # type: ignore[union-attr,operator]
        described, given = {"transformers": type(model).__name__, "config": config}, set()
    else:
        described, given = {"foreign": f"{type(model).__module__}.{type(model).__qualname__}"}, set()
    inside = {path: _original(part) for path, part in _outer_parts(model, given)}
    if inside:
        described["inside"] = inside
    return described


def _outer_parts(model: nn.Module, skip: set[str], prefix: str = "") -> list[tuple[str, Part]]:
    """Parts put into a model after it was built, outermost only; not those below its own module arguments."""
    found: list[tuple[str, Part]] = []
    for name, child in model.named_children():
        if not prefix and name in skip:
            continue
        path = f"{prefix}{name}"
        if isinstance(child, Part) and not child._native:
            found.append((path, child))
        else:
            found += _outer_parts(child, set(), f"{path}.")
    return found


def _original(part: Part) -> dict[str, Any]:
    """The recipe of a part that replaced a layer: what it wraps stands there already when it is rebuilt."""
    described = recipe(part)
    for name, value in part.arguments().items():
        if isinstance(value, nn.Module):
            described["args"][name] = {"module": _original(value) if isinstance(value, Part) else {"here": True}}
    return described


def build(description: Any, base: nn.Module | None = None, path: str = "") -> nn.Module:
    """A model from its recipe, with tensors yet to be filled.

    Args:
        description: from `recipe`.
        base: stands for the one foreign model in the recipe; it is forked, never changed.

    Raises:
        CheckpointError: the recipe needs a foreign model and none was given, or is malformed.
        UnknownName: it names a part that is not registered.
    """
    with _NoInit():
        return _build(description, base, None)


def _build(node: Any, base: nn.Module | None, here: nn.Module | None) -> nn.Module:
    if not isinstance(node, Mapping):
        raise CheckpointError(f"a recipe is a mapping; got {node!r}")
    if "here" in node:
        if here is None:
            raise CheckpointError("the recipe wraps a layer that is not there")
        return here
    if "torch" in node:
        if node["torch"] not in _LAYERS:
            raise CheckpointError(
                f"the recipe names the torch layer {node['torch']!r}, which is not in the closed list"
            )
        made: nn.Module = getattr(nn, node["torch"])(**_tuples(node["args"]))
    elif "sequence" in node:
        made = nn.Sequential()
        for name, child in node["sequence"].items():
            # A foreign layer of a sequence is found in the base at the same place.
            same = getattr(base, name, None) if type(base) is nn.Sequential else base
            made.add_module(name, _build(child, same, None))
    elif "part" in node:
        cls = spec.find(node["part"])
        if not issubclass(cls, Part):
            raise CheckpointError(f"the recipe names {node['part']!r}, which is not a part")
        made = cls(**{name: _argument(value, base, here) for name, value in node["args"].items()})
    elif "transformers" in node:
        made = _transformers(node)
    elif base is not None:
        if f"{type(base).__module__}.{type(base).__qualname__}" != node.get("foreign"):
            raise CheckpointError(
                f"the checkpoint was made over a {node.get('foreign')}; base is a {type(base).__name__}"
            )
        made = fork(base, own="*")
    else:
        raise CheckpointError(
            f"the checkpoint was made over a {node.get('foreign')}, which this library cannot build; "
            "give that model: load(path, base=net)"
        )
    for path, child in node.get("inside", {}).items():
        replace(made, path, _build(child, base, _at(made, path)))
    return made


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else spec.plain(value)


def _argument(value: Any, base: nn.Module | None, here: nn.Module | None) -> Any:
    if isinstance(value, Mapping) and set(value) == {"module"}:
        return _build(value["module"], base, here)
    if isinstance(value, Mapping) and set(value) == {"float"}:
        return float(value["float"])
    if isinstance(value, Mapping):
        return spec.from_config(value)
    if isinstance(value, list):
        return tuple(_argument(item, base, here) for item in value)
    return value


def replace(model: nn.Module, path: str, new: nn.Module) -> None:
    """Put a module at a dotted path of a model, in place; the model must be one's own (see `fork`)."""
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    if isinstance(owner, (nn.Sequential, nn.ModuleList)):
        owner._modules[name] = new
    else:
        setattr(owner, name, new)


def _at(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise CheckpointError(f"the recipe puts a part at {path!r}, which the {type(model).__name__} lacks") from None


def _layer(model: nn.Module) -> dict[str, Any] | None:
    name = type(model).__name__
    if type(model).__module__.startswith("torch.nn.modules") and name in _LAYERS:
        args = {key: spec.plain(getattr(model, key)) for key in _LAYERS[name]}
        if name in _BIASED:
            args["bias"] = model.bias is not None
        return {"torch": name, "args": args}
    return None


def _tuples(args: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}


def _is_transformers(model: nn.Module) -> bool:
    return any(c.__name__ == "PreTrainedModel" and c.__module__.startswith("transformers") for c in type(model).__mro__)


def _transformers(node: Mapping[str, Any]) -> nn.Module:
    try:
        import transformers
    except ImportError:
        raise MissingExtra(
            "this checkpoint holds a transformers model: pip install 'homeostat[transformers]'"
        ) from None
    cls = getattr(transformers, node["transformers"], None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise CheckpointError(f"transformers has no model class {node['transformers']!r}")
    config = cls.config_class.from_dict(dict(node["config"]))  # type: ignore[union-attr]
    with _Initialising():
        return cls(config)


class _NoInit(TorchFunctionMode):
    """Leaves new tensors unfilled: a checkpoint's tensors will take their place."""

    _skipped = frozenset(
        ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_",
         "xavier_normal_", "orthogonal_")
    )  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self._skipped and getattr(_building, "fill", 0) == 0:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


class _Initialising:
    """Inside, tensors are filled again: transformers keeps buffers that no file holds."""

    def __enter__(self) -> None:
        _building.fill = getattr(_building, "fill", 0) + 1

    def __exit__(self, *error: object) -> None:
        _building.fill -= 1
