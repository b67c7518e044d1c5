"""A grid as one object or one YAML file: networks, streams, entrants, protocols, probes, seeds.

    Suite:
      name: noise-or-fog
      settings:
        - Setting:
            name: fashion
            model: {Network: {layout: {ResNet: {depth: 8, in_channels: 1}}, data: {FashionMNIST: {split: train}}}}
            before: {FashionMNIST: {stop: 2000}}
            pool: {FashionMNIST: {start: 2000}}
      streams:
        - Stream: {name: noise, phases: [Clean, {Corrupt: {name: gaussian_noise, severity: 3}}]}
        - Stream: {name: fog, phases: [Clean, {Corrupt: {name: fog, severity: 3}}]}
      entrants: [Source, BatchNormBlend, Tent]
      protocols: [Continual]
      seeds: 5

`homeostat bench noise-or-fog.yaml` computes every cell: each setting with each stream, each entrant under each protocol
that fits it, for each seed. Paths are read from the file's folder.

>>> axes = (Axis("margin", (0.2, 0.4)), Axis("optimizer.lr", (1e-3, 1e-2)))
>>> from homeostat.adapt import EATA
>>> list(Sweep(EATA(), axes).members())[:2]
['EATA[margin=0.2, optimizer.lr=0.001]', 'EATA[margin=0.2, optimizer.lr=0.01]']
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

from homeostat.bench.entrants import Entrant, name_of
from homeostat.bench.protocols import Continual, Protocol
from homeostat.core.configfile import read_spec
from homeostat.core.errors import HomeostatError, MissingPart, SpecError, nearest
from homeostat.core.method import Remedy, Shift
from homeostat.core.probe import Probe
from homeostat.core.spec import Count, Spec, from_config
from homeostat.core.spectext import short_text
from homeostat.core.task import Classify, Task
from homeostat.data.reader import Reader, below
from homeostat.loop.network import Network
from homeostat.probe.accuracy import Accuracy
from homeostat.shift.schedule import Clean


@dataclass(frozen=True)
class Setting(Spec):
    """A network and its data.

    Attributes:
        name: in tables.
        model: folder of a homeostat checkpoint, or a `Network`.
        before: labelled data from before, which the network was not trained on; the world's `source`.
        pool: labelled samples from which streams are drawn; none of `before` or the training.
        streams: names of the suite's streams that are for it; all where empty.
        retrain: train a network of its own for each seed, where `model` is a Network with data.
        task: what outputs and labels mean.
    """

    paths: ClassVar[tuple[str, ...]] = ("model",)

    name: str = ""
    model: str | Network = ""
    before: Reader | None = None
    pool: Reader | None = None
    streams: tuple[str, ...] = ()
    retrain: bool = False
    task: Task = Classify()

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, what in {
            "name": "a short word", "model": "a checkpoint's folder, or a Network",
            "before": "labelled data from before, such as {FashionMNIST: {stop: 2000}}",
            "pool": "what streams are drawn from, such as {FashionMNIST: {start: 2000}}",
        }.items():  # fmt: skip
            if not getattr(self, field):
                raise SpecError(f"Setting {self.name!r} needs {field}: {what}").at(field)
        if self.retrain and not (isinstance(self.model, Network) and self.model.data is not None):
            raise SpecError(f"Setting {self.name!r} cannot retrain: its model is no Network with data").at("retrain")


@dataclass(frozen=True)
class Stream(Spec):
    """What the world does, part by part.

    Attributes:
        name: in tables.
        phases: a shift for each part.
        each: samples of a part.
        tuning: hyper-parameters are chosen on it, and nothing else is said of it. Where a suite has such streams, they
            are drawn from a third of the pool, and all others from the rest.
    """

    name: str = ""
    phases: tuple[Shift, ...] = (Clean(),)
    each: Count = 500
    tuning: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name:
            raise SpecError("Stream needs name: a short word").at("name")
        if not self.phases:
            raise SpecError(f"Stream {self.name!r} has no phases; give a shift for each part").at("phases")

    def phrases(self) -> tuple[str, ...]:
        """The phases for people."""
        return tuple(_words(shift) for shift in self.phases)


@dataclass(frozen=True)
class Axis(Spec):
    """A hyper-parameter and what is tried for it.

    Attributes:
        field: name of the remedy's field; with dots, of a field of a Spec within: `optimizer.lr`.
        values: to try; JSON scalars, tuples or Specs.
    """

    field: str = ""
    values: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        read = tuple(from_config(value) if isinstance(value, Mapping) else value for value in self.values)
        object.__setattr__(self, "values", tuple(tuple(v) if isinstance(v, list) else v for v in read))


@dataclass(frozen=True)
class Sweep(Spec):
    """A remedy with several hyper-parameters: every combination of the axes' values is an entrant of its own.

    What is best on the streams marked `tuning`, what is best on each stream itself, and what a rule without labels
    takes become rows of the table.

    Attributes:
        remedy: what is varied.
        axes: what is varied in it.
    """

    remedy: Remedy | Entrant | None = None
    axes: tuple[Axis, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.remedy is None:
            raise SpecError("Sweep needs remedy: what is varied").at("remedy")
        if not self.axes or not all(axis.field and axis.values for axis in self.axes):
            raise SpecError(f"Sweep of {type(self.remedy).__name__} needs axes, each with a field and values").at(
                "axes"
            )
        self.members()

    def members(self) -> dict[str, Any]:
        """Every combination by a name that says it, the last axis fastest."""
        assert self.remedy is not None
        found = dict[str, Any]()
        for values in itertools.product(*(axis.values for axis in self.axes)):
            made: Spec = self.remedy
            for axis, value in zip(self.axes, values, strict=True):
                made = _with(made, axis.field.split("."), value)
            said = ", ".join(f"{axis.field}={_shown(v)}" for axis, v in zip(self.axes, values, strict=True))
            found[f"{name_of(self.remedy)}[{said}]"] = made
        return found


@dataclass(frozen=True)
class Suite(Spec):
    """A grid; see the module's docstring.

    Attributes:
        name: of the folder that its results go to.
        about: what it is for, in a sentence or two.
        settings: networks and their data.
        streams: what the world does.
        entrants: remedies, a `Looped` or another entrant, and `Sweep`s.
        protocols: how streams are presented and answered.
        probes: what is measured in each phase; the first is what the table is about.
        seeds: how many; they are 0, 1, ...
        reference: name of the entrant that the others are held against.
        unlabelled: reading by which the rule without labels chooses among a sweep's members; lower is better unless
            the probe says otherwise.
    """

    name: str = ""
    about: str = ""
    settings: tuple[Setting, ...] = ()
    streams: tuple[Stream, ...] = ()
    entrants: tuple[Remedy | Entrant | Sweep, ...] = ()
    protocols: tuple[Protocol, ...] = (Continual(),)
    probes: tuple[Probe, ...] = (Accuracy(),)
    seeds: Count = 5
    reference: str = "Source"
    unlabelled: str = "entropy"

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("name", "settings", "streams", "entrants", "protocols", "probes"):
            if not getattr(self, field):
                raise SpecError(f"Suite {self.name!r} has no {field}").at(field)
        if not self.name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise SpecError(f"Suite.name = {self.name!r} is to name a folder: letters, digits, - and _").at("name")
        streams = [stream.name for stream in self.streams]
        for what, names in {
            "settings": [setting.name for setting in self.settings],
            "streams": streams,
            "entrants": [name for name, _, _ in self.rivals()],
            "protocols": [protocol.called() for protocol in self.protocols],
        }.items():
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise SpecError(f"Suite {self.name!r}: {what} {', '.join(map(repr, twice))} comes twice").at(what)
        for place, setting in enumerate(self.settings):
            for name in setting.streams:
                if name not in streams:
                    said = f"there is no stream {name!r}.{nearest(name, streams)}"
                    raise SpecError(said).at("settings", place, "Setting", "streams")

    def rivals(self) -> list[tuple[str, Any, str]]:
        """Name, entrant and sweep of everything that is compared; members of a sweep one by one."""
        found = list[tuple[str, Any, str]]()
        for entrant in self.entrants:
            if isinstance(entrant, Sweep):
                assert entrant.remedy is not None
                sweep = name_of(entrant.remedy)
                found += [(name, member, sweep) for name, member in entrant.members().items()]
            else:
                found.append((name_of(entrant), entrant, ""))
        return found


def shipped() -> dict[str, Path]:
    """The suites that come with the library, by name."""
    folder = Path(str(resources.files("homeostat.bench").joinpath("suites")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def open_suite(text: str | Path | Suite | Any) -> Suite:
    """A suite by the name of one that ships, or by its YAML file.

    Raises:
        MissingPart: there is neither. SpecError, UnknownName: with the file and the line.
    """
    if isinstance(text, Suite):
        return text
    path = shipped().get(str(text), Path(text))
    if not path.is_file():
        known = ", ".join(shipped())
        hint = nearest(str(text), list(shipped()))
        raise MissingPart(f"there is no suite {text}.{hint} Give a YAML file with a Suite, or one of {known}")
    return below(read_spec(path, Suite), path.absolute().parent)


def _with(spec: Spec, path: list[str], value: Any) -> Any:
    name, rest = path[0], path[1:]
    if not rest:
        return spec.replace(**{name: value})
    inner = spec.fields().get(name)
    if not isinstance(inner, Spec):
        try:
            spec.replace(**{name: inner})
        except HomeostatError as error:
            raise SpecError(str(error)) from None
        raise SpecError(f"{type(spec).__name__}.{name} is {inner!r}; it has no field {rest[0]!r}")
    return spec.replace(**{name: _with(inner, rest, value)})


def _shown(value: Any) -> str:
    return short_text(value) if isinstance(value, Spec) else f"{value:g}" if isinstance(value, float) else str(value)


def _words(shift: Shift) -> str:
    """A shift in a few words: `fog 3` for a corruption, else as it is written."""
    fields = shift.fields()
    if isinstance(fields.get("name"), str) and isinstance(fields.get("severity"), int):
        return f"{fields['name'].replace('_', ' ')} {fields['severity']}"
    if inner := fields.get("shifts"):
        return " + ".join(map(_words, inner)) if type(shift).__name__ == "Compose" else short_text(shift)
    return "clean" if isinstance(shift, Clean) else short_text(shift)
