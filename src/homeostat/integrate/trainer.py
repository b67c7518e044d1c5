"""Probes at every evaluation of a transformers `Trainer`.

`Trainer` judges a model on one set of data as they are. This callback reads homeostat's probes beside it, on a world of
your own and on simulated shifts of it, and puts the readings among the evaluation's metrics: calibration, accuracy
under noise or typing errors, how far from the source the model's features see the target.

| key | what |
|---|---|
| `eval_ece` | the reading `ece` on the world as it is |
| `eval_ece_low`, `eval_ece_high` | its interval, where it has one and `intervals` is set |
| `eval_noise_accuracy` | the reading `accuracy` under the shift that is named `noise` |

They are in what `trainer.evaluate()` returns, in `trainer.state.log_history` and so in `trainer_state.json`, and serve
as `metric_for_best_model="noise_accuracy"`. Loggers that the Trainer calls before its callbacks, as TensorBoard's,
do not hear of them. With several evaluation sets the readings come once for each. The model is read as it stands and
not changed; every process of a distributed training reads the whole world.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from homeostat.core.errors import DtypeError, InputError, MissingExtra
from homeostat.core.fork import unwrap
from homeostat.core.intake import as_data
from homeostat.core.method import Shift
from homeostat.core.probe import Probe, read
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.nn.transformers_models import Transformers

_Callback: Any = object
with suppress(ImportError):  # it is said when one is made
    _Callback = importlib.import_module("transformers").TrainerCallback

_PREFIX = "eval_"


class ProbeCallback(_Callback):
    """Reads probes at every evaluation; give it to `Trainer(callbacks=[...])`. See the module's docstring.

    Args:
        probes: what to read.
        world: what to read them on: a World (its held data, else its target), or data; inputs are mappings as the model
            takes them, or its main input alone.
        shifts: simulated shifts by name.
        intervals: whether readings' intervals are put there too.
        batch: samples per forward pass.
        run: seed of shifts and probes.

    Raises:
        MissingExtra: transformers is not installed. DtypeError: what is given are no probes or shifts.
        InputError: there is no probe, or a shift has no name that can be part of a metric's.
        MissingPart: the world lacks data, or what a shift acts on.
    """

    def __init__(
        self,
        probes: Sequence[Probe] | Any,
        world: World | Any,
        shifts: Mapping[str, Shift] | Any = MappingProxyType({}),
        *,
        intervals: bool = False,
        batch: int = 64,
        run: Run = Run(),
    ):
        if _Callback is object:
            raise MissingExtra("the callback needs transformers: pip install 'homeostat[transformers,accelerate]'")
        self.probes = [probes] if isinstance(probes, Probe) else list(probes)
        for kind, given in ((Probe, self.probes), (Shift, list(shifts.values()))):
            strange = next((item for item in given if not isinstance(item, kind)), None)
            if strange is not None:
                raise DtypeError(f"a {type(strange).__name__} is no {kind.__name__}; give objects, as in ECE()")
        if not self.probes:
            raise InputError("there is no probe to read; give some, as in [Accuracy(), ECE()]")
        for name in shifts:
            if not name.isidentifier():
                raise InputError(f"a shift's name becomes part of a metric's; {name!r} is not letters, digits and _")
        made = world if isinstance(world, World) else World(held=as_data(world, "world"))
        self.worlds = {"": made} | {f"{name}_": shift(made, run=run) for name, shift in shifts.items()}
        self.intervals, self.batch, self.run = intervals, batch, run

    def readings(self, model: Any) -> dict[str, float]:
        """The readings of a transformers model, or of one in our wrapper, by the names of metrics without `eval_`."""
        plain = unwrap(model)
        net = plain if isinstance(plain, Transformers) else Transformers(plain)
        found = dict[str, float]()
        for prefix, world in self.worlds.items():
            for reading in read(self.probes, net, world, batch=self.batch, run=self.run):
                found[f"{prefix}{reading.name}"] = reading.value
                if self.intervals and reading.interval is not None:
                    found[f"{prefix}{reading.name}_low"] = reading.interval.low
                    found[f"{prefix}{reading.name}_high"] = reading.interval.high
        return found

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, model: Any = None, **_: Any
    ) -> None:
        """Called by the Trainer."""
        found = {f"{_PREFIX}{name}": value for name, value in self.readings(model).items() if math.isfinite(value)}
        if metrics is not None:
            metrics.update(found)
        history = state.log_history
        # The evaluation has just been written there, with the model's own metrics.
        if history and history[-1].get("step") == state.global_step and any(k.startswith(_PREFIX) for k in history[-1]):
            history[-1].update(found)
        else:
            history.append({**found, "step": state.global_step, "epoch": state.epoch})
