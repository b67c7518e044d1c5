"""How many labels to ask for: few while nothing happens, many while it matters.

A label costs somebody's time. In calm windows a few of them tell whether the error has moved; while candidates run in
shadow each label says which of them is right, and a decision that wants evidence gets it sooner.

>>> OnDemand(calm=2, trial=32).wanted(Progress(phase="trial"))
32
"""

from __future__ import annotations

from dataclasses import dataclass

from homeostat.core.errors import InputError
from homeostat.core.spec import Index, Spec
from homeostat.loop.progress import Progress


@dataclass(frozen=True)
class OnDemand(Spec):
    """Labels of a window that are asked for, by what the loop is doing.

    Attributes:
        calm: while it watches.
        trial: while candidates run in shadow.
    """

    calm: Index = 4
    trial: Index = 32

    def wanted(self, progress: Progress) -> int:
        """How many labels of a window to ask for, where the loop stands."""
        return self.trial if progress.phase == "trial" else self.calm


def wanted(labels: int | OnDemand, progress: Progress) -> int:
    """How many labels of a window to ask for.

    Raises:
        InputError: a number below 0.
    """
    if isinstance(labels, OnDemand):
        return labels.wanted(progress)
    if labels < 0:
        raise InputError(f"labels a window are 0 or more; got {labels}")
    return labels
