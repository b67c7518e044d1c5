"""What surrounds a model: data before and now, parts, other models, and what the outputs mean.

>>> import torch
>>> world = World(target=(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)))
>>> world.target.load().y is None, world.only({"target.x"}).target.load().y is None
(False, True)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from homeostat.core.data import Data
from homeostat.core.errors import MissingPart, SpecError, nearest
from homeostat.core.intake import as_data
from homeostat.core.spec import digest
from homeostat.core.task import Classify, Task
from homeostat.core.weights import Weights, fingerprint

SPLITS = ("source", "target", "calibration", "held")


@dataclass(frozen=True, init=False)
class World:
    """Data, models and meaning that methods may ask for. Data are made from anything `as_data` takes.

    Attributes:
        source: data from before, as the model was trained or validated on.
        target: data from now.
        calibration: fits thresholds.
        held: judges only; no Remedy may ask for it.
        parts: named data in order: tasks, domains, clients, forget/retain, outliers.
        models: named modules or lazily loaded weights: donors, a cloud model, a reference.
        env: an environment to act in (gymnasium's interface).
        task: what outputs and labels mean.
    """

    source: Data | None
    target: Data | None
    calibration: Data | None
    held: Data | None
    parts: Mapping[str, Data]
    models: Mapping[str, nn.Module | Mapping[str, Tensor]]
    env: Any
    task: Task

    def __init__(
        self,
        source: Any = None,
        target: Any = None,
        calibration: Any = None,
        held: Any = None,
        parts: Mapping[str, Any] = MappingProxyType({}),
        models: Mapping[str, nn.Module | Mapping[str, Tensor] | str | Path] = MappingProxyType({}),
        env: Any = None,
        task: Task = Classify(),
    ):
        for name, value in zip(SPLITS, (source, target, calibration, held), strict=True):
            made = None if value is None else as_data(value, f"world.{name}")
            object.__setattr__(self, name, made)
        named = {name: as_data(value, f"world.parts[{name!r}]") for name, value in parts.items()}
        lazy = {k: Weights(v) if isinstance(v, (str, Path)) else v for k, v in models.items()}
        object.__setattr__(self, "parts", MappingProxyType(named))
        object.__setattr__(self, "models", MappingProxyType(lazy))
        object.__setattr__(self, "env", env)
        object.__setattr__(self, "task", task)

    def replace(self, **changes: Any) -> World:
        """A copy with some fields changed."""
        known = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise SpecError(f"World has no field {name!r}.{nearest(name, known)}")
        return dataclasses.replace(self, **changes)

    def only(self, needs: Iterable[str]) -> World:
        """The world with everything else absent; labels stripped unless `*.y` is asked for.

        A need is `"source.x"`,
        `"target.y"`, `"parts.forget.x"`, `"parts.*.x"`, `"models.cloud"`, `"models.*"` and `"env"`;
        a trailing `?` marks one that may be absent; `model.*` needs concern the model and are passed over.
        """
        wanted = {need.rstrip("?") for need in needs}
        kept: dict[str, Any] = {"task": self.task, "env": self.env if "env" in wanted else None}
        for name in SPLITS:
            kept[name] = _stripped(getattr(self, name), name, wanted)
        kept["parts"] = {
            name: data
            for name in self.parts
            if (data := _stripped(self.parts[name], f"parts.{name}", wanted)) is not None
        }
        kept["models"] = {n: m for n, m in self.models.items() if {f"models.{n}", "models.*"} & wanted}
        return World(**kept)

    def check(self, needs: Iterable[str], who: str) -> None:
        """Raise one `MissingPart` that names the method, every missing part and how to give it."""
        missing = [need for need in sorted(needs) if not need.endswith("?") and not self._has(need)]
        if missing:
            how = "; ".join(f"{need}: {_how(need)}" for need in missing)
            raise MissingPart(f"{who} needs {', '.join(missing)}, which this world lacks. Give {how}")

    def _has(self, need: str) -> bool:
        head, _, rest = need.partition(".")
        if head == "model":
            return True
        if head == "env":
            return self.env is not None
        if head == "models":
            return bool(self.models) if rest == "*" else rest in self.models
        if head == "parts":
            name, _, leaf = rest.rpartition(".")
            found = list(self.parts.values()) if name == "*" else [self.parts[name]] if name in self.parts else []
        elif head in SPLITS:
            leaf, value = rest, getattr(self, head)
            found = [] if value is None else [value]
        else:
            raise SpecError(f"a need starts with {', '.join(SPLITS)}, parts, models, env or model; got {need!r}")
        return bool(found) and (leaf != "y" or all(data.has_labels() for data in found))

    def fingerprint(self) -> str:
        """A hash of all data and weights present."""
        data = {name: d.fingerprint() for name in SPLITS if (d := getattr(self, name)) is not None}
        data.update({f"parts.{name}": d.fingerprint() for name, d in self.parts.items()})
        models = {name: fingerprint(model) for name, model in self.models.items()}
        return digest(data, models, self.task)


def _stripped(data: Data | None, name: str, wanted: set[str]) -> Data | None:
    star = f"parts.*{name[name.rindex('.') :]}" if name.startswith("parts.") else None
    stem = "parts.*" if star else name
    x, y = {f"{name}.x", f"{stem}.x"} & wanted, {f"{name}.y", f"{stem}.y"} & wanted
    if data is None or not (x or y):
        return None
    return data if y else data.unlabelled()


def _how(need: str) -> str:
    head, _, rest = need.partition(".")
    if head == "env":
        return "World(env=...)"
    if head == "models":
        return f"World(models={{{'name' if rest == '*' else rest!r}: net or path}})"
    if head == "parts":
        name, _, leaf = rest.rpartition(".")
        return f"World(parts={{{'name' if name == '*' else name!r}: {'(x, y)' if leaf == 'y' else 'x'}}})"
    return f"World({head}={'(x, y)' if rest == 'y' else 'x'})"
