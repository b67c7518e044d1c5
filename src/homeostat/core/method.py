"""Methods: what Probes and Remedies share, and their doors.

A method is a Spec with a `Card`. What it fits before deployment is its *kit*, made by `prepare` and cached by the hash
of the method, the weights and the data. Its door checks the model and the world, hands it only what its card
declares, and so keeps undeclared labels out of its reach.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from homeostat.core.data import Data
from homeostat.core.errors import CheckpointError, DtypeError, ModelError, SpecError, nearest
from homeostat.core.fork import fork, unwrap
from homeostat.core.intake import as_data
from homeostat.core.part import recipe
from homeostat.core.place import device_of, placed
from homeostat.core.run import Run
from homeostat.core.save import load, save
from homeostat.core.spec import Spec, digest
from homeostat.core.weights import check_weights, fingerprint
from homeostat.core.world import World

Kind = Literal[
    "covariate", "label", "subgroup", "concept", "novel-class", "correlated", "adversarial", "tasks", "forget", "none"
]


@dataclass(frozen=True)
class Card:
    """What a method is and asks for; the library acts on it.

    Attributes:
        id: catalogue id such as `"S058"`, or empty for a baseline.
        paper: the reference, in a line.
        handles: kinds of shift it is for.
        needs: parts of the world and model that `apply` or `measure` reads (see `World.only`), and `model.*` traits.
        prepares: the same for `prepare`.
        passes: forward passes per sample it costs when it acts (a backward pass counts two).
        batch_coupled: whether a sample's output depends on the batch it comes in.
    """

    id: str = ""
    paper: str = ""
    handles: frozenset[Kind] = frozenset()
    needs: frozenset[str] = frozenset()
    prepares: frozenset[str] = frozenset()
    passes: float = 1.0
    batch_coupled: bool = False


class Method(Spec, abstract=True):
    """Base of Probe and Remedy."""

    card: ClassVar[Card] = Card()

    def needs(self) -> frozenset[str]:
        """What this object needs; a method whose hyper-parameters change that overrides this."""
        return self.card.needs

    def prepares(self) -> frozenset[str]:
        """What `prepare` needs."""
        return self.card.prepares

    def batch_coupled(self) -> bool:
        """Whether a sample's output depends on its batch: the card's word, or that of a method among the fields."""
        inner = [v for value in self.fields().values() for v in (value if isinstance(value, tuple) else (value,))]
        return self.card.batch_coupled or any(v.batch_coupled() for v in inner if isinstance(v, Method))

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> nn.Module | None:
        """Fit what the method needs before deployment; the default needs nothing."""
        return None

    def kit(self, model: nn.Module | None, world: World = World(), *, run: Run = Run()) -> nn.Module | None:
        """The method's kit, where the model lies: from the cache in `run.scratch`, else prepared (and cached).

        Raises:
            MissingPart: the world lacks what `prepare` needs.
        """
        if type(self).prepare is Method.prepare:
            return None
        model = None if model is None else unwrap(model)
        seen = self.door(model, world, self.prepares(), "to prepare")
        if run.scratch is None:
            return self._prepared(model, seen, run)
        weights = None if model is None else (fingerprint(model), recipe(model))
        name = digest(type(self).__name__, self.digest(), weights, seen.fingerprint(), run.seed)
        path = run.scratch / "kits" / name
        if path.exists():
            try:
                return placed(load(path), None if model is None else device_of(model))
            except CheckpointError:
                run.emit("kit unreadable, prepared again", values={"path": str(path)})
        made = self._prepared(model, seen, run)
        if made is not None:
            save(made, path)
        return made

    def _prepared(self, model: nn.Module | None, world: World, run: Run) -> nn.Module | None:
        with torch.inference_mode(False), torch.enable_grad():
            made = self.prepare(model, world, run)
        return None if made is None else placed(made.eval(), None if model is None else device_of(model))

    def door(self, model: nn.Module | None, world: World, needs: Iterable[str], why: str = "") -> World:
        """Check the model and the world against `needs`; return the world with nothing else in it."""
        needs = frozenset(needs)
        who = f"{type(self).__name__} {why}".strip()
        world.check(needs, who)
        for need in sorted(needs):
            if need.startswith("model."):
                trait = need.removeprefix("model.")
                if trait not in TRAITS:
                    raise SpecError(f"{who}: no trait of models is called {need!r}.{nearest(trait, TRAITS)}")
                test, text = TRAITS[trait]
                if model is None or not test(model):
                    raise ModelError(f"{who} needs a model {text}; this {type(model).__name__} is not one")
        return world.only(needs)


class Remedy(Method, abstract=True):
    """`(model, world) -> model`. The given model is never changed; the result is in evaluation mode."""

    def __call__(
        self,
        model: nn.Module | Any,
        world: World | Any = World(),
        *,
        kit: nn.Module | None = None,
        run: Run = Run(),
    ) -> Any:
        """Apply the remedy.

        Args:
            model: the network to help; untouched.
            world: what there is; the remedy sees only what its card declares.
            kit: from an earlier `kit(...)`; prepared now when absent.
            run: seed, device, budget, scratch, watcher.

        Raises:
            MissingPart: the world lacks a declared part. ModelError: the model does not fit.
            NonFiniteError: the model's weights hold NaN or infinity.
        """
        model = unwrap(model)
        if not isinstance(world, World):
            raise DtypeError(f"the second argument is a World, such as World(target=x); got a {type(world).__name__}")
        check_weights(model)
        seen = self.door(model, world, self.needs())
        if any(need.startswith("held") for need in self.needs()):
            raise SpecError(f"{type(self).__name__} asks for held data, which only judges may see")
        kit = self.kit(model, world, run=run) if kit is None else placed(kit, device_of(model))
        with torch.inference_mode(False), torch.enable_grad():
            return self.apply(model, seen, kit, run).eval()

    @abstractmethod
    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        """The remedied model. `model` must not change: `fork` it."""


@dataclass(frozen=True)
class Chain(Remedy):
    """Several remedies one after another; each prepares on the model that the one before it gives.

    >>> Chain().remedies
    ()
    """

    remedies: tuple[Remedy, ...] = ()

    def needs(self) -> frozenset[str]:
        return frozenset().union(*(r.needs() | r.prepares() for r in self.remedies))

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        for remedy in self.remedies:
            model = remedy(model, world, run=run)
        return model if self.remedies else fork(model)


class Shift(Spec, abstract=True):
    """`Data -> Data`: what happens to the data, or a choice of data that we make ourselves.

    A subclass gives `apply(data, model, run) -> Data`. Called with a World, the shift happens to `target` and to
    `held`, which judge the same days, and the rest stays.
    """

    card: ClassVar[Card] = Card()

    def __call__(self, data: Any, *, model: nn.Module | None = None, run: Run = Run()) -> Any:
        """Shift data or a world.

        Args:
            data: a World, Data, or what `as_data` takes.
            model: for shifts that look at one (adversaries, data selection).
            run: the seed is taken now; the shifted data are the same however they are read.
        """
        if isinstance(data, World):
            parts = {n: d for n in ("target", "held") if (d := getattr(data, n)) is not None}
            if not parts:
                raise SpecError(f"{type(self).__name__}: this world has neither target nor held data to shift")
            return data.replace(**{n: self(d, model=model, run=run) for n, d in parts.items()})
        return self.apply(as_data(data), model, run)

    @abstractmethod
    def apply(self, data: Data, model: nn.Module | None, run: Run) -> Data: ...


def _any_layer(*names: str) -> Callable[[nn.Module], bool]:
    return lambda model: any(
        type(m).__name__ in names or any(c.__name__ in names for c in type(m).__mro__) for m in model.modules()
    )


_BATCH_NORMS = ("_BatchNorm", "BlendedBatchNorm")

TRAITS: dict[str, tuple[Callable[[nn.Module], bool], str]] = {
    "batchnorm": (_any_layer(*_BATCH_NORMS), "with BatchNorm layers"),
    "norm": (
        _any_layer(*_BATCH_NORMS, "GroupNorm", "LayerNorm"),
        "with normalisation layers (Batch, Group or Layer)",
    ),
    "linear": (_any_layer("Linear"), "with a linear layer"),
    "parameters": (lambda model: any(True for _ in model.parameters()), "with parameters"),
}
"""Traits that a card may ask of a model (`"model.batchnorm"`), with how an error names them."""
