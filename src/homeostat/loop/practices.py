"""The practices that an audit checks; see `homeostat.loop.checklist`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from homeostat.core.data import UNKNOWN, Batch, Data, Tensors
from homeostat.core.errors import HomeostatError, MissingPart
from homeostat.core.fork import fork
from homeostat.core.method import Card, Shift
from homeostat.core.online import Bag
from homeostat.core.place import home, there
from homeostat.core.probe import read
from homeostat.core.reading import Reading
from homeostat.core.run import Run
from homeostat.core.save import content_hash, load
from homeostat.core.spec import Count, Fraction, NonNegative, Spec
from homeostat.core.tree import named_leaves
from homeostat.core.world import World
from homeostat.loop.journal import SWITCHES
from homeostat.loop.loop import Loop
from homeostat.loop.monitor import Monitor
from homeostat.loop.record import record
from homeostat.loop.sensor import Sensor
from homeostat.loop.verify import share_right
from homeostat.probe.calibration import ECE
from homeostat.probe.input_changes import changes
from homeostat.probe.shift_kind import ShiftKind
from homeostat.robust.pgd import PGD


@dataclass(frozen=True)
class Limits(Spec):
    """Where an audit draws its lines.

    Attributes:
        slack: how far values may lie outside the range from before, as a share of its width.
        ece: largest expected calibration error.
        lost: most accuracy that mild changes of the inputs, and a weak attack, may cost.
        eps: largest change of a pixel in the attack.
        samples: of data from before and from now that are looked at, at most.
        window: samples a window of the drills.
    """

    slack: NonNegative = 0.5
    ece: Fraction = 0.1
    lost: Fraction = 0.25
    eps: Fraction = 1 / 255
    samples: Count = 1000
    window: Count = 50

    card: ClassVar[Card] = Card(id="S236", paper="A survey of trustworthy machine learning in production")


@dataclass
class Audited:
    """What the checks look at.

    Attributes:
        model, world, store, simulate, limits, run: as `audit` was given them.
    """

    model: nn.Module
    world: World
    store: Path | None
    simulate: tuple[Shift, ...]
    limits: Limits
    run: Run

    @cached_property
    def before(self) -> Batch:
        """Data from before."""
        return self._some("source")

    @cached_property
    def now(self) -> Batch:
        """What comes now."""
        return self._some("target")

    @cached_property
    def sound(self) -> Data:
        """What comes now, where it can be judged.

        Raises:
            MissingPart: it has another schema, or is not finite.
        """
        for name, check in (("schema", _schema), ("finite", _finite)):
            if not check(self)[0]:
                raise MissingPart(f"what comes now fails the check of its {name}, and cannot be judged")
        return Tensors(self.now.x, None, self.now.id)

    @cached_property
    def labelled(self) -> Tensors:
        """Data from before whose label is known."""
        if self.before.y is None or not bool((known := self.before.labels != UNKNOWN).any()):
            raise MissingPart("data from before have no labels")
        return Tensors(self.before[known].x, self.before.labels[known], self.before.id[known])

    @cached_property
    def kind(self) -> Reading:
        """What kind of shift what comes now is under."""
        world = World(source=self.labelled, held=self.sound, task=self.world.task)
        return read([ShiftKind()], self.model, world, run=self.run)[0]

    def journal(self) -> Path:
        """The store."""
        if self.store is None:
            raise MissingPart("no store was given; a network that a loop serves has one")
        return self.store

    def accuracy(self, x: Any) -> float:
        """Of the network on changed inputs of the labelled data from before."""
        with torch.no_grad():
            batches = Tensors(x, self.labelled.all_labels()).batches(256)
            right = [share_right(home(self.model(there(b.x, self.model))), b.labels) * len(b) for b in batches]
        return sum(right) / len(self.labelled)

    def _some(self, name: str) -> Batch:
        data: Data | None = getattr(self.world, name)
        if data is None:
            raise MissingPart(f"there are no data: World({name}=...)")
        # Raw rows: what is wrong with them is for the checks to say.
        return data.fetch(torch.arange(min(len(data), self.limits.samples)))


def _schema(seen: Audited) -> tuple[bool, str]:
    before, now = (dict(named_leaves(batch.x, "x")) for batch in (seen.before, seen.now))
    if set(before) != set(now):
        return False, f"inputs are {sorted(now)}; before they were {sorted(before)}"
    for name, old in before.items():
        new = now[name]
        if new.shape[1:] != old.shape[1:] or new.dtype != old.dtype:
            return False, (
                f"{name} is {new.dtype} {tuple(new.shape[1:])} a sample; before it was {old.dtype} "
                f"{tuple(old.shape[1:])}"
            )
        known = new[torch.isfinite(new)] if new.is_floating_point() else new
        low, high = float(old.min()), float(old.max())
        room = seen.limits.slack * (high - low)
        if known.numel() and not low - room <= float(known.min()) <= float(known.max()) <= high + room:
            return False, (
                f"{name} spans {float(known.min()):.4g} to {float(known.max()):.4g}; before it was {low:.4g} to "
                f"{high:.4g}"
            )
    return True, "shapes, dtypes and ranges are those from before"


def _finite(seen: Audited) -> tuple[bool, str]:
    for name, leaf in named_leaves(seen.now.x, "x"):
        if leaf.is_floating_point() and not bool((good := torch.isfinite(leaf).flatten(1).all(1)).all()):
            return False, f"{name} has NaN or infinity in {int((~good).sum()):,} of {len(good):,} samples"
    return True, f"nothing in {len(seen.now):,} samples is NaN or infinite"


def _drift(seen: Audited) -> tuple[bool, str]:
    found = seen.kind.finding
    assert found is not None
    if found.detected and found.kind == "label":
        return True, "no other change than of the class balance"
    return not found.detected, found.text


def _balance(seen: Audited) -> tuple[bool, str]:
    found = seen.kind.finding
    assert found is not None
    if found.detected and found.kind != "label":
        return True, f"no change of the class balance; the drift is of another kind ({found.kind})"
    return not found.detected, found.text


def _calibration(seen: Audited) -> tuple[bool, str]:
    reading = read([ECE()], seen.model, World(source=seen.labelled, held=seen.labelled, task=seen.world.task))[0]
    low = reading.value if reading.interval is None else reading.interval.low
    said = f"the expected calibration error is {reading.value:.1%}, surely {low:.1%} or more"
    return low <= seen.limits.ece, f"{said}; the limit is {seen.limits.ece:.0%}"


def _corruption(seen: Audited) -> tuple[bool, str]:
    clean = seen.accuracy(seen.labelled.load().x)
    mild = changes(seen.run.rng("audit.corruption"))[:4]
    lost = clean - sum(seen.accuracy(change(seen.labelled.load().x)) for change in mild) / len(mild)
    return lost <= seen.limits.lost, f"mild changes of the inputs cost {lost:+.1%} of {clean:.1%}"


def _attack(seen: Audited) -> tuple[bool, str]:
    x = seen.labelled.load().x
    if not isinstance(x, Tensor) or x.ndim != 4 or not 0 <= float(x.min()) <= float(x.max()) <= 1:
        raise MissingPart("inputs are no images in 0..1; attack the network with a shift of its own kind")
    attack = PGD(eps=seen.limits.eps, steps=5)
    attacked = attack(seen.labelled, model=seen.model, run=seen.run).load()
    clean = seen.accuracy(x)
    lost = clean - seen.accuracy(attacked.x)
    return lost <= seen.limits.lost, f"an attack of {seen.limits.eps:.4f} a pixel costs {lost:+.1%} of {clean:.1%}"


class _Silent(nn.Module):
    """A network gone wrong."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Tensor:
        return self.model(x) * float("nan")


def _fallback(seen: Audited) -> tuple[bool, str]:
    world = World(source=seen.labelled, task=seen.world.task)
    window = seen.labelled[: seen.limits.window].load()
    with tempfile.TemporaryDirectory() as place, Loop(seen.model, world, [], place, run=seen.run) as drill:
        drill.state.served, drill.progress.served = _Silent(fork(seen.model)), "drill"
        out = drill.predict(window.replace(y=None))
        drill.learn()
        with torch.no_grad():
            wanted = home(seen.model(there(window.x, seen.model)))
        good = torch.allclose(out, wanted, atol=1e-4) and drill.progress.served == "source"
    return good, "in a drill the deployed network answered for one that gave NaN, and was put back" if good else (
        "in a drill a network that gave NaN was not replaced by the deployed one"
    )


def _rollback(seen: Audited) -> tuple[bool, str]:
    folder = seen.journal()
    with record(folder) as journal:
        start = journal.last("start")
    if start is None:
        raise MissingPart("the store's loop has not begun")
    path = folder / "checkpoints" / str(start.checkpoint)
    if not path.is_dir():
        return False, f"the deployed network's checkpoint {str(start.checkpoint)[:12]} is not in the store"
    try:
        kept = load(path, base=seen.model, verify=True)
    except HomeostatError as error:
        return False, f"the deployed network's checkpoint cannot be put back: {error}"
    if content_hash(kept) != start.checkpoint:
        return False, "the deployed network's checkpoint is of another network"
    return True, f"the deployed network is kept whole as {str(start.checkpoint)[:12]}"


def _trigger(seen: Audited) -> tuple[bool, str]:
    size, monitor, state = seen.limits.window, Monitor(), Bag()
    sensor = Sensor(fork(seen.model).eval(), seen.world.task)
    monitor.begin(sensor.read(seen.labelled), state)
    if seen.simulate:
        changed = seen.simulate[-1](seen.labelled, run=seen.run)
    else:
        strong = changes(seen.run.rng("audit.trigger"))[-1]
        changed = Tensors(strong(seen.labelled.load().x), None)
    for number in range(10):
        rows = torch.arange(number * size, (number + 1) * size) % len(changed)
        if monitor.look(sensor(changed.fetch(rows).replace(y=None)), None, state) is not None:
            return True, f"strongly changed inputs raise the alarm in window {number + 1}"
    return False, "strongly changed inputs raise no alarm within ten windows"


def _lineage(seen: Audited) -> tuple[bool, str]:
    with record(seen.journal()) as journal:
        rows = list(journal.rows(*SWITCHES))
    starts = [row for row in rows if row.kind == "start"]
    if not starts:
        raise MissingPart("the store's loop has not begun")
    lacking = [f"window {row.step}: no checkpoint" for row in rows if not row.checkpoint]
    lacking += [f"window {row.step}: no reason" for row in rows if row.kind != "start" and not row.content.get("why")]
    lacking += ["no plan" for row in starts if not row.content.get("plan")]
    return not lacking, "; ".join(lacking) or f"{len(rows)} networks in service, each with its hash, plan and reason"


def _explanation(seen: Audited) -> tuple[bool, str]:
    from homeostat.loop.explain import why

    with record(seen.journal()) as journal:
        steps = [row.step for row in journal.rows("commit", "rollback")]
    silent = [step for step in steps if not (told := why(seen.journal(), step)).before and not told.after]
    if not steps:
        return True, "nothing was switched, so that there is nothing to explain"
    return not silent, f"{len(steps) - len(silent)} of {len(steps)} switches can be explained"


CHECKS: dict[str, tuple[str, Callable[[Audited], tuple[bool, str]]]] = {
    "schema": ("data validation", _schema), "finite": ("data validation", _finite),
    "drift": ("drift monitoring", _drift), "balance": ("drift monitoring", _balance),
    "calibration": ("calibration", _calibration), "corruption": ("robustness", _corruption),
    "attack": ("robustness", _attack), "fallback": ("fallback", _fallback), "rollback": ("rollback", _rollback),
    "trigger": ("retraining trigger", _trigger), "lineage": ("lineage", _lineage),
    "explanation": ("explanation", _explanation),
}  # fmt: skip
"""By name: the practice, and what looks. In the order in which they are reported."""
