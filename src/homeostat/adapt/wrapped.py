"""What methods around another method share: what they need is what it needs, and their state includes its state."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from homeostat.adapt.tent import Tent
from homeostat.core.errors import ModelError
from homeostat.core.fork import fork
from homeostat.core.method import Remedy
from homeostat.core.online import Online
from homeostat.core.run import Run
from homeostat.core.world import World


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

    def anchor(self) -> dict[str, Tensor]:
        """That of the network inside, which keeps it; so what is owned is what is owned there."""
        return {f"model.{name}": tensor for name, tensor in self.model.anchor().items()}

    def mark(self) -> None:
        self.model.mark()
        started = {name: self.carry[name].clone() for name in self.carry if not name.startswith("start.")}
        self.carry.put("start", started)


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
