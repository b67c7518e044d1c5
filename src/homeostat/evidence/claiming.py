"""A published claim as a small experiment, stated before it is run.

A file of `claims/` holds one function for each claim of a paper. `@claim` says what is claimed, against what, in which
metric, from which effect on it counts, and on which data; the function measures it once, for one seed, from public
parts of the library:

    @claim(
        "S037",
        says="Where a batch holds few classes, LAME is more accurate than the network it corrects.",
        ours="LAME", baseline="source", metric="accuracy", least=0.02, tier="a minute",
        data=(FashionMNIST("train", stop=10_000), FashionMNIST("test")),
        tuned="nothing; the paper's defaults",
        shrunk="Fashion-MNIST and a ResNet-8 in place of ImageNet and a ResNet-50; 2,000 images",
    )
    def correlated_batches(run: Run, train: Data, test: Data) -> dict[str, float]:
        ...
        return {"LAME": 0.81, "source": 0.70, "Tent": 0.31}

`homeostat claims run S037` gives it five seeds or more, takes the paired differences ours - baseline in the direction
that is better, and says *held* where their interval lies above `least`, *not held* where it lies below, and *undecided*
where it does not lie on one side. Other arms than the two are shown beside them and decide nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from homeostat.core.errors import SpecError
from homeostat.data.reader import Reader

Tier = Literal["a minute", "three minutes", "long"]
TIERS: dict[str, int] = {"a minute": 60, "three minutes": 180, "long": 3600}
"""Seconds that all seeds of a claim may take together, one after another, on one core."""


@dataclass(frozen=True)
class Claim:
    """What is claimed, and how it is measured; see the module's docstring.

    Attributes:
        id: catalogue id, or the name of a baseline that has none.
        name: of the claim among those of its system; the function's name.
        says: the claim in one sentence.
        ours, baseline: names of the two arms that are compared.
        metric: what the numbers are.
        unit: of the numbers; `"fraction"`, `"nats"`, `"seconds"`, ...
        better: which way is better.
        least: smallest effect that counts, in the unit; negative where no worse than so much is claimed.
        tier: how long all seeds take.
        data: what is read, in the order in which the function takes it; nothing for made-up data.
        tuned: which hyper-parameters were tuned, and on which split, which the evidence does not use.
        shrunk: how the experiment differs from the paper's.
        measure: `(run, *data) -> {arm: number}`, for one seed.
    """

    id: str
    name: str
    says: str
    ours: str
    baseline: str
    metric: str
    unit: str
    better: Literal["higher", "lower"]
    least: float
    tier: Tier
    data: tuple[Reader, ...]
    tuned: str
    shrunk: str
    measure: Callable[..., Mapping[str, float]]

    @property
    def full_name(self) -> str:
        """Id and name, as evidence is filed."""
        return f"{self.id}/{self.name}"


def claim(
    id: str,
    *,
    says: str,
    ours: str,
    baseline: str,
    metric: str,
    least: float,
    tier: Tier | Any,
    tuned: str,
    shrunk: str,
    unit: str = "fraction",
    better: Literal["higher", "lower"] | Any = "higher",
    data: tuple[Reader, ...] | Any = (),
) -> Callable[[Callable[..., Mapping[str, float]]], Claim]:
    """Make a claim of a function; see the module's docstring and `Claim`.

    Raises:
        SpecError: something that a reader has to know is missing, or does not fit.
    """
    said = {"says": says, "ours": ours, "baseline": baseline, "metric": metric, "tuned": tuned, "shrunk": shrunk}
    for name, text in said.items():
        if not text.strip():
            raise SpecError(f"claim {id}: {name} is empty; a reader has to know it before the claim is run")
    if not re.fullmatch(r"S\d{3}|[A-Z]\w*", id):
        raise SpecError(f"a claim's id is a catalogue id, such as S037, or the name of a baseline; got {id!r}")
    if tier not in TIERS:
        raise SpecError(f"claim {id}: tier is one of {', '.join(map(repr, TIERS))}; got {tier!r}")
    if better not in ("higher", "lower"):
        raise SpecError(f"claim {id}: better is 'higher' or 'lower'; got {better!r}")
    if not isinstance(data, tuple) or not all(isinstance(reader, Reader) for reader in data):
        raise SpecError(f'claim {id}: data are {data!r}; a tuple of readers is wanted, such as (FashionMNIST("test"),)')
    if ours == baseline:
        raise SpecError(f"claim {id}: ours and baseline are both {ours!r}")

    def made(function: Callable[..., Mapping[str, float]]) -> Claim:
        name = getattr(function, "__name__", "claim")
        return Claim(
            id, name, says, ours, baseline, metric, unit, better, float(least), tier, data, tuned, shrunk, function
        )

    return made
