"""Models that change while they serve: `forward` is pure, `observe` predicts and then adapts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.core.data import Batch, check_finite
from homeostat.core.errors import InputError
from homeostat.core.fork import Pattern, fork, matches
from homeostat.core.layout import Layout
from homeostat.core.part import Part
from homeostat.core.tree import Tree, map_tree
from homeostat.core.weights import is_carry


class Bag(Part):
    """Named tensors in a module: buffers whose names may hold dots, and which may come, grow and go.

    >>> bag = Bag()
    >>> bag["mean.layer1.weight"] = torch.zeros(2)
    >>> "mean.layer1.weight" in bag, list(bag.state_dict())
    (True, ['mean/layer1/weight'])
    """

    takes_any_tensor = True  # loading takes names and shapes from the file

    def __init__(self, tensors: Mapping[str, Tensor] | None = None):
        super().__init__()
        for name, tensor in (tensors or {}).items():
            self[name] = tensor

    def arguments(self) -> dict[str, Any]:
        return {}

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self._buffers[name.replace(".", "/")] = tensor.detach()

    def __getitem__(self, name: str) -> Tensor:
        return self._buffers[name.replace(".", "/")]  # type: ignore[return-value]

    def __delitem__(self, name: str) -> None:
        del self._buffers[name.replace(".", "/")]

    def __contains__(self, name: object) -> bool:
        return str(name).replace(".", "/") in self._buffers

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]
        return (name.replace("/", ".") for name in list(self._buffers))

    def __len__(self) -> int:
        return len(self._buffers)

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose name starts with `prefix` and a dot, by the rest of their name."""
        start, kept = prefix.replace(".", "/") + "/", self._buffers.items()
        return {name[len(start) :].replace("/", "."): t for name, t in kept if t is not None and name.startswith(start)}

    def put(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Store named tensors below a prefix."""
        for name, tensor in tensors.items():
            self[f"{prefix}.{name}"] = tensor


_KEPT = ("anchor.", "start.", "fixed.")
"""What `carry` holds that never changes: the starting state, and below `fixed` what a method needs while it serves
(prototypes, samples of the source). `reset` and `restore` leave it, and snapshots, which are many, are without it."""


class Online(Part, abstract=True):
    """Base of models that adapt while they serve.

    A subclass calls `super().__init__(model, own)`, keeps its constructor's arguments as attributes, and gives `adapt`
    and, where it has state of its own, `begin`. It draws randomness from `core.random.generator(seed, name, step)`, so
    that a saved and reloaded model continues as if it had not stopped.

    Attributes:
        model: a fork of the given model that owns what will change.
        carry: all state that is not weights: the anchor (starting values of owned tensors), moments, memories.
    """

    model: nn.Module
    carry: Bag

    def __init__(self, model: nn.Module, own: Pattern = ()):
        super().__init__()
        wanted = matches(own)
        self.model = fork(model, lambda name: wanted(name) or is_carry(name)).eval()
        self.carry, self._layout = Bag(), Layout()
        for name, tensor in self.model.state_dict().items():
            if wanted(name) and not is_carry(name):
                self.carry[f"anchor.{name}"] = tensor.detach().clone()

    def forward(self, x: Tree) -> Tree:
        """Predict; changes nothing."""
        return self.model(x)

    @abstractmethod
    def adapt(self, batch: Batch) -> Tree:
        """Predict for the batch, then learn from it; called by `observe` with gradients on."""

    def begin(self) -> None:
        """Set the method's own state in `carry` to its start; owned weights are at their anchor."""

    def observe(self, batch: Batch | Tree) -> Tree:
        """Predict for a batch, then adapt to it.

        Args:
            batch: a `Batch` or bare inputs. Labels in `batch.y` may be absent or partly unknown.

        Returns:
            The prediction for the batch, made before any later batch was seen; detached.

        Raises:
            InputError: empty batch. NonFiniteError: NaN or infinity in the inputs; nothing is learnt from them.
        """
        made = batch if isinstance(batch, Batch) else Batch(batch)
        if len(made) == 0:
            raise InputError("observe got an empty batch; at least one sample is needed")
        check_finite(made.x, "x")
        with torch.inference_mode(False), torch.enable_grad():
            made = made.map(lambda t: t.clone() if t.is_inference() else t.detach())
            made = made.replace(x=self.laid_out(made.x))
            return map_tree(lambda t: t.detach(), self.adapt(made))

    def laid_out(self, x: Tree) -> Tree:
        """Inputs in the layout in which the network is fastest; what `adapt` is given lies so already."""
        return self._layout(self.model, x)

    def train(self, mode: bool = True) -> Online:
        """Stays in evaluation mode: adaptation is `observe`, not a training flag."""
        return super().train(False)  # type: ignore[return-value]

    def anchor(self) -> dict[str, Tensor]:
        """The owned tensors' starting values, by their name in `model`."""
        return self.carry.under("anchor")

    def owned(self) -> dict[str, Tensor]:
        """The owned tensors of `model`, live."""
        state = self.model.state_dict(keep_vars=True)
        return {name: state[name] for name in self.anchor()}

    def reset(self) -> None:
        """Back to the start, exactly."""
        with torch.no_grad():
            anchor = self.anchor()
            for name, tensor in self.owned().items():
                tensor.copy_(anchor[name])
            for name in self.carry:
                if not name.startswith(_KEPT):
                    del self.carry[name]
        for inner in _inner(self.model):
            inner.reset()
        self.begin()
        for name, tensor in self.carry.under("start").items():
            self.carry[name] = tensor.clone()

    def mark(self) -> None:
        """Make the present state the one that `reset` goes back to; for methods that learn before they serve."""
        self.carry.put("anchor", {name: tensor.detach().clone() for name, tensor in self.owned().items()})
        state = {name: self.carry[name].clone() for name in self.carry if not name.startswith(_KEPT)}
        self.carry.put("start", state)

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of everything that can change."""
        kept = {f"model.{name}": t.detach().clone() for name, t in self.owned().items()}
        state = {n: t for n, t in self.state_dict().items() if is_carry(n) and not _kept(n)}
        return kept | {name: tensor.detach().clone() for name, tensor in state.items()}

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        """Back to a snapshot, exactly."""
        with torch.no_grad():
            for name, tensor in self.owned().items():
                tensor.copy_(snapshot[f"model.{name}"])
        for path, module in self.named_modules():
            if isinstance(module, Bag) and is_carry(path):
                for name in module:
                    if not name.startswith(_KEPT):
                        del module[name]
                for name, tensor in snapshot.items():
                    owner, _, leaf = name.rpartition(".")
                    if owner == path:
                        module[leaf] = tensor.clone()


def _kept(name: str) -> bool:
    return name.rpartition(".")[2].replace("/", ".").startswith(_KEPT)


def _inner(model: nn.Module) -> Iterator[Online]:
    for module in model.modules():
        if isinstance(module, Online):
            yield module
            return


class Live(Part):
    """Drop-in use of an `Online` in code that only calls models: `forward` observes."""

    def __init__(self, online: Online):
        super().__init__()
        self.online = online

    def forward(self, x: Tree) -> Tree:
        """Predict, then adapt."""
        return self.online.observe(x)
