"""Where a loop stands: everything besides its journal that a resumed run needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from homeostat.core.data import Batch
from homeostat.core.online import Bag
from homeostat.core.part import Part
from homeostat.core.tree import Tree, named_leaves
from homeostat.loop.probation import Probation
from homeostat.loop.trial import Trial
from homeostat.loop.verify import Paired


class LoopState(Part):
    """The tensors: served model, candidates in shadow, and in `carry` the monitor and the recent windows.

    The models lie on the device of the run, what the loop remembers on the CPU.
    """

    def __init__(self, served: nn.Module, shadows: nn.Module | None = None):
        super().__init__()
        self.served = served
        self.shadows = nn.Sequential() if shadows is None else shadows
        self.carry = Bag()

    def put_recent(self, recent: Sequence[Batch]) -> None:
        """Keep the recent windows in `carry`."""
        for name in [name for name in self.carry if name.startswith("recent.")]:
            del self.carry[name]
        for i, batch in enumerate(recent):
            leaves = dict(named_leaves(batch.x, "x"))
            self.carry.put(f"recent.{i}", {**leaves, "y": batch.labels, "id": batch.id, "step": batch.meta["step"]})

    def recent(self, count: int, like: Tree) -> list[Batch]:
        """The recent windows that `carry` keeps; `like` has the structure of their inputs."""
        bags = [self.carry.under(f"recent.{i}") for i in range(count)]
        return [Batch(_gather(bag, like, "x"), bag["y"], bag["id"], {"step": bag["step"]}) for bag in bags]


def _gather(named: Mapping[str, Tensor], like: Tree, name: str) -> Tree:
    if isinstance(like, Tensor):
        return named[name]
    if isinstance(like, Mapping):
        return {key: _gather(named, value, f"{name}.{key}") for key, value in like.items()}
    return tuple(_gather(named, value, f"{name}.{i}") for i, value in enumerate(like))


@dataclass
class Progress:
    """The numbers.

    Attributes:
        at: the next window's number.
        served: name of what is served; `"source"` is the frozen network.
        switched: window from which that is served.
        phase: `"watch"`, or `"trial"` while candidates run in shadow.
        since: window at which the trial began.
        trials: candidates in shadow, in the order of `LoopState.shadows`.
        diagnosis: of the last alarm.
        kinds: kinds of shift that it may stand for, with their probabilities, likeliest first.
        retry_at, wait: window at which a rejected trial is repeated, and how long the next wait is.
        breach: labelled evidence that the frozen network is now better than what is served.
        probation: of what is served, while the frozen network answers in its place.
        bias: by how much more than its signs say labels have shown what is served to gain.
        low: windows in a row with a negative estimated gain.
        slow: windows in a row in which serving took longer than the plan allows.
        lag: windows that labels took to come, lately.
        by_hand: rollbacks that a person asked for.
        recent: how many recent windows there are.
    """

    at: int = 0
    served: str = "source"
    switched: int = 0
    phase: Literal["watch", "trial"] = "watch"
    since: int = 0
    trials: list[Trial] = field(default_factory=list)
    diagnosis: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, float] = field(default_factory=dict)
    retry_at: int = -1
    wait: int = 0
    breach: Paired = field(default_factory=Paired)
    probation: Probation = field(default_factory=Probation)
    bias: float = 0.0
    low: int = 0
    slow: int = 0
    lag: int = 0
    by_hand: int = 0
    recent: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Progress:
        """The progress that `as_dict` described."""
        trials = [Trial.from_dict(trial) for trial in kept["trials"]]
        probation = Probation.from_dict(kept.get("probation", {}))
        return cls(**{**kept, "trials": trials, "breach": Paired(**kept["breach"]), "probation": probation})
