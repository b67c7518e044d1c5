"""What methods around another method share: what they need is what it needs, and their state includes its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from homeostat.adapt.tent import Tent
from homeostat.core.errors import ModelError
from homeostat.core.fork import fork
from homeostat.core.method import Remedy
from homeostat.core.online import Online
from homeostat.core.run import Run
from homeostat.core.world import World

_KEPT = ("anchor.", "start.")


class Wrapped(Online, abstract=True):
    """An adapting network around another; the one inside is a copy that owns what the given one owned.

    Args:
        model: the adapting network.
    """

    model: Online

    def __init__(self, model: nn.Module):
        if not isinstance(model, Online):
            raise ModelError(
                f"{type(self).__name__} goes around a network that adapts while it serves; this "
                f"{type(model).__name__} does not"
            )
        owned = {f"model.{name}" for name in model.anchor()}
        super().__init__(fork(model, own=owned))
        self.begin()

    def snapshot(self) -> dict[str, Tensor]:
        inner = {f"model.{name}": tensor for name, tensor in self.model.snapshot().items()}
        return inner | {f"carry.{name}": self.carry[name].clone() for name in self._state()}

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        self.model.restore({n.removeprefix("model."): t for n, t in snapshot.items() if n.startswith("model.")})
        for name in self._state():
            del self.carry[name]
        for name, tensor in snapshot.items():
            if name.startswith("carry."):
                self.carry[name.removeprefix("carry.")] = tensor.clone()

    def _state(self) -> list[str]:
        return [name for name in self.carry if not name.startswith(_KEPT)]


@dataclass(frozen=True)
class Wrapper(Remedy, abstract=True):
    """A remedy around another that adapts while it serves; needs and preparation are the inner one's.

    Attributes:
        remedy: a method that adapts while it serves.
    """

    remedy: Remedy = Tent()

    def needs(self) -> frozenset[str]:
        return self.remedy.needs()

    def prepares(self) -> frozenset[str]:
        return self.remedy.prepares()

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> nn.Module | None:
        return self.remedy.prepare(model, world, run)
