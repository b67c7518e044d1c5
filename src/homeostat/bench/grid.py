"""The cells of a suite, and what names each: a hash of everything that its numbers depend on.

A cell's key covers its configuration, its data, the weights that it starts from, and the code of every module that it
reaches (`core.reach`). A cell is computed once; a changed method, probe or data set makes new keys for the cells that
it touches and leaves the others. What the hash does not cover is PyTorch itself; versions are kept with the results.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homeostat.bench.entrants import Entrant, fits
from homeostat.bench.protocols import Protocol
from homeostat.bench.suite import Setting, Stream, Suite
from homeostat.core.method import Method
from homeostat.core.probe import Probe
from homeostat.core.reach import LIBRARY, code_digest, modules_of
from homeostat.core.save import load
from homeostat.core.spec import Spec, digest
from homeostat.data.reader import Reader
from homeostat.loop.network import Network, made_of
from homeostat.probe.entropy import Entropy

COMPUTING = "homeostat.bench.computing"
"""The module whose code computes cells."""


@dataclass(frozen=True)
class Cell:
    """One cell, not computed yet.

    Attributes:
        key: see the module's docstring.
        suite, setting, stream, entrant, protocol, probes, seed: what it is made of.
        name: of the entrant. sweep: of the sweep that it is a member of, or empty.
        tuned: whether the suite has streams for tuning, so that its pool is divided.
        cost: a guess of how long it takes, against other cells.
    """

    key: str
    suite: str
    setting: Setting
    stream: Stream
    entrant: Any
    protocol: Protocol
    probes: tuple[Probe, ...]
    seed: int
    name: str
    sweep: str
    tuned: bool
    cost: float

    @property
    def network_seed(self) -> int:
        """Of the network's training."""
        return self.seed if self.setting.retrain else 0


def cells(suite: Suite, seeds: int | None = None) -> list[Cell]:
    """All cells of a suite, seeds last, so that what is asked with more seeds holds what there was.

    Args:
        suite: the grid.
        seeds: how many, in place of the suite's.

    Raises:
        MissingPart, InputError: data or weights are not there.
    """
    probes = measured(suite)
    code, rivals, known = _code(suite, probes), suite.rivals(), functools.cache(_fingerprint)
    data = {setting.name: _data(setting, known) for setting in suite.settings}
    tuned = any(stream.tuning for stream in suite.streams)
    found = []
    for seed in range(suite.seeds if seeds is None else seeds):
        for setting in suite.settings:
            for stream in suite.streams:
                if setting.streams and stream.name not in setting.streams:
                    continue
                for protocol in suite.protocols:
                    for name, entrant, sweep in rivals:
                        if not fits(entrant, protocol):
                            continue
                        # Names are labels: what is only called otherwise is not computed again.
                        said = [
                            setting.replace(name="-", streams=()), stream.replace(name="-"), entrant, protocol, probes
                        ]  # fmt: skip
                        reach = code(setting, stream, entrant, protocol)
                        key = digest(said, seed, tuned, data[setting.name], reach)
                        cost = _cost(entrant, stream, protocol)
                        found.append(
                            Cell(
                                key, suite.name, setting, stream, entrant, protocol, probes, seed, name, sweep, tuned,
                                cost,
                            )
                        )  # fmt: skip
    return found


def measured(suite: Suite) -> tuple[Probe, ...]:
    """The suite's probes, and where it has sweeps the entropy by which the rule without labels chooses."""
    sweeps = any(sweep for _, _, sweep in suite.rivals())
    wanted = sweeps and suite.unlabelled == "entropy" and not any(isinstance(p, Entropy) for p in suite.probes)
    return (*suite.probes, Entropy()) if wanted else suite.probes


def _code(suite: Suite, probes: tuple[Probe, ...]) -> Any:
    """`(setting, stream, entrant, protocol) -> hash of the code that a cell of them reaches`."""
    layouts = {setting.name: _layout(setting) for setting in suite.settings}

    @functools.cache
    def of(modules: tuple[str, ...]) -> str:
        return code_digest(modules)

    def reached(setting: Setting, stream: Stream, entrant: Any, protocol: Protocol) -> str:
        modules = {COMPUTING, *modules_of(setting, stream, entrant, protocol, probes), *layouts[setting.name]}
        return of(tuple(sorted(modules)))

    return reached


def _layout(setting: Setting) -> set[str]:
    """The modules that define a setting's network."""
    model = setting.model
    net = made_of(model.layout) if isinstance(model, Network) else load(model)
    return {type(module).__module__ for module in net.modules() if type(module).__module__.startswith(LIBRARY)}


def _data(setting: Setting, known: Callable[[Reader], str]) -> str:
    """A hash of all data and weights that a setting reads; `known` gives a data set's, which several may share."""
    readers = [setting.before, setting.pool]
    weights = ""
    if isinstance(setting.model, Network):
        readers.append(setting.model.data)
        weights = _file(setting.model.weights) if setting.model.weights else ""
    else:
        weights = digest([_file(path) for path in sorted(Path(setting.model).glob("*.safetensors"))])
    return digest([known(reader) for reader in readers if reader is not None], weights)


def _fingerprint(reader: Reader) -> str:
    return reader.read().fingerprint()


def _file(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cost(entrant: Any, stream: Stream, protocol: Protocol) -> float:
    """Passes over the stream, roughly: what the cards say, more where batches are small, most for what refits."""
    samples = stream.each * len(stream.phases)
    each = samples * (1 + 20 / protocol.batch) * getattr(protocol, "steps", 1)
    return each * _passes(entrant)


def _passes(entrant: Spec) -> float:
    inner = [v for value in entrant.fields().values() for v in (value if isinstance(value, tuple) else (value,))]
    own = entrant.card.passes if isinstance(entrant, Method) else 30.0 if isinstance(entrant, Entrant) else 0.0
    return own + sum(_passes(value) for value in inner if isinstance(value, Method | Entrant))
