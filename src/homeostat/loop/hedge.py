"""A look before the answer: what helped in one world is not asked first in another.

What was committed was verified on windows of one world. When the world moves on, the first window of the next is
answered before anything is learnt from it, and most of what a loop loses, it loses there. So while something else than
the deployed network is served, a window is looked at first. Its evidence e against being like those on which the
commit was verified is the mean, over the monitor's detectors, of what each would make of a capital of 1 in this window
alone: for a window of that world its mean is at most 1, and so e >= 1 / `hedge` has a probability of `hedge` at most.
Then the deployed network answers, unless the estimate says that what is served helps here, too. And it answers where
the estimate of this window alone is a loss, whatever the evidence: a change of labels or of their order leaves few
traces in one window, but a remedy that is for such a change shows by its own signs that it has none to work on. What
may not be served at all, since it predicts too few classes (`Plan.few`), does not answer either. Labels may show later
that what is served helps all the same (`probation`).

It costs no pass that would not be made anyway, but the answer waits for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homeostat.core.online import Bag
from homeostat.core.probe import Outputs
from homeostat.loop.monitor import evidence_of_one
from homeostat.loop.plan import Plan
from homeostat.loop.progress import Progress
from homeostat.loop.repertoire import Repertoire
from homeostat.loop.verify import guard


def doubt(plan: Plan, progress: Progress, repertoire: Repertoire, state: Bag, out: Tensor, seen: Outputs) -> str:
    """Why the deployed network is to answer a window in place of what is served, or nothing.

    Args:
        plan, progress, repertoire: the loop's.
        state: where the monitor keeps its own.
        out: what is served gives for the window.
        seen: what the deployed network gives.
    """
    if not plan.hedge or bool(torch.equal(out.argmax(-1), seen.logits.argmax(-1))):
        return ""
    if why := guard(out, seen.logits, plan.few):
        return why
    outlook = repertoire.outlook(progress, out, seen)
    if outlook.gain < 0:
        return f"what is served seems to do harm in it (a gain of {outlook.gain:+.1%} by its signs)"
    evidence = evidence_of_one(plan.monitor, seen, state)
    if evidence < 1 / plan.hedge or outlook.low >= 0:
        return ""
    return f"the window is unlike those on which it was verified (evidence {evidence:.3g})"
