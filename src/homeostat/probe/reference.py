"""The reference that drift probes keep: rows of the source, looked at as the window will be.

A drift probe looks at the network's features, its predicted probabilities, or the inputs. `columns` reads them from
shared outputs, `source_rows` takes as many random rows of them from `source.x` as the probe keeps.

>>> reads_for("outputs")
frozenset({'out'})
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from homeostat.core.data import Data
from homeostat.core.errors import InputError, MissingPart
from homeostat.core.probe import outputs as pass_over
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.probe.checks import Source, matrix


def reads_for(on: Source) -> frozenset[str]:
    """What a probe that looks there reads from `Outputs`."""
    return frozenset({"out"} if on == "outputs" else {on})


def source_rows(
    model: nn.Module | None, world: World, on: Source, rows: int, run: Run, who: str, least: int = 2
) -> Tensor:
    """At most `rows` rows of `source.x` in random order, as `[rows, columns]`.

    Raises:
        MissingPart: there is no source, or no model where one is looked at.
        InputError: the source has fewer than `least` samples.
    """
    source: Data | None = world.source
    if source is None:
        raise MissingPart(f"{who} compares with source.x, which this world lacks. Give World(source=x)")
    if model is None and on != "x":
        raise MissingPart(f"{who} looks at a model's {on}; give a model, or choose on='x'")
    if len(source) < least:
        raise InputError(f"{who} needs at least {least} samples of source.x; got {len(source)}")
    order = torch.randperm(len(source), generator=run.rng(who, "reference"))[:rows]
    seen = pass_over(None if on == "x" else model, source[order], reads_for(on), task=world.task)
    return matrix(seen, on, who).cpu()
