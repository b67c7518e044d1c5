"""Fit: training as a Remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from homeostat.core.data import Batch, Data
from homeostat.core.errors import CheckpointError, MissingPart, ModelError
from homeostat.core.fork import fork, matches
from homeostat.core.method import Card, Remedy
from homeostat.core.part import recipe as recipe_of
from homeostat.core.place import device_of, home, there
from homeostat.core.run import Run
from homeostat.core.save import load, save
from homeostat.core.spec import digest
from homeostat.core.task import Classify, check_labels
from homeostat.core.weights import fingerprint
from homeostat.core.world import World
from homeostat.fit.objective import Objective, Supervised
from homeostat.fit.training import Recipe, train


@dataclass(frozen=True)
class Fit(Remedy):
    """Train (part of) a model on an objective.

    With `run.scratch` the result is cached by the hash of this Spec, the starting weights, the data and the seed, and
    a run that was stopped resumes at its last epoch.

    Attributes:
        objective: what to lower, and on which data.
        recipe: optimiser, schedule, epochs, batch.
        own: glob of the parameters to train; the rest stays frozen. BatchNorm statistics follow the data unless
            `freeze_stats`.
        freeze_stats: keep normalisation layers in evaluation mode while training.

    >>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    >>> net = Fit(recipe=Recipe(epochs=20))(nn.Linear(2, 2), World(source=(x, (x[:, 0] > 0).long())))
    >>> bool((net(x).argmax(1) == (x[:, 0] > 0)).float().mean() > 0.9)
    True
    """

    objective: Objective = Supervised()
    recipe: Recipe = Recipe()
    own: str = "*"
    freeze_stats: bool = False

    card: ClassVar[Card] = Card(
        paper="Empirical risk minimisation", handles=frozenset({"covariate", "label", "concept", "subgroup"}),
        needs=frozenset({"source.x", "source.y"}), passes=3.0,
    )  # fmt: skip

    def needs(self) -> frozenset[str]:
        return self.objective.needs()

    def prepares(self) -> frozenset[str]:
        return self.objective.prepares()

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> nn.Module | None:
        return None if model is None else self.objective.prepare(model, world, run)

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        data = {name: self._labelled(part_of(world, name), name, world) for name in self.objective.inputs()}
        _check_first(model, data, world)
        path = None
        if run.scratch is not None:
            inputs = {name: d.fingerprint() for name, d in data.items()}
            kit_hash = None if kit is None else fingerprint(kit)
            name = digest(self.digest(), fingerprint(model), recipe_of(model), inputs, kit_hash, world.task, run.seed)
            path = run.scratch / "fit" / name
            if path.exists():
                try:
                    return load(path, base=model)
                except CheckpointError:
                    run.emit("cached training unreadable, trained again", values={"path": str(path)})
        trained = self._train(
            model, data, world, kit, run, None if path is None else path.with_name(path.name + ".part")
        )
        unfinished = path is not None and path.with_name(path.name + ".part").exists()
        if path is not None and not unfinished:
            save(trained, path)
        return trained

    def _labelled(self, data: Data, name: str, world: World) -> Data:
        """What the objective reads labels of is trained on where they are known."""
        if f"{name}.y" not in self.objective.needs() or not isinstance(world.task, Classify):
            return data
        known = world.task.known(data.all_labels())
        if not bool(known.any()):
            raise MissingPart(f"no label of {name} is known; {type(self.objective).__name__} needs some")
        return data if bool(known.all()) else data[known]

    def _train(
        self, model: nn.Module, data: Mapping[str, Data], world: World, kit: Any, run: Run, part: Any
    ) -> nn.Module:
        matched = matches(self.own)
        wanted = {n for n, p in model.named_parameters() if matched(n) and (self.own != "*" or p.requires_grad)}
        buffers = {name for name, _ in model.named_buffers()}
        own = fork(model, own=wanted | buffers).train()
        for name, parameter in own.named_parameters():
            parameter.requires_grad_(name in wanted)
        params = {name: parameter for name, parameter in own.named_parameters() if name in wanted}
        if not params:
            raise ModelError(f"no trainable parameter of {type(model).__name__} matches {self.own!r}")
        if self.freeze_stats:
            for module in own.modules():
                if hasattr(module, "running_mean"):
                    module.eval()

        def losses(batches: Mapping[str, Batch], now: Run) -> Mapping[str, Tensor]:
            device = device_of(own)
            return self.objective.losses(own, {n: b.to(device) for n, b in batches.items()}, world.task, kit, now)

        train(own, losses, data, params, self.recipe, run=run, checkpoint=part)
        for name, parameter in own.named_parameters():
            parameter.requires_grad_(model.get_parameter(name).requires_grad)
        return own.eval()


def part_of(world: World, name: str) -> Data:
    """Data of a world by their dotted name."""
    head, _, rest = name.partition(".")
    found = world.parts.get(rest) if head == "parts" else getattr(world, head)
    if found is None:
        raise ModelError(f"the world has no {name}")
    return found


def _check_first(model: nn.Module, data: Mapping[str, Data], world: World) -> None:
    """One forward pass on the first samples of each input, so that misfits are found at the door."""
    probe = fork(model).eval()
    for name, part in data.items():
        batch = part.fetch(torch.arange(min(2, len(part))))
        with torch.no_grad():
            out = home(probe(there(batch.x, probe)))
        if batch.y is not None:
            world.task.check(out, batch.y, f"{name}.y")
            if isinstance(world.task, Classify) and isinstance(out, Tensor):
                check_labels(part.all_labels(), out.shape[-1], f"{name}.y")
