"""A device of its own, in the CPU's memory, that is as strict as a GPU about what lies where.

A PyTorch backend written in Python. A tensor of it holds a CPU tensor and computes with it, so that results are those
of the CPU bit for bit; but where one meets a tensor that was left on the CPU, `RuntimeError` is raised, as on a GPU.
What CUDA allows is allowed: CPU tensors without dimensions beside one of the device, positions and masks on the CPU,
copies from one to the other. Not allowed are NumPy, and a generator of the CPU where something is drawn on the device.

`begin()` registers it, once a process; from then on `"strict"` is a device. `moves` counts what was copied from the CPU
to it and back, in tensors of at least one dimension.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

NAME = "strict"
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
JOINING = {"cat", "stack"}
MAKERS = (
    "empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "full", "zeros", "ones",
    "eye", "eye.m", "linspace", "scalar_tensor", "rand", "rand.generator", "randn", "randn.generator", "randint",
    "randint.low", "randint.generator", "randint.low_generator", "randperm", "randperm.generator", "tril_indices",
    "triu_indices",
)  # fmt: skip
"""Operations that make a tensor of none: they know the device by their argument alone."""
moves = Counter[str]()


class Held(Tensor):
    """A tensor of the device; `held` is the CPU tensor that it computes with."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Held:
        with torch.inference_mode(False):  # else a view taken in inference mode has no version to share
            made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
                device=torch.device(NAME, 0),
            )  # fmt: skip
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.held}, on {NAME}"

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, new: Held) -> None:
        Tensor.data.__set__(self, new)  # type: ignore[attr-defined]
        self.held = new.held

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {NAME} device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), func._schema.name.partition("::")[2]
        if name == "copy_":
            return _copied(args[1], args[0])
        where = NAME
        if kwargs.get("device") is not None:
            where, kwargs["device"] = torch.device(kwargs["device"]).type, "cpu"
        given = tree_leaves((args, kwargs))
        for one in tree_leaves((args[0], args[2:])) if name in INDEXING else given:
            # A single number of the CPU is taken beside others, but neither joined with them nor written to.
            apart = isinstance(one, Tensor) and not isinstance(one, Held)
            if apart and (one.ndim or name in JOINING or (name.endswith("_") and one is args[0])):
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but found at least two devices, {NAME} and cpu! "
                    f"(in {name}, a tensor of shape {tuple(one.shape)})"
                )
        _check_drawn(given)
        if name == "_to_copy" and where != NAME and args[0].ndim:
            moves["to the CPU"] += 1
        same = {id(one.held): one for one in given if isinstance(one, Held)}
        out = func(*tree_map(_held, args), **tree_map(_held, kwargs))

        def wrapped(one: Any) -> Any:
            if id(one) in same:  # what works in place gives the tensor that it was given
                return same[id(one)]
            return Held(one) if isinstance(one, Tensor) and where == NAME else one

        return tree_map(wrapped, out)


def begin() -> torch.device:
    """Register the device, unless it is there; and set the count of moves to nothing."""
    moves.clear()
    if not hasattr(torch, NAME):
        backend_registration._setup_privateuseone_for_python_backend(NAME, _Module(), _Hooks())
        for name in MAKERS:
            _LIBRARY.impl(name, _maker(name), "PrivateUse1")
        _LIBRARY.impl("_copy_from", lambda source, to, non_blocking=False: _copied(source, to), "PrivateUse1")
    return torch.device(NAME, 0)


class _Hooks(torch._C._acc.PrivateUse1Hooks):  # type: ignore[name-defined]
    # Not "available": else other people's code, of transformers for one, would take it for a GPU to train on.
    def is_available(self) -> bool:
        return False

    def has_primary_context(self, dev_id: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


class _Module(backend_registration._DummyBackendModule):
    def is_available(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    # A generator of which nothing but its seed is kept; nothing draws from it.
    seed = torch.zeros(1, dtype=torch.int64)

    def manual_seed_all(self, seed: int) -> None:
        self.seed = torch.tensor([seed])

    def get_rng_state(self, device: Any) -> Tensor:
        return self.seed

    def set_rng_state(self, state: Tensor, device: Any) -> None:
        self.seed = state


_LIBRARY = torch.library.Library("aten", "IMPL")


def _held(one: Any) -> Any:
    return one.held if isinstance(one, Held) else one


def _copied(source: Tensor, to: Tensor) -> Tensor:
    if isinstance(source, Held) != isinstance(to, Held) and source.ndim:
        moves["to the device" if isinstance(to, Held) else "to the CPU"] += 1
    _held(to).copy_(_held(source))
    return to


def _check_drawn(given: list[Any]) -> None:
    if any(isinstance(one, torch.Generator) for one in given):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")


def _maker(name: str) -> Any:
    operation, _, overload = name.partition(".")
    call = getattr(getattr(torch.ops.aten, operation), overload or "default")

    def make(*args: Any, device: Any = None, pin_memory: Any = None, **kwargs: Any) -> Tensor:
        _check_drawn(list(kwargs.values()))
        return Held(call(*args, device="cpu", **kwargs))

    return make
