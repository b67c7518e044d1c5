"""The catalogue of published systems, read from `systems.toml`, and what the library has of each.

What is said of a system is derived and never written: it *runs* where something is registered with its id or a claim of
its paper was run; it is *exact* where tests that name it pin its numbers (`catalogue.exact`); its claims *held*, did
*not* hold, or are *undecided*, as the evidence on record says (`homeostat.evidence`).

>>> eata = systems()["S058"]
>>> eata.stage, eata.kind, [cls.__name__ for cls in eata.methods()]
('adapt', 'method', ['EATA'])
"""

from __future__ import annotations

import functools
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any, get_args

from homeostat.catalogue.exact import exact_tests
from homeostat.core.errors import MissingPart
from homeostat.core.method import Card
from homeostat.core.spec import registered
from homeostat.evidence.recorded import Evidence, Verdict, verdicts

STAGES = {
    "shift": "what the world does to data: shifts, drift detection, benchmarks of shift",
    "adapt": "adapting to drift without labels while serving",
    "generalize": "training for domains that were never seen",
    "continual": "learning task after task, or new classes, without forgetting",
    "tune": "fine-tuning with few parameters, adapters, prompts",
    "merge": "combining trained models into one",
    "forget": "unlearning data and editing knowledge",
    "federate": "training across clients that keep their data",
    "robust": "attacks, defenses, certificates",
    "trust": "calibration, uncertainty, explanations",
    "select": "choosing and comparing models and representations",
    "data": "noisy, few, imbalanced or synthetic training data",
    "compress": "smaller and cheaper networks",
    "generate": "generative models",
    "models": "architectures and layers",
    "dynamics": "how training behaves, and why",
    "policy": "agents and reinforcement learning",
    "science": "simulators and networks in science",
}
"""The parts of a model's life that systems belong to."""


@dataclass(frozen=True)
class System:
    """A published system.

    Attributes:
        id: `S001` to `S320`.
        title: its name, or that of its paper.
        stage: the part of a model's life it belongs to; see `STAGES`.
        kind: method, system, benchmark, metric, study, theory, application or survey.
        does: in a sentence.
    """

    id: str
    title: str
    stage: str
    kind: str
    does: str

    def methods(self) -> list[type[Any]]:
        """What is registered with its id; nothing where it does not run yet."""
        return [cls for cls in carded() if cls.card.id == self.id]

    def exact(self) -> tuple[str, ...]:
        """Tests that pin its numbers; nothing where the tests do not lie beside the library."""
        return exact_tests().get(self.id, ())

    def claims(self) -> tuple[Evidence, ...]:
        """What is on record of its paper's claims."""
        return _recorded().get(self.id, ())

    @property
    def runs(self) -> bool:
        """Whether the library has anything of it."""
        return bool(self.methods() or self.claims())

    @property
    def status(self) -> str:
        """In words: `not started`, or such as `exact; claims: 2 held, 1 undecided`."""
        if not self.runs:
            return "not started"
        said, counts = "exact" if self.exact() else "runs", Counter(one.verdict for one in self.claims())
        told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in get_args(Verdict) if counts[verdict])
        return f"{said}; claims: {told}" if told else said


@functools.cache
def systems() -> Mapping[str, System]:
    """All systems by id."""
    text = resources.files("homeostat.catalogue").joinpath("systems.toml").read_text(encoding="utf-8")
    return MappingProxyType({name: System(name, **fields) for name, fields in tomllib.loads(text).items()})


@functools.cache
def _recorded() -> Mapping[str, tuple[Evidence, ...]]:
    try:
        return {name: tuple(held) for name, held in verdicts().items()}
    except MissingPart:  # the library lies alone, without claims
        return {}


@functools.cache
def carded() -> tuple[type[Any], ...]:
    """Everything of this library that has a card and can be made: methods, objectives, choosers."""
    found: list[Any] = [cls for cls in registered() if isinstance(getattr(cls, "card", None), Card)]
    own = [cls for cls in found if cls.__module__.startswith("homeostat.")]
    return tuple(cls for cls in own if not getattr(cls, "__abstractmethods__", None))
