"""The best that is known in hindsight, which no loop could have known while it served.

The windows are cut into stretches in which the same networks ran: where the phase, what is served or the candidates on
trial change, another stretch begins. In each stretch the best is whichever of them was right most often over the whole
stretch. Only what ran is counted: what answered, the network as deployed, and candidates while they were on trial.
Nothing is said of what a candidate would have done outside its trials, so that the true best may be better; and since
the choice is made with the labels it is judged by, the best of short stretches is a little flattered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np


def best(
    served: Sequence[str], where: Sequence[str], accuracy: np.ndarray, frozen: np.ndarray,
    tried: Mapping[str, np.ndarray],
) -> np.ndarray:  # fmt: skip
    """Accuracy, window by window, of the best of each stretch; NaN where accuracy is not known.

    Args:
        served: name of what answered, one a window.
        where: phases, one a window.
        accuracy, frozen: `[windows]`, of what answered and of the network as deployed.
        tried: `[windows]` of each candidate, NaN where it was not on trial.

    >>> nan = np.nan
    >>> ours, theirs, other = np.array([0.5, 0.5, 0.9]), np.array([0.6, 0.3, 0.2]), np.array([nan, nan, 0.95])
    >>> best(["A"] * 3, [""] * 3, ours, theirs, {"B": other}).tolist()
    [0.5, 0.5, 0.95]
    """
    found = np.full(len(served), np.nan)
    known = np.isfinite(accuracy) & np.isfinite(frozen)
    values = np.array([*tried.values()]).reshape(len(tried), len(served))
    ran = [here.tobytes() for here in np.ascontiguousarray(np.isfinite(values).T)]
    for _, group in groupby(range(len(served)), key=lambda i: (where[i], served[i], ran[i])):
        at = np.array(list(group))
        running = np.isfinite(values[:, at[0]])
        at = at[known[at]]
        if len(at):
            rivals = [accuracy[at], frozen[at], *(candidate[at] for candidate in values[running])]
            found[at] = max(rivals, key=lambda rival: float(rival.mean()))
    return found
