"""An audit: whether a network in service is looked after as the practices for robust operation ask, item by item.

| practice | check | what it does |
|---|---|---|
| data validation | schema | shapes, dtypes and ranges of what comes now are those from before |
| | finite | nothing that comes is NaN or infinite |
| drift monitoring | drift | `ShiftKind` on what comes now; a change of inputs, order, groups or rule, or a new class |
| | balance | the same probe; a change of the class balance |
| calibration | calibration | the calibration error on data from before is surely above the limit, or not |
| robustness | corruption | accuracy lost to mild changes of the inputs |
| | attack | accuracy lost to a weak attack (PGD), where inputs are images in 0..1 |
| fallback | fallback | a drill: what is served answers NaN, and the deployed network has to answer instead |
| rollback | rollback | the deployed network's checkpoint is in the store, whole, and is the one that was deployed |
| retraining trigger | trigger | a drill: strongly changed inputs raise the monitor's alarm within ten windows |
| lineage | lineage | every switch in the journal has its checkpoint's hash and its reason, and there is a plan |
| explanation | explanation | for every switch the journal gives a reason that a person can read |

A check that cannot run says *not checked*, and why; it never passes. What comes now is judged only where it has the
schema and is finite. The practices are those of a survey of trustworthy machine learning in production (S236).

>>> from homeostat.core.check import small_network, small_world
>>> made = audit(small_network(), small_world())
>>> made["schema"].state, made["rollback"].state, made["rollback"].said
('pass', 'not checked', 'no store was given; a network that a loop serves has one')
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from homeostat.core.errors import HomeostatError
from homeostat.core.method import Shift
from homeostat.core.run import Run
from homeostat.core.save import load
from homeostat.core.world import World
from homeostat.loop.deployment import begun, kept_deployment, open_stream, read_deployment
from homeostat.loop.practices import CHECKS, Audited, Limits
from homeostat.loop.rehearsal import kinds_of_shift
from homeostat.loop.serving import windows_served

State = Literal["pass", "fail", "not checked"]


@dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes:
        name, practice: see the module's docstring.
        state: `"pass"`, `"fail"` or `"not checked"`.
        said: what was found, or why it could not be looked at, in a sentence.
    """

    name: str
    practice: str
    state: State
    said: str


@dataclass(frozen=True)
class Audit:
    """The checks in the order of the module's table."""

    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        return tuple(check.name for check in self.checks if check.state == "fail")

    def __getitem__(self, name: str) -> Check:
        return next(check for check in self.checks if check.name == name)


def audit(
    model: nn.Module,
    world: World,
    *,
    store: str | Path | None = None,
    simulate: tuple[Shift, ...] = (),
    limits: Limits = Limits(),
    run: Run = Run(),
) -> Audit:
    """Check a network in service against the practices of the module's table.

    Args:
        model: the network as deployed; it is not changed.
        world: labelled `source`, data from before, and `target`, what comes now.
        store: folder of the loop that serves it, where there is one; it is only read.
        simulate: shifts of inputs for the drill of the trigger; the last one is used. Default: a generic change.
        limits: where the lines are drawn.
        run: seed.
    """
    seen = Audited(model, world, None if store is None else Path(store), simulate, limits, run)
    return Audit(tuple(_checked(name, practice, check, seen) for name, (practice, check) in CHECKS.items()))


def audit_deployment(path: str | Path, *, limits: Limits = Limits(), run: Run = Run()) -> Audit:
    """Check a deployment: a YAML file's, or a store's.

    What comes now are the samples that were served last; of a deployment that has not begun, the stream's first ones.

    Args:
        path: the file, or the store's folder.
        limits: where the lines are drawn.
        run: seed.

    Raises:
        What reading the deployment, its data and its network raise.
    """
    path = Path(path)
    made = kept_deployment(path) if path.is_dir() else read_deployment(path)
    assert made.before is not None
    folder, stream = Path(made.store), open_stream(made)
    store, served = (folder, windows_served(folder)) if begun(folder) else (None, 0)
    last = min(len(stream), max(served * made.plan.window, limits.samples))
    now = stream[max(0, last - limits.samples) : last]
    model = load(made.model) if isinstance(made.model, str) else made.model.build(run)
    world = World(source=made.before.read(), target=now)
    inputs = tuple(shift for shift in made.simulate if kinds_of_shift(shift) <= {"covariate"})
    return audit(model, world, store=store, simulate=inputs, limits=limits, run=run)


def _checked(name: str, practice: str, check: Callable[[Audited], tuple[bool, str]], seen: Audited) -> Check:
    try:
        good, said = check(seen)
    except HomeostatError as error:
        return Check(name, practice, "not checked", str(error))
    except Exception as error:  # one network that cannot be computed must not keep the other checks from being made
        return Check(name, practice, "not checked", f"it broke off: {type(error).__name__}: {error}".splitlines()[0])
    return Check(name, practice, "pass" if good else "fail", said)
