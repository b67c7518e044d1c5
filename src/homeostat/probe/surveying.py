"""Reading a network on data with all that can be read there.

`survey` measures every registered probe that fits what is there, in one pass of the network, and says of the others
what they lack. Labels, data from before, a linear layer whose input are features: what is not there is named.

>>> import torch
>>> from torch import nn
>>> found = survey(nn.Linear(4, 3), torch.randn(200, 4, generator=torch.Generator().manual_seed(0)))
>>> sorted(type(probe).__name__ for probe in found.readings)[:3], found.left["Accuracy"]
(['AverageConfidence', 'ChangePoint', 'ClassBalance'], 'needs labels')
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from homeostat.core.errors import HomeostatError, MissingPart, ModelError
from homeostat.core.method import TRAITS
from homeostat.core.probe import Probe, measure, outputs
from homeostat.core.reading import Reading
from homeostat.core.run import Run
from homeostat.core.spec import registered
from homeostat.core.taps import head
from homeostat.core.world import World

_WORDS = {
    "source.x": "data from before", "source.y": "labelled data from before", "target.x": "data", "target.y": "labels",
    "held.x": "data", "held.y": "labels", "calibration.x": "data for calibration",
    "calibration.y": "labelled data for calibration", "models.*": "other models", "env": "an environment",
}  # fmt: skip


@dataclass(frozen=True)
class Survey:
    """What was read, and what was not.

    Attributes:
        readings: by probe, in the order asked for.
        left: why a probe was left out, by its name.
    """

    readings: Mapping[Probe, Reading]
    left: Mapping[str, str]


def survey(
    model: nn.Module | None,
    world: World | Any,
    probes: Sequence[Probe] | None = None,
    *,
    batch: int = 256,
    run: Run = Run(),
) -> Survey:
    """Read a network on data with these probes, or with all registered ones that fit.

    Args:
        model: the network; it does not change.
        world: a World, whose held data are judged, else its target; or data.
        probes: what is measured; None takes all with their defaults and leaves out those that do not fit.
        batch: samples a forward pass.
        run: seed, and a watcher that is told of each probe.

    Raises:
        MissingPart: there are no data, or a probe that was asked for lacks something.
    """
    world = world if isinstance(world, World) else World(held=world)
    data = world.held if world.held is not None else world.target
    if data is None:
        raise MissingPart("there are no data to measure on: give World(held=...) or World(target=...)")
    asked = probes is not None
    wanted = _all() if probes is None else list(probes)
    left: dict[str, str] = {}
    if not asked:
        lacks = {probe: _lacks(probe, model, world, data.has_labels()) for probe in wanted}
        left = {type(probe).__name__: f"needs {what}" for probe, what in lacks.items() if what}
        wanted = [probe for probe, what in lacks.items() if not what]
    reads = frozenset[str]().union(*(probe.reads for probe in wanted))
    run.emit("probe", 0, len(wanted) + 1)
    seen = outputs(model if reads & {"out", "features"} else None, data, reads, task=world.task, batch=batch)
    readings: dict[Probe, Reading] = {}
    for done, probe in enumerate(wanted):
        run.emit("probe", done + 1, len(wanted) + 1, probe=type(probe).__name__)
        try:
            (readings[probe],) = measure([probe], seen, model, world, run=run)
        except HomeostatError as error:
            if asked:
                raise
            left[type(probe).__name__] = re.sub(rf"^{type(probe).__name__}:? ", "", str(error))
    run.emit("probe", len(wanted) + 1, len(wanted) + 1)
    return Survey(readings, dict(sorted(left.items())))


def _all() -> list[Probe]:
    found: list[Any] = [cls for cls in registered(Probe) if not getattr(cls, "__abstractmethods__", None)]
    return [cls() for cls in found]


def _lacks(probe: Probe, model: nn.Module | None, world: World, labels: bool) -> str:
    """What a probe needs and is not there, in words."""
    missing = []
    if "y" in probe.reads and not labels:
        missing.append("labels")
    if model is None and probe.reads & {"out", "features"}:
        missing.append("a network")
    elif model is not None and "features" in probe.reads:
        try:
            head(model)
        except ModelError:
            missing.append("a network with a linear layer")
    for need in sorted(probe.needs() | probe.prepares()):
        trait = need.removeprefix("model.")
        if trait in TRAITS and need != trait:
            missing += [] if model is not None and TRAITS[trait][0](model) else [f"a network {TRAITS[trait][1]}"]
            continue
        try:
            world.check({need}, "")
        except MissingPart:
            missing.append(_WORDS.get(need, need))
    # With labels asked for, the data they belong to need not be named besides.
    said = [what for what in dict.fromkeys(missing) if f"labelled {what}" not in missing]
    return ", ".join(said)
